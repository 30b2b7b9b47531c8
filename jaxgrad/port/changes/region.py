"""Where two programs part, as those see it who make changes there, and what a change is."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np

from jaxgrad import jax_seam
from jaxgrad.port import fingerprint, locate
from jaxgrad.port.fingerprint import EXACT, TRANSPOSED, Layout
from jaxgrad.port.jax_values import Op, Recorded
from jaxgrad.port.locate import Parted
from jaxgrad.port.values import Place

# How far into the region changes are tried.
DEEP = 24
# How many operations from the first of a region on are run on again for most of the changes.
_WIDE = 5 * DEEP

# How many parts of a value are tried in every order.
MOST_PARTS = 4


class Change(NamedTuple):
    """A changed program: values given by number, and operations in the place of others by their index.

    One that is `weak` counts only where all outputs then agree: some values that agree behind it say nothing. `taken`
    is the number of a value that agrees and to which something is done before the operation at `place` takes it, and
    `given` that of the other program's value which comes of it.
    """

    place: Place
    words: str
    values: Mapping[int, Any]
    ops: Mapping[int, Op]
    weak: bool = False
    taken: int | None = None
    given: int | None = None


class Region(NamedTuple):
    """Where two programs part, for those who make changes: the values and operations there, of both programs.

    `bad` and `theirs` are numbers of values without a counterpart, `ops` the operations of the former by index.
    `turns` are the operations that are one in the source, by index, and `constants` the numbers written into them.
    """

    parted: Parted
    recorded: Recorded
    bad: tuple[int, ...]
    theirs: tuple[int, ...]
    ops: dict[int, Op]
    unused: dict[str, np.ndarray]
    lookup: fingerprint.Index
    turns: dict[int, list[int]]
    constants: dict[int, list[int]]


Kind: TypeAlias = Callable[[Region], Iterator[Change]]


def _makers(recorded: Recorded) -> dict[int, int]:
    return {n: k for k, op in enumerate(recorded.program.ops) for n in op.results}


def region(parted: Parted, recorded: Recorded, unused: Mapping[str, np.ndarray]) -> Region:
    """Where two programs part."""
    own, theirs, wrong = locate.slices(parted)
    made = _makers(recorded)
    # Where the function ends too early, its outputs are where something is missing.
    bad = tuple(own) or tuple(n for n, _ in wrong)
    near = list(dict.fromkeys(made[n] for n in bad[: 2 * DEEP] if n in made))[:DEEP]
    if recorded.cuts and near:
        # Each change is tried by running on, and of what is let go the same values would be computed for each.
        ops = recorded.program.ops[min(near) : min(near) + _WIDE]
        recorded.values.keep({n for op in ops for n in op.operands})
    arrays = [parted.other.trace.values[m].held for m in theirs]
    return Region(
        parted,
        recorded,
        bad,
        tuple(theirs),
        {k: recorded.program.ops[k] for k in near},
        dict(unused),
        fingerprint.index(arrays),
        *_turns(recorded),
    )


def _turns(recorded: Recorded) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    """The operations that are one equation at one line, by the index of each, and likewise the numbers in them."""
    groups: dict[Any, list[int]] = {}
    for k, op in enumerate(recorded.program.ops):
        if op.eqn is not None:
            groups.setdefault((id(op.eqn), op.place.line), []).append(k)
    several = [group for group in groups.values() if len(group) > 1]
    constants: dict[int, list[int]] = {}
    for group in several:
        for same in zip(*(recorded.program.ops[k].operands for k in group), strict=True):
            if all(n in recorded.program.constants for n in same):
                constants.update((n, list(same)) for n in same)
    return {k: group for group in several for k in group}, constants


def makers(r: Region) -> dict[int, int]:
    """Which operation makes each value."""
    return _makers(r.recorded)


def taken(r: Region) -> list[int]:
    """What the operations of the region take that depends on the inputs, in their order."""
    varies = r.parted.own.trace.values
    return [n for op in r.ops.values() for n in op.operands if varies[n].varies]


def at_line(r: Region, op: Op) -> list[int]:
    """The operations of the name at the line of one, by index."""
    ops = enumerate(r.recorded.program.ops)
    return [k for k, other in ops if (other.name, other.place.line) == (op.name, op.place.line)]


def counterpart(r: Region, array: np.ndarray, number: int) -> float | None:
    """How far a value is off, by its number, from the other program's that it is; None where it is none."""

    def layout(_: int, m: int, tolerance: float) -> Layout | None:
        how = fingerprint.layout(array, r.parted.other.trace.values[m].held, tolerance)
        return how if how is not None and how.kind in (EXACT, TRANSPOSED) else None

    numbers = [(number, m) for m in r.theirs]
    for k, how in locate.matching(array, r.lookup, numbers, r.parted.noise, layout):
        other = r.lookup.arrays[k]
        return locate.relative(fingerprint.moved(array, how, other.shape), other)
    return None


def running(k: int, op: Op, place: Place, words: str, run: Callable[[Sequence[Any]], list[Any]]) -> Change:
    """The change of one operation, by its index, to what `run` does."""
    return Change(place, words, {}, {k: op._replace(run=run)})


def changing(op: Op, side: int, change: Callable[[Any], Any]) -> Callable[[Sequence[Any]], list[Any]]:
    """The operation with one operand changed."""
    return lambda x: op.run([change(y) if n == side else y for n, y in enumerate(x)])


def giving(value: Any) -> Callable[[Any], Any]:
    """A value whatever is given."""
    return lambda _: np.asarray(value)


def taking(op: Op, number: int, value: Any) -> Op:
    """The operation with another value wherever it takes that of a number."""
    return op._replace(run=lambda x: op.run([value if n == number else y for n, y in zip(op.operands, x, strict=True)]))


def with_params(op: Op, changed: Mapping[str, Any]) -> Callable[[Sequence[Any]], list[Any]]:
    """The operation with other parameters."""
    return lambda x: jax_seam.bind(op.eqn, list(map(jnp.asarray, x)), **changed)


def keeping(side: int) -> Callable[[Sequence[Any]], list[Any]]:
    """What gives one operand as it is."""
    return lambda x: [x[side]]


def of_result(r: Region, n: int, place: Place, words: str, change: Callable[[Any], Any]) -> Change:
    """A value changed where it is made, which may be in many turns or calls."""
    for k, op in enumerate(r.recorded.program.ops):
        if op.results == (n,):
            return running(k, op, place, words, then(op, change))
    return Change(place, words, {n: change(np.asarray(r.recorded.values[n]))}, {})


def then(op: Op, change: Callable[[Any], Any]) -> Callable[[Sequence[Any]], list[Any]]:
    """The operation, and then a change of its results."""
    return lambda x: [change(y) for y in op.run(x)]


def ordinals(order: Sequence[int]) -> str:
    """Numbers counted from 1, as people do."""
    return ", ".join(str(n + 1) for n in order)
