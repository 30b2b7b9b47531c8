r"""The noise of a large answer at a first look: one to three samples where all of them would be a dozen or more.

What is found here is
therefore strict: what agrees within it agrees, and what does not is measured whole before it is judged
(`expected.measured`).

With two samples an element's own mean square $s_i$ says little of its variance. Its slices do, for they hold many
elements: with $m$ the mean square of the tensor and $m_a(i)$ that of the element's slice along axis $a$,
$$\sigma_i^2 = m \prod_a \frac{m_a(i)}m,$$
which is exact where the noise is a product of factors by row and by column, as it nearly is in the gradient of a
weight. Of an elementwise result it is the relative errors that are alike: $\sigma_i$ is $|x_i|$ times what the same
formula gives for $s_i / x_i^2$, if that makes the samples likelier and the whole no noisier than they are. Slices of
few elements say no more than the element itself, and are left out. Where $\sqrt{s_i}$ is more than the model has, it
stands for $\sigma_i$.

So that no tiny element hides beside large ones, $\sigma_i$ is never more than a multiple $T / q$ of $\sqrt{s_i}$, where
$q$ is the limit that `compare` has for one of N elements. An error like the noise exceeds $T\sqrt{s_i}$ with a chance
of $1/T^2$ (Student's t with 2 degrees of freedom), so with $T = 10 \sqrt N$ one right tensor in a hundred is measured
whole for it.

A third sample has larger roundings, drawn as the first's. Where the errors of the two are not in proportion, a choice
has flipped: such an element is `unsure`.

In float32 and float64 errors are in proportion to the unit roundoff, and an oracle's own is a sample that costs no more
than an evaluation in float32: the error $e_i$ that its program makes there, against its answer in float64, is one of
float32's, and times $2^{-29}$ one of float64's. What it lacks to three samples is made up for by wider limits. An
element's noise is taken to be known as if from `_KNOWN` samples, and that of a slice to have `_SHARED` independent
parts, because the errors of a few rows of a batch may make those of all its elements. One error may be small by chance,
so $\sigma_i$ is at most a multiple of the larger of $|e_i|$ and $u |x_i|$, a rounding of the element itself: few sums
are cancelled so far, and few of those have so small an error. Where an array's error is more than `_ROUNDINGS`
roundings and it is not nearly 0, something else than rounding is there (a choice, an overflow, a fast approximation),
and nothing of it is known at a first look.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from jaxgrad.checking.compare import (
    Noise,
    Sums,
    across,
    exact,
    floored,
    independent,
    least_of,
    limit,
    parts_of,
    sizes_of,
    squared,
    summed,
)

# Of as many errors, pooled, the root mean square is known to some 2 %, and the distribution of their ratio is normal.
_POOLED = 2**10
# Slices of fewer elements are not looked at by themselves: their mean square would be off by more than a tenth.
_FEWEST = 64
# Errors that are not in proportion by more than this share of themselves are those of a choice that flips, or so small
# that the arithmetic which measures them shows: only those count that stand out of the noise by `_STANDS_OUT`.
_BENT = 0.5
_STANDS_OUT = 3.0
# T over the root of the number of elements.
_OWN = 10.0
# b over the root of the number of elements N, where one sample's bound is b times the larger of |e| and u |x|. Where
# noise is K roundings of a usual element (tens in a deep network), about N K / 60 b^2 are cancelled so far, with so
# small an error by chance, that the bound is below their noise: here K / 60,000.
_OF_ONE = 32.0
# With these an element may be off by up to 60 times its noise by the model, and a slice by up to 33 times. In a right
# GPT of 12 layers and width 768, slices were by up to 11 times, and elements by 39.
_KNOWN = 12
_SHARED = 1.0
# By how much a model may overstate the noise of the whole.
_OVERSTATED = 1.5
# So many elements tell which of two models is the likelier.
_ENOUGH = 2**14
# The types whose roundings are so small that errors are in proportion to them, with their unit roundoff.
LINEAR = {"float64": 2.0**-53, "float32": 2.0**-24}
# Sums of a deep network make tens of them, and of a matrix product the root of its terms.
_ROUNDINGS = 2.0**10


class Seen(NamedTuple):
    """What is kept of an array's samples: its errors' squares, summed, and where two of them were not in proportion.

    `reached` is how large the larger of the two is, for each element where `bent` is true.
    """

    squares: np.ndarray
    bent: np.ndarray
    reached: np.ndarray


def seen(expected: np.ndarray, usual: np.ndarray, enlarged: np.ndarray, ratio: float) -> Seen:
    """The first two samples of an array, of roundings that are drawn alike and `ratio` times as large in the second."""
    with np.errstate(invalid="ignore", over="ignore"):
        first, second = usual - expected, (enlarged - expected) / ratio
        size = np.maximum(np.abs(first), np.abs(second))
        bent = ~(np.abs(first - second) <= _BENT * size)
    return Seen(np.abs(first) ** 2, bent, size[bent])


def noise_of(expected: np.ndarray, of: Seen, usual: np.ndarray, scale: float, dtype: str) -> Noise:
    """The noise of an array from what was seen of it and one more sample; errors are `scale` times too large."""
    with np.errstate(invalid="ignore", over="ignore"):
        squares = np.where(of.bent, 0.0, of.squares + np.abs(usual - expected) ** 2) / 2
    own, sizes = np.sqrt(squares), np.abs(expected)
    model = _likelier(_looked_over(lambda at: (own[at], sizes[at]), own.shape))
    modelled = np.broadcast_to(_modelled(model, ..., sizes), own.shape)
    most = _OWN * math.sqrt(expected.size) / limit(1.0, _POOLED, max(expected.size, 1)) * own
    deviation = np.where(of.bent, modelled, np.clip(own, modelled, most))
    unsure = np.zeros(expected.shape, bool)
    unsure[of.bent] = ~(of.reached <= _STANDS_OUT * modelled[of.bent])
    return floored(Noise(deviation / scale, _POOLED, independent(expected.shape), unsure), expected, dtype)


def by_own_error(expected: np.ndarray, narrow: np.ndarray, dtype: str) -> Noise:
    """The noise of an array in one of `LINEAR`, by what the same program gives in float32."""
    unit = LINEAR["float32"]

    def errors(at: Any) -> tuple[np.ndarray, np.ndarray]:
        x, y = expected[at], narrow[at]
        with np.errstate(invalid="ignore", over="ignore"):
            own = np.abs(y - x)
        # Infinities that are the same are no error.
        return own if math.isfinite(own.max(initial=0.0)) else np.where(y == x, 0.0, own), sizes_of(x)

    seen = _looked_over(errors, expected.shape)
    if not _is_rounding(seen):
        return exact(expected)._replace(unsure=np.ones(expected.shape, bool))
    model = _likelier(seen)
    deviation = np.empty(expected.shape)
    for at in parts_of(expected.shape):
        own, sizes = errors(at)
        modelled = _modelled(model, at, sizes)
        # What is 0 but for rounding is that small only by chance.
        most = _OF_ONE * math.sqrt(expected.size) * np.maximum(own, unit * sizes)
        bounded = np.clip(own, modelled, np.where(_is_zero(sizes, modelled), np.inf, most))
        deviation[at] = np.maximum(bounded * (LINEAR[dtype] / unit), least_of(expected[at], dtype))
    freedom = (float(max(expected.size, 1)), *(_SHARED for _ in expected.shape))
    return Noise(deviation, _KNOWN, freedom, np.broadcast_to(np.False_, expected.shape))


# Of a part of an array, or of the elements at indices, the errors and the sizes.
_Errors: TypeAlias = Callable[[Any], tuple[np.ndarray, np.ndarray]]


class _Overview(NamedTuple):
    """The errors of an array of a shape; summed, the squares of them, of the elements and of the relative errors."""

    errors: _Errors
    shape: tuple[int, ...]
    absolute: Sums
    sizes: Sums
    relative: Sums


def _looked_over(errors: _Errors, shape: tuple[int, ...]) -> _Overview:
    parts = []
    for part in parts_of(shape):
        own, sizes = errors(part)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            ratios = own / sizes
        ratios = ratios if math.isfinite(ratios.max(initial=0.0)) else np.where(own > 0, ratios, 0.0)
        parts.append((squared(own), squared(sizes), squared(ratios)))
    return _Overview(errors, shape, *(summed(each) for each in zip(*parts, strict=True)))


def _is_rounding(seen: _Overview) -> bool:
    """Whether errors in float32 are as large as rounding makes them, of all or of what is nearly 0 in float64."""
    error, size = seen.absolute.norm(), seen.sizes.norm()
    usual = error <= _ROUNDINGS * LINEAR["float32"] * size or _is_zero(size, error)
    return math.isfinite(error) and bool(usual)


def _is_zero(sizes: Any, in_float32: Any) -> Any:
    """Where a float64 answer is little more than the rounding of float64, which is told by that of float32."""
    return sizes <= _ROUNDINGS * LINEAR["float64"] / LINEAR["float32"] * in_float32


class _Model(NamedTuple):
    """The noise of an array: its root mean square, and for each axis a factor by slice, or None.

    Where it is `relative`, the noise of the relative errors.
    """

    root: float
    factors: tuple[np.ndarray | None, ...]
    relative: bool


def _modelled(model: _Model, at: Any, sizes: np.ndarray) -> np.ndarray:
    """What a model has for the elements at a part or at indices, which are of these sizes."""
    found: Any = model.root
    for axis, factor in enumerate(model.factors):
        if factor is not None and isinstance(at, tuple):
            found = found * factor[at[axis]]
        elif factor is not None:
            found = found * across(factor[at] if axis == 0 else factor, axis, len(model.factors))
    return np.asarray(found * sizes if model.relative else found)


def _likelier(seen: _Overview) -> _Model:
    """The model of an array's errors, or of its relative errors where that fits better."""
    absolute, relative = _model(seen.absolute, seen.shape, False), _model(seen.relative, seen.shape, True)
    if not math.isfinite(relative.root):
        return absolute
    size = math.prod(seen.shape)
    some: Any = np.unravel_index(np.arange(0, size, max(1, size // _ENOUGH)), seen.shape) if seen.shape else ...
    own, sizes = seen.errors(some)
    by_size, plain = (np.broadcast_to(_modelled(of, some, sizes), own.shape) for of in (relative, absolute))
    # Where cancelled sums are far off relative to what is left of them, large elements would be given their noise.
    if not np.linalg.norm(by_size) <= _OVERSTATED * np.linalg.norm(own):
        return absolute
    return relative if _unlikeliness(own, by_size) < _unlikeliness(own, plain) else absolute


def _model(sums: Sums, shape: tuple[int, ...], relative: bool) -> _Model:
    size = max(math.prod(shape), 1)
    mean = sums.whole / size

    def factor(axis: int, of: np.ndarray) -> np.ndarray | None:
        looked_at = mean and size >= _FEWEST * shape[axis]
        return np.sqrt(of * (shape[axis] / size / mean)) if looked_at else None

    return _Model(sums.unit * math.sqrt(mean), tuple(map(factor, range(len(shape)), sums.slices)), relative)


def _unlikeliness(own: np.ndarray, deviation: np.ndarray) -> float:
    """Minus the mean log-likelihood of normal errors, but for a constant, over those that are not 0."""
    noisy = own > 0
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratios = own[noisy] / deviation[noisy]
        return float(np.mean(2 * np.log(deviation[noisy]) + ratios * ratios)) if noisy.any() else 0.0
