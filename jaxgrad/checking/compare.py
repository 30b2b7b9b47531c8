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
from collections.abc import Mapping, Sequence
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
# The samples that the noise of a small answer is measured with.
USUAL = 32
# A tensor of which more than this share cannot be judged has not been judged.
MOST_UNJUDGED = 0.25
# Nor one whose few elements that are not 0 are those that cannot: their part of the sum of squares.
MOST_HIDDEN = 0.5
# A noise of at most this part of an element is small beside it: what agrees does so to some 6 %.
_SMALL_PART = 2.0**-6
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

    `share` is the largest part of its limit that any statistic takes: above 1 the arrays differ, and `where` names the
    statistic ("as a whole", "slice 3 of axis 0", "element [3, 4]"). `relative` is the 2-norm of the difference over
    that of the expected array and `noise` that of the noise; `tolerance` is the limit of `relative`, so for a tensor
    that differs only in a slice it is not what decided. `unjudged` counts elements of which nothing can be said: they
    hang on a choice, or are part of a slice or tensor that drowns in its noise (`faint`). `hidden` is the part of the
    expected array's 2-norm that those have which hang on a choice.
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
    hidden: float

    @property
    def judged(self) -> bool:
        """Whether enough elements were compared for the answer to mean something."""
        return self.unjudged <= MOST_UNJUDGED * self.size and self.hidden**2 <= MOST_HIDDEN


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
        for part in parts_of(self.expected.shape):
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


def parts_of(shape: tuple[int, ...]) -> list[Any]:
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


def independent(shape: tuple[int, ...]) -> tuple[float, ...]:
    """The freedom of an array's noise if the errors of all its elements are independent."""
    size = math.prod(shape)
    return (float(max(size, 1)), *(max(size / max(length, 1), 1.0) for length in shape))


def floored(noise: Noise, expected: np.ndarray, dtype: Any) -> Noise:
    """Noise with at least the rounding of the result itself to its type, and the size of what underflows."""
    if not is_number(expected):
        return noise
    return noise._replace(deviation=np.maximum(noise.deviation, least_of(expected, dtype)))


def least_of(expected: np.ndarray, dtype: Any) -> np.ndarray:
    """The rounding of numbers to a type, at least the size of what underflows."""
    info = jnp.finfo(dtype)
    return np.maximum(float(info.eps) / 2 * sizes_of(expected), float(info.smallest_normal))


def sizes_of(x: np.ndarray) -> np.ndarray:
    """The sizes of an array's elements, 0 for those that are not finite."""
    sizes: np.ndarray = np.abs(x)
    # Of a large array every look at all elements counts.
    return sizes if math.isfinite(sizes.max(initial=0.0)) else np.where(np.isfinite(sizes), sizes, 0.0)


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
    number = is_number(expected)
    parts = parts_of(expected.shape)
    measured = [
        _measure(expected[part], actual[part], _part_of(noise, part), dtype if number else None) for part in parts
    ]
    found = _merged(measured, parts)
    of_expected = found.sizes.norm()
    relative = math.nan if found.bad.number else _ratio(found.gap.norm(), of_expected)
    faint = _Lost(0, 0)
    if tolerance is not None:
        share, where, most = _ratio(relative, tolerance), "as a whole", tolerance
    elif number:
        share, where, whole = _shares(found, noise, expected.shape)
        most = _ratio(whole, of_expected)
        faint = _lost(expected, actual, noise, _faint(found, noise, expected.shape, dtype))
    else:
        share, where, most = (math.inf if found.gap.whole else 0.0), "as a whole", 0.0
    at = (found.bad if found.bad.number else found.worst).at
    a, b = (_wide(x[at]).item() for x in (expected, actual)) if expected.size else (0.0, 0.0)
    nan = found.nan
    return Difference(
        exact=found.same,
        agrees=bool(not found.bad.number and share <= 1),
        share=share,
        where=where,
        max_abs=float(abs(a - b)) if found.bad.number else found.largest,
        at=at,
        values=(a, b),
        ulps=found.ulps,
        relative=relative,
        noise=_ratio(found.noise.norm(), of_expected),
        tolerance=most,
        unjudged=found.unsure + faint.judged,
        faint=faint.number,
        size=int(expected.size),
        not_finite=f"{a} against {b} at {list(at)}, {found.bad.number} in all" if found.bad.number else None,
        hidden=_ratio(found.hidden, of_expected),
        both_nan=f"first at {list(nan.at)}, {nan.number} of {expected.size}" if nan.number else None,
    )


class _At(NamedTuple):
    """How many elements are so, and the first of them; or by how many times its noise the worst is off, and where."""

    number: float
    at: tuple[int, ...]


class Sums(NamedTuple):
    """Squares of an array summed over the whole and over each slice along an axis, in units of `unit` squared.

    Squares are of numbers around 1, so that none underflows; what is far smaller is judged element by element.
    """

    unit: float
    whole: float
    slices: tuple[np.ndarray, ...]

    def norm(self) -> float:
        """The 2-norm of the whole."""
        return self.unit * math.sqrt(self.whole)

    def in_units_of(self, unit: float) -> "Sums":
        """The same sums in a larger unit."""
        share = (self.unit / unit) ** 2
        return Sums(unit, share * self.whole, tuple(share * of for of in self.slices))


class _Measured(NamedTuple):
    """What is known of two arrays, or of a part of them. `gap` is of what is judged; `unsure` counts what is not.

    `hidden` is the 2-norm of what hangs on a choice.
    """

    gap: Sums
    noise: Sums
    sizes: Sums
    same: bool
    bad: _At
    nan: _At
    worst: _At
    unsure: int
    hidden: float
    largest: float
    ulps: float


def _measure(expected: np.ndarray, actual: np.ndarray, noise: Noise, dtype: Any) -> _Measured:
    """One part of the arrays compared; `dtype` is None where they are of integers or booleans."""
    a, b = _wide(expected), _wide(actual)
    gap, sizes = _gap(a, b), sizes_of(a)
    if math.isfinite(gap.sum()) and not noise.unsure.any():
        # Most arrays are of numbers that are all judged, and of large ones every look at all elements counts.
        judged, far, same, unsure, hidden = gap, gap, not gap.any(), 0, 0.0
        bad = nan = _At(0, (0,) * gap.ndim)
    else:
        told = _told_apart(a, b, gap, noise)
        judged = np.where(told.same | told.bad | told.unsure, 0.0, gap)
        # What is not finite and may be, because larger roundings make it so, has no distance.
        far = np.where(told.same | ~np.isfinite(gap), 0.0, gap)
        same, unsure = bool(told.same.all()), int(told.unsure.sum())
        hidden = squared(np.where(told.unsure, sizes, 0.0)).norm()
        bad, nan = (_At(int(of.sum()), _largest_at(of)) for of in (told.bad, np.isnan(a) & np.isnan(b)))
    ratios = _ratios(judged, noise.deviation)
    at = _largest_at(ratios)
    return _Measured(
        squared(judged),
        squared(noise.deviation),
        squared(sizes),
        same,
        bad,
        nan,
        _At(float(ratios[at]) if ratios.size else 0.0, at),
        unsure,
        hidden,
        float(np.max(far, initial=0.0)),
        0.0 if dtype is None else float(np.max(judged / _spacing(sizes, b, dtype), initial=0.0)),
    )


def _gap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore"):
        gap: np.ndarray = np.abs(a - b)
    return gap


class _Apart(NamedTuple):
    """Which elements are the same, hang on a choice, or are not finite in one array alone."""

    same: np.ndarray
    unsure: np.ndarray
    bad: np.ndarray


def _told_apart(a: np.ndarray, b: np.ndarray, gap: np.ndarray, noise: Noise) -> _Apart:
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    # An element that hangs on a choice has been judged if it agrees all the same, within a noise that is small beside
    # it: a sum over a layer hangs on many, none of which matters much. NaN beside a number is no choice.
    agrees = same | ((gap <= LEAST * noise.deviation) & (noise.deviation <= _SMALL_PART * np.abs(a)))
    unsure = noise.unsure & ~agrees & (noise.lost | ~np.isnan(b) | ~np.isfinite(a))
    return _Apart(same, unsure, ~np.isfinite(gap) & ~same & ~unsure)


def _part_of(noise: Noise, part: Any) -> Noise:
    lost = noise.lost[part] if isinstance(noise.lost, np.ndarray) else noise.lost
    return noise._replace(deviation=noise.deviation[part], unsure=noise.unsure[part], lost=lost)


def squared(x: np.ndarray) -> Sums:
    """The squares of an array, summed."""
    unit = largest(x)
    if 1 / _ORDINARY < unit < _ORDINARY:
        unit = 1.0
    else:
        x = x / unit
    if x.ndim == 2:
        slices: tuple[np.ndarray, ...] = (np.einsum("ij,ij->i", x, x), np.einsum("ij,ij->j", x, x))
        return Sums(unit, float(slices[0].sum()), slices)
    squares = x * x
    return Sums(unit, float(squares.sum()), tuple(along(squares, axis) for axis in range(x.ndim)))


def summed(parts: Sequence[Sums]) -> Sums:
    """The sums of an array from those of the stretches of its first axis."""
    if len(parts) == 1:
        return parts[0]
    unit = max(part.unit for part in parts)
    scaled = [part.in_units_of(unit) for part in parts]
    first, *rest = zip(*(part.slices for part in scaled), strict=True)
    return Sums(unit, sum(part.whole for part in scaled), (np.concatenate(first), *(np.sum(of, axis=0) for of in rest)))


def _merged(measured: Sequence[_Measured], parts: Sequence[Any]) -> _Measured:
    """What is known of all stretches of the first axis together."""
    starts = [part.start if isinstance(part, slice) else 0 for part in parts]

    def moved(found: _At, start: int) -> _At:
        return found._replace(at=(found.at[0] + start, *found.at[1:])) if found.at else found

    def first(name: str) -> _At:
        each = [moved(getattr(m, name), start) for m, start in zip(measured, starts, strict=True)]
        return _At(sum(found.number for found in each), next((found.at for found in each if found.number), each[0].at))

    worst = max(
        (moved(m.worst, start) for m, start in zip(measured, starts, strict=True)), key=lambda found: found.number
    )
    return _Measured(
        gap=summed([m.gap for m in measured]),
        noise=summed([m.noise for m in measured]),
        sizes=summed([m.sizes for m in measured]),
        same=all(m.same for m in measured),
        bad=first("bad"),
        nan=first("nan"),
        worst=worst,
        unsure=sum(m.unsure for m in measured),
        hidden=math.hypot(*(m.hidden for m in measured)),
        largest=max(m.largest for m in measured),
        ulps=max(m.ulps for m in measured),
    )


def _faint(found: _Measured, noise: Noise, shape: tuple[int, ...], dtype: Any) -> tuple[np.ndarray, ...] | None:
    """Whether slices are smaller than their noise, by axis; None where the whole is smaller than what its may reach.

    Of the whole, 0 would agree too. What is no more than noise in float64 too is 0, where nothing but 0 agrees, and was
    judged.
    """
    size = math.prod(shape)
    if not size:
        return ()
    zero = _zero(dtype) ** 2
    unit = max(found.sizes.unit, found.noise.unit)
    sizes, noisy = found.sizes.in_units_of(unit), found.noise.in_units_of(unit)
    most = limit(min(noise.freedom[0], size), noise.samples) ** 2
    if zero * noisy.whole < sizes.whole <= most * noisy.whole:
        return None
    pairs = zip(sizes.slices, noisy.slices, strict=True) if len(shape) > 1 else ()
    return tuple((zero * noise < own) & (own <= noise) for own, noise in pairs)


def _zero(dtype: Any) -> float:
    """The part of its noise in a type that an array is of if it is no more than noise in float64 too."""
    return 100 * float(jnp.finfo(np.float64).eps) / float(jnp.finfo(dtype).eps)


def may_drown(difference: Difference, dtype: Any) -> bool:
    """Whether an array is smaller than what its noise may reach if all its errors are one, whatever is known of them.

    That is a question for noise that is measured whole: at a first look errors are taken to be independent.
    """
    most = 1 / limit(1.0, USUAL)
    return not difference.exact and most < difference.noise < 1 / _zero(dtype)


class _Lost(NamedTuple):
    """How many elements drown in their noise, and how many of them do not hang on a choice besides."""

    number: int
    judged: int


def _lost(expected: np.ndarray, actual: np.ndarray, noise: Noise, slices: tuple[np.ndarray, ...] | None) -> _Lost:
    """The elements of the slices that are lost, or of the whole, but for those that are equal."""
    if slices is not None and not any(of.any() for of in slices):
        return _Lost(0, 0)
    faint = np.full(expected.shape, slices is None)
    for axis, of in enumerate(slices or ()):
        faint |= across(of, axis, expected.ndim)
    a, b = _wide(expected), _wide(actual)
    told = _told_apart(a, b, _gap(a, b), noise)
    return _Lost(int((faint & ~told.same).sum()), int((faint & ~told.same & ~told.unsure).sum()))


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64, copy=False)


def _shares(measured: _Measured, noise: Noise, shape: tuple[int, ...]) -> tuple[float, str, float]:
    """The largest distance over its limit, the name of its set, and the limit of the whole's 2-norm."""
    size = math.prod(shape)
    if not size:
        return 0.0, "as a whole", 0.0
    worst, unit = measured.worst, max(measured.gap.unit, measured.noise.unit)
    found = [(worst.number / limit(1.0, noise.samples, size), f"in element {list(worst.at)}")]
    gap, noisy = measured.gap.in_units_of(unit), measured.noise.in_units_of(unit)
    for axis in range(len(shape)) if len(shape) > 1 else ():
        freedom = noise.freedom[axis + 1] if axis + 1 < len(noise.freedom) else 1.0
        most = limit(min(freedom, size / shape[axis]), noise.samples, shape[axis])
        slices = _ratios(np.sqrt(gap.slices[axis]), most * np.sqrt(noisy.slices[axis]))
        slice_ = int(np.argmax(slices))
        found.append((float(slices[slice_]), f"in slice {slice_} of axis {axis}"))
    most_of_whole = limit(min(noise.freedom[0], size), noise.samples) * math.sqrt(noisy.whole)
    found.append((_ratio(math.sqrt(gap.whole), most_of_whole), "as a whole"))
    return *max(found, key=lambda item: item[0]), unit * most_of_whole


def _ratios(distances: np.ndarray, limits: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        found = distances / limits
    return np.where(distances == 0, 0.0, found) if math.isnan(np.max(found, initial=0.0)) else found


def _ratio(a: float, b: float) -> float:
    return a / b if b else (0.0 if a == 0 else math.inf)


def along(x: np.ndarray, axis: int) -> np.ndarray:
    """The sum of each slice along an axis."""
    return x.sum(tuple(other for other in range(x.ndim) if other != axis))


def across(of_slices: np.ndarray, axis: int, axes: int) -> np.ndarray:
    """A value for each slice along one of so many axes, in a shape that gives it to all of the slice's elements."""
    return of_slices.reshape([-1 if other == axis else 1 for other in range(axes)])


def _largest_at(x: np.ndarray) -> tuple[int, ...]:
    if not x.size:
        return ()
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(x)), x.shape))


def largest(x: np.ndarray) -> float:
    """The largest finite size of an element; 1 where all are 0."""
    if x.dtype.kind == "f" and x.size and math.isfinite(most := max(float(x.max()), -float(x.min()))):
        return most or 1.0
    sizes = np.abs(np.asarray(x, np.complex128 if x.dtype.kind == "c" else np.float64))
    return float(np.max(sizes, where=np.isfinite(sizes), initial=0.0)) or 1.0


# Of numbers whose largest is between this and its inverse, no square overflows, and only squares of what is nothing
# beside the largest underflow.
_ORDINARY = 1e100
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


def _spacing(sizes: np.ndarray, b: np.ndarray, dtype: Any) -> np.ndarray:
    """The distance from the larger of some sizes and |b| to the next number of `dtype`."""
    info = jnp.finfo(dtype)
    larger = np.maximum(np.maximum(sizes, np.abs(b)), float(info.smallest_normal))
    if not math.isfinite(larger.max(initial=0.0)):
        larger = np.where(np.isfinite(larger), larger, 1.0)
    return np.spacing(larger) * (float(info.eps) / float(np.finfo(np.float64).eps))
