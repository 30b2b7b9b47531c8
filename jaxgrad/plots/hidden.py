"""What the hidden layer does over training: how saturated tanh is, and what batch norm measures."""

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxgrad.plots.theme import LIGHT, Theme, blank, legend, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Where |tanh| is larger, less than 6 % of a gradient passes: 1 - 0.97^2.
SATURATED = 0.97
LEVELS = (0.01, 0.25, 0.5, 0.75, 0.99)
SHADES = (0.18, 0.35)


class Watched(NamedTuple):
    """The hidden layer on one batch that stays the same, before some of the steps of a run.

    `saturated` is the share of the batch on which a neuron's |h| is above `SATURATED`; `h_norm` are the quantiles
    `LEVELS` of that node's entries; `mean` and `var` are the nodes bnmean and bn_var.
    """

    steps: Int[np.ndarray, " marks"]
    saturated: Float[np.ndarray, "marks h_size"]
    h_norm: Float[np.ndarray, "marks levels"]
    mean: Float[np.ndarray, "marks h_size"]
    var: Float[np.ndarray, "marks h_size"]


def hidden_layer(watched: Watched, theme: Theme = LIGHT) -> "Figure":
    """Four panels over steps, on a log axis that begins at 0: saturation, what tanh is given, batch mean and variance.

    A line is the median and bands are the quantiles `LEVELS`: over all entries of h_norm, over neurons of the others.
    """
    figure, panels = blank(theme, (10, 6.8), 2, 2, sharex=True)
    (share, given), (mean, var) = panels
    _bands(share, watched.steps, _levels(watched.saturated), theme, 1)
    share.plot(watched.steps, watched.saturated.mean(1), color=theme.text, linestyle="--", linewidth=1)
    share.set_ylim(bottom=0)
    share.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    title(share, theme, f"share of the batch on which a neuron has |h| > {SATURATED}")
    _bands(given, watched.steps, watched.h_norm, theme, 0)
    for edge in (-math.atanh(SATURATED), math.atanh(SATURATED)):
        given.axhline(edge, color=theme.text, linestyle=":", linewidth=1.2)
    title(given, theme, "h_norm, which tanh is given, of all neurons and rows")
    _bands(mean, watched.steps, _levels(watched.mean), theme, 2)
    title(mean, theme, "bnmean of a neuron")
    _bands(var, watched.steps, _levels(watched.var), theme, 3)
    var.set_ylim(bottom=0)
    title(var, theme, "bn_var of a neuron")
    for axes in (mean, var):
        axes.set_xscale("symlog", linthresh=1, linscale=0.4)
        axes.set(xlabel="step (log scale)", xlim=(0, watched.steps[-1]))
    handles = _handles(theme)
    legend(figure, theme, handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _levels(of_neurons: Float[np.ndarray, "marks h_size"]) -> Float[np.ndarray, "marks levels"]:
    return np.quantile(of_neurons, LEVELS, axis=1).T


def _bands(
    axes: "Axes", steps: Int[np.ndarray, " marks"], levels: Float[np.ndarray, "marks levels"], theme: Theme, turn: int
) -> None:
    colour = theme.cycle[turn]
    for k, alpha in enumerate(SHADES):
        axes.fill_between(steps, levels[:, k], levels[:, -1 - k], color=colour, alpha=alpha, linewidth=0)
    axes.plot(steps, levels[:, 2], color=colour, linewidth=1.6)


def _handles(theme: Theme) -> list:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    return [
        *(
            Patch(color=theme.text, alpha=alpha, linewidth=0, label=f"{LEVELS[k]:.0%} to {LEVELS[-1 - k]:.0%}")
            for k, alpha in enumerate(SHADES)
        ),
        Line2D([], [], color=theme.text, linestyle="-", label="median"),
        Line2D([], [], color=theme.text, linestyle="--", label="mean"),
        Line2D([], [], color=theme.text, linestyle=":", label=f"|tanh| = {SATURATED}"),
    ]
