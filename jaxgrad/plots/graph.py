"""A model's nodes and how they hang together."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jaxgrad.plots.theme import LIGHT, Theme, blank

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 5
WIDE, HIGH = 0.78, 0.36


def model_graph(
    nodes: Sequence[str], parameters: Sequence[str], users: Mapping[str, Sequence[str]], theme: Theme = LIGHT
) -> "Figure":
    """Nodes in the order of the forward pass, five to a row, rows read to and fro; arrows lead to the users of each.

    Parameters, in another colour, stand above the node that uses them.
    """
    rows = -(-len(nodes) // COLUMNS)
    figure, panels = blank(theme, (8.5, 1.1 * rows))
    axes = panels[0, 0]
    axes.set_axis_off()
    axes.set(xlim=(-0.55, COLUMNS - 0.45), ylim=(rows - 0.62, -0.82))
    places = {name: _place(number) for number, name in enumerate(nodes)}
    for name, place in places.items():
        for user in users.get(name, ()):
            _arrow(axes, theme, place, places[user])
    for name, place in places.items():
        _box(axes, theme, name, place)
        own = [p for p in parameters if name in users.get(p, ())]
        axes.text(place[0], place[1] - HIGH / 2 - 0.05, "  ".join(own), color=theme.cycle[1], fontsize=9, ha="center",
                  va="bottom", weight="bold")  # fmt: skip
    return figure


def _place(number: int) -> tuple[float, float]:
    row, column = divmod(number, COLUMNS)
    return float(column if row % 2 == 0 else COLUMNS - 1 - column), float(row)


def _box(axes: "Axes", theme: Theme, name: str, place: tuple[float, float]) -> None:
    from matplotlib.patches import FancyBboxPatch

    x, y = place
    axes.add_patch(
        FancyBboxPatch(
            (x - WIDE / 2, y - HIGH / 2), WIDE, HIGH, boxstyle="round,pad=0,rounding_size=0.06",
            facecolor=theme.face, edgecolor=theme.cycle[0], linewidth=1.4, zorder=3,
        )
    )  # fmt: skip
    axes.text(x, y, name, color=theme.text, fontsize=9, ha="center", va="center", family="monospace", zorder=4)


def _arrow(axes: "Axes", theme: Theme, start: tuple[float, float], end: tuple[float, float]) -> None:
    """An arrow from the edge of one box to that of another; one that passes boxes of its row bows below them."""
    from matplotlib.patches import FancyArrowPatch

    (x, y), (u, v) = start, end
    side = 1 if u > x else -1
    far = y == v and abs(u - x) > 1
    if far:
        ends, bow = ((x, y + HIGH / 2), (u, v + HIGH / 2)), side * 0.22
    elif y == v:
        ends, bow = ((x + side * WIDE / 2, y), (u - side * WIDE / 2, v)), 0.0
    else:
        ends, bow = ((x, y + HIGH / 2), (u, v - HIGH / 2)), 0.0
    axes.add_patch(
        FancyArrowPatch(
            *ends, connectionstyle=f"arc3,rad={bow}", arrowstyle="-|>", mutation_scale=10, color=theme.text,
            linewidth=1.0, shrinkA=0, shrinkB=0, alpha=0.75, zorder=2,
        )
    )  # fmt: skip
