"""The picture of how operations grow: their time and memory over rows, vocabulary and sequence."""

from typing import TYPE_CHECKING, Any

from jaxgrad.bench.op_cases import GROWTH, OURS, PLAIN, TORCH
from jaxgrad.plots.theme import LIGHT, Theme, blank, legend, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMS = (OURS, PLAIN, TORCH)


def figure(run: dict[str, Any], theme: Theme = LIGHT) -> "Figure":
    """A column for each growing number of a run in the form of `op_report.to_json`: seconds above, MiB below.

    PyTorch's memory is counted by nobody; a form that was compiled and not run has memory and no time.
    """
    drawn, panels = blank(theme, (4.6 * len(GROWTH), 6.4), 2, len(GROWTH))
    for column, (op, grows, sizes) in enumerate(GROWTH):
        rows = [row for row in run["growth"] if row["op"] == op and tuple(row["size"]) in sizes]
        axis = next(n for n, _ in enumerate(sizes[0]) if len({size[n] for size in sizes}) > 1)
        for form, colour in zip(FORMS, theme.cycle, strict=False):
            _line(panels[0, column], [(row["size"][axis], _milliseconds(row, form)) for row in rows], form, colour)
            _line(panels[1, column], [(row["size"][axis], _mebibytes(row, form)) for row in rows], form, colour)
        title(panels[0, column], theme, f"{op}: {grows}")
        panels[1, column].set_xlabel(f"{grows} (log scale)")
    panels[0, 0].set_ylabel("ms, forward and backward (log scale)")
    panels[1, 0].set_ylabel("temporary MiB (log scale)")
    legend(panels[0, 0], theme)
    of = run["environment"]
    drawn.suptitle(f"{of['cpu']}, {of['cores']} cores", fontsize=11, color=theme.text)
    return drawn


def _line(axes: "Axes", points: list[tuple[int, float | None]], form: str, colour: str) -> None:
    known = [(x, y) for x, y in sorted(points) if y]
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    if known:
        axes.plot(*zip(*known, strict=True), color=colour, marker="o", markersize=4, label=form)


def _milliseconds(row: dict[str, Any], form: str) -> float | None:
    seconds = row["forms"][form]["seconds"]
    return seconds and 1e3 * seconds["median"]


def _mebibytes(row: dict[str, Any], form: str) -> float | None:
    found = row["forms"][form]["temp_bytes"]
    return found and found / 2**20
