"""Where two arrays differ, as a small grid: how far each block of elements is from its limit."""

import math
from typing import Any

import numpy as np

from jaxgrad.checking.compare import Difference, limit
from jaxgrad.checking.findings import Tensor

MOST_CELLS = 48


def of_pair(tensor: Tensor, pair: tuple[str, str]) -> dict[str, Any]:
    """The `heat` of two engines' values of a tensor, with their names, each element held to its own limit."""
    a, b = pair
    expected = tensor.values[b]
    return {"engines": [a, b], **heat(tensor.values[a], expected, _limits(tensor, expected, tensor.pairs[pair]))}


def heat(a: np.ndarray, b: np.ndarray, limits: Any, most: int = MOST_CELLS) -> dict[str, Any]:
    """The shape, and log10 of |a - b| over its limit on a grid of at most `most` by `most` cells.

    `limits` is a number, or one for each element. A cell holds the largest of its block; leading axes are joined into
    the grid's rows. It is None where nothing differs, and one of the strings "nan", "inf" and "-inf" where the ratio
    is not finite: where a or b is not, or the limit is 0. Raises `ValueError` where shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"arrays of the shapes {a.shape} and {b.shape} cannot be compared")
    columns = a.shape[-1] if a.ndim else 1
    rows = math.prod(a.shape[:-1])
    wide_a, wide_b = _wide(a), _wide(b)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        gap = np.where(wide_a == wide_b, 0.0, np.abs(wide_a - wide_b))
        # A difference of logarithms, because the quotient of a tiny gap and a large limit may underflow to 0.
        levels = np.where(gap == 0, -np.inf, np.log10(gap) - np.log10(np.asarray(limits, np.float64)))
    # Where nothing differs a level is -inf, below any number; NaN and inf are above all.
    along_rows = np.maximum.reduceat(levels.reshape(rows, columns), _starts(rows, most), 0)
    largest = np.maximum.reduceat(along_rows, _starts(columns, most), 1)
    return {"shape": list(a.shape), "grid": [[_cell(float(level)) for level in line] for line in largest]}


def _cell(level: float) -> float | str | None:
    if level == -math.inf:
        return None
    return round(level, 2) if math.isfinite(level) else str(level)


def _limits(t: Tensor, expected: np.ndarray, d: Difference) -> Any:
    """How far each element may be from the expected one: as noise explains, or a given tolerance spread evenly."""
    size = float(np.linalg.norm(_wide(expected)))
    if t.given_tolerance:
        return d.tolerance * size / math.sqrt(max(d.size, 1))
    # The noise of a pair is that of a tensor times a factor: two engines are rounded, or one is known to round more.
    own = float(np.linalg.norm(t.noise.deviation))
    factor = d.noise * size / own if own and math.isfinite(d.noise * size) else 1.0
    return limit(1.0, t.noise.samples, d.size) * (factor or 1.0) * t.noise.deviation


def _wide(array: np.ndarray) -> np.ndarray:
    array = np.asarray(array)
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _starts(size: int, most: int) -> np.ndarray:
    """Where each of at most `most` blocks of `size` elements begins."""
    blocks = min(size, most)
    return np.arange(blocks) * size // max(blocks, 1)
