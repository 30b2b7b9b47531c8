"""What would mend a difference: changes to the JAX program, where it parts, with which the next values agree.

A change is tried by running on from it. It counts where several values behind it, or all outputs, are then values of
the other program that had no counterpart before. Kinds of changes are rows of `KINDS`; what none of them explains is
said to be unexplained.
"""

import contextlib
import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxgrad.port import fingerprint, jax_values, locate
from jaxgrad.port.changes.kinds import KINDS
from jaxgrad.port.changes.region import Change, Kind, Region, at_line, counterpart, region
from jaxgrad.port.jax_values import Op, Recorded
from jaxgrad.port.locate import Mend, Parted, Verdict
from jaxgrad.port.values import Line, Place, as_float64, in_library

# How many values behind a change may be no counterpart, how many must be one.
_IN_VAIN = 20
_ENOUGH = 3
# How many values behind a right change may be computed in another way before one that agrees.
_LATE = 3
# How many differences, one behind the other, are mended.
_MOST_BEHIND = 4
# What an operation raises that is given other shapes than it was traced for.
_DOES_NOT_FIT = (TypeError, ValueError, IndexError, ZeroDivisionError)
# How many operations of one name at one line are changed together.
_MOST_CALLS = 8
# How many more changes of a kind are tried behind one that mends all.
_MORE = 12


class Effect(NamedTuple):
    """What a change does: how many values behind it now agree, how far off they are, whether all outputs agree.

    `runs` is false where the program cannot be run on to its end: it was traced for other shapes. `late` counts the
    values behind the change before the first that agrees, and `lost` those that agreed without it and now do not.
    """

    found: int
    residual: float
    complete: bool
    runs: bool
    late: int = 0
    lost: int = 0


def mended(
    verdict: Verdict,
    parted: Parted,
    recorded: Recorded,
    leaves: Sequence[str],
    tensors: Mapping[str, np.ndarray],
) -> Verdict:
    """The verdict with the changes that explain it, and with what is wrong behind the first of them.

    `leaves` are the paths of the parameters, `tensors` those of the other program that no leaf was made from.
    """
    program, values = recorded.program, recorded.trace.values
    used = {n for op in program.ops for n in op.operands}
    own = {path: values[n].array for path, n in zip(leaves, program.inputs, strict=False) if n not in used}
    unused = {**tensors, **own}
    with jax_values.float64(), np.errstate(all="ignore"):
        mends, change = _mends(region(parted, recorded, unused))
        behind: list[str] = []
        while change is not None and len(behind) < _MOST_BEHIND:
            recorded = jax_values.changed(recorded, change.values, change.ops)
            parted = locate.part(recorded.trace, parted.other.trace, parted.noise)
            after = locate.judged(parted, verdict.other_name)
            if after.agrees:
                break
            more, change = _mends(region(parted, recorded, unused))
            where = after.jax or after.other
            told = f"; {more[0].words} would mend it" if more else "; no known change explains it"
            behind.append(f"{after.sentence}: {where}{told}")
    if mends:
        # What comes before the change leads to values that agree once it is made, so it was right.
        place = mends[0].place
        lines = dict.fromkeys((*filter(None, (place.line,)), *verdict.region))
        verdict = verdict._replace(jax=place, region=tuple(lines)[:4])
    return verdict._replace(mends=tuple(mends), behind=tuple(behind))


def _mends(r: Region) -> tuple[list[Mend], Change | None]:
    """The changes that explain a difference, the best first, and the best of them if the program runs on with it."""
    good: list[tuple[tuple[bool, int], int, Kind, Change, Effect]] = []
    numbers = itertools.count()
    for kind in KINDS:
        left, complete = _MORE, False
        for number, change in zip(numbers, _proposed(kind, r), strict=False):
            change, effect = _best_of(r, change)
            if _explains(change, effect):
                good.append(((not effect.complete, -effect.found), number, kind, change, effect))
            # Of several that mend all, that is right with which most of what lies between agrees, too.
            complete |= effect.complete
            left -= complete
            if left < 0:
                break
        if any(effect.complete for *_, effect in good):
            break
    good.sort(key=lambda each: each[:2])
    if not good:
        return [], None
    best, _, best_kind, change, effect = good[0]
    told: dict[Any, Mend] = {}
    for rank, _, kind, other, its in good:
        if rank == best and kind is best_kind:
            place = _handed_over(r, other)
            told.setdefault(place.line, Mend(place, other.words, its.residual))
    return list(told.values())[:2], change if effect.runs else None


def _proposed(kind: Kind, r: Region) -> Iterator[Change]:
    """What a kind proposes; one that meets a program of shapes that it does not know proposes no more.

    What is wrong is told all the same, and a suggestion is not worth an error.
    """
    with contextlib.suppress(*_DOES_NOT_FIT):
        yield from kind(r)


def _handed_over(r: Region, change: Change) -> Place:
    """The place of a change; what is not done to a value before it is given to a function may be missing where it is.

    The other program tells: it does so in the function that makes the value and not in the one that takes it, or else
    in the latter. Where it has one function for all, it is missing where a helper is called that others call, too.
    """
    if change.taken is None:
        return change.place
    trace, theirs = r.parted.own.trace, r.parted.other.trace
    made, pair = trace.values[change.taken].place, r.parted.pairs.get(change.taken)
    place = change.place.within_caller_of(made)
    own = tuple(line for line in change.place.lines if not in_library(line.file))
    if place.lines != own[len(own) - len(place.lines) :]:
        # Told where the value is made, further down.
        return place
    if pair is not None and change.given is not None:
        before, done = (_function(theirs.values[locate.root(theirs, m)].place) for m in (pair.other, change.given))
        users = (v.place for v in theirs.values if change.given in v.operands and not v.moved)
        behind = next((_function(place) for place in users), None)
        if before == done and behind is not None and behind != before:
            return made if _function(made) != _function(place) else place
    return change.place._replace(lines=_out_of_helpers(r, own, len(place.lines)))


def _out_of_helpers(r: Region, lines: tuple[Line, ...], least: int) -> tuple[Line, ...]:
    """The lines that led to a place, without those of functions that are called at several lines; `least` are left."""
    callers: dict[tuple[str, str], set[Line]] = {}
    for value in r.parted.own.trace.values:
        users = [line for line in value.place.lines if not in_library(line.file)]
        for inner, outer in itertools.pairwise(users):
            callers.setdefault((inner.file, inner.function), set()).add(outer)
    while len(lines) > least and len(callers.get((lines[0].file, lines[0].function), ())) > 1:
        lines = lines[1:]
    return lines


def _function(place: Place) -> tuple[str, str] | None:
    return None if place.line is None else (place.line.file, place.line.function)


def _best_of(r: Region, change: Change) -> tuple[Change, Effect]:
    """A change to one turn of a loop or call of a helper, or the same to all of them where that explains something."""
    nothing = Effect(0, math.inf, False, False)
    effect = nothing
    for tried in (*filter(None, (_in_all_turns(r, change),)), change, *_in_all_calls(r, change)):
        try:
            effect = _effect(r, tried)
        except _DOES_NOT_FIT:
            effect = nothing
        if _explains(tried, effect):
            return tried, effect
    return change, effect


def _explains(change: Change, effect: Effect) -> bool:
    """Whether enough agrees behind a change."""
    enough = effect.found >= _ENOUGH and effect.found > effect.lost and effect.late <= _LATE
    return effect.complete or (enough and not change.weak)


def _in_all_turns(r: Region, change: Change) -> Change | None:
    """The change made to all operations that are the same equation at the same line; None where there are no others."""
    ops = dict(change.ops)
    values = dict(change.values)
    for k, op in change.ops.items():
        if op.operands == r.recorded.program.ops[k].operands:
            ops.update((other, r.recorded.program.ops[other]._replace(run=op.run)) for other in r.turns.get(k, ()))
    for n, value in change.values.items():
        if n in r.recorded.program.constants:
            values.update((other, value) for other in r.constants.get(n, ()))
    others = len(ops) > len(change.ops) or len(values) > len(change.values)
    return change._replace(values=values, ops=ops) if others else None


def _in_all_calls(r: Region, change: Change) -> Iterator[Change]:
    """The change made in other calls of the same helper: to operations of the name at the line, or every so many."""
    ops = r.recorded.program.ops
    if change.values or any(op.operands != ops[k].operands for k, op in change.ops.items()):
        return
    alike = {k: _calls(r, op) for k, op in change.ops.items()}
    counts = {len(groups) for groups in alike.values()}
    if len(counts) != 1 or (count := counts.pop()) > _MOST_CALLS:
        return
    own = {k: next(n for n, group in enumerate(groups) if k in group) for k, groups in alike.items()}
    # An operation may stand several times in the line itself.
    for stride in [n for n in range(count // 2, 0, -1) if count % n == 0]:
        yield change._replace(
            ops={
                n: ops[n]._replace(run=op.run)
                for k, op in change.ops.items()
                for number, group in enumerate(alike[k])
                if number % stride == own[k] % stride
                for n in group
            }
        )


def _calls(r: Region, op: Op) -> list[list[int]]:
    """The operations of the name at the line, those together that are one equation, as the turns of a loop are."""
    same: dict[int, list[int]] = {}
    for n in at_line(r, op):
        eqn = r.recorded.program.ops[n].eqn
        same.setdefault(n if eqn is None else id(eqn), []).append(n)
    return list(same.values())


def _effect(r: Region, change: Change) -> Effect:
    found, vain, late, lost, residual = 0, 0, 0, 0, 0.0
    now: dict[int, Any] = dict(change.values)
    values = r.parted.own.trace.values
    runs = True
    try:
        for n, x in jax_values.run_again(r.recorded.program, r.recorded.values, change.values, change.ops):
            now[n] = x
            array = as_float64(x)
            if values[n].moved or not values[n].varies or not fingerprint.told(array):
                continue
            near = counterpart(r, array, n)
            if near is not None:
                found += 1
                residual = max(residual, near)
                continue
            vain += 1
            late += not found
            lost += locate.agreed(r.parted, n)
            if vain > _IN_VAIN and not found:
                return Effect(0, math.inf, False, runs)
    except _DOES_NOT_FIT:
        runs = False
    distances = _of_outputs(r, now) if runs else None
    if distances is None:
        return Effect(found, residual, False, runs, late, lost)
    return Effect(found, max(residual, *distances), True, runs)


def _of_outputs(r: Region, now: Mapping[int, Any]) -> list[float] | None:
    """How far each output that was wrong is off with these values; None where one still is wrong, or none was."""
    found = []
    for n, m in locate.aligned(r.parted):
        if locate.same_numbers(r.parted, n, m):
            continue
        a, b = as_float64(now.get(n, r.recorded.values[n])), r.parted.other.trace.values[m].array
        if a.size != b.size or not r.parted.noise.agree(n, m, functools.partial(locate.in_order, a, b)):
            return None
        found.append(locate.relative(np.sort(a, None), np.sort(b, None)))
    return found or None
