"""Changes to how values are put together: what a scale multiplies, the axes of a norm, rolls, masks, dilations."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxgrad.port import locate
from jaxgrad.port.changes.region import DEEP, Change, Region, makers, running, with_params
from jaxgrad.port.jax_values import Op

# Of arrays of more axes there are too many sets of axes.
_MOST_AXES = 5
_DILATIONS = (1, 2, 3, 4, 8)
# A score of which the exponential is 0.
_HIDDEN = -1e30
_REDUCED: dict[str, Callable[..., Any]] = {"reduce_sum": np.sum, "reduce_max": np.max, "reduce_min": np.min}
_WIDENED = frozenset(("broadcast_in_dim", "reshape", "expand_dims"))


def scales(r: Region) -> Iterator[Change]:
    """A factor is of a sum, of one of its terms, or of the other, as with a branch and what it is added to."""
    ops, made = r.recorded.program.ops, makers(r)
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
    ops, near, made = r.recorded.program.ops, _near(r), makers(r)
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
    made, trace = makers(r), r.parted.own.trace
    taken = {a for op in r.ops.values() for n in op.operands for a in locate.ancestors(trace, n)[-DEEP:]}
    return set(r.ops) | {made[n] for n in taken if n in made and not locate.agreed(r.parted, n)}


def rolls(r: Region) -> Iterator[Change]:
    """A value is rolled along an axis, by another number of places; all rolls at a line at once."""
    ops, made = r.recorded.program.ops, makers(r)
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
    if any(set(part.eqn.params["strides"] or (1,)) != {1} for part in parts):
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
    trace, made = r.parted.own.trace, makers(r)
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


def ways(x: np.ndarray, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """An array in every order of its axes that has a shape, or its numbers as they lie where it has another size."""
    if x.ndim == len(shape) <= _MOST_AXES:
        for order in itertools.permutations(range(x.ndim)):
            if tuple(x.shape[axis] for axis in order) == shape:
                yield x.transpose(order)
    else:
        yield x.reshape(shape)
