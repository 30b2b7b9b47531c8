"""How a difference is judged: errors of right programs in units of their noise, and where mistakes lie."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxgrad.plots.theme import LIGHT, Theme, blank, legend, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Where a share is 0 or beyond any number, so that a log axis has a place for it.
LEAST, MOST = 1e-4, 1e17


class Judged(NamedTuple):
    """What is drawn: for each type the distances of right gradients, an element each, in units of its noise, and the
    shares of their limits, a tensor each; the shares of mistakes; the samples that noise was measured with, and the
    limit of an element in its units.
    """

    distances: Mapping[str, Float[np.ndarray, " elements"]]
    shares: Mapping[str, Sequence[float]]
    mistakes: Sequence[float]
    samples: int
    limit: float


def noise_and_limits(judged: Judged, theme: Theme = LIGHT) -> "Figure":
    """Above, how far elements of right gradients lie from the truth in units of their noise, beside Student's t, which
    the limit is taken from. Below, how much of its limit each right gradient takes, and each mistake.
    """
    figure, panels = blank(theme, (8.5, 6.6), rows=2, height_ratios=(1.2, 1))
    _distances(panels[0, 0], judged, theme)
    _shares(panels[1, 0], judged, theme)
    return figure


def _distances(axes: "Axes", judged: Judged, theme: Theme) -> None:
    from scipy.stats import t

    edges = np.linspace(0, judged.limit * 1.08, 60)
    for (dtype, distances), colour in zip(judged.distances.items(), theme.cycle, strict=False):
        density, _ = np.histogram(distances, edges)
        axes.stairs(density / (len(distances) * np.diff(edges)), edges, color=colour, linewidth=1.6,
                    label=f"{dtype}, {len(distances):,} elements")  # fmt: skip
    grid = np.linspace(0, edges[-1], 300)
    axes.plot(grid, 2 * t.pdf(grid, judged.samples), color=theme.text, linestyle="--", linewidth=1.2,
              label=f"Student's t, {judged.samples} degrees of freedom")  # fmt: skip
    axes.axvline(judged.limit, color=theme.cycle[1], linewidth=1.6)
    axes.set_yscale("log")
    axes.set_ylim(1e-7, 30)
    axes.text(judged.limit - 0.08, 8, "limit of an element", color=theme.text, fontsize=9, ha="right")
    axes.set(xlabel="distance of an element from the truth, in units of its measured noise", ylabel="density")
    title(axes, theme, "right gradients: by-node against jax.grad in float64")
    legend(axes, theme, loc="center right")


def _shares(axes: "Axes", judged: Judged, theme: Theme) -> None:
    rows = [*judged.shares.items(), ("mistakes", judged.mistakes)]
    for row, (name, shares) in enumerate(rows):
        colour = theme.cycle[1] if name == "mistakes" else theme.cycle[0]
        places = np.clip(np.asarray(shares, np.float64), LEAST, MOST)
        # Beside each other, by a spread that is not random, so that the picture is the same each time.
        heights = row + 0.5 * ((np.arange(len(places)) * 0.618) % 1 - 0.5)
        axes.plot(places, heights, "o", color=colour, markersize=3.5, alpha=0.6)
    axes.axvline(1, color=theme.cycle[1], linewidth=1.6)
    axes.set_xscale("log")
    axes.set_xlim(LEAST / 2, MOST * 2)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [f"{name} ({len(shares)})" for name, shares in rows])
    axes.set(xlabel="largest part of its limit that a gradient takes; beyond 1 it differs")
    title(axes, theme, "right gradients in three types, and mistakes planted in them in float64")
