"""Known variants of an operation: pools, reductions, resizing, padding, losses, and the two conventions of rotation.

What the first program has is recognised as one variant, and another one is tried in its place.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy import special

from jaxgrad.port import fingerprint, jax_values, locate
from jaxgrad.port.changes.region import DEEP, Change, Region, counterpart, makers, running, taking, with_params
from jaxgrad.port.jax_values import Op
from jaxgrad.port.values import as_float64

# How many values that a variant may be of are looked at, and how large they may be.
_FEW, _MOST_NUMBERS = 10, 1_000_000


def pools(r: Region) -> Iterator[Change]:
    """A mean over windows counts the padding, or does not; a maximum over windows is a mean, or the other way round."""
    ops, made = r.recorded.program.ops, makers(r)
    for k, op in r.ops.items():
        if op.name == "reduce_window_max":
            for counts, told in ((False, "the padding not counted"), (True, "the padding counted")):
                mean = _mean_over(op, r.recorded.values[op.operands[0]], counts)
                padded = any(map(any, op.eqn.params["padding"]))
                words = "a mean over windows in the place of a maximum" + (f", {told}" if padded else "")
                yield running(k, op, op.place, words, mean)
        first = ops[made[op.operands[0]]] if op.operands[0] in made else None
        if op.name != "div" or first is None or first.name != "reduce_window_sum":
            continue
        operand = r.recorded.values[first.operands[0]]
        ones = first.run([np.ones_like(operand)])[0]
        size = math.prod(first.eqn.params["window_dimensions"])
        if any(map(any, first.eqn.params["padding"])):
            yield running(k, op, op.place, "the padding is counted, and should not be", _divided(ones))
            yield running(k, op, op.place, "the padding is not counted, and should be", _divided(size))
        else:
            yield running(k, op, op.place, f"each window's sum should be divided by its {size} numbers", _divided(size))
        largest = np.asarray(_over(first, operand, -jnp.inf, lax.max))
        yield Change(op.place, "a maximum over windows in the place of a mean", {op.results[0]: largest}, {})


def _divided(by: Any) -> Callable[[Sequence[Any]], list[Any]]:
    return lambda x: [x[0] / by]


def _mean_over(op: Op, like: Any, counts_padding: bool) -> Callable[[Sequence[Any]], list[Any]]:
    size = math.prod(op.eqn.params["window_dimensions"])
    count = size if counts_padding else _over(op, jnp.ones_like(like), 0.0, lax.add)
    return lambda x: [_over(op, x[0], 0.0, lax.add) / count]


def _over(op: Op, x: Any, start: float, join: Callable[[Any, Any], Any]) -> Any:
    """What the windows of an operation hold, joined in another way."""
    p = op.eqn.params
    return lax.reduce_window(
        jnp.asarray(x), np.asarray(start, np.asarray(x).dtype), join, p["window_dimensions"], p["window_strides"],
        p["padding"], p["base_dilation"], p["window_dilation"],
    )  # fmt: skip


# With a number each, those that people and libraries choose are tried, and those that the other program has written.
_USUAL = (0.01, 0.1, 0.2, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 20.0)
FUNCTIONS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "Huber's loss with delta {:g}": lambda x, d: special.huber(d, x),
    "the smooth absolute value with beta {:g}": lambda x, b: special.huber(b, x) / b,
    "elu with alpha {:g}": lambda x, a: np.where(x > 0, x, a * np.expm1(np.minimum(x, 0))),
    "celu with alpha {:g}": lambda x, a: np.where(x > 0, x, a * np.expm1(np.minimum(x, 0) / a)),
    "softplus with beta {:g}": lambda x, b: np.logaddexp(b * x, 0) / b,
    "swish with beta {:g}": lambda x, b: x * special.expit(b * x),
    "clipping at {:g}": lambda x, c: np.clip(x, -c, c),
    "the power {:g}": lambda x, p: np.abs(x) ** p,
}


def functions(r: Region) -> Iterator[Change]:
    """A function with a number in it has another number, or is another such function."""
    written = (x for m in r.theirs[:80] for _, x in r.parted.other.trace.values[m].scalars if 0 < x < math.inf)
    numbers = tuple(dict.fromkeys((*written, *_USUAL)))
    sources = [n for n in dict.fromkeys((*_before(r), *r.bad)) if _is_float(r, n)][:_FEW]
    for n in sources:
        x = as_float64(r.recorded.values[n])
        known = {(name, p): fn(x, p) for name, fn in FUNCTIONS.items() for p in numbers}
        for b in [b for b in r.bad[:DEEP] if b != n and _is_float(r, b) and np.shape(r.recorded.values[b]) == x.shape]:
            y, place = as_float64(r.recorded.values[b]), r.parted.own.trace.values[b].place
            own = [each for each, z in known.items() if fingerprint.close(y, z)]
            for name, p in own[:1]:
                others = sorted(known, key=lambda each: each[0] != name)
                for other, q in others:
                    words = f"{other.format(q)} in the place of {name.format(p)}"
                    if not fingerprint.close(y, known[other, q]):
                        yield Change(place, words, {b: known[other, q]}, {})


_OF_SEVERAL = ("the mean", "the sum", "the maximum", "the minimum")
REDUCTIONS: dict[str, Callable[[np.ndarray, Any], np.ndarray]] = {
    "the mean": np.mean,
    "the sum": np.sum,
    "the maximum": np.max,
    "the minimum": np.min,
    "the first": lambda x, axis: x.take(0, axis),
    "the last": lambda x, axis: x.take(-1, axis),
    "the 2-norm": lambda x, axis: np.linalg.norm(x, axis=axis),
}


def reductions(r: Region) -> Iterator[Change]:
    """What is made of an axis is something else of it, or of another axis: the first of it for the mean, say."""
    for n in _sources(r):
        x = as_float64(r.recorded.values[n])
        yield from _replaced(
            r,
            {f"{name} along axis {axis}": fn(x, axis) for axis in range(x.ndim) for name, fn in REDUCTIONS.items()},
            unknown=True,
        )
        # Of images all places are pooled.
        pairs = [(axis, axis + 1) for axis in range(1, x.ndim - 1)] if x.ndim == 4 else []
        some = {name: fn for name, fn in REDUCTIONS.items() if name in _OF_SEVERAL}
        yield from _replaced(
            r, {f"{name} over the axes {pair}": fn(x, pair) for pair in pairs for name, fn in some.items()}
        )


def choices(r: Region) -> Iterator[Change]:
    """Weights of the largest few: softmax is made before they are taken, or behind."""
    for op in r.recorded.program.ops:
        if op.name != "top_k" or not locate.agreed(r.parted, op.operands[0]):
            continue
        x, taken = as_float64(r.recorded.values[op.operands[0]]), np.asarray(r.recorded.values[op.results[1]])
        if x.shape[:-1] != taken.shape[:-1]:
            # The largest along another axis.
            continue
        of_all, largest = special.softmax(x, -1), np.take_along_axis(x, taken, -1)
        known = {
            "softmax of all, and of it the largest": np.take_along_axis(of_all, taken, -1),
            "softmax of the largest alone": special.softmax(largest, -1),
            "the largest over their sum": largest / largest.sum(-1, keepdims=True),
            "the largest as they are": largest,
        }
        yield from _replaced(r, known)


def smoothings(r: Region) -> Iterator[Change]:
    """Smoothed labels: what is taken from the right class is spread over all classes, or over the others alone."""
    for b in [b for b in r.bad[:DEEP] if _is_float(r, b)]:
        y = as_float64(r.recorded.values[b])
        count, low, high = y.shape[-1], y.min(), y.max()
        if count < 3 or not 0 < low < high < 1 or not (((y == low) | (y == high)).all()):
            continue
        place, over_all, over_others = r.parted.own.trace.values[b].place, low * count, low * (count - 1)
        for amount, other_low, other_high, words in (
            (over_others, over_others / count, 1 - over_others + over_others / count, "all {} classes, not the others"),
            (over_all, over_all / (count - 1), 1 - over_all, "the others of {} classes, not all"),
        ):
            told = f"label smoothing of {amount:.4g} should be over {words.format(count)}"
            yield Change(place, told, {b: np.where(y == low, other_low, other_high)}, {})


def resizes(r: Region) -> Iterator[Change]:
    """An image is resized in another way."""
    for n in _sources(r):
        x = as_float64(r.recorded.values[n])
        shapes = {np.shape(r.recorded.values[b]) for b in r.bad[:DEEP]}
        for shape in shapes:
            axes = [k for k, (a, b) in enumerate(zip(x.shape, shape, strict=False)) if a != b]
            if len(shape) == x.ndim and axes and all(x.shape[k] > 1 < shape[k] for k in axes):
                yield from _replaced(r, {name: _resized(x, shape, axes, of) for name, of in RESIZES.items()})


def _corners(count: int, size: int) -> np.ndarray:
    return np.arange(count) * ((size - 1) / (count - 1))


def _centres(count: int, size: int) -> np.ndarray:
    return np.clip((np.arange(count) + 0.5) * (size / count) - 0.5, 0, size - 1)


# Where each new place lies among the old ones, between which is interpolated.
RESIZES: dict[str, Callable[[int, int], np.ndarray]] = {
    "linear interpolation with corners aligned": _corners,
    "linear interpolation with corners not aligned": _centres,
    "the nearest by the place's edge": lambda count, size: np.floor(np.arange(count) * (size / count)),
    "the nearest by the place's centre": lambda count, size: np.floor((np.arange(count) + 0.5) * (size / count)),
}


def _resized(
    x: np.ndarray, shape: Sequence[int], axes: Sequence[int], places: Callable[[int, int], np.ndarray]
) -> np.ndarray:
    for axis in axes:
        at = places(shape[axis], x.shape[axis])
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, x.shape[axis] - 1)
        part = (at - low).reshape([-1 if k == axis else 1 for k in range(x.ndim)])
        x = x.take(low, axis) * (1 - part) + x.take(high, axis) * part
    return x


PADDINGS: dict[str, Callable[[np.ndarray, Any], np.ndarray]] = {
    "zeros": lambda x, widths: np.pad(x, widths),
    "the edge's numbers": lambda x, widths: np.pad(x, widths, "edge"),
    "a reflection without the edge": lambda x, widths: np.pad(x, widths, "reflect"),
    "a reflection with the edge": lambda x, widths: np.pad(x, widths, "symmetric"),
    "the other end's numbers": lambda x, widths: np.pad(x, widths, "wrap"),
}


def paddings(r: Region) -> Iterator[Change]:
    """What is put around a value is something else: zeros, the edge's numbers, a reflection, the other end's."""
    for k, op in r.ops.items():
        if op.name == "conv_general_dilated" and any(map(any, op.eqn.params["padding"])):
            yield from _around(k, op)
    for n in _sources(r):
        x = as_float64(r.recorded.values[n])
        for b in r.bad[:DEEP]:
            y, place = as_float64(r.recorded.values[b]), r.parted.own.trace.values[b].place
            for widths in _widths(x.shape, y.shape):
                known = {name: pad(x, widths) for name, pad in PADDINGS.items() if _pads(name, x.shape, widths)}
                own = next((name for name, z in known.items() if np.array_equal(y, z)), None)
                for name, z in known.items():
                    if own is not None and name != own:
                        yield Change(place, f"{name} around it in the place of {own}", {b: z}, {})


def _around(k: int, op: Op) -> Iterator[Change]:
    """A convolution's zeros as other numbers."""
    spec = op.eqn.params["dimension_numbers"].lhs_spec
    pads = op.eqn.params["padding"]
    if any(width < 0 for pair in pads for width in pair) or set(op.eqn.params["lhs_dilation"]) != {1}:
        return
    run = with_params(op, {"padding": ((0, 0),) * len(pads)})
    for name, pad in list(PADDINGS.items())[1:]:

        def padded(x: Sequence[Any], name: str = name, pad: Callable[..., np.ndarray] = pad) -> list[Any]:
            shape = np.shape(x[0])
            widths = [pads[spec.index(axis) - 2] if axis in spec[2:] else (0, 0) for axis in range(len(shape))]
            if not _pads(name, shape, widths):
                raise ValueError(f"an array of {shape} is too small for {name}")
            return run([pad(np.asarray(x[0]), widths), *x[1:]])

        yield running(k, op, op.place, f"{name} around it in the place of zeros", padded)


def _widths(old: Sequence[int], new: Sequence[int]) -> list[tuple[tuple[int, int], ...]]:
    """The ways to make one shape of another by padding, the most even first."""
    if len(old) != len(new) or old == new or any(b < a or b > 3 * a for a, b in zip(old, new, strict=True)):
        return []
    sides = [[(low, b - a - low) for low in range(b - a + 1)] for a, b in zip(old, new, strict=True)]
    ways = itertools.islice(itertools.product(*sides), 200)
    return sorted(ways, key=lambda pairs: sum(abs(low - high) for low, high in pairs))[:25]


def _pads(name: str, shape: Sequence[int], widths: Sequence[tuple[int, int]]) -> bool:
    """Whether there are numbers enough; more than once around is no library's."""
    least = 1 if "without" in name else 0
    return name == "zeros" or all(size - least >= max(pair) for size, pair in zip(shape, widths, strict=True))


def turns(r: Region) -> Iterator[Change]:
    """Rotations of pairs of numbers: neighbours are turned together, or numbers half an axis apart.

    A program that turns neighbours is one that turns halves, if the numbers are put into the other order before and
    back behind. So no table of angles need be known, nor how it is made.
    """
    trace = r.parted.own.trace
    found: dict[str, list[list[tuple[int, Any]]]] = {}
    near = dict.fromkeys(a for n in _before(r) for a in (n, *locate.ancestors(trace, n)[-6:]))
    for n in [n for n in near if locate.agreed(r.parted, n) and trace.values[n].varies and _is_float(r, n)]:
        x = np.asarray(r.recorded.values[n])
        width = x.shape[-1]
        if width < 4 or width % 2:
            continue
        # A rotation keeps lengths.
        ends = [
            b
            for b in r.bad[:DEEP]
            if np.shape(r.recorded.values[b]) == x.shape
            and fingerprint.close(*(np.square(as_float64(r.recorded.values[v])).sum(-1) for v in (n, b)))
        ]
        halves = np.concatenate([np.arange(0, width, 2), np.arange(1, width, 2)])
        # Which numbers hang on the first of them: of four numbers either order is the other's inverse.
        first = np.where(np.arange(width) == 0, x + 1, x)
        for partner, order, words in (
            (width // 2, halves, "neighbours should be turned together, not numbers half an axis apart"),
            (1, np.argsort(halves), "numbers half an axis apart should be turned together, not neighbours"),
        ):
            own = [b for b, y in _until(r, {n: first}, ends) if _unlike(y, r.recorded.values[b]) == {0, partner}]
            turned = [(b, np.asarray(y)[..., np.argsort(order)]) for b, y in _until(r, {n: x[..., order]}, own)]
            theirs = [(b, y) for b, y in turned if counterpart(r, as_float64(y), b) is not None]
            if theirs:
                found.setdefault(words, []).append(theirs)
    # What is made of a rotated value may agree, too. Queries and keys are turned together.
    for words, each in found.items():
        for step in range(max(map(len, each))):
            values = dict(theirs[min(step, len(theirs) - 1)] for theirs in each)
            blamed = locate.blame(r.parted, locate.first_told(trace, r.bad))
            yield Change(blamed, words, values, {})


def _unlike(a: Any, b: Any) -> set[int]:
    """Where along the last axis two arrays differ."""
    differ = np.asarray(a) != np.asarray(b)
    return set(np.flatnonzero(differ.any(tuple(range(differ.ndim - 1)))).tolist())


def norms(r: Region) -> Iterator[Change]:
    """With a sum `x + f(x)`, what the branch takes is normalised and the sum should be, or the other way round."""
    trace, ops = r.parted.own.trace, r.recorded.program.ops
    bad = [b for b in r.bad if _is_float(r, b)]
    for k, op in [(k, op) for k, op in enumerate(ops) if op.name == "add" and op.results[0] in bad][:_FEW]:
        (total,) = op.results
        shape = np.shape(r.recorded.values[total])
        agreeing = [n for n in op.operands if trace.values[n].varies and locate.agreed(r.parted, n)]
        for x in [n for n in agreeing if np.shape(r.recorded.values[n]) == shape]:
            same = [b for b in bad if np.shape(r.recorded.values[b]) == np.shape(r.recorded.values[x])]
            # Behind the sum: the norm of what is added to, for the branch.
            for end, y in reversed(
                list(_until(r, {total: r.recorded.values[x]}, [b for b in same if b > total][:_FEW]))
            ):
                if counterpart(r, as_float64(y), end) is not None:
                    branch = {n: taking(ops[n], x, y) for n in range(k) if x in ops[n].operands}
                    words = "pre-norm in the place of post-norm: the branch should take what is normalised, not the sum"
                    for _, s in _until(r, {}, [total], branch):
                        yield Change(op.place, words, {end: np.asarray(s)}, branch)
            # Before the sum: the norm of the sum, which is then of what is as it is.
            for start in reversed([b for b in same if x < b < total][:_FEW]):
                branch = {n: taking(ops[n], start, r.recorded.values[x]) for n in range(k) if start in ops[n].operands}
                words = "post-norm in the place of pre-norm: the sum should be normalised, not what the branch takes"
                for _, s in _until(r, {}, [total], branch):
                    for _, y in _until(r, {x: s}, [start]):
                        yield Change(op.place, words, {total: np.asarray(y)}, branch)


def _until(
    r: Region, values: Mapping[int, Any], ends: Sequence[int], ops: Mapping[int, Op] | None = None
) -> Iterator[tuple[int, Any]]:
    """Those of some values that change with others, up to the last."""
    for n, y in jax_values.run_again(r.recorded.program, r.recorded.values, values, ops):
        if n > max(ends, default=-1):
            return
        if n in ends:
            yield n, y


def _replaced(r: Region, known: Mapping[str, np.ndarray], unknown: bool = False) -> Iterator[Change]:
    """One of what may be made of a value in the place of another, where the other program has the one.

    With `unknown` also in the place of what is none of them.
    """
    theirs = [name for name, y in known.items() if fingerprint.told(y) and counterpart(r, y, r.bad[0]) is not None]
    if not theirs:
        return
    for b in r.bad[: 2 * DEEP]:
        y, place = as_float64(r.recorded.values[b]), r.parted.own.trace.values[b].place
        same = {name: z for name, z in known.items() if z.size == y.size}
        own = next((name for name, z in same.items() if fingerprint.close_as_they_lie(y, z)), None)
        for name in theirs:
            if own is not None and name in same and name != own:
                yield Change(place, f"{name} in the place of {own}", {b: same[name].reshape(y.shape)}, {})
            elif unknown and own is None and name in same:
                yield Change(place, f"{name} in its place", {b: same[name].reshape(y.shape)}, {}, weak=True)


def _before(r: Region) -> list[int]:
    """The values that both programs have and the operations of the region take, the nearest first."""
    taken = dict.fromkeys(n for op in r.ops.values() for n in op.operands)
    return [n for n in taken if r.parted.own.trace.values[n].varies and locate.agreed(r.parted, n)]


def _sources(r: Region) -> list[int]:
    """A few of them that a variant may be of."""
    return [n for n in _before(r) if _is_float(r, n)][:_FEW]


def _is_float(r: Region, n: int) -> bool:
    x = r.recorded.values[n]
    return hasattr(x, "dtype") and x.dtype == np.float64 and 1 < np.size(x) <= _MOST_NUMBERS
