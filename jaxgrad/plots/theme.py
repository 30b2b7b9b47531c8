"""What all pictures share: a light and a dark ground, colours that everybody can tell apart, and how one is written."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxgrad import files
from jaxgrad.errors import JaxgradError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")
DPI = 100


class Theme(NamedTuple):
    """Colours: of the ground, of what is written on it, of its grid, and of what is drawn, in turn.

    The cycle is Okabe and Ito's (2008, "Color universal design"), which colour-blind people tell apart, with some
    colours darker or lighter than theirs, so that each stands out from the ground at 3 : 1 at least.
    """

    face: str
    text: str
    grid: str
    cycle: tuple[str, str, str, str]


LIGHT = Theme("#ffffff", "#1f2328", "#d1d9e0", ("#0072b2", "#d55e00", "#008a66", "#a3488a"))
DARK = Theme("#0d1117", "#e6edf3", "#3d444d", ("#56b4e9", "#e69f00", "#1fb58a", "#e08dbb"))


def blank(
    theme: Theme, size: tuple[float, float], rows: int = 1, columns: int = 1, **layout: Any
) -> tuple["Figure", Any]:
    """A figure of `size` inches and its axes, an array of `rows` by `columns`; `layout` is that of `subplots`."""
    # The object interface draws without a display and without pyplot's list of open figures.
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, facecolor=theme.face)
    # Pictures are put on pages of their own ground, where what touches the edge looks cut.
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    panels = figure.subplots(rows, columns, squeeze=False, **layout)
    for axes in panels.flat:
        dress(axes, theme)
    return figure, panels


def dress(axes: "Axes", theme: Theme) -> None:
    """Give axes the theme's colours; every one is set, so that a user's own style file changes none of them."""
    axes.set_facecolor(theme.face)
    axes.tick_params(which="both", colors=theme.text, labelcolor=theme.text)
    axes.xaxis.label.set_color(theme.text)
    axes.yaxis.label.set_color(theme.text)
    for spine in axes.spines.values():
        spine.set_color(theme.grid)
    axes.grid(color=theme.grid, linewidth=0.6)
    axes.set_axisbelow(True)


def title(axes: "Axes", theme: Theme, text: str) -> None:
    """A title over axes, at their left."""
    axes.set_title(text, color=theme.text, fontsize=10, loc="left")


def legend(of: "Axes | Figure", theme: Theme, **place: Any) -> None:
    """A legend in the theme's colours; `place` is that of matplotlib's `legend`."""
    of.legend(facecolor=theme.face, edgecolor=theme.grid, labelcolor=theme.text, fontsize=9, **place)


def shown(symbols: tuple[str, ...]) -> list[str]:
    """Symbols as labels: one that the font lacks, and would draw as an empty box, by its code point."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties()))
    return [symbol if font.get_char_index(ord(symbol)) else f"U+{ord(symbol):04X}" for symbol in symbols]


def thinned(axis_labels: list[str], most: int = 40) -> tuple[np.ndarray, list[str]]:
    """Where labels go, counted from 0, and which: every n-th where there are more than `most`."""
    every = -(-len(axis_labels) // most)
    return np.arange(0, len(axis_labels), every), axis_labels[::every]


def check_format(path: Path) -> str:
    """The format that a picture's name asks for; raises `JaxgradError` for one that is none of `FORMATS`."""
    ending = path.suffix.lower().removeprefix(".")
    if ending not in FORMATS:
        raise JaxgradError(f"{path}: ends in {path.suffix!r}; give a picture a name that ends in .png, .svg or .pdf")
    return ending


def image(figure: "Figure", form: str) -> bytes:
    """A figure in one of `FORMATS`; the same figure gives the same PNG."""
    # A date would make a picture that did not change another file.
    undated: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    data = io.BytesIO()
    figure.savefig(data, format=form, dpi=DPI, facecolor=figure.get_facecolor(), metadata=undated.get(form))
    return data.getvalue()


def save(figure: "Figure", path: Path) -> None:
    """Write a figure whole or not at all; raises `JaxgradError` as `check_format` and `files.write_bytes` do."""
    files.write_bytes(path, image(figure, check_format(path)))
