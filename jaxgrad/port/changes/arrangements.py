"""The numbers of a value in another order: axes split, transposed, rolled, reversed, repeated."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxgrad.port import locate
from jaxgrad.port.changes.region import (
    DEEP,
    MOST_PARTS,
    Change,
    Region,
    keeping,
    makers,
    of_result,
    ordinals,
    running,
    taken,
    with_params,
)
from jaxgrad.port.jax_values import Op

# How many transpositions, the nearest first, are tried in how many other orders.
_MOST_MOVES, _MOST_ORDERS = 6, 24


def orders(r: Region) -> Iterator[Change]:
    """The numbers of a value in another order: axes split the other way round, rolled, reversed, transposed."""
    trace = r.parted.own.trace
    before = taken(r)
    near = {c for n in before[:6] for c in locate.ancestors(trace, n) if trace.values[c].moved} | set(r.bad[:DEEP])
    for op in r.recorded.program.ops:
        if op.name == "reshape" and op.results[0] in near and op.eqn is not None:
            yield from _split_otherwise(r, op)
    for k, op in enumerate(r.recorded.program.ops):
        if op.name == "transpose" and op.results[0] in near:
            yield running(k, op, op.place, "without this transposition", keeping(0))
    yield from _transposed_otherwise(r, near)
    for n in dict.fromkeys([*r.bad[:8], *before[:6]]):
        x = np.asarray(r.recorded.values[n])
        # A value that agrees is used otherwise.
        users = [op.place for op in r.ops.values() if n in op.operands] if n not in r.bad else []
        place = next(iter(users), trace.values[n].place)
        for axis in range(x.ndim):
            for by in (1, -1):
                yield Change(place, f"shifted by {by} along axis {axis}", {n: np.roll(x, by, axis)}, {})
            yield Change(place, f"reversed along axis {axis}", {n: np.flip(x, axis)}, {})
        if x.ndim > 1 and x.shape[-1] == x.shape[-2]:
            product = "its two operands exchanged: the other program's result is the transposed"
            words = product if place.op == "dot_general" else "transposed"
            yield Change(place, words, {n: np.swapaxes(x, -1, -2)}, {})
        if np.issubdtype(x.dtype, np.number):
            yield of_result(r, n, place, "of the other sign", lambda y: -y)
        if x.dtype.kind == "f" and x.size and x.min() >= 0 and x.max() <= 1:
            yield of_result(r, n, place, "1 minus it in its place", lambda y: 1 - y)


def _transposed_otherwise(r: Region, results: set[int]) -> Iterator[Change]:
    """The nearest transpositions with their axes in another order of the same sizes, as patches by columns are."""
    some = [(k, op) for k, op in enumerate(r.recorded.program.ops) if op.name == "transpose" and op.eqn is not None]
    for k, op in [(k, op) for k, op in some if op.results[0] in results][::-1][:_MOST_MOVES]:
        old, shape = tuple(op.eqn.params["permutation"]), np.shape(r.recorded.values[op.operands[0]])
        # What is then joined to fewer axes may have two of other sizes exchanged.
        swaps = [_swapped(old, a, b) for a, b in itertools.combinations(range(len(old)), 2)]
        size = [shape[axis] for axis in old]
        orders = (each for each in itertools.permutations(range(len(shape))) if [shape[n] for n in each] == size)
        for order in dict.fromkeys([*swaps, *itertools.islice(orders, _MOST_ORDERS)]):
            if order != old:
                words = f"the axes in the order {order} in the place of {old}"
                yield running(k, op, op.place, words, with_params(op, {"permutation": order}))


def _swapped(order: tuple[int, ...], a: int, b: int) -> tuple[int, ...]:
    return tuple(order[{a: b, b: a}.get(n, n)] for n in range(len(order)))


def _split_otherwise(r: Region, op: Op) -> Iterator[Change]:
    """An axis that is split into several, split in another order: for every such reshape of the region at once."""
    old, new = np.shape(r.recorded.values[op.operands[0]]), np.shape(r.recorded.values[op.results[0]])
    count = len(new) - len(old) + 1
    if not old or not 2 <= count <= MOST_PARTS:
        return
    axis = next((k for k in range(len(old)) if old[k] != new[k]), len(old) - 1)
    parts, rest = new[axis : axis + count], new[axis + count :]
    if 1 in parts or (*new[:axis], math.prod(parts), *rest) != old:
        return
    alike = {
        k: other
        for k, other in enumerate(r.recorded.program.ops)
        if other.name == "reshape"
        and other.place.line == op.place.line
        and [np.shape(r.recorded.values[n]) for n in (*other.operands, *other.results)] == [old, new]
    }
    for order in list(itertools.permutations(range(count)))[1:]:
        lying = [parts[n] for n in order]

        def run(x: Sequence[Any], order: tuple[int, ...] = order, lying: Sequence[int] = lying) -> list[Any]:
            back = [axis + n for n in np.argsort(order)]
            turned = np.reshape(x[0], (*new[:axis], *lying, *rest))
            return [np.transpose(turned, (*range(axis), *back, *range(axis + count, len(new))))]

        if len(set(parts)) == 1:
            words = "the first of the two should be the inner one"
            words = words if count == 2 else f"they should lie in the order {ordinals(order)}"
        else:
            words = f"it should be ({', '.join(map(str, lying))})"
        told = f"the axis of {old[axis]} is split into ({', '.join(map(str, parts))}); {words}"
        yield Change(op.place, told, {}, {k: other._replace(run=run) for k, other in alike.items()})
    if count == 2:
        yield from _parts_inside(r, op, old, new, axis)


def _parts_inside(r: Region, op: Op, old: tuple[int, ...], new: tuple[int, ...], axis: int) -> Iterator[Change]:
    """Parts that are taken out of each head, and lie one after the other in the other program."""
    a, b = new[axis], new[axis + 1]
    for count in (2, 3):
        if b % count == 0 and b > count:
            index = next(k for k, other in enumerate(r.recorded.program.ops) if other is op)

            def one_after_the_other(x: Sequence[Any], count: int = count) -> list[Any]:
                apart = np.reshape(x[0], (*old[:axis], count, a, b // count, *old[axis + 1 :]))
                return [np.reshape(np.swapaxes(apart, axis, axis + 1), new)]

            words = f"the {count} parts lie one after the other, not inside of each of {a} heads"
            yield running(index, op, op.place, words, one_after_the_other)


def repeats(r: Region) -> Iterator[Change]:
    """Parts of an axis that are repeated one by one (`jnp.repeat`), or all of them in turn (`jnp.tile`)."""
    trace = r.parted.own.trace
    made = makers(r)
    given = (n for op in r.ops.values() for n in op.operands)
    near = dict.fromkeys(a for n in (*r.bad[:DEEP], *given) for a in locate.ancestors(trace, n) if a in made)
    some = [r.recorded.program.ops[made[n]] for n in near]
    joined = [op for op in some if op.name in ("reshape", "gather", "tile", "repeat", "concatenate")]
    changed: dict[tuple[Any, str], dict[int, Any]] = {}
    for op in joined:
        x = np.asarray(r.recorded.values[op.results[0]])
        for axis, size in enumerate(x.shape):
            for count in (c for c in range(2, size) if size % c == 0):
                shape = (*x.shape[:axis], count, size // count, *x.shape[axis + 1 :])
                parts = x.reshape(shape)
                tiled = bool((parts == parts.take([0], axis)).all())
                one_by_one = bool((parts == parts.take([0], axis + 1)).all())
                if tiled == one_by_one:
                    continue
                inner, outer = ("one by one", "all in turn") if tiled else ("all in turn", "one by one")
                words = f"the parts of axis {axis} should be repeated {inner}, not {outer}"
                core = parts.take(0, axis if tiled else axis + 1)
                times = count if tiled else size // count
                turned = np.repeat(core, times, axis) if tiled else np.concatenate([core] * times, axis)
                changed.setdefault((op.place.line, words), {})[op.results[0]] = turned
    for (line, words), values in changed.items():
        place = next(op.place for op in joined if op.place.line == line)
        yield Change(place, words, values, {})
