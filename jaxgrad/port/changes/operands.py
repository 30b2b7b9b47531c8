"""An operation takes another value: one of its own program, one of the other, or two that are exchanged."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from jaxgrad.port import fingerprint, locate
from jaxgrad.port.changes.region import (
    Change,
    Region,
    at_line,
    changing,
    giving,
    running,
    taking,
)

# How many of the values that a region takes may be two that are exchanged.
_MOST_EXCHANGED = 8


def taken(r: Region) -> Iterator[Change]:
    """An operand is another value: one that both programs have, or one that only the other program has."""
    trace, others = r.parted.own.trace, r.parted.other.trace.values
    fine = [n for n, v in enumerate(trace.values) if v.varies and locate.agreed(r.parted, n)]
    weights = [n for n in r.recorded.program.inputs if not trace.values[n].varies]
    yield from _other_sources(r, fine)
    first = next((k for k, op in r.ops.items() if fingerprint.told(trace.values[op.results[0]].held)), None)
    for k, op in list(r.ops.items())[:10]:
        for side, n in enumerate(op.operands):
            value = r.recorded.values[n]
            shape = np.shape(value)
            if not shape:
                continue
            if trace.values[n].varies:
                for other in [m for m in reversed(fine) if m != n and np.shape(r.recorded.values[m]) == shape][:24]:
                    words = f"{op.name} should take the value of {trace.values[other].place.brief}"
                    run = changing(op, side, giving(r.recorded.values[other]))
                    # What agrees behind it may be what the other value alone gives.
                    yield running(k, op, op.place, words, run)._replace(weak=True)
                # That a value which differs should be the other program's explains nothing, nor does it where a
                # constant is wrong.
                agrees = k == first and locate.agreed(r.parted, n)
                agrees = agrees and not locate.wrong_constant(r.parted, op.operands)
                size = trace.values[n].size
                for m in [m for m in r.theirs[:30] if agrees and others[m].size == size]:
                    words = f"{op.name} should take what the other program has from {others[m].place.brief}"
                    run = changing(op, side, giving(_as_ours(r, n, m)))
                    # Of a value that is the other program's own, parts and products are, too.
                    yield running(k, op, op.place, words, run)._replace(weak=True, taken=n, given=m)
            else:
                for other in [m for m in weights if np.shape(r.recorded.values[m]) == shape and m != n][:40]:
                    words = f"{op.name} should take another parameter, input {r.recorded.program.inputs.index(other)}"
                    run = changing(op, side, giving(r.recorded.values[other]))
                    yield running(k, op, op.place, words, run)


def _other_sources(r: Region, fine: Sequence[int]) -> Iterator[Change]:
    """What several operations of the region take is another value for all of them."""
    trace, others = r.parted.own.trace, r.parted.other.trace.values
    uses: dict[int, list[int]] = {}
    for k, op in r.ops.items():
        for n in dict.fromkeys(op.operands):
            if trace.values[n].varies and locate.agreed(r.parted, n):
                uses.setdefault(n, []).append(k)
    for n, users in [(n, users) for n, users in uses.items() if len(users) > 1][:4]:
        shape, place = np.shape(r.recorded.values[n]), r.ops[users[0]].place
        # Of two values that give the same, only one is what the other program takes.
        own = [m for m in reversed(fine) if m != n and np.shape(r.recorded.values[m]) == shape and _taken(r, m)][:12]
        given: list[tuple[str, np.ndarray, int | None]] = [
            (f"the value of {trace.values[m].place.brief}", np.asarray(r.recorded.values[m]), None) for m in own
        ]
        given += [
            (f"what the other program has from {others[m].place.brief}", _as_ours(r, n, m), m)
            for m in r.theirs[:30]
            if others[m].array.size == trace.values[n].array.size
        ]
        for told, value, other in given:
            ops = {k: taking(r.ops[k], n, value) for k in users}
            words = f"{told} should be taken, not that of {trace.values[n].place.brief}"
            yield Change(place, words, {}, ops, taken=n, given=other)


def _as_ours(r: Region, n: int, m: int) -> np.ndarray:
    """A value of the other program in the place of one that agrees, and lying as that does."""
    array, shape, pair = r.parted.other.trace.values[m].array, np.shape(r.recorded.values[n]), r.parted.pairs[n]
    if array.shape != pair.shape:
        return array.reshape(shape)
    return fingerprint.moved(array, pair.layout, shape, back=True)


def _taken(r: Region, n: int) -> bool:
    """Whether an operation of the other program's region takes the counterpart of a value."""
    trace = r.parted.other.trace
    roots = {locate.root(trace, k) for m in r.theirs for k in trace.values[m].operands}
    return locate.root(trace, r.parted.pairs[n].other) in roots


def exchanged(r: Region) -> Iterator[Change]:
    """Two values that both programs have are each taken for the other, such as gates, in all turns and calls."""
    program = r.recorded.program
    made = {n: k for k, op in enumerate(program.ops) for n in op.results if len(op.results) == 1}
    # What is computed of the wrong one may be a value of the other program, too.
    taken = [n for op in r.ops.values() for n in op.operands]
    taken = list(dict.fromkeys([*taken, *(n for m in taken if m in made for n in program.ops[made[m]].operands)]))
    fine = [n for n in taken if n in made and r.parted.own.trace.values[n].varies and locate.agreed(r.parted, n)]
    for a, b in itertools.combinations(fine[:_MOST_EXCHANGED], 2):
        first, second = (program.ops[made[n]] for n in (a, b))
        if first.name != second.name or first.place.line == second.place.line:
            continue
        if np.shape(r.recorded.values[a]) != np.shape(r.recorded.values[b]):
            continue
        some, others = ([program.ops[k].results[0] for k in at_line(r, op)] for op in (first, second))
        if len(some) == len(others):
            swapped = dict(zip((*some, *others), (*others, *some), strict=True))
            ops = {
                k: op._replace(operands=tuple(swapped.get(n, n) for n in op.operands))
                for k, op in enumerate(program.ops)
                if not swapped.keys().isdisjoint(op.operands)
            }
            place, other = sorted((first.place, second.place), key=lambda each: each.line or ())
            yield Change(place, f"it and the value of {other.brief} exchanged", {}, ops, weak=True)
