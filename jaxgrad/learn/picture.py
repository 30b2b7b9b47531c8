"""A derivative as a picture of shapes: which arrays meet, and which axes are summed."""

import io
import math
import re
from typing import TYPE_CHECKING, NamedTuple

from jaxgrad.errors import JaxgradError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FILL, SUMMED, SPREAD = "#24292f", "#e8eef5", "#b3261e", "#0b57a4"
GAP, SHEETS = 0.62, 3


class Picture(NamedTuple):
    """A drawing that a notebook shows. It brings its own white ground, so that it reads on a dark page too."""

    svg: str

    def _repr_svg_(self) -> str:
        return self.svg


class _Array(NamedTuple):
    name: str
    axes: tuple[str, ...]


def shapes(spec: str, **sizes: int) -> Picture:
    """Draw `spec`, such as `"h[batch, h_size] * dlogits[batch, vocab] -> dW2[h_size, vocab]"`.

    Arrays are written with their axes, at most three, by names that `sizes` gives the lengths of, or 1. An axis on
    the left that the result does not have is summed: it is hatched in red. One that only the result has is copied:
    it is hatched in blue. `n·emb_size` is one axis that joins two. Signs between arrays are shown as they are
    written; `->` is shown as `=`.
    Raises `JaxgradError` for a spec that does not read so and for an axis without a size.
    """
    left, arrow, right = spec.partition("->")
    terms, made = _terms(left), _terms(right)
    if not arrow or len([t for t in made if isinstance(t, _Array)]) != 1:
        raise JaxgradError(f"{spec!r} is not of the form 'a[axis, ...] * b[axis, ...] -> c[axis, ...]'")
    result = next(term for term in made if isinstance(term, _Array))
    arrays = [term for term in terms if isinstance(term, _Array)]
    before, after = ({part for array in of for part in _parts(array.axes)} for of in (arrays, [result]))
    for axis in before | after:
        if axis not in sizes:
            raise JaxgradError(f"axis {axis!r} of {spec!r} has no size; give it as {axis}=...")
    if any(len(array.axes) > 3 for array in (*arrays, result)):
        raise JaxgradError(f"{spec!r} has an array of more than three axes; join some of them, as in n·emb_size")
    summed, spread = before - after, after - before
    return Picture(_drawn((*terms, "=", result), summed, spread, sizes))


def _terms(text: str) -> tuple[_Array | str, ...]:
    parts = re.findall(r"([^\s\[\]]+)\[([^\]]*)\]|(\S+)", text)
    return tuple(
        _Array(name, tuple(axis.strip() for axis in axes.split(",") if axis.strip())) if name else sign
        for name, axes, sign in parts
    )


def _parts(axes: tuple[str, ...]) -> set[str]:
    """The axes, and those joined in one, without the 1 that stands for an axis that is none."""
    return {part for axis in axes for part in axis.split("·")} - {"1"}


def _size(axis: str, sizes: dict[str, int]) -> int:
    return math.prod(sizes[part] for part in _parts((axis,)))


def _drawn(terms: tuple[_Array | str, ...], summed: set[str], spread: set[str], sizes: dict[str, int]) -> str:
    # The object interface draws without a display and without pyplot's list of open figures.
    import matplotlib
    from matplotlib.figure import Figure

    tallest = max(_box(term, sizes)[1] for term in terms if isinstance(term, _Array))
    notes = _notes(summed, spread)
    # What is drawn does not change from one time to the next: no date, and ids that hang on the drawing alone.
    with matplotlib.rc_context({"hatch.linewidth": 0.8, "svg.hashsalt": "shapes", "svg.fonttype": "none"}):
        figure = Figure()
        axes = figure.add_axes((0, 0, 1, 1))
        at = 0.35
        for number, term in enumerate(terms):
            if isinstance(term, _Array):
                marked = spread if number == len(terms) - 1 else summed
                at = _rectangle(axes, term, at, marked, SPREAD if marked is spread else SUMMED, sizes)
            else:
                room = 0.1 * (len(term) - 1)
                told = {"*": "×", "-": "−"}.get(term, term)
                axes.text(at + room / 2, 0, told, ha="center", va="center", fontsize=15, color=INK)
                at += GAP / 2 + room
        low = -tallest / 2 - 0.5
        for line, (words, colour) in enumerate(notes):
            axes.text(0.12, low - 0.3 * line, words, ha="left", va="center", fontsize=9, color=colour)
        wide = max(at, 0.2 + 0.082 * max((len(words) for words, _ in notes), default=0))
        bottom, top = low - 0.3 * len(notes) + (0.15 if notes else 0.1), tallest / 2 + 0.55
        axes.set(xlim=(0, wide), ylim=(bottom, top), aspect="equal")
        axes.axis("off")
        figure.set_size_inches(wide, top - bottom)
        image = io.StringIO()
        figure.savefig(image, format="svg", facecolor="white", metadata={"Date": None})
    return image.getvalue()


def _notes(summed: set[str], spread: set[str]) -> list[tuple[str, str]]:
    notes = []
    if summed:
        notes.append((f"summed over {' and '.join(sorted(summed))}: the result has no such axis", SUMMED))
    if spread:
        notes.append((f"copied along {' and '.join(sorted(spread))}: only the result has that axis", SPREAD))
    return notes


def _length(axis: str, sizes: dict[str, int]) -> float:
    """Inches for an axis: a size is told apart from another ten times as large, and both fit."""
    return 0.22 if axis == "1" else 0.35 + 0.17 * math.log2(max(_size(axis, sizes), 1))


def _box(array: _Array, sizes: dict[str, int]) -> tuple[float, float]:
    *_, rows, columns = ("1", "1", *array.axes)
    deep = 0.12 * (SHEETS - 1) if len(array.axes) == 3 else 0.0
    return _length(columns, sizes) + deep, _length(rows, sizes) + deep


def _rectangle(axes: "Axes", array: _Array, at: float, marked: set[str], colour: str, sizes: dict[str, int]) -> float:
    """Draw an array from `at` on, around the line y = 0, and return where the next sign goes."""
    from matplotlib.patches import Rectangle

    *outer, rows, columns = ("1", "1", *array.axes)
    width, height = _length(columns, sizes), _length(rows, sizes)
    whole, tall = _box(array, sizes)
    named = 0.095 * len(array.name)
    at += max((named - whole) / 2, 0.18 if len(array.axes) > 1 else 0.0)
    hatch = {(True, True): "++", (True, False): "||", (False, True): "--"}.get((rows in marked, columns in marked), "")
    depth = SHEETS if len(array.axes) == 3 else 1
    deep = outer[-1] if depth > 1 else "1"
    for sheet in reversed(range(depth)):
        corner = (at + 0.12 * sheet, -tall / 2 + 0.12 * sheet)
        axes.add_patch(Rectangle(corner, width, height, linewidth=1.2, facecolor=FILL, edgecolor=INK))
        over = hatch or ("//" if deep in marked else "")
        if over:
            axes.add_patch(Rectangle(corner, width, height, linewidth=1.2, fill=False, edgecolor=colour, hatch=over))
    axes.text(at + whole / 2, tall / 2 + 0.2, array.name, ha="center", va="center", fontsize=11, color=INK)
    for axis, x, y, turn in (
        (columns if array.axes else "1", at + width / 2, -tall / 2 - 0.16, 0),
        (rows if len(array.axes) > 1 else "1", at - 0.14, -tall / 2 + height / 2, 90),
        (deep, at + whole + 0.12, tall / 2 - 0.02, 0),
    ):
        if axis != "1":
            told, side = f"{axis} {_size(axis, sizes)}", "left" if axis == deep else "center"
            shade = colour if _parts((axis,)) <= marked else INK
            axes.text(x, y, told, ha=side, va="center", rotation=turn, fontsize=8.5, color=shade)
    room = 0.07 * len(f"{deep} {_size(deep, sizes)}") if deep != "1" else 0.0
    return at + max(whole + room, (named + whole) / 2) + GAP / 2
