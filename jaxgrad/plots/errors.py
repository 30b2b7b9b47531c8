"""How far each gradient is from the truth, in every type."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxgrad.plots.theme import LIGHT, Theme, blank, legend

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Errors(NamedTuple):
    """Relative errors of one type, a number a name, and the largest ones that measured noise explains."""

    dtype: str
    relative: Float[np.ndarray, " names"]
    tolerance: Float[np.ndarray, " names"]


def node_errors(names: tuple[str, ...], of_types: list[Errors], engine: str, theme: Theme = LIGHT) -> "Figure":
    """Errors on a log axis, a line a name, a colour a type: a dot, and a bar where its limit lies.

    An error of 0, which such an axis does not have, is a hollow triangle at the left. `engine` is whose they are.
    """
    from matplotlib.lines import Line2D

    figure, panels = blank(theme, (8.5, 7.5))
    axes = panels[0, 0]
    every = np.concatenate([part for errors in of_types for part in (errors.relative, errors.tolerance)])
    positive = every[np.isfinite(every) & (every > 0)]
    least = float(positive.min()) if positive.size else 1e-16
    rows = np.arange(len(names))
    for at, (errors, colour) in enumerate(zip(of_types, theme.cycle, strict=False)):
        exact, judged = errors.relative == 0, errors.tolerance > 0
        both = judged & ~exact
        axes.hlines(rows[both], errors.relative[both], errors.tolerance[both], color=colour, linewidth=0.8, alpha=0.6)
        axes.plot(errors.relative[~exact], rows[~exact], "o", color=colour, markersize=5)
        axes.plot(errors.tolerance[judged], rows[judged], "|", color=colour, markersize=11, markeredgewidth=1.8)
        # Side by side: a name whose gradient is without error in one type is often so in all.
        left = np.full(exact.sum(), least / 10 ** (2 - 0.5 * at))
        axes.plot(left, rows[exact], "<", markerfacecolor="none", markeredgecolor=colour)
    axes.set_xscale("log")
    axes.set_yticks(rows, names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set(xlabel=f"relative error of {engine} against jax.grad in float64", ylabel="backward order, downwards")
    marks = [
        *(
            Line2D([], [], color=c, marker="o", linestyle="", label=e.dtype)
            for e, c in zip(of_types, theme.cycle, strict=False)
        ),
        Line2D([], [], color=theme.text, marker="|", markersize=11, linestyle="", label="limit of rounding"),
        Line2D([], [], color=theme.text, marker="<", markerfacecolor="none", linestyle="", label="no error at all"),
    ]
    legend(figure, theme, handles=marks, loc="outside lower center", ncols=len(marks))
    return figure
