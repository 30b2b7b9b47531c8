"""One operation in the place of another: its like, its axes and paddings, its operands the other way round."""

import functools
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
    changing,
    keeping,
    makers,
    ordinals,
    running,
    with_params,
)
from jaxgrad.port.jax_values import Op

_OTHERS = {
    "add": ("sub", "mul"), "sub": ("add",), "mul": ("div", "add"), "div": ("mul",), "max": ("min",), "min": ("max",),
}  # fmt: skip
_COMPARED = {"ge": "gt", "gt": "ge", "le": "lt", "lt": "le"}
_TWO: dict[str, Callable[[Any, Any], Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "max": np.maximum,
    "min": np.minimum, "ge": np.greater_equal, "gt": np.greater, "le": np.less_equal, "lt": np.less,
}  # fmt: skip


def alike(r: Region) -> Iterator[Change]:
    """An operation is its like: a sign, a quotient, operands swapped or dropped, a transposed or flipped operand."""
    for k, op in list(r.ops.items())[:16]:
        name, place = op.name, op.place
        if name in _OTHERS:
            for other in _OTHERS[name]:
                yield running(k, op, place, f"{other} in the place of {name}", _two(other))
            for keep in (0, 1):
                if np.shape(r.recorded.values[op.operands[keep]]) == np.shape(r.recorded.values[op.results[0]]):
                    words = f"without this {name} of {_told(r, op.operands[1 - keep])}"
                    yield running(k, op, place, words, keeping(keep))._replace(weak=True)
        if name in ("sub", "div"):
            yield running(k, op, place, f"the operands of {name} swapped", _exchanged(op))
        if name == "dot_general":
            for side in (0, 1):
                if _square(r, op.operands[side]):
                    whose = "second" if side else "first"
                    run = changing(op, side, lambda y: np.swapaxes(y, -1, -2))
                    yield running(k, op, place, f"the {whose} operand transposed", run)
            shapes = {np.shape(r.recorded.values[n]) for n in op.operands}
            if len(shapes) == 1:
                yield running(k, op, place, "the operands swapped", _exchanged(op))
        if name == "conv_general_dilated":
            yield from _convolutions(r, k, op)
        if name.startswith("reduce_window") and op.eqn is not None and "padding" in op.eqn.params:
            yield from _paddings(k, op, [size > 1 for size in op.eqn.params["window_dimensions"]])
        if name == "concatenate" and 2 <= len(op.operands) <= MOST_PARTS:
            yield from _other_orders(k, op)
        if name in ("cumsum", "cumprod", "cumlogsumexp", "cummax") and op.eqn is not None:
            turned = {"reverse": not op.eqn.params["reverse"]}
            yield running(k, op, place, f"{name} from the other end", with_params(op, turned))
            for axis in set(range(np.ndim(r.recorded.values[op.operands[0]]))) - {op.eqn.params["axis"]}:
                words = f"{name} along axis {axis} in the place of {op.eqn.params['axis']}"
                yield running(k, op, place, words, with_params(op, {"axis": axis}))
        if name in ("reduce_sum", "reduce_max", "reduce_min", "argmax", "argmin") and op.eqn is not None:
            yield from _other_axes(r, k, op)
        if name == "integer_pow" and op.eqn is not None:
            old = op.eqn.params["y"]
            for new in (old - 1, old + 1, 2):
                if new not in (0, old):
                    yield running(k, op, place, f"the power {old} should be {new}", _power(new))


def _told(r: Region, n: int) -> str:
    """A value as it is called: a number, or the operation that made it."""
    x = r.recorded.values[n]
    varies = r.parted.own.trace.values[n].varies
    return f"{float(x):.4g}" if np.ndim(x) == 0 and not varies else r.parted.own.trace.values[n].place.op


def _power(y: int) -> Callable[[Sequence[Any]], list[Any]]:
    return lambda x: [np.asarray(x[0]) ** y]


def _other_orders(k: int, op: Op) -> Iterator[Change]:
    """What is put together, in another order."""
    for order in list(itertools.permutations(range(len(op.operands))))[1:]:

        def run(x: Sequence[Any], order: tuple[int, ...] = order) -> list[Any]:
            return op.run([x[n] for n in order])

        yield running(k, op, op.place, f"the parts of {op.name} in the order {ordinals(order)}", run)


def _two(name: str) -> Callable[[Sequence[Any]], list[Any]]:
    return lambda x: [_TWO[name](x[0], x[1])]


def _exchanged(op: Op) -> Callable[[Sequence[Any]], list[Any]]:
    """The operation with its last two operands exchanged."""
    return lambda x: op.run([*x[:-2], x[-1], x[-2]])


def _square(r: Region, n: int) -> bool:
    shape = np.shape(r.recorded.values[n])
    return len(shape) > 1 and shape[-1] == shape[-2]


def _convolutions(r: Region, k: int, op: Op) -> Iterator[Change]:
    axes = len(np.shape(r.recorded.values[op.operands[1]])) - 2
    spatial = op.eqn.params["dimension_numbers"].rhs_spec[2:]
    yield running(k, op, op.place, "the kernel flipped", changing(op, 1, lambda y: np.flip(y, tuple(spatial))))
    yield from _paddings(k, op, [True] * axes)


def _paddings(k: int, op: Op, windowed: Sequence[bool]) -> Iterator[Change]:
    """The same padding before and behind each windowed axis. "SAME" puts the odd one behind, where a stride is above 1.

    PyTorch's padding is explicit, and the same at both ends.
    """
    old = list(map(tuple, op.eqn.params["padding"]))
    # All on one side, as a causal convolution has it, however wide.
    total = max(map(sum, old))
    some = {*itertools.product(range(4), repeat=2), (total, 0), (0, total)}
    # Where several give the same, the one that PyTorch can say comes first.
    for pad in sorted(some, key=lambda pad: (abs(pad[0] - pad[1]), pad)):
        new = [pad if wanted else (0, 0) for wanted in windowed]
        if new != old:
            told = [[each for each, wanted in zip(pads, windowed, strict=True) if wanted] for pads in (new, old)]
            words = f"padding {told[0]} in the place of {told[1]}"
            yield running(k, op, op.place, words, with_params(op, {"padding": tuple(new)}))


def _other_axes(r: Region, k: int, op: Op) -> Iterator[Change]:
    axes = tuple(op.eqn.params["axes"])
    shape = np.shape(r.recorded.values[op.operands[0]])
    for axis in range(len(shape)):
        if len(axes) == 1 and axis not in axes and shape[axis] == shape[axes[0]]:
            run = changing(op, 0, functools.partial(np.swapaxes, axis1=axis, axis2=axes[0]))
            yield running(k, op, op.place, f"{op.name} over axis {axis} in the place of {axes[0]}", run)


def comparisons(r: Region) -> Iterator[Change]:
    """Comparisons and differences in what makes the constants of the region, such as masks and distances."""
    trace = r.parted.own.trace
    wanted = {a for op in r.ops.values() for n in op.operands for a in locate.ancestors(trace, n)}
    wanted |= {n for op in r.ops.values() for n in op.results}
    for k, op in enumerate(r.recorded.program.ops):
        if op.results[0] in wanted and op.name in _COMPARED:
            yield running(k, op, op.place, f"{_COMPARED[op.name]} in the place of {op.name}", _two(_COMPARED[op.name]))
        elif op.results[0] in wanted and op.name == "sub" and not trace.values[op.results[0]].varies:
            yield running(k, op, op.place, "the operands of sub swapped", _exchanged(op))
        elif (
            op.results[0] in wanted
            and op.name == "select_n"
            and len(op.operands) == 3
            and not trace.values[op.results[0]].varies
        ):
            yield running(k, op, op.place, "the choices of where swapped", _exchanged(op))


def orders(r: Region) -> Iterator[Change]:
    """Two operations in a row the other way round, as an epsilon inside a root and outside of it, or a sum and a relu.

    The first has one operand that varies; its result is one of the second's.
    """
    ops = r.recorded.program.ops
    made = makers(r)
    varies = r.parted.own.trace.values
    for k, op in list(r.ops.items())[:DEEP]:
        for side, n in enumerate(op.operands):
            first = ops[made[n]] if n in made and varies[n].varies else None
            if first is None or len(op.results) != 1 or len(first.results) != 1:
                continue
            of_first = [place for place, m in enumerate(first.operands) if varies[m].varies]
            if len(of_first) == 1:
                shape = np.shape(r.recorded.values[op.results[0]])
                run = _other_way_round(first, of_first[0], op, side, shape)
                both = op._replace(run=run, operands=(*first.operands, *op.operands))
                yield Change(op.place, f"{op.name} before {first.name}, not after it", {}, {k: both})


def _other_way_round(
    first: Op, of_first: int, second: Op, of_second: int, shape: tuple[int, ...]
) -> Callable[[Sequence[Any]], list[Any]]:
    """Of the operands of both: the second operation of the first one's operand, and then the first of its result.

    One that gives another `shape` does not fit: what follows may take its numbers in an order that nobody meant.
    """

    def run(x: Sequence[Any]) -> list[Any]:
        given, others = list(x[: len(first.operands)]), list(x[len(first.operands) :])
        others[of_second] = given[of_first]
        (given[of_first],) = second.run(others)
        made = first.run(given)
        if np.shape(made[0]) != shape:
            raise ValueError(f"a result of the shape {np.shape(made[0])} in the place of one of {shape}")
        return made

    return run
