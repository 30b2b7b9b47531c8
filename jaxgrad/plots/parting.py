"""Where two programs part: a square for every value, and what the verdict says."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxgrad.plots.theme import LIGHT, Theme, blank, legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS, INDENT = 104, 14


class Side(NamedTuple):
    """A program: its name, whether the other has each of its values, in order, and the number of the first that is
    wrong, or None where no value is.
    """

    name: str
    agree: Sequence[bool]
    first: int | None


def side_by_side(sides: Sequence[Side], said: Sequence[tuple[str, str]], theme: Theme = LIGHT) -> "Figure":
    """A row of squares for each program, from the inputs at the left to the outputs, and lines of a label and text.

    A full square has a value that both programs have, a hollow one has none, and the first that is wrong is marked.
    """
    from matplotlib.lines import Line2D

    rows = [row for label, text in said for row in _wrapped(label, text)]
    below = 0.21 * len(rows) + 0.1
    figure, panels = blank(theme, (8.9, 1.75 + below), rows=2, height_ratios=(1.35, below))
    axes, words = panels[:, 0]
    for of in (axes, words):
        of.set_axis_off()
    longest = max(len(side.agree) for side in sides)
    axes.set(xlim=(-0.13 * longest, longest), ylim=(len(sides) - 0.3, -0.85))
    for row, side in enumerate(sides):
        axes.text(-0.13 * longest, row, side.name, color=theme.text, fontsize=10, va="center", weight="bold")
        _squares(axes, theme, row, side)
    words.set(xlim=(0, COLUMNS), ylim=(len(rows) - 0.4, -0.6))
    font: dict[str, Any] = {"family": "monospace", "fontsize": 9, "va": "center"}
    for number, (label, text) in enumerate(rows):
        words.text(0, number, label, color=theme.cycle[0], **font)
        words.text(INDENT, number, text, color=theme.text, **font)
    mark: dict[str, Any] = {"linestyle": "", "markersize": 7}
    handles = [
        Line2D([], [], marker="s", color=theme.cycle[2], label="the other has it too", **mark),
        Line2D([], [], marker="s", markerfacecolor="none", color=theme.text, alpha=0.6, label="it has not", **mark),
        Line2D([], [], marker="s", color=theme.cycle[1], label="they part here", **mark),
    ]
    legend(axes, theme, handles=handles, loc="upper right", ncols=3, frameon=False)
    return figure


def _squares(axes: "Axes", theme: Theme, row: int, side: Side) -> None:
    for number, agrees in enumerate(side.agree):
        look = (theme.cycle[1], theme.cycle[1], 1.0) if number == side.first else (
            (theme.cycle[2], theme.cycle[2], 1.0) if agrees else ("none", theme.text, 0.45)
        )  # fmt: skip
        face, edge, alpha = look
        axes.plot(number + 0.5, row, "s", markersize=9, markerfacecolor=face, markeredgecolor=edge, alpha=alpha)


def _wrapped(label: str, text: str) -> list[tuple[str, str]]:
    first, *more = textwrap.wrap(text, COLUMNS - INDENT) or [""]
    return [(label, first), *(("", line) for line in more)]
