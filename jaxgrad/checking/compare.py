r"""Two arrays and their noise -> how they differ, as a whole, in every slice and in every element.

`Noise` holds the root mean square $\hat\sigma_i$ of S samples of each element's rounding error (`jaxprs.noise`). The
square of a difference summed over a set of elements, $D^2 = \sum_i d_i^2$, is compared with what noise makes of it,
$V = \sum_i \hat\sigma_i^2$. If the errors of the set come from $\nu$ independent roundings of like size, $D^2/\sigma^2$
is $\chi^2_\nu$ and $V/\sigma^2$ is $\chi^2_{S\nu}/S$, so that
$$D^2 / V \sim F_{\nu, S\nu},$$
and the limit is its quantile at $1 - \alpha$ over the number of sets looked at. One element has $\nu = 1$ and the
limit is that of Student's t with S degrees of freedom: 8.5 standard deviations for 32 samples. Of a slice and of the
whole, $\nu$ is measured: the samples' own $D_s^2$ have variance $2/\nu$ times their squared mean. Few samples tell it
poorly, so a third of it is used, and never less than 1. No limit is below `LEAST` deviations, because another right
formula, or another library, need not round as the program does that was measured.
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float
from scipy.special import betaincinv

# The chance of a false alarm that each of the three statistics of a tensor is given.
ALPHA = 1e-9
# The error that float32 and bfloat16 really make is up to twice the measured noise (tests/jaxprs/test_noise.py, which
# fails above that); another right formula may make as much again.
LEAST = 4.0
# A tensor of which more than this share cannot be judged has not been judged.
MOST_UNJUDGED = 0.25
# Samples are taken apart into so many elements, whose squares stay in a core's cache and need no memory of their own.
_PART = 2**16


class Noise(NamedTuple):
    """The rounding error of a tensor, measured.

    `deviation` is its root mean square, element by element; `samples` says over how many; `freedom` how many
    independent roundings make the error of the whole tensor, and then of a slice along each axis. Elements where
    `unsure` is true hang on a choice that rounding may flip (the order of a sort, the sign before a relu). Of those
    that are `lost` too, because rounding can make them infinite, not even NaN would be a difference.
    """

    deviation: Float[np.ndarray, "*shape"]
    samples: int
    freedom: tuple[float, ...]
    unsure: Bool[np.ndarray, "*shape"]
    lost: Bool[np.ndarray, "*shape"] | bool = False


class Difference(NamedTuple):
    """How two arrays differ, computed in float64.

    `share` is the largest part of its limit that any statistic takes: above 1 the arrays differ, and `where` names
    the statistic ("as a whole", "slice 3 of axis 0", "element [3, 4]"). `relative` is the 2-norm of the difference
    over that of the expected array and `noise` that of the noise; `tolerance` is the limit of `relative`, so for a
    tensor that differs only in a slice it is not what decided. `unjudged` counts elements of which nothing can be
    said: they hang on a choice, or are part of a slice or tensor that drowns in its noise (`faint`).
    `not_finite` describes NaN or infinities that are not the same in both; `both_nan` NaN at the same places.
    """

    exact: bool
    agrees: bool
    share: float
    where: str
    max_abs: float
    at: tuple[int, ...]
    values: tuple[complex, complex]
    ulps: float
    relative: float
    noise: float
    tolerance: float
    unjudged: int
    faint: int
    size: int
    not_finite: str | None
    both_nan: str | None

    @property
    def judged(self) -> bool:
        """Whether enough elements were compared for the answer to mean something."""
        return self.unjudged <= MOST_UNJUDGED * self.size


class Spread:
    """Collects samples of a tensor's rounding error, one at a time, without keeping them.

    The one mutable thing of this room: with S samples kept, a large model's noise would take S times its memory.
    """

    def __init__(self, expected: np.ndarray) -> None:
        self.expected = np.asarray(expected)
        self.number = is_number(self.expected)
        # Squares of slices are of numbers around 1, so that none of them underflows. Of single elements, where tiny
        # ones stand beside large ones, the root of the sum is kept, and no square is.
        self.unit = largest(self.expected) if self.number else 1.0
        self.even = self.number and _is_even(self.expected, self.unit)
        self.summed = np.zeros(self.expected.shape)
        self.differs = np.zeros(self.expected.shape, bool)
        self.slices: list[list[np.ndarray]] = []

    def add(self, sample: np.ndarray) -> None:
        """One more evaluation with its roundings drawn at random."""
        if not self.number:
            self.differs |= sample != self.expected
            return
        sums = [np.zeros(()), *(np.zeros(size) for size in self.expected.shape)]
        for part in _parts(self.expected.shape):
            squares = self._squares(part, np.asarray(sample)[part])
            with np.errstate(over="ignore"):
                sums[0] += squares.sum()
                for axis, of_slices in enumerate(sums[1:]):
                    of_slices[part if axis == 0 else ...] += along(squares, axis)
        self.slices.append(sums)

    def _squares(self, part: Any, sample: np.ndarray) -> np.ndarray:
        """The squares of the errors of a part of the elements, in units; 0 where nothing can be said."""
        expected = self.expected[part]
        if self.even:
            with np.errstate(invalid="ignore", over="ignore"):
                errors = (sample - expected) / self.unit
                squares = errors * errors if errors.dtype.kind == "f" else errors.real**2 + errors.imag**2
            if np.isfinite(squares.sum()):
                self.summed[part] += squares
                return squares
        same = (sample == expected) | ~np.isfinite(expected)
        with np.errstate(invalid="ignore", over="ignore"):
            errors = np.where(same, 0.0, np.abs(sample - expected))
            squares = (errors / self.unit) ** 2
        finite = np.isfinite(squares)
        # A finite value that some roundings make infinite is one that nothing can be said of.
        self.differs[part] |= ~finite
        squares = np.where(finite, squares, 0.0)
        if self.even:
            self.summed[part] += squares
        else:
            self.summed[part] = np.hypot(self.summed[part], np.where(finite, errors, 0.0))
        return squares

    def noise(self) -> Noise:
        """What the samples so far tell; `unsure` are elements that a rounding made infinite, or another integer."""
        samples = max(len(self.slices), 1)
        freedom = tuple(_freedom(np.stack(each)) for each in zip(*self.slices, strict=True))
        lost = self.differs if self.number else False
        roots = self.unit * np.sqrt(self.summed) if self.even else self.summed
        return Noise(roots / math.sqrt(samples), samples, freedom or (1.0,), self.differs, lost)


def _parts(shape: tuple[int, ...]) -> list[Any]:
    """Stretches of the first axis, of about `_PART` elements each."""
    size = math.prod(shape)
    if size <= _PART:
        return [...]
    rows = max(1, _PART * shape[0] // size)
    return [slice(start, start + rows) for start in range(0, shape[0], rows)]


def is_number(array: np.ndarray) -> bool:
    """Whether an array is of a float or complex type, NumPy's or an extension's, and so is rounded."""
    return bool(jnp.issubdtype(array.dtype, jnp.inexact))


def _freedom(sums: np.ndarray) -> float:
    """The number of independent roundings in sums of their squares, one row a sample: a third of the estimate."""
    with np.errstate(over="ignore"):
        mean = sums.mean(0)
    if len(sums) < 2 or not (mean > 0).any():
        return 1.0
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        spread = float(np.mean((sums.var(0, ddof=1) / mean**2)[mean > 0]))
    return max(1.0, 2 / max(spread, 1e-9) / 3) if np.isfinite(spread) else 1.0


def exact(expected: np.ndarray) -> Noise:
    """The noise of what is not rounded at all."""
    shape = np.shape(expected)
    return Noise(np.zeros(shape), 1, (1.0,), np.zeros(shape, bool))


def floored(noise: Noise, expected: np.ndarray, dtype: Any) -> Noise:
    """Noise with at least the rounding of the result itself to its type, and the size of what underflows."""
    if not is_number(expected):
        return noise
    info = jnp.finfo(dtype)
    size = np.where(np.isfinite(expected), np.abs(expected), 0.0)
    own = np.maximum(float(info.eps) / 2 * size, float(info.smallest_normal))
    return noise._replace(deviation=np.maximum(noise.deviation, own))


def scaled(noise: Noise, factor: float) -> Noise:
    """Noise whose standard deviation is `factor` times as large."""
    return noise._replace(deviation=noise.deviation * factor)


def limit(freedom: float, samples: int, count: int = 1) -> float:
    """The largest ratio of D to the root of V that noise makes in one of `count` sets, but for a chance of `ALPHA`."""
    # The quantile of F from that of the beta distribution, whose tail can be asked for itself.
    a, b = samples * freedom / 2, freedom / 2
    y = float(betaincinv(a, b, ALPHA / max(count, 1)))
    return max(LEAST, math.sqrt(samples * (1 - y) / y)) if y > 0 else math.inf


def compare(
    expected: np.ndarray, actual: np.ndarray, noise: Noise, dtype: Any, tolerance: float | None = None
) -> Difference:
    """How `actual` differs from `expected`, of one shape, where `noise` is that of the difference.

    `tolerance` replaces the three statistics by a limit of the relative 2-norm. Integers and booleans agree where
    they are equal. Infinities of one sign at one place agree; NaN at one place too, but `both_nan` says so.
    Raises `ValueError` where shapes differ, which is no matter of rounding.
    """
    expected, actual = np.asarray(expected), np.asarray(actual)
    if expected.shape != actual.shape:
        raise ValueError(f"arrays of the shapes {expected.shape} and {actual.shape} cannot be compared")
    a, b = _wide(expected), _wide(actual)
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.abs(a - b)
        usual = bool(np.isfinite(gap.sum())) and not noise.unsure.any()
    if usual:
        # Nearly always, and of a large array each pass over it takes its time.
        nan = unsure = bad = np.broadcast_to(np.False_, gap.shape)
        same, judged, of_expected = gap == 0, gap, _norm(a)
    else:
        nan = np.isnan(a) & np.isnan(b)
        same = (a == b) | nan
        # An element that hangs on a choice and is equal all the same has been judged; NaN beside a number is no choice.
        unsure = noise.unsure & ~same & (noise.lost | ~np.isnan(b) | ~np.isfinite(a))
        bad = ~np.isfinite(gap) & ~same & ~unsure
        judged = np.where(same | bad | unsure, 0.0, gap)
        of_expected = _norm(np.where(np.isfinite(a), np.abs(a), 0.0))
    faint = _faint(a, noise, dtype) & ~same if tolerance is None and is_number(expected) else np.zeros(gap.shape, bool)
    relative = math.nan if bad.any() else _ratio(_norm(judged), of_expected)
    if tolerance is not None:
        share, where, most = _ratio(relative, tolerance), "as a whole", tolerance
    elif is_number(expected):
        share, where, whole = _shares(judged, noise)
        most = _ratio(whole, of_expected)
    else:
        share, where, most = (math.inf if judged.any() else 0.0), "as a whole", 0.0
    at = _first(bad) if bad.any() else _worst(judged, noise.deviation)
    return Difference(
        exact=bool(same.all()),
        agrees=bool(not bad.any() and share <= 1),
        share=share,
        where=where,
        max_abs=float(gap[at] if bad.any() else np.max(gap, where=~same, initial=0.0)),
        at=at,
        values=(a[at].item(), b[at].item()) if gap.size else (0.0, 0.0),
        ulps=float(np.max(judged / _spacing(a, b, dtype), initial=0.0)) if is_number(expected) else 0.0,
        relative=relative,
        noise=_ratio(_norm(noise.deviation), of_expected),
        tolerance=most,
        unjudged=int((unsure | faint).sum()),
        faint=int(faint.sum()),
        size=int(gap.size),
        not_finite=f"{a[at]} against {b[at]} at {list(at)}, {int(bad.sum())} in all" if bad.any() else None,
        both_nan=f"first at {list(_first(nan))}, {int(nan.sum())} of {nan.size}" if nan.any() else None,
    )


def _faint(expected: np.ndarray, noise: Noise, dtype: Any) -> np.ndarray:
    """Where the whole is smaller than what its noise may reach, so that 0 would agree, or a slice than its noise.

    What is no more than noise in float64 too is 0, where nothing but 0 agrees, and was judged.
    """
    sizes = np.where(np.isfinite(expected), np.abs(expected), 0.0)
    if not sizes.size:
        return np.zeros(sizes.shape, bool)
    in_float64 = float(jnp.finfo(np.float64).eps) / float(jnp.finfo(dtype).eps)
    unit = max(largest(sizes), largest(noise.deviation))
    squares, variances = (sizes / unit) ** 2, (noise.deviation / unit) ** 2
    zero = (100 * in_float64) ** 2
    most = limit(min(noise.freedom[0], sizes.size), noise.samples) ** 2
    faint = np.full(sizes.shape, zero * variances.sum() < squares.sum() <= most * variances.sum())
    for axis in range(sizes.ndim) if sizes.ndim > 1 else ():
        of_slices, of_noise = along(squares, axis), along(variances, axis)
        lost = (zero * of_noise < of_slices) & (of_slices <= of_noise)
        faint |= across(lost, axis, sizes.ndim)
    return faint


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64, copy=False)


def _shares(gap: np.ndarray, noise: Noise) -> tuple[float, str, float]:
    """The largest distance over its limit, the name of its set, and the limit of the whole's 2-norm."""
    if not gap.size:
        return 0.0, "as a whole", 0.0
    elements = _ratios(gap, limit(1.0, noise.samples, gap.size) * noise.deviation)
    at = _largest_at(elements)
    found = [(float(elements[at]), f"in element {list(at)}")]
    # Squares are of numbers around 1, so that none underflows; what is far smaller is judged element by element.
    unit = max(largest(gap), largest(noise.deviation))
    squares, variances = (gap / unit) ** 2, (noise.deviation / unit) ** 2
    for axis in range(gap.ndim) if gap.ndim > 1 else ():
        freedom = noise.freedom[axis + 1] if axis + 1 < len(noise.freedom) else 1.0
        most = limit(min(freedom, gap.size / gap.shape[axis]), noise.samples, gap.shape[axis])
        slices = _ratios(np.sqrt(along(squares, axis)), most * np.sqrt(along(variances, axis)))
        slice_ = int(np.argmax(slices))
        found.append((float(slices[slice_]), f"in slice {slice_} of axis {axis}"))
    most_of_whole = limit(min(noise.freedom[0], gap.size), noise.samples) * math.sqrt(float(variances.sum()))
    found.append((_ratio(math.sqrt(float(squares.sum())), most_of_whole), "as a whole"))
    return *max(found, key=lambda item: item[0]), unit * most_of_whole


def _ratios(distances: np.ndarray, limits: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(distances == 0, 0.0, distances / limits)


def _ratio(a: float, b: float) -> float:
    return a / b if b else (0.0 if a == 0 else math.inf)


def along(x: np.ndarray, axis: int) -> np.ndarray:
    """The sum of each slice along an axis."""
    return x.sum(tuple(other for other in range(x.ndim) if other != axis))


def across(of_slices: np.ndarray, axis: int, axes: int) -> np.ndarray:
    """A value for each slice along one of so many axes, in a shape that gives it to all of the slice's elements."""
    return of_slices.reshape([-1 if other == axis else 1 for other in range(axes)])


def _worst(gap: np.ndarray, deviation: np.ndarray) -> tuple[int, ...]:
    return _largest_at(_ratios(gap, deviation)) if gap.size else ()


def _largest_at(x: np.ndarray) -> tuple[int, ...]:
    if not x.size:
        return ()
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(x)), x.shape))


def _first(places: np.ndarray) -> tuple[int, ...]:
    return _largest_at(places)


def largest(x: np.ndarray) -> float:
    """The largest finite size of an element; 1 where all are 0."""
    sizes = np.abs(np.asarray(x, np.complex128 if x.dtype.kind == "c" else np.float64))
    return float(np.max(sizes, where=np.isfinite(sizes), initial=0.0)) or 1.0


# Of smaller parts of the largest, squares of errors could underflow: at 1e-16 of themselves to 1e-300.
_SMALLEST_PART = 1e-130


def _is_even(x: np.ndarray, unit: float) -> bool:
    """Whether all elements are finite, and none but 0 so small that the square of its error would underflow."""
    sizes = np.abs(x)
    return bool(np.isfinite(sizes).all() and not ((sizes > 0) & (sizes < _SMALLEST_PART * unit)).any())


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
    larger = np.where(np.isfinite(larger), larger, 1.0)
    return np.spacing(larger) * (float(info.eps) / float(np.finfo(np.float64).eps))
