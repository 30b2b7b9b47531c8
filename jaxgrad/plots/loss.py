"""Loss over the steps of a run, with its schedule, and of the runs of a sweep."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from jaxgrad.plots.theme import LIGHT, Theme, blank, legend

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def loss_curve(
    steps: Int[np.ndarray, " lines"],
    losses: Float[np.ndarray, " lines"],
    learning_rates: Float[np.ndarray, " lines"],
    theme: Theme = LIGHT,
) -> "Figure":
    """Loss, in nats, over steps, every line faintly and a running mean of 1 % of them; below it the learning rate."""
    figure, panels = blank(theme, (8, 5), 2, 1, sharex=True, height_ratios=(3, 1))
    upper, lower = panels[:, 0]
    width = max(len(losses) // 100, 1)
    # A line through few points is hard to see, and through one it is nothing.
    mark = "." if len(losses) < 10 else ""
    if width > 1:
        upper.plot(steps, losses, color=theme.cycle[0], alpha=0.35, linewidth=0.8, label="loss")
    named = f"mean of {width} lines" if width > 1 else "loss"
    upper.plot(steps[width - 1 :], _smooth(losses, width), color=theme.cycle[0], marker=mark, label=named)
    upper.set_ylabel("loss (nats per symbol)")
    legend(upper, theme, loc="upper right")
    # A line's rate is that of its last step, so it is drawn back to the line before.
    lower.plot(steps, learning_rates, color=theme.cycle[1], marker=mark, drawstyle="steps-pre")
    if (learning_rates > 0).all():
        lower.set_yscale("log")
    lower.margins(y=0.2)
    lower.set(xlabel="step", ylabel="learning rate")
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
    width = max(len(steps) // 100, 1)
    smooth = [_smooth(curve, width) for curve in curves]
    ends = steps[width - 1 :]
    mark = "." if len(steps) < 10 else ""
    for at, curve in enumerate(smooth[1:]):
        others = f"{len(curves) - 1} others" if at == 0 else None
        axes.plot(ends, curve, color=theme.cycle[0], alpha=0.5, linewidth=0.8, marker=mark, label=others)
    axes.plot(ends, smooth[0], color=theme.cycle[1], linewidth=1.8, marker=mark, label=f"best on dev: {labels[0]}")
    finite = smooth[0][np.isfinite(smooth[0])]
    if finite.size:
        # A run that diverges is off the picture, where it would leave the others no room.
        low, high = float(finite.min()), float(finite.max())
        axes.set_ylim(low - 0.1 * (high - low) - 0.01, high + 0.5 * (high - low) + 0.01)
    smoothing = f", mean of {width} lines" if width > 1 else ""
    axes.set(xlabel="step", ylabel=f"loss (nats per symbol{smoothing})")
    legend(axes, theme, loc="upper right", reverse=True)
    return figure


def _smooth(curve: Float[np.ndarray, " lines"], width: int) -> Float[np.ndarray, " fewer"]:
    return np.convolve(curve, np.ones(width) / width, mode="valid")
