"""Changes to what hangs on no input: tables, what is made of parameters, and what a loop begins with."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from scipy import special

from jaxgrad.port import fingerprint, locate
from jaxgrad.port.changes.region import DEEP, Change, Region, changing, giving, makers, running, then
from jaxgrad.port.changes.structures import ways
from jaxgrad.port.jax_values import Op
from jaxgrad.port.values import Place, as_float64

_COUNTED = frozenset(("iota", "arange", "linspace"))
_SINES = {"cos": np.sin, "sin": np.cos}


def tables(r: Region) -> Iterator[Change]:
    """What makes the constants of the region: counted from another number, sine for cosine, joined the other way."""
    trace, ops, made = r.parted.own.trace, r.recorded.program.ops, makers(r)
    taken = [n for op in r.ops.values() for n in op.operands if not trace.values[n].varies]
    wanted = [n for n in dict.fromkeys(taken) if not locate.agreed(r.parted, n)]
    for k in dict.fromkeys(made[a] for n in wanted for a in locate.ancestors(trace, n) if a in made):
        op = ops[k]
        if op.name in _COUNTED:
            for by in (-1, 1):
                told = "less" if by < 0 else "more"
                words = f"each number of {op.name} should be 1 {told}"
                yield running(k, op, op.place, words, then(op, functools.partial(np.add, by)))
        if op.name in _SINES:
            other = _SINES[op.name]
            words = f"{other.__name__} in the place of {op.name}"
            yield running(k, op, op.place, words, _function(other))
        parts = [side for side, n in enumerate(op.operands) if np.ndim(r.recorded.values[n])]
        if op.name in ("concatenate", "stack", "meshgrid") and len(parts) == 2:
            yield running(k, op, op.place, f"the parts of {op.name} the other way round", _turned(op, *parts))


def _function(function: Callable[[Any], Any]) -> Callable[[Sequence[Any]], list[Any]]:
    return lambda x: [function(x[0])]


def _turned(op: Op, a: int, b: int) -> Callable[[Sequence[Any]], list[Any]]:
    other = {a: b, b: a}
    return lambda x: op.run([x[other.get(n, n)] for n in range(len(x))])


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
    return running(k, op, op.place, words, changing(op, side, giving(value)))


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
