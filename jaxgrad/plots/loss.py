"""Loss over the steps of a run, with its schedule, and of the runs of a sweep."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from jaxgrad.plots.theme import LIGHT, Theme, blank, legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def loss_curve(
    steps: Int[np.ndarray, " lines"],
    losses: Float[np.ndarray, " lines"],
    learning_rates: Float[np.ndarray, " lines"],
    theme: Theme = LIGHT,
) -> "Figure":
    """Loss, in nats, over steps, every line faintly and a mean of 1 % of them around it; below it the learning rate."""
    figure, panels = blank(theme, (8, 5), 2, 1, sharex=True, height_ratios=(3, 1))
    upper, lower = panels[:, 0]
    width, mark = _width(steps), _mark(steps)
    if width > 1:
        upper.plot(steps, losses, color=theme.cycle[0], alpha=0.4, linewidth=0.8, label=f"mean of {steps[0]:,} steps")
    upper.plot(
        *_smooth(steps, losses, width), color=theme.cycle[0], marker=mark, label=f"mean of {width * steps[0]:,} steps"
    )
    upper.set_ylabel("loss (nats per symbol)")
    legend(upper, theme, loc="upper right")
    # A line's rate is that of its last step, so it is drawn back to the line before.
    lower.plot(steps, learning_rates, color=theme.cycle[1], marker=mark, drawstyle="steps-pre")
    if (learning_rates > 0).all():
        lower.set_yscale("log")
    lower.margins(y=0.2)
    lower.set(xlabel="step", ylabel="learning rate")
    _in_steps(lower)
    return figure


def sweep_curves(
    steps: Int[np.ndarray, " windows"],
    curves: list[Float[np.ndarray, " windows"]],
    labels: list[str],
    theme: Theme = LIGHT,
) -> "Figure":
    """Smoothed loss, in nats, over steps: a faint line for every run, and a bold, named one for the first, the best."""
    figure, panels = blank(theme, (8, 4.5))
    axes = panels[0, 0]
    width, mark = _width(steps), _mark(steps)
    for at, curve in enumerate(curves[1:]):
        others = f"{len(curves) - 1} others" if at == 0 else None
        line = _smooth(steps, curve, width)
        axes.plot(*line, color=theme.cycle[0], alpha=0.65, linewidth=0.8, marker=mark, label=others)
    ends, best = _smooth(steps, curves[0], width)
    axes.plot(ends, best, color=theme.cycle[1], linewidth=1.8, marker=mark, label=f"best on dev: {labels[0]}")
    finite = best[np.isfinite(best)]
    if finite.size:
        # A run that diverges is off the picture, where it would leave the others no room.
        low, high = float(finite.min()), float(finite.max())
        axes.set_ylim(low - 0.1 * (high - low) - 0.01, high + 0.5 * (high - low) + 0.01)
    axes.set(xlabel="step", ylabel=f"loss (nats per symbol, mean of {width * steps[0]:,} steps)")
    _in_steps(axes)
    legend(axes, theme, loc="upper right", reverse=True)
    return figure


def _in_steps(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter("{x:,.0f}")


def _width(steps: Int[np.ndarray, " lines"]) -> int:
    return max(len(steps) // 100, 1)


def _mark(steps: Int[np.ndarray, " lines"]) -> str:
    # A line through few points is hard to see, and through one it is nothing.
    return "." if len(steps) < 10 else ""


def _smooth(
    steps: Int[np.ndarray, " lines"], curve: Float[np.ndarray, " lines"], width: int
) -> tuple[Float[np.ndarray, " fewer"], Float[np.ndarray, " fewer"]]:
    """Means of `width` neighbours, each at the middle of their steps: a fall is seen where it happens."""
    window = np.ones(width) / width
    return np.convolve(steps, window, mode="valid"), np.convolve(curve, window, mode="valid")
