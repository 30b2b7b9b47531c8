"""Parts of a value, such as gates, heads or halves: in another order, by head, interleaved."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxgrad.port import locate
from jaxgrad.port.changes.region import (
    DEEP,
    MOST_PARTS,
    Change,
    Region,
    ordinals,
    running,
)
from jaxgrad.port.jax_values import Op


def reordered(r: Region) -> Iterator[Change]:
    """The parts of a value that is split, as gates or queries and keys, in another order."""
    wanted = {a for n in r.bad[:DEEP] for a in locate.ancestors(r.parted.own.trace, n)}
    for k, op in enumerate(r.recorded.program.ops):
        if op.name != "split" or not 2 <= len(op.results) <= MOST_PARTS:
            continue
        if not wanted.isdisjoint(op.results):
            shapes = [np.shape(r.recorded.values[n]) for n in op.results]
            orders = list(itertools.permutations(range(len(op.results))))[1:]
            for order in [each for each in orders if [shapes[n] for n in each] == shapes]:

                def run(x: Sequence[Any], op: Op = op, order: tuple[int, ...] = order) -> list[Any]:
                    made = op.run(x)
                    return [made[n] for n in order]

                yield running(k, op, op.place, f"the parts of split in the order {ordinals(order)}", run)
            if len(set(shapes)) == 1:
                yield from _parts_by_head(r, k, op)


def cut_reordered(r: Region) -> Iterator[Change]:
    """Parts that are cut out of a value one by one, in another order."""
    wanted = {a for n in r.bad[:DEEP] for a in locate.ancestors(r.parted.own.trace, n)}
    for some in _cut(r, wanted):
        ops = [r.recorded.program.ops[k] for k in some]
        for order in list(itertools.permutations(range(len(some))))[1:]:
            runs = {k: op._replace(run=ops[n].run) for k, op, n in zip(some, ops, order, strict=True)}
            yield Change(ops[0].place, f"the parts that are cut out in the order {ordinals(order)}", {}, runs)


def _cut(r: Region, wanted: set[int]) -> list[list[int]]:
    """The slices of one size that are cut out of one value, by the value and the size."""
    cut: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for k, op in enumerate(r.recorded.program.ops):
        if op.name == "slice" and op.eqn is not None and not wanted.isdisjoint(op.results):
            cut.setdefault((op.operands[0], np.shape(r.recorded.values[op.results[0]])), []).append(k)
    return [some for some in cut.values() if 2 <= len(some) <= MOST_PARTS]


def interleaved(r: Region) -> Iterator[Change]:
    """Parts of an axis, such as halves, that are each a stretch of it, and should be every so many, or the reverse."""
    wanted = {a for n in r.bad[:DEEP] for a in locate.ancestors(r.parted.own.trace, n)}
    for k, op in enumerate(r.recorded.program.ops):
        if op.name == "split" and op.eqn is not None and not wanted.isdisjoint(op.results):
            count, axis = len(op.results), op.eqn.params["axis"]
            if len({np.shape(r.recorded.values[n]) for n in op.results}) == 1:
                every = [_part_of(number, count, axis, apart=True) for number in range(count)]
                words = f"each part should be every {count}. of axis {axis}, not a stretch of it"
                yield running(k, op, op.place, words, _all_of(every))
    for some in _cut(r, wanted):
        yield from _cut_otherwise(r, some)


def _all_of(runs: Sequence[Callable[[Sequence[Any]], list[Any]]]) -> Callable[[Sequence[Any]], list[Any]]:
    return lambda x: [run(x)[0] for run in runs]


def _cut_otherwise(r: Region, some: Sequence[int]) -> Iterator[Change]:
    """Parts that are each a stretch of an axis, and should be every so many of it, or the other way round."""
    ops = [r.recorded.program.ops[k] for k in some]
    x, parts = (np.asarray(r.recorded.values[n]) for n in (ops[0].operands[0], ops[0].results[0]))
    axis = next((axis for axis in range(x.ndim) if x.shape[axis] == len(some) * parts.shape[axis]), None)
    if axis is None or sum(a != b for a, b in zip(x.shape, parts.shape, strict=True)) != 1:
        return
    strides = {(op.eqn.params["strides"] or [1] * x.ndim)[axis] for op in ops}
    if strides == {1}:
        words = f"each part should be every {len(some)}. of axis {axis}, not a stretch of it"
    elif strides == {len(some)}:
        words = f"each part should be a stretch of axis {axis}, not every {len(some)}. of it"
    else:
        return
    runs = {}
    for k, op in zip(some, ops, strict=True):
        start = op.eqn.params["start_indices"][axis]
        number = start // parts.shape[axis] if strides == {1} else start
        runs[k] = op._replace(run=_part_of(number, len(some), axis, apart=strides == {1}))
    yield Change(ops[0].place, words, {}, runs)


def _part_of(number: int, count: int, axis: int, apart: bool) -> Callable[[Sequence[Any]], list[Any]]:
    """One of so many equal parts of an axis: every so many of it if they lie `apart`, else a stretch."""

    def run(x: Sequence[Any]) -> list[Any]:
        stretches = np.array_split(np.asarray(x[0]), count, axis)
        some = np.arange(number, np.shape(x[0])[axis], count)
        return [np.take(x[0], some, axis) if apart else stretches[number]]

    return run


def _parts_by_head(r: Region, k: int, op: Op) -> Iterator[Change]:
    """Parts, such as queries, keys and values, that lie inside of each head and not one after the other."""
    (operand,), count, axis = op.operands, len(op.results), op.eqn.params["axis"]
    shape = np.shape(r.recorded.values[operand])
    size = shape[axis] // count
    for heads in (h for h in range(2, size) if size % h == 0):

        def run(x: Sequence[Any], heads: int = heads) -> list[Any]:
            by_head = np.reshape(x[0], (*shape[:axis], heads, count, size // heads, *shape[axis + 1 :]))
            whole = (*shape[:axis], size, *shape[axis + 1 :])
            return [np.take(by_head, n, axis + 1).reshape(whole) for n in range(count)]

        yield running(
            k, op, op.place, f"the {count} parts lie inside of each of {heads} heads, not one after the other", run
        )
