"""Two arrays -> how they differ, as data: exact, agreeing, largest difference, ulps, relative error, tolerance."""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

# A row whose rounding error is more than this many units of its own norm has lost ten bits to cancellation:
# its norm says nothing about its accuracy any more, and the norm of the terms that cancelled takes its place.
MOST_ROUNDINGS = 1024.0


class Scale(NamedTuple):
    """What a difference of this tensor is measured against.

    `kind` is "norm", the tensor's own 2-norm, or "terms", where the terms summed to get it cancel: the norm of
    their rounding errors, brought to the size that a tensor with `MOST_ROUNDINGS` roundings would have.
    `roundings` is the accumulated rounding error in units of roundoff, relative to `value`.
    """

    kind: str
    value: float
    roundings: float


class Difference(NamedTuple):
    """How two arrays differ. `relative` is the 2-norm of a - b over the scale; all are computed in float64."""

    exact: bool
    agrees: bool
    max_abs: float
    at: tuple[int, ...]
    values: tuple[float, float]
    ulps: float
    relative: float
    tolerance: float
    not_finite: str | None


def tolerance(dtype: Any, roundings: float) -> float:
    """The largest relative difference that rounding explains: `4 * eps * roundings`.

    eps is twice the unit roundoff, so that is eight standard deviations of the accumulated error of one engine,
    or more than five of the difference of two. `roundings` never exceeds `MOST_ROUNDINGS`, so no tolerance
    exceeds 9.1e-13 in float64 or 4.9e-4 in float32.
    """
    return 4.0 * float(jnp.finfo(dtype).eps) * roundings


def scale(value: np.ndarray, variance: np.ndarray) -> Scale:
    """The scale of a tensor, from its float64 value and the variance of its rounding error in units of roundoff."""
    norm, error = _norm(value), _norm(np.sqrt(variance))
    if error <= MOST_ROUNDINGS * norm:
        return Scale("norm", norm, error / norm if norm else 0.0)
    return Scale("terms", error / MOST_ROUNDINGS, MOST_ROUNDINGS)


def compare(a: np.ndarray, b: np.ndarray, scale: Scale, dtype: Any, limit: float | None = None) -> Difference:
    """How `a` and `b`, of one shape and computed in `dtype`, differ, judged by `limit` or the derived tolerance.

    A NaN or an infinity in either is never in agreement, whatever the other holds; `not_finite` then names it.
    Raises `ValueError` where shapes differ, which is no matter of rounding.
    """
    if a.shape != b.shape:
        raise ValueError(f"arrays of the shapes {a.shape} and {b.shape} cannot be compared")
    limit = tolerance(dtype, scale.roundings) if limit is None else limit
    wide_a, wide_b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.abs(wide_a - wide_b)
    worst = np.unravel_index(int(np.argmax(np.nan_to_num(gap, nan=np.inf))), gap.shape)
    at = tuple(int(i) for i in worst)
    at_worst = float(wide_a[worst]), float(wide_b[worst])
    not_finite = _not_finite(wide_a, wide_b)
    if not_finite:
        nan = float("nan")
        return Difference(False, False, float(gap[worst]), at, at_worst, nan, nan, limit, not_finite)
    distance = _norm(gap)
    relative = distance / scale.value if scale.value else (0.0 if distance == 0 else float("inf"))
    return Difference(
        exact=bool((gap == 0).all()),
        agrees=relative <= limit,
        max_abs=float(gap[worst]),
        at=at,
        values=at_worst,
        ulps=float((gap / _spacing(wide_a, wide_b, dtype)).max()),
        relative=relative,
        tolerance=limit,
        not_finite=None,
    )


def stands_alone(pairs: Mapping[tuple[str, str], Difference]) -> str | None:
    """The engine without which all others agree; None where there are fewer than two others, or no such engine."""
    engines = dict.fromkeys(itertools.chain.from_iterable(pairs))
    suspects = [e for e in engines if all(d.agrees for pair, d in pairs.items() if e not in pair)]
    return suspects[0] if len(engines) > 2 and len(suspects) == 1 else None


def _norm(x: np.ndarray) -> float:
    """The 2-norm, without the underflow that squares of tiny numbers have."""
    largest = float(np.max(np.abs(x), initial=0.0))
    return largest * float(np.linalg.norm(x / largest)) if 0 < largest < np.inf else largest


def _spacing(a: np.ndarray, b: np.ndarray, dtype: Any) -> np.ndarray:
    """The distance from the larger of |a| and |b| to the next number of `dtype`."""
    info = jnp.finfo(dtype)
    larger = np.maximum(np.maximum(np.abs(a), np.abs(b)), float(info.smallest_normal))
    exponent = np.floor(np.log2(larger))
    return np.exp2(exponent) * float(info.eps)


def _not_finite(a: np.ndarray, b: np.ndarray) -> str | None:
    bad_a, bad_b = ~np.isfinite(a), ~np.isfinite(b)
    if not (bad_a | bad_b).any():
        return None
    first = tuple(int(i) for i in np.unravel_index(int(np.argmax(bad_a | bad_b)), a.shape))
    return f"{a[first]} against {b[first]} at {list(first)}, {int((bad_a | bad_b).sum())} in all"
