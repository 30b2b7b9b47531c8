"""A map of where two arrays differ, drawn without a script: a path for each shade, not an element for each cell."""

import math
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

from jaxgrad.pages.document import text

# Of each colour: within the limit and beyond it.
_SHADES = 6
_LOST = "lost"


def drawn(heat: Mapping[str, Any], limit: str = "its element's limit") -> str:
    """What `checking.heat.heat` found, as a drawing in HTML with its legend; `limit` says what levels are parts of.

    Blue is within the limit and orange beyond it, the stronger the farther; what is not finite is crossed.
    """
    grid, shape = heat["grid"], " × ".join(map(str, heat["shape"])) or "()"
    rows, columns = len(grid), len(grid[0]) if grid else 0
    if not rows or not columns:
        return f'<p class="soft">Shape {text(shape)}: nothing to draw.</p>'
    finite = [float(level) for line in grid for level in line if isinstance(level, (int, float))]
    lost = sum(isinstance(level, str) for line in grid for level in line)
    within, beyond = [x for x in finite if x <= 0], [x for x in finite if x > 0]
    ramps = {False: _ramp(within), True: _ramp(beyond)}
    places: dict[str, list[str]] = {}
    for y, line in enumerate(grid):
        for shade, x, width in _runs([_shade(level, ramps) for level in line]):
            places.setdefault(shade, []).append(f"M{x} {y}h{width}v1h-{width}z")
    paths = "".join(f'<path style="fill:{_colour(shade)}" d="{"".join(d)}"/>' for shade, d in places.items())
    crosses = "".join(
        f"M{x} {y}l1 1m-1 0l1 -1" for y, line in enumerate(grid) for x, level in enumerate(line) if level is not None
        and isinstance(level, str)
    )  # fmt: skip
    size = f"width:max(60px,min(100%,{26 * columns}px));height:{min(320, max(36, 12 * rows))}px"
    equal = rows * columns - len(finite) - lost
    return (
        f'<p class="soft">Shape {text(shape)}, {_cells(heat["shape"], rows, columns)}.'
        f" Colour: log10 of the difference over {text(limit)}.</p>"
        f'<svg class="map" viewBox="0 0 {columns} {rows}" preserveAspectRatio="none" role="img" style="{size}"'
        f' aria-label="errors in {rows} by {columns} cells">{paths}<path class="cross" d="{crosses}"/></svg>'
        + _legend(within, beyond, equal, lost)
    )


def _cells(shape: list[int], rows: int, columns: int) -> str:
    down, across = math.prod(shape[:-1]), shape[-1] if shape else 1
    block = -(-down // rows), -(-across // columns)
    if block == (1, 1):
        return "a cell for each element"
    return f"each of {rows} × {columns} cells shows the largest of up to {block[0]} × {block[1]} elements"


def _ramp(levels: list[float]) -> tuple[float, float]:
    return min(levels, default=0.0), max(levels, default=0.0)


def _shade(level: float | str | None, ramps: Mapping[bool, tuple[float, float]]) -> str | None:
    if level is None:
        return None
    if isinstance(level, str):
        return _LOST
    least, most = ramps[level > 0]
    step = round((_SHADES - 1) * (level - least) / (most - least)) if most > least else _SHADES - 1
    return f"{'alarm' if level > 0 else 'calm'} {step}"


def _runs(shades: Iterable[str | None]) -> Iterable[tuple[str, int, int]]:
    """Neighbours of one shade: the shade, where they begin, and how many they are."""
    at = 0
    for shade, cells in groupby(shades):
        width = len(list(cells))
        if shade is not None:
            yield shade, at, width
        at += width


def _colour(shade: str) -> str:
    if shade == _LOST:
        return "var(--ink)"
    kind, step = shade.split()
    return f"color-mix(in srgb,var(--{kind}-deep) {100 * int(step) // (_SHADES - 1)}%,var(--{kind}-low))"


def _legend(within: list[float], beyond: list[float], equal: int, lost: int) -> str:
    def ramp(kind: str, levels: list[float], word: str) -> str:
        if not levels:
            return ""
        colours = f"linear-gradient(90deg,var(--{kind}-low),var(--{kind}-deep))"
        ends = dict.fromkeys(f"{10**level:.2g}" for level in (min(levels), max(levels)))
        told = f"{len(levels)} cells {word}: {' to '.join(ends)}"
        return f'<div><i class="ramp" style="background:{colours}"></i>{told}</div>'

    def one(count: int, colour: str, words: str) -> str:
        return f'<div><i style="background:var(--{colour})"></i>{count} {words}</div>' if count else ""

    entries = ramp("calm", within, "within"), ramp("alarm", beyond, "beyond")
    return f'<div class="legend">{"".join(entries)}{one(equal, "equal", "equal")}{one(lost, "ink", "not finite")}</div>'
