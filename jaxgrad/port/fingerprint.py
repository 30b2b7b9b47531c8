r"""Which value of one program is which of another, whatever their layouts.

A value is known by sums that no permutation changes, and zeros do not either: $\sum x$, $\sum x^2$, $\sum |x|$,
$\sum x^3$. Two values whose sums agree are then compared number by number, under the transposition and reshape that
makes one of the other.

Of an array that is too large to keep, a `Sketch` stays: its fingerprint, and the sums of up to 256 stretches of its
numbers, each number times a normal one that its position decides. The sums tell order, and their differences the size
of the differences, as random projections do (Johnson & Lindenstrauss 1984).
"""

import bisect
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from jaxgrad.checking.compare import parts_of

# Two float64 programs of a few hundred operations agree to some 1e-13 of a value's size: what is enough to know it by.
TOLERANCE = 1e-11
# Numbers from this size on, and this much larger than all smaller ones, stand for infinity, as in a mask of -1e9.
_HUGE, _JUMP = 9e3, 300.0
# Values of more axes than this are compared as they lie.
_MOST_AXES = 5
# The largest arrays that are sorted to see whether they hold the same numbers.
_MOST_SORTED = 2**16
# How many numbers are summed at once, so that they lie in a processor's cache meanwhile. Products of so few run in one
# thread: those of larger arrays wait for each other.
_BLOCK = 2**13
# How many sums a sketch has at most, and the period of the numbers that they are weighted with: a prime, so that no
# row of a power of two meets the same ones again. A sum of n weighted differences of one size is seldom larger than
# this many times the root of n.
_SUMS, _PERIOD, _SIGMAS = 256, 65_521, 6.0

EXACT, TRANSPOSED, SWAPPED, SCATTERED = "the same layout", "transposed", "axes of one size swapped", "the same numbers"


class Layout(NamedTuple):
    """How an array lies beside another: `kind` as above; `axes` to transpose by, then reshape.

    With `of_first` the first array is transposed and then reshaped to the second, otherwise the second to the first.
    """

    kind: str
    axes: tuple[int, ...]
    of_first: bool


class Fingerprint(NamedTuple):
    """Sums over an array's ordinary numbers; `scale` is the largest of them, `huge` how many are not ordinary."""

    total: float
    squares: float
    sizes: float
    cubes: float
    scale: float
    huge: int


_NOTHING_KNOWN = Fingerprint(0.0, 0.0, 0.0, 0.0, 0.0, 0)


class Sketch(NamedTuple):
    """What is kept of an array that is let go: its shape, its fingerprint, weighted sums of it, and whether it is told.

    `sums` are those of stretches of `stretch` numbers.
    """

    shape: tuple[int, ...]
    known: Fingerprint
    sums: np.ndarray
    stretch: int
    tells: bool

    @property
    def size(self) -> int:
        """How many numbers the array had."""
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        """How many axes the array had."""
        return len(self.shape)


# An array, or what is kept of one.
Held: TypeAlias = np.ndarray | Sketch


class Index(NamedTuple):
    """Fingerprints of many arrays, to look one up: sums of squares in order, and the number of the array of each."""

    arrays: Sequence[Held]
    prints: tuple[Fingerprint, ...]
    squares: tuple[float, ...]
    order: tuple[int, ...]


def sketch(x: np.ndarray) -> Sketch:
    """What is kept of a float64 array."""
    flat = np.asarray(x, np.float64).ravel()
    found, ordinary = _ordinary_sums(flat)
    # What is not ordinary counts as 0 in the weighted sums.
    plain = flat if ordinary.size == flat.size else np.where(ordinary_of(flat), flat, 0.0)
    sums, stretch = _weighted(plain)
    tells = _says_enough(float(flat[0])) if x.size == 1 else _varies(ordinary, found.most, found.least)
    return Sketch(x.shape, _printed(found, flat.size - ordinary.size), sums, stretch, tells)


def resketched(known: Sketch, x: np.ndarray, in_order: bool) -> Sketch:
    """What is kept of an array that has the numbers of another, which is `known`, `in_order` or in some other."""
    if in_order:
        return known._replace(shape=x.shape)
    flat = x.ravel()
    plain = np.where(ordinary_of(flat), flat, 0.0) if known.known.huge else flat
    return known._replace(shape=x.shape, sums=_weighted(plain)[0])


def in_place(x: np.ndarray) -> Sketch:
    """What is kept of a float64 array that is only compared as it lies, and never looked up: a third of the work."""
    flat = x.ravel()
    scale, huge = _largest(flat), 0
    if not scale < _HUGE:
        ordinary = ordinary_of(flat)
        flat = np.where(ordinary, flat, 0.0)
        scale, huge = _largest(flat), x.size - int(np.count_nonzero(ordinary))
    return Sketch(x.shape, _NOTHING_KNOWN._replace(scale=scale, huge=huge), *_weighted(flat), False)


def _largest(x: np.ndarray) -> float:
    """The largest size of a number; NaN where one is none."""
    return max(float(x.max()), -float(x.min())) if x.size else 0.0


def blank(x: np.ndarray) -> Sketch:
    """What is kept of an array of which only the shape is wanted."""
    return Sketch(x.shape, _NOTHING_KNOWN, np.zeros(0), 1, False)


def _weighted(flat: np.ndarray) -> tuple[np.ndarray, int]:
    """The sums of stretches of an array of one axis, each number times a weight, and how long a stretch is."""
    stretch = max(-(-flat.size // _SUMS), 1)
    weights = _weights()[:stretch] if stretch <= _PERIOD else np.resize(_weights(), stretch)
    whole = flat.size // stretch * stretch
    rows = flat[:whole].reshape(-1, stretch)
    if stretch > _BLOCK:
        found = np.einsum("ij,j->i", rows, weights)
    else:
        some, found = _BLOCK // stretch, np.empty(len(rows))
        for start in range(0, len(rows), some):
            np.dot(rows[start : start + some], weights, out=found[start : start + some])
    if whole == flat.size:
        return found, stretch
    return np.append(found, np.einsum("j,j->", flat[whole:], weights[: flat.size - whole])), stretch


@functools.cache
def _weights() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(_PERIOD)


def fingerprint(x: Held) -> Fingerprint:
    """The fingerprint of a float64 array."""
    if isinstance(x, Sketch):
        return x.known
    # In the order in which they lie in memory: what is transposed is not copied.
    flat = np.asarray(x, np.float64).ravel(order="K")
    found, ordinary = _ordinary_sums(flat)
    return _printed(found, flat.size - ordinary.size)


class _Sums(NamedTuple):
    """Sums over numbers, and the largest and the least of them."""

    total: float
    squares: float
    sizes: float
    cubes: float
    most: float
    least: float


_NOTHING = _Sums(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def _printed(found: _Sums, huge: int) -> Fingerprint:
    return Fingerprint(*found[:4], max(found.most, -found.least), huge)


def _ordinary_sums(flat: np.ndarray) -> tuple[_Sums, np.ndarray]:
    """The sums over the ordinary numbers of an array of one axis, and these."""
    found = _summed(flat, _HUGE)
    if found is not None:
        return found, flat
    ordinary = flat[ordinary_of(flat)]
    return _summed(ordinary, math.inf) or _NOTHING, ordinary


def _summed(flat: np.ndarray, below: float) -> _Sums | None:
    """The sums over an array of one axis; None where not all numbers are `below` a size."""
    totals, most, least = np.zeros(4), -math.inf, math.inf
    work = np.empty(min(flat.size, _BLOCK))
    for start in range(0, flat.size, _BLOCK):
        part = flat[start : start + _BLOCK]
        high, low = float(np.maximum.reduce(part)), float(np.minimum.reduce(part))
        if not (high < below and -low < below):
            return None
        most, least = max(most, high), min(least, low)
        some = work[: part.size]
        size = np.add.reduce(np.abs(part, out=some))
        square = np.multiply(part, part, out=some)
        totals += np.add.reduce(part), np.dot(part, part), size, np.dot(square, part)
    total, squares, sizes, cubes = map(float, totals)
    return _Sums(total, squares, sizes, cubes, most, least) if flat.size else _NOTHING


def _may_be_huge(x: np.ndarray) -> bool:
    """Whether an array may hold numbers that are not ordinary."""
    return bool(x.size) and not _largest(x) < _HUGE


def ordinary_of(x: np.ndarray) -> np.ndarray:
    """Where numbers are finite and do not stand for infinity, as those of a mask do: far above all others."""
    if not _may_be_huge(x):
        return np.ones(x.shape, bool)
    sizes = np.abs(x)
    finite = np.isfinite(sizes) & (sizes < 1e30)
    if not (sizes[finite] >= _HUGE).any():
        return finite
    some = np.sort(sizes[finite & (sizes > 0)])
    jumps = np.flatnonzero((some[1:] >= _HUGE) & (some[1:] > _JUMP * some[:-1]))
    return finite & (sizes <= some[jumps[0]]) if jumps.size else finite


def told(x: Held) -> bool:
    """Whether an array says enough to be recognised: some number that is not 0, and not all the same."""
    if isinstance(x, Sketch):
        return x.tells
    if x.size == 1:
        return _says_enough(float(x.ravel()[0]))
    ordinary = x[ordinary_of(x)] if _may_be_huge(x) else x.ravel(order="K")
    return bool(ordinary.size) and _varies(ordinary, float(ordinary.max()), float(ordinary.min()))


def _says_enough(number: float) -> bool:
    """Whether one number is no coincidence: only a round one is."""
    return math.isfinite(number) and number != 0 and float(f"{number:.4g}") != number


def _varies(ordinary: np.ndarray, most: float, least: float) -> bool:
    """Whether numbers, the largest and the least of them given, are not all the same, nor a mask."""
    differ = most - least > 1e-12 * max(most, -least)
    return bool(ordinary.size and differ and not set(ordinary[:64].tolist()) <= {0.0, 1.0})


def index(arrays: Sequence[Held]) -> Index:
    """An index of arrays."""
    prints = tuple(map(fingerprint, arrays))
    order = tuple(sorted(range(len(prints)), key=lambda n: prints[n].squares))
    return Index(arrays, prints, tuple(prints[n].squares for n in order), order)


def like(x: Held, among: Index, tolerance: float = TOLERANCE) -> Iterator[int]:
    """The numbers of those arrays that hold the same numbers as `x`, but for zeros, in any order.

    Where only a sketch of one is there, its sums alone decide.
    """
    own = fingerprint(x)
    width = 4 * tolerance * own.scale * own.sizes + 1e-300
    start = bisect.bisect_left(among.squares, own.squares - width)
    stop = bisect.bisect_right(among.squares, own.squares + width)
    for number in sorted(among.order[start:stop]):
        other = among.prints[number]
        count = max(x.size, among.arrays[number].size)
        if (
            abs(own.scale - other.scale) <= tolerance * own.scale
            and abs(own.total - other.total) <= tolerance * own.scale * count
            and abs(own.cubes - other.cubes) <= 8 * tolerance * own.scale**3 * count
            and _same_numbers(x, among.arrays[number], tolerance)
        ):
            yield number


def _same_numbers(a: Held, b: Held, tolerance: float) -> bool:
    """Whether two arrays hold the same numbers, zeros not counted."""
    if isinstance(a, Sketch) or isinstance(b, Sketch):
        # Their fingerprints agree, and there is no more to compare.
        return True
    if a.size == b.size > _MOST_SORTED:
        # Four sums of so many numbers are no coincidence, and sorting these takes longer than all else.
        return True
    if a.size == b.size:
        if close_as_they_lie(a, b, tolerance):
            return True
        return close(np.sort(a, None), np.sort(b, None), tolerance)
    a, b = (np.sort(x[x != 0], None) for x in (a, b))
    return a.size == b.size and close(a, b, tolerance)


def close(a: np.ndarray, b: np.ndarray, tolerance: float = TOLERANCE, least: float = 0.0) -> bool:
    """Whether two arrays of one shape agree within a tolerance of the largest ordinary number, and `least` more.

    What stands for infinity agrees with what does.
    """
    if _is_one(a, b):
        return True
    if not (_may_be_huge(a) or _may_be_huge(b)):
        bound = tolerance * _largest(a) + least
        return all((np.abs(a[part] - b[part]) <= bound).all() for part in parts_of(a.shape))
    in_a, in_b = ordinary_of(a), ordinary_of(b)
    if not np.array_equal(in_a, in_b):
        return False
    x, y = a[in_a], b[in_b]
    scale = float(np.abs(x).max(initial=0.0))
    if not (np.abs(x - y) <= tolerance * scale + least).all():
        return False
    rest_a, rest_b = a[~in_a], b[~in_b]
    with np.errstate(invalid="ignore"):
        return bool((np.sign(rest_a) == np.sign(rest_b))[~np.isnan(rest_a)].all()) and bool(
            np.array_equal(np.isnan(rest_a), np.isnan(rest_b))
        )


def _is_one(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays are the same memory, as weights are that both programs are given."""
    return a.__array_interface__ == b.__array_interface__


def close_as_they_lie(a: np.ndarray, b: np.ndarray, tolerance: float = TOLERANCE, least: float = 0.0) -> bool:
    """Whether two arrays of one size agree as `close` has it, their numbers one after another."""
    if a.shape == b.shape:
        # What is transposed would be copied to lie in one row.
        return close(a, b, tolerance, least)
    return close(a.ravel(), b.ravel(), tolerance, least)


def layout(a: Held, b: Held, tolerance: float = TOLERANCE) -> Layout | None:
    """How `a` lies beside `b`; None where neither is the other transposed and reshaped.

    Of two sketches it is told only where both lie in one order.
    """
    if isinstance(a, Sketch) or isinstance(b, Sketch):
        return _layout_by_sketch(a, b, tolerance)
    if a.size != b.size:
        return Layout(SCATTERED, (), True) if _same_numbers(a, b, tolerance) else None
    if close_as_they_lie(a, b, tolerance):
        return Layout(EXACT, tuple(range(a.ndim)), True)
    for first, x, y in ((True, a, b), (False, b, a)):
        x, y = np.squeeze(x), np.squeeze(y)
        if x.ndim > _MOST_AXES:
            continue
        for axes in itertools.permutations(range(x.ndim)):
            moved = x.transpose(axes)
            if axes == tuple(range(x.ndim)) or not _nested(moved.shape, y.shape):
                continue
            flat = moved.reshape(y.shape)
            if close(flat, y, tolerance):
                return Layout(SWAPPED if x.shape == moved.shape else TRANSPOSED, axes, first)
    return None


def _layout_by_sketch(a: Held, b: Held, tolerance: float) -> Layout | None:
    """The layout of two arrays of which one is there, and of the other a sketch: the order in which its sums agree."""
    if a.size != b.size:
        return Layout(SCATTERED, (), True)
    if same(a, b, tolerance):
        return Layout(EXACT, tuple(range(a.ndim)), True)
    array, other = (b, a) if isinstance(a, Sketch) else (a, b)
    if isinstance(array, Sketch):
        return None
    of_array = isinstance(b, Sketch)
    for of_first in (True, False):
        # Either the array is transposed and then reshaped to the sketch's shape, or the other way round.
        whole = of_first == of_array
        source = np.squeeze(array).shape if whole else tuple(n for n in other.shape if n > 1)
        target = tuple(n for n in other.shape if n > 1) if whole else np.squeeze(array).shape
        if len(source) > _MOST_AXES:
            continue
        for axes in itertools.permutations(range(len(source))):
            ends = tuple(source[axis] for axis in axes)
            if axes == tuple(range(len(source))) or not _nested(ends, target):
                continue
            how = Layout(SWAPPED if source == ends else TRANSPOSED, axes, of_first)
            if same(moved(array, how, other.shape, back=not of_array), other, tolerance):
                return how
    return None


def same(a: Held, b: Held, tolerance: float, least: float = 0.0) -> bool:
    """Whether two arrays of one size agree as they lie, within a tolerance of the largest number and `least` more.

    Where of one there is only a sketch, their weighted sums decide.
    """
    if not (isinstance(a, Sketch) or isinstance(b, Sketch)):
        return close_as_they_lie(a, b, tolerance, least)
    x, y = (each if isinstance(each, Sketch) else in_place(each) for each in (a, b))
    if x.known.huge != y.known.huge or x.size != y.size:
        return False
    bound = (tolerance * max(x.known.scale, y.known.scale) + least) * _SIGMAS * math.sqrt(x.stretch)
    return bool((np.abs(x.sums - y.sums) <= bound).all())


def largest_error(x: np.ndarray, exact: Held) -> float:
    """The largest difference of two arrays of one size over the largest ordinary number; estimated of a sketch."""
    if isinstance(exact, Sketch):
        largest = float(np.abs(sums(x) - exact.sums).max(initial=0.0)) / math.sqrt(exact.stretch)
        return largest / (exact.known.scale or 1.0)
    ok = ordinary_of(exact) & ordinary_of(x)
    scale = float(np.abs(exact[ok]).max(initial=0.0))
    return float(np.abs(x[ok] - exact[ok]).max(initial=0.0)) / (scale or 1.0)


def sums(x: Held) -> np.ndarray:
    """The weighted sums of an array, or of what a sketch is of."""
    return x.sums if isinstance(x, Sketch) else in_place(x).sums


def _nested(shape: Sequence[int], other: Sequence[int]) -> bool:
    """Whether one shape is made from another by joining neighbours, or by splitting axes."""
    ends = set(itertools.accumulate((n for n in shape if n > 1), lambda a, b: a * b))
    others = set(itertools.accumulate((n for n in other if n > 1), lambda a, b: a * b))
    return ends <= others or others <= ends


def moved(x: np.ndarray, how: Layout, shape: Sequence[int], back: bool = False) -> np.ndarray:
    """The first array brought to the shape of the second by a layout; with `back` the second to that of the first.

    `shape` is the shape of the result.
    """
    forward = how.of_first != back
    if how.kind == EXACT:
        return x.reshape(shape)
    if forward:
        return np.squeeze(x).transpose(how.axes).reshape(shape)
    sizes = [n for n in shape if n > 1]
    return x.reshape([sizes[axis] for axis in how.axes]).transpose(np.argsort(how.axes)).reshape(shape)
