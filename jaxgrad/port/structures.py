"""Changes to how values are put together: what a scale multiplies, the axes of a norm, rolls, dilations, weights."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from scipy import special

from jaxgrad.port import fingerprint, locate
from jaxgrad.port.jax_values import Op
from jaxgrad.port.region import DEEP, Change, Region, running, with_params
from jaxgrad.port.values import Place, as_float64

# Of arrays of more axes there are too many sets of axes.
_MOST_AXES = 5
_DILATIONS = (1, 2, 3, 4, 8)
# A score of which the exponential is 0.
_HIDDEN = -1e30
_REDUCED: dict[str, Callable[..., Any]] = {"reduce_sum": np.sum, "reduce_max": np.max, "reduce_min": np.min}
_WIDENED = frozenset(("broadcast_in_dim", "reshape", "expand_dims"))


def _makers(r: Region) -> dict[int, int]:
    return {n: k for k, op in enumerate(r.recorded.program.ops) for n in op.results}


def scales(r: Region) -> Iterator[Change]:
    """A factor is of a sum, of one of its terms, or of the other, as with a branch and what it is added to."""
    ops, made = r.recorded.program.ops, _makers(r)
    for k, op in list(r.ops.items())[:DEEP]:
        if op.name not in ("add", "mul") or op.eqn is None:
            continue
        inner_name = "mul" if op.name == "add" else "add"
        for side, n in enumerate(op.operands):
            inner = ops[made[n]] if n in made else None
            if inner is None or inner.name != inner_name:
                continue
            other = op.operands[1 - side]
            for a, b in (inner.operands, inner.operands[::-1]):
                # Of `g h + v` and `g (h + v)` the factor is g.
                if op.name == "add":
                    g, h, v = a, b, other
                    told = f"the factor {_brief(r, g)} is of"
                    yield _joined(op, k, (g, h, v), lambda g, h, v: g * (h + v), f"{told} the sum, not of one term")
                    words = f"{told} the other term, {_brief(r, v)}"
                    yield _joined(op, k, (g, h, v), lambda g, h, v: h + g * v, words)
                else:
                    words = f"the factor {_brief(r, other)} is of one term, {_brief(r, a)}, not of the sum"
                    yield _joined(op, k, (other, a, b), lambda g, h, v: g * h + v, words)
                    # Of `-3 (h + v)` the factor may be 3, and the sign the sum's.
                    signed = lambda g, h, v: np.sign(g) * (np.abs(g) * h + v)  # noqa: E731
                    yield _joined(op, k, (other, a, b), signed, words)


def _joined(op: Op, k: int, operands: tuple[int, ...], form: Callable[..., Any], words: str) -> Change:
    """The operation in another form, of other operands, where the result's shape is the same."""

    def run(x: Sequence[Any]) -> list[Any]:
        made = form(*x)
        if np.shape(made) != np.shape(op.eqn.outvars[0].aval):
            raise ValueError(f"a result of the shape {np.shape(made)} in the place of another")
        return [made]

    return Change(op.place, words, {}, {k: op._replace(run=run, operands=operands)}, weak=True)


def _brief(r: Region, n: int) -> str:
    trace = r.parted.own.trace
    if n in r.recorded.program.constants:
        return f"{float(r.recorded.values[n]):g}" if np.ndim(r.recorded.values[n]) == 0 else "constant"
    return trace.values[locate.root(trace, n)].place.brief


def axes(r: Region) -> Iterator[Change]:
    """Sums and maxima that are kept as axes of size 1, such as those of a norm, are over other axes.

    A mean divides by how many numbers it sums: both counts are tried.
    """
    ops, near, made = r.recorded.program.ops, _near(r), _makers(r)
    found: dict[tuple[Any, ...], list[tuple[int, Op]]] = {}
    reduced = {
        op.results[0]: op for k, op in enumerate(ops) if k in near and op.name in _REDUCED and op.eqn is not None
    }
    for k, op in enumerate(ops):
        if op.name in _WIDENED and op.operands[0] in reduced:
            inner = reduced[op.operands[0]]
            shape, over = np.shape(r.recorded.values[inner.operands[0]]), tuple(inner.eqn.params["axes"])
            kept = tuple(1 if axis in over else size for axis, size in enumerate(shape))
            if len(shape) <= _MOST_AXES and np.shape(r.recorded.values[op.results[0]]) == kept:
                found.setdefault((shape, over), []).append((k, inner))
    for (shape, over), some in found.items():
        sets = [each for size in range(1, len(shape) + 1) for each in itertools.combinations(range(len(shape)), size)]
        groups = [some] if len(some) == 1 else [some, *([each] for each in some)]
        for group, others in itertools.product(groups, [each for each in sets if each != over]):
            counts = [math.prod(shape[axis] for axis in each) for each in (over, others)]
            words = f"over the axes {others} in the place of {over}"
            for by in dict.fromkeys((counts[0] / counts[1], 1.0)):
                changed = {k: ops[k]._replace(run=list) for k, _ in group}
                for k, inner in group:
                    changed[made[ops[k].operands[0]]] = inner._replace(run=_reduced(inner.name, others, by))
                yield Change(group[0][1].place, f"{group[0][1].name} {words}", {}, changed, weak=True)


def _reduced(name: str, over: tuple[int, ...], by: float) -> Callable[[Sequence[Any]], list[Any]]:
    reduce = _REDUCED[name]
    factor = by if name == "reduce_sum" else 1.0
    return lambda x: [reduce(np.asarray(x[0]), axis=over, keepdims=True) * factor]


def _near(r: Region) -> set[int]:
    """The operations of the region, and those that make what its operations take and the other program has not."""
    made, trace = _makers(r), r.parted.own.trace
    taken = {a for op in r.ops.values() for n in op.operands for a in locate.ancestors(trace, n)[-DEEP:]}
    return set(r.ops) | {made[n] for n in taken if n in made and not locate.agreed(r.parted, n)}


_COUNTED = frozenset(("iota", "arange", "linspace"))
_SINES = {"cos": np.sin, "sin": np.cos}


def tables(r: Region) -> Iterator[Change]:
    """What makes the constants of the region: counted from another number, sine for cosine, joined the other way."""
    trace, ops, made = r.parted.own.trace, r.recorded.program.ops, _makers(r)
    taken = [n for op in r.ops.values() for n in op.operands if not trace.values[n].varies]
    wanted = [n for n in dict.fromkeys(taken) if not locate.agreed(r.parted, n)]
    for k in dict.fromkeys(made[a] for n in wanted for a in locate.ancestors(trace, n) if a in made):
        op = ops[k]
        if op.name in _COUNTED:
            for by in (-1, 1):
                told = "less" if by < 0 else "more"
                yield running(k, op, op.place, f"each number of {op.name} should be 1 {told}", _then(op, by))
        if op.name in _SINES:
            other = _SINES[op.name]
            words = f"{other.__name__} in the place of {op.name}"
            yield running(k, op, op.place, words, _function(other))
        parts = [side for side, n in enumerate(op.operands) if np.ndim(r.recorded.values[n])]
        if op.name in ("concatenate", "stack", "meshgrid") and len(parts) == 2:
            yield running(k, op, op.place, f"the parts of {op.name} the other way round", _turned(op, *parts))


def _function(function: Callable[[Any], Any]) -> Callable[[Sequence[Any]], list[Any]]:
    return lambda x: [function(x[0])]


def _then(op: Op, by: int) -> Callable[[Sequence[Any]], list[Any]]:
    return lambda x: [y + by for y in op.run(x)]


def _turned(op: Op, a: int, b: int) -> Callable[[Sequence[Any]], list[Any]]:
    other = {a: b, b: a}
    return lambda x: op.run([x[other.get(n, n)] for n in range(len(x))])


def rolls(r: Region) -> Iterator[Change]:
    """A value is rolled along an axis, by another number of places; all rolls at a line at once."""
    ops, made = r.recorded.program.ops, _makers(r)
    near = {a for n in (*r.bad[:DEEP], *(m for op in r.ops.values() for m in op.operands))
            for a in locate.ancestors(r.parted.own.trace, n)}  # fmt: skip
    found: dict[Any, dict[int, tuple[int, int, int]]] = {}
    for k, op in enumerate(ops):
        if op.name == "concatenate" and op.results[0] in near and len(op.operands) == 2 and op.eqn is not None:
            rolled = _rolled(r, op, [ops[made[n]] for n in op.operands if n in made])
            if rolled is not None:
                found.setdefault(op.place.line, {})[k] = rolled
    for some in found.values():
        for told, other in _SHIFTS.items():
            changes, shifts = {}, []
            for k, (source, axis, by) in some.items():
                shifts.append((by, other(by)))
                changes[k] = ops[k]._replace(run=_rolling(other(by), axis), operands=(source,))
            if all(old != new for old, new in shifts):
                old, new = (sorted({pair[side] for pair in shifts}) for side in (0, 1))
                words = f"rolled by {_listed(new)} in the place of {_listed(old)}{told}"
                yield Change(ops[min(some)].place, words, {}, changes)


_SHIFTS: dict[str, Callable[[int], int]] = {
    ", the other way": lambda by: -by,
    ", not at all": lambda by: 0,
    ", half as far": lambda by: by // 2 if by % 2 == 0 else by,
    ", twice as far": lambda by: 2 * by,
    ", one further": lambda by: by + 1,
    ", one less": lambda by: by - 1,
}


def _listed(numbers: Sequence[int]) -> str:
    return " and ".join(map(str, numbers))


def _rolling(by: int, axis: int) -> Callable[[Sequence[Any]], list[Any]]:
    return lambda x: [np.roll(np.asarray(x[0]), by, axis)]


def _rolled(r: Region, op: Op, parts: Sequence[Op]) -> tuple[int, int, int] | None:
    """What two stretches that are joined are a roll of: a value's number, the axis, and by how much."""
    if len(parts) != 2 or any(part.name != "slice" or part.eqn is None for part in parts):
        return None
    (source,), (other,) = parts[0].operands, parts[1].operands
    axis, shape = op.eqn.params["dimension"], np.shape(r.recorded.values[source])
    last, first = parts
    begins, ends = last.eqn.params["start_indices"][axis], first.eqn.params["limit_indices"][axis]
    same = source == other and begins == ends and np.shape(r.recorded.values[op.results[0]]) == shape
    if not same or first.eqn.params["start_indices"][axis]:
        return None
    by = shape[axis] - begins
    return source, axis, by if by <= shape[axis] // 2 else by - shape[axis]


def masks(r: Region) -> Iterator[Change]:
    """Scores of places beside places, whose rows or columns lack a causal mask."""
    trace, made = r.parted.own.trace, _makers(r)
    taken = [n for op in list(r.ops.values())[:8] for n in op.operands if trace.values[n].varies]
    for n in list(dict.fromkeys((*taken, *r.bad[:4])))[:8]:
        shape = np.shape(r.recorded.values[n])
        if len(shape) < 2 or shape[-1] != shape[-2] or shape[-1] < 2 or n not in made:
            continue
        op = r.recorded.program.ops[made[n]]
        place = next((user.place for user in r.ops.values() if n in user.operands), op.place)
        for keep, words in (
            (np.tril(np.ones(shape[-2:], bool)), "a causal mask is missing"),
            (np.triu(np.ones(shape[-2:], bool)), "a mask of what lies before is missing"),
        ):
            run = _masked(op, op.results.index(n), keep)
            yield running(made[n], op, place, words, run)._replace(weak=True)


def _masked(op: Op, which: int, keep: np.ndarray) -> Callable[[Sequence[Any]], list[Any]]:
    return lambda x: [np.where(keep, y, _HIDDEN) if k == which else y for k, y in enumerate(op.run(x))]


def dilations(r: Region) -> Iterator[Change]:
    """A kernel's numbers lie further apart, with the padding that keeps the result's size."""
    for k, op in list(r.ops.items())[:DEEP]:
        if op.name != "conv_general_dilated" or op.eqn is None:
            continue
        p = op.eqn.params
        old, pads = tuple(p["rhs_dilation"]), p["padding"]
        sizes = [np.shape(r.recorded.values[op.operands[1]])[axis] for axis in p["dimension_numbers"].rhs_spec[2:]]
        for new in _DILATIONS:
            if old == (new,) * len(old):
                continue
            more = [(new - was) * (size - 1) for was, size in zip(old, sizes, strict=True)]
            for share in (0.5, 1.0, 0.0):
                wide = [
                    (low + math.ceil(by * share), high + by - math.ceil(by * share))
                    for (low, high), by in zip(pads, more, strict=True)
                ]
                if all(low >= 0 and high >= 0 for low, high in wide):
                    changed = {"rhs_dilation": (new,) * len(old), "padding": tuple(wide)}
                    told = old[0] if len(set(old)) == 1 else old
                    words = f"a dilation of {new} in the place of {told}"
                    yield running(k, op, op.place, words, with_params(op, changed))


# What is made of a parameter before it is used.
OF_WEIGHTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "exp": np.exp,
    "-exp": lambda x: -np.exp(x),
    "1 +": lambda x: 1 + x,
    "softplus": lambda x: np.logaddexp(x, 0),
    "sigmoid": special.expit,
    "tanh": np.tanh,
    "log": lambda x: np.log(np.abs(x)),
    "square": np.square,
    "sqrt": lambda x: np.sqrt(np.abs(x)),
    "abs": np.abs,
    "minus": np.negative,
    "1 /": lambda x: 1 / x,
    "softmax over the last axis": lambda x: special.softmax(x, -1),
    "softmax over the first axis": lambda x: special.softmax(x, 0),
    "normalised by the length of its rows": lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True),
    "normalised by the length of its columns": lambda x: x / np.linalg.norm(x, axis=0, keepdims=True),
}


def weights(r: Region) -> Iterator[Change]:
    """A parameter is used as it is, and the other program uses something that it computes of it; or the reverse."""
    for k, side, n in _of_weights(r):
        op, x = r.recorded.program.ops[k], as_float64(r.recorded.values[n])
        if locate.agreed(r.parted, n):
            for name, fn in OF_WEIGHTS.items():
                if x.ndim or not ("axis" in name or "length" in name):
                    yield _with_operand(r, k, side, fn(x), f"{name} of what {op.name} takes is missing")
        above = locate.ancestors(r.parted.own.trace, n)
        done = ", ".join(dict.fromkeys(place.op for place in _computed(r, above)))
        for leaf in [a for a in above if done and a in r.recorded.program.inputs]:
            if np.shape(r.recorded.values[leaf]) == x.shape:
                yield _with_operand(r, k, side, r.recorded.values[leaf], f"without {done} of the parameter")


def computed(r: Region) -> Iterator[Change]:
    """What is made of parameters should be what the other program computes of them, as behind a norm of weights."""
    others = r.parted.other.trace.values
    theirs = [m for m in _their_weights(r) if fingerprint.told(others[m].held)]
    for k, side, n in _of_weights(r):
        op, shape = r.recorded.program.ops[k], np.shape(r.recorded.values[n])
        size = math.prod(shape)
        for m in [m for m in theirs if others[m].size == size > 1]:
            for laid in ways(others[m].array, shape):
                words = f"{op.name} should take what the other program computes of its weights: {others[m].place.brief}"
                change = _with_operand(r, k, side, laid, words)
                yield change._replace(place=locate.first_unlike(r.parted, n, computed=True) or op.place)


def _of_weights(r: Region) -> list[tuple[int, int, int]]:
    """The operands in the region that hang on parameters alone: the operation, which of its operands, and the value."""
    trace, inputs = r.parted.own.trace, set(r.recorded.program.inputs)
    return [
        (k, side, n)
        for k, op in list(r.ops.items())[:DEEP]
        for side, n in enumerate(op.operands)
        if not trace.values[n].varies
        and getattr(r.recorded.values[n], "dtype", None) == np.float64
        and not inputs.isdisjoint(locate.ancestors(trace, n))
    ]


def _computed(r: Region, numbers: Sequence[int]) -> list[Place]:
    values = r.parted.own.trace.values
    return [values[n].place for n in numbers if values[n].operands and not values[n].moved]


def _their_weights(r: Region) -> list[int]:
    """What the other program computes of its parameters alone, and its region takes."""
    trace = r.parted.other.trace
    taken = {a for m in r.theirs[:DEEP] for n in trace.values[m].operands for a in locate.ancestors(trace, n)}
    return [n for n in sorted(taken) if not trace.values[n].varies and trace.values[n].operands][::-1][:DEEP]


def _with_operand(r: Region, k: int, side: int, value: Any, words: str) -> Change:
    op = r.recorded.program.ops[k]
    given = np.asarray(value)
    run = lambda x: op.run([given if n == side else y for n, y in enumerate(x)])  # noqa: E731
    return running(k, op, op.place, words, run)


def ways(x: np.ndarray, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """An array in every order of its axes that has a shape, or its numbers as they lie where it has another size."""
    if x.ndim == len(shape) <= _MOST_AXES:
        for order in itertools.permutations(range(x.ndim)):
            if tuple(x.shape[axis] for axis in order) == shape:
                yield x.transpose(order)
    else:
        yield x.reshape(shape)


def states(r: Region) -> Iterator[Change]:
    """Where a loop begins with zeros, or another constant, the other has a tensor that no leaf was made from."""
    trace, given = r.parted.own.trace, set(r.recorded.program.inputs)
    taken = {a: op for op in list(r.ops.values())[:DEEP] for n in op.operands for a in locate.ancestors(trace, n)}
    for n, op in taken.items():
        value, shape = trace.values[n], np.shape(r.recorded.values[n])
        if value.varies or not shape or not given.isdisjoint(locate.ancestors(trace, n)):
            continue
        for name, tensor in r.unused.items():
            for part, told in _parts(tensor, shape):
                words = f"{name}{told} is not used: a constant is"
                yield Change(value.place if value.place.line is not None else op.place, words, {n: part}, {})


def _parts(x: np.ndarray, shape: tuple[int, ...]) -> Iterator[tuple[np.ndarray, str]]:
    """A tensor, or one of the first axis of it, as an array of a shape to which it can be broadcast."""
    for part, told in [(x, ""), *((each, f"[{k}]") for k, each in enumerate(x if x.ndim > 1 else []))]:
        try:
            yield np.broadcast_to(part, shape), told
        except ValueError:
            continue


def chosen(r: Region) -> Iterator[dict[str, np.ndarray]]:
    """For each value of which the largest are taken, what may be made of it: softmax of them, or them of softmax."""
    for op in r.recorded.program.ops:
        if op.name != "top_k" or not locate.agreed(r.parted, op.operands[0]):
            continue
        x, taken = as_float64(r.recorded.values[op.operands[0]]), np.asarray(r.recorded.values[op.results[1]])
        of_all, largest = special.softmax(x, -1), np.take_along_axis(x, taken, -1)
        picked = np.take_along_axis(of_all, taken, -1)
        yield {
            "softmax of all, and of it the largest": picked,
            "softmax of the largest alone": special.softmax(largest, -1),
            "the largest over their sum": largest / largest.sum(-1, keepdims=True),
            "the largest as they are": largest,
        }
