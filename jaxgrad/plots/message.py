"""A message of several lines, drawn as a terminal shows it."""

import textwrap
from typing import TYPE_CHECKING, Any

from jaxgrad.plots.theme import LIGHT, Theme, blank

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Of a monospaced line, in characters and points; the font's characters are 0.602 of its size wide.
COLUMNS, SIZE, LEADING, WIDTH = 104, 10, 1.45, 0.602
# Where the text begins after the label of a line, as `checking.explain` lays it out.
LABELLED = 12


def message_text(text: str, theme: Theme = LIGHT) -> "Figure":
    """The text in a monospaced font: its first line as a headline, the labels of the others in a colour.

    A line that is too long goes on below its own text. `text` is laid out as the message of a failed check is: a
    headline, an empty line, and lines of a label and what it says.
    """
    headline, *rest = text.splitlines()
    rows = [(headline, ""), *(row for line in rest for row in _rows(line))]
    wide = (COLUMNS * WIDTH + 2) * SIZE / 72
    high = (len(rows) + 1) * SIZE * LEADING / 72
    figure, panels = blank(theme, (wide, high))
    axes = panels[0, 0]
    axes.set_axis_off()
    axes.set(xlim=(0, COLUMNS), ylim=(len(rows) - 0.4, -0.6))
    for number, (label, said) in enumerate(rows):
        colour = theme.cycle[1] if number == 0 else theme.cycle[0]
        of_row: dict[str, Any] = {"family": "monospace", "fontsize": SIZE, "va": "center"}
        axes.text(0, number, label, color=colour, weight="bold" if number == 0 else "normal", **of_row)
        axes.text(LABELLED, number, said, color=theme.text, **of_row)
    return figure


def _rows(line: str) -> list[tuple[str, str]]:
    """A line as its label and text, and the rows that the text goes on in."""
    label, said = line[:LABELLED], line[LABELLED:]
    first, *more = textwrap.wrap(said, COLUMNS - LABELLED) or [""]
    return [(label, first), *(("", row) for row in more)]
