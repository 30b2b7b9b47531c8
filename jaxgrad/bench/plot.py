"""The picture of a run: microseconds a step of every competitor, a panel for each size."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxgrad import files
from jaxgrad.bench.report import titled
from jaxgrad.plots.theme import LIGHT, Theme, blank, image, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# In the order in which they have the theme's colours.
LIBRARIES = {"jax": "JAX", "torch": "PyTorch"}


def figure(run: dict[str, Any], theme: Theme = LIGHT) -> "Figure":
    """Medians with quartiles on a log axis, of a run in the form of `report.to_json`; the fastest of a size on top.

    Those that were not timed are left out.
    """
    from matplotlib.lines import Line2D

    sizes = run["sizes"]
    drawn, panels = blank(theme, (max(4.6 * len(sizes), 7.0), 4.4), 1, len(sizes))
    for axes, size in zip(panels[0], sizes, strict=True):
        _panel(axes, size, theme)
    marks = [Line2D([], [], color=_colour(name, theme), marker="o", label=LIBRARIES[name]) for name in LIBRARIES]
    drawn.legend(handles=marks, loc="outside lower right", ncols=2, fontsize=9, frameon=False, labelcolor=theme.text)
    of = run["environment"]
    drawn.suptitle(
        f"One training step · {of['jax_device_kind']} · {of['cpu']}, {of['cores']} cores",
        fontsize=11, color=theme.text,
    )  # fmt: skip
    return drawn


def save(run: dict[str, Any], path: Path) -> None:
    """Write the picture as a PNG."""
    files.write_bytes(path, image(figure(run), "png"))


def _colour(library: str, theme: Theme) -> str:
    return theme.cycle[list(LIBRARIES).index(library)]


def _panel(axes: "Axes", size: dict[str, Any], theme: Theme) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    timed = sorted(
        (p for p in size["peers"] if p["reason"] is None), key=lambda p: p["seconds_per_step"]["median"], reverse=True
    )
    for at, peer in enumerate(timed):
        first, median, last = (1e6 * peer["seconds_per_step"][key] for key in ("low", "median", "high"))
        colour = _colour(peer["library"], theme)
        axes.errorbar(median, at, xerr=[[median - first], [last - median]], fmt="o", color=colour, capsize=3)
        axes.annotate(
            _short(median), (last, at), xytext=(7, 0), textcoords="offset points", va="center", fontsize=9,
            color=theme.text,
        )  # fmt: skip
    axes.set_yticks(range(len(timed)), [peer["name"] for peer in timed])
    axes.set_ylim(-0.7, len(timed) - 0.3)
    axes.set_xscale("log")
    if timed:
        ends = [1e6 * p["seconds_per_step"][key] for p in timed for key in ("low", "high")]
        # Room for the number to the right of the slowest.
        axes.set_xlim(min(ends) / 1.5, max(ends) * (max(ends) / min(ends)) ** 0.3 * 1.5)
    low, high = axes.get_xlim()
    # Labels at 2 and 5 of every decade would run into each other where there are many.
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 40 * low else (1.0, 2.0, 5.0), numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.grid(visible=False)
    axes.set_xlabel("µs a step (log scale)")
    title(axes, theme, titled(size))


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
