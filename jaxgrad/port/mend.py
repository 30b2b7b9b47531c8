"""What would mend a difference: changes to the JAX program, where it parts, with which the next values agree.

A change is tried by running on from it. It counts where several values behind it, or all outputs, are then values of
the other program that had no counterpart before. Kinds of changes are rows of `KINDS`; what none of them explains is
said to be unexplained.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from jaxgrad.port import fingerprint, jax_values, locate, structures, variants
from jaxgrad.port.jax_values import Op, Recorded
from jaxgrad.port.locate import Mend, Parted, Verdict
from jaxgrad.port.region import (
    DEEP,
    Change,
    Kind,
    Region,
    changing,
    counterpart,
    giving,
    region,
    running,
    taking,
    with_params,
)
from jaxgrad.port.rounding import PRODUCTS
from jaxgrad.port.values import Place, as_float64

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
# How many transpositions, the nearest first, are tried in how many other orders.
_MOST_MOVES, _MOST_ORDERS = 6, 24
# How many of the values that a region takes may be two that are exchanged.
_MOST_EXCHANGED = 8
# What angles of a rotation are powers of.
_BASES = (1e4, 1e3, 1e5, 1e2, 1e6, 5e5)
# How many more changes of a kind are tried behind one that mends all.
_MORE = 12
# How many parts of a value are tried in every order.
_MOST_PARTS = 4


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
        for number, change in zip(numbers, kind(r), strict=False):
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


def _handed_over(r: Region, change: Change) -> Place:
    """The place of a change; what is not done to a value that a function is given is missing where it is called.

    It is missing where the value is returned if the other program does it in the function that makes the value.
    """
    if change.taken is None:
        return change.place
    made, others = r.parted.own.trace.values[change.taken].place, r.parted.other.trace.values
    place, pair = change.place.within_caller_of(made), r.parted.pairs.get(change.taken)
    if pair is not None and change.given is not None and _function(made) != _function(place):
        theirs = r.parted.other.trace
        before, after = (_function(others[locate.root(theirs, m)].place) for m in (pair.other, change.given))
        users = (v.place for v in others if change.given in v.operands and not v.moved)
        behind = next(users, None)
        return made if before == after and behind is not None and _function(behind) != before else place
    return place


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
    for n, other in enumerate(r.recorded.program.ops):
        if (other.name, other.place.line) == (op.name, op.place.line):
            same.setdefault(n if other.eqn is None else id(other.eqn), []).append(n)
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


# Kinds of changes.


def without(r: Region) -> Iterator[Change]:
    """A value in the region is what an agreeing one of its shape is: something is done that the other does not."""
    trace = r.parted.own.trace
    fine = [n for n in range(len(trace.values)) if trace.values[n].varies and locate.agreed(r.parted, n)]
    for bad in r.bad[:DEEP]:
        before = set(locate.ancestors(trace, bad))
        shape = np.shape(r.recorded.values[bad])
        # From another value to it would be more than to leave out what lies between.
        near = set(locate.nearest(trace, bad, {n: r.parted.pairs[n] for n in fine}))
        some = [n for n in reversed(fine) if n in near and np.shape(r.recorded.values[n]) == shape]
        for n in some[:4]:
            skipped = [trace.values[k].place for k in sorted(before & set(r.bad))]
            done = ", ".join(dict.fromkeys(place.op for place in skipped))
            place = skipped[0] if skipped else trace.values[bad].place
            # The other program has its weights too: without a product it has to come out right in the end.
            weak = any(place.op in PRODUCTS for place in skipped)
            yield Change(place, f"without {done}: {_why_without(skipped)}", {bad: r.recorded.values[n]}, {}, weak=weak)


def _why_without(skipped: Sequence[Place]) -> str:
    ops = {place.op for place in skipped}
    if ops <= {"convert_element_type", "reduce_precision"}:
        return "a narrower type inside"
    if "reduce_sum" in ops and ops & {"rsqrt", "sqrt"}:
        return "it is normalised here, and in the other program before or behind"
    return "the other program goes on with the value as it is"


def literals(r: Region) -> Iterator[Change]:
    """A number that is written into the program is another one: the other program's, one more or less, its inverse."""
    theirs = _their_numbers(r)
    # Of whole numbers the smaller are the likelier to be somebody's choice, and not a size.
    numbers = sorted(_numbers(r), key=lambda each: abs(each[2]) if each[2] == round(each[2]) else 0.0)
    sizes = dict.fromkeys(float(size) for op in r.ops.values() for n in op.operands for size in _shape(r, n))
    alike: dict[tuple[Any, float], list[int]] = {}
    for number, place, old in numbers:
        alike.setdefault((place.line, old), []).append(number)
    for number, place, old in numbers:
        # A base of frequencies; another number may explain one that is not the other program's.
        if old >= 100 and old == round(old):
            for new in [base for base in _BASES if base != old]:
                value = np.asarray(new, np.asarray(r.recorded.values[number]).dtype)
                yield Change(place, f"{old:g} should be {new:g}", {number: value}, {})
    for number, place, old in numbers:
        near = [x for x in dict.fromkeys(theirs) if x != old]
        integer = np.asarray(r.recorded.values[number]).dtype.kind in "iu"
        whole = integer or old == round(old)
        simple = (
            [old - 1, old + 1, *sizes] if whole else [1 - old, 1 / old, -old, old * 2, old / 2, abs(old) ** 0.5, old**2]
        )
        for new in dict.fromkeys([*near, *simple]):
            if integer and new != round(new):
                continue
            dtype = np.asarray(r.recorded.values[number]).dtype
            if not integer or np.iinfo(dtype).min <= new <= np.iinfo(dtype).max:
                yield Change(place, f"{old:g} should be {new:g}", {number: np.asarray(new, dtype)}, {})
                same = alike[place.line, old]
                if same[0] == number and len(same) > 1:
                    # A number that a line uses twice.
                    yield Change(place, f"{old:g} should be {new:g}", {n: np.asarray(new, dtype) for n in same}, {})


def _shape(r: Region, n: int) -> tuple[int, ...]:
    return np.shape(r.recorded.values[n])


def _their_numbers(r: Region) -> list[float]:
    """The numbers that are written into the other program's region, into its masks too."""
    trace = r.parted.other.trace
    values = trace.values
    found = [x for m in r.theirs[:80] for _, x in values[m].scalars]
    given = [k for m in r.theirs[:20] for k in values[m].operands if not values[k].varies]
    for k in dict.fromkeys(a for n in given[:10] for a in locate.ancestors(trace, n)):
        found += [x for _, x in values[k].scalars]
        if values[k].size and len(some := np.unique(values[k].array[np.isfinite(values[k].array)])) <= 2:
            found += some.tolist()
    return [x for x in dict.fromkeys(found) if math.isfinite(x)]


def _numbers(r: Region) -> Iterator[tuple[int, Place, float]]:
    """The numbers written into the operations of the region, and into what makes their constants."""
    trace, constants = r.parted.own.trace, r.recorded.program.constants
    seen: set[int] = set()
    made = {n: op for op in r.recorded.program.ops for n in op.results}
    # A value with a small epsilon too many may still count as agreeing: what is just before the region is looked at.
    before = [made[n] for op in list(r.ops.values())[:4] for n in op.operands if n in made and trace.values[n].varies]
    for op in [*r.ops.values(), *before]:
        for n in op.operands:
            if trace.values[n].varies or _is_right(r, n):
                continue
            for k in reversed(locate.ancestors(trace, n)):
                value = constants.get(k)
                if k in seen or value is None or np.ndim(value) or np.asarray(value).dtype.kind not in "fiu":
                    continue
                seen.add(k)
                if not math.isfinite(float(value)):
                    continue
                users = [v.place for v in trace.values if k in v.operands]
                yield k, (users[0] if users else op.place), float(value)


def _is_right(r: Region, n: int) -> bool:
    """Whether a constant is one that the other program computes, too.

    What is computed here and is a parameter there, as with 0 added to it, may lack what is done to it there.
    """
    pair = r.parted.pairs.get(n)
    if pair is None:
        return False
    own = r.parted.own.trace
    computed = bool(own.values[locate.root(own, n)].operands)
    return not computed or r.parted.other.trace.values[pair.other].place.op != "parameter"


def solved(r: Region) -> Iterator[Change]:
    """A number that is written into the program, solved for so that a value behind it is the other program's."""
    trace = r.parted.own.trace
    for number, place, old in list(_numbers(r))[:12]:
        if np.asarray(r.recorded.values[number]).dtype.kind != "f" or not math.isfinite(old):
            continue
        after = [n for n in r.bad[:12] if number in locate.ancestors(trace, n) and not trace.values[n].moved]
        for n in after[:3]:
            size = trace.values[n].array.size
            some = [m for m in r.theirs[:30] if r.parted.other.trace.values[m].array.size == size]
            for m in some[:6]:
                new = _solve(r, number, old, n, r.parted.other.trace.values[m].array)
                # What is solved for is off by rounding: 0 comes out as some 1e-14.
                tried = [] if new is None else [new] if abs(new) > 1e-8 * abs(old) else [0.0, new]
                for each in tried:
                    yield Change(place, f"{old:g} should be {each:.10g}", {number: np.asarray(each)}, {})


def _solve(r: Region, number: int, old: float, n: int, target: np.ndarray) -> float | None:
    """The number with which a value has the sum of squares of the target, by the secant method."""
    wanted = fingerprint.fingerprint(target).squares

    def gap(x: float) -> float:
        for k, value in jax_values.run_again(r.recorded.program, r.recorded.values, {number: np.asarray(x)}):
            if k == n:
                return fingerprint.fingerprint(as_float64(value)).squares - wanted
        return math.nan

    a, b = old, old * 1.5 + (1e-6 if abs(old) < 1e-3 else 0.0)
    at_a, at_b = gap(a), gap(b)
    for _ in range(40):
        if not math.isfinite(at_b) or at_b == at_a:
            return None
        a, b, at_a = b, b - at_b * (b - a) / (at_b - at_a), at_b
        at_b = gap(b)
        if abs(at_b) <= 1e-13 * abs(wanted):
            # As it was probably written.
            short = next((float(f"{b:.{k}g}") for k in range(1, 8) if abs(float(f"{b:.{k}g}") - b) <= 1e-6 * abs(b)), b)
            return short
    return None


_OTHERS = {
    "add": ("sub", "mul"), "sub": ("add",), "mul": ("div", "add"), "div": ("mul",), "max": ("min",), "min": ("max",),
}  # fmt: skip
_COMPARED = {"ge": "gt", "gt": "ge", "le": "lt", "lt": "le"}
_TWO: dict[str, Callable[[Any, Any], Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "max": np.maximum,
    "min": np.minimum, "ge": np.greater_equal, "gt": np.greater, "le": np.less_equal, "lt": np.less,
}  # fmt: skip


def operations(r: Region) -> Iterator[Change]:
    """An operation is its like: a sign, a quotient, operands swapped or dropped, a transposed or flipped operand."""
    trace = r.parted.own.trace
    for k, op in list(r.ops.items())[:16]:
        name, place = op.name, op.place
        if name in _OTHERS:
            for other in _OTHERS[name]:
                yield running(k, op, place, f"{other} in the place of {name}", _two(other))
            for keep in (0, 1):
                if np.shape(r.recorded.values[op.operands[keep]]) == np.shape(r.recorded.values[op.results[0]]):
                    dropped = trace.values[op.operands[1 - keep]].place
                    yield running(k, op, place, f"{name} without {dropped.op}", _keeping(keep))._replace(weak=True)
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
        if name == "concatenate" and 2 <= len(op.operands) <= _MOST_PARTS:
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
    yield from _parts(r)
    yield from _cut_parts(r)
    yield from _comparisons(r)


def _power(y: int) -> Callable[[Sequence[Any]], list[Any]]:
    return lambda x: [np.asarray(x[0]) ** y]


def _other_orders(k: int, op: Op) -> Iterator[Change]:
    """What is put together, in another order."""
    for order in list(itertools.permutations(range(len(op.operands))))[1:]:

        def run(x: Sequence[Any], order: tuple[int, ...] = order) -> list[Any]:
            return op.run([x[n] for n in order])

        yield running(k, op, op.place, f"the parts of {op.name} in the order {_ordinals(order)}", run)


def _parts(r: Region) -> Iterator[Change]:
    """The parts of a value that is split, as gates or queries and keys, in another order."""
    wanted = {a for n in r.bad[:DEEP] for a in locate.ancestors(r.parted.own.trace, n)}
    for k, op in enumerate(r.recorded.program.ops):
        if op.name != "split" or not 2 <= len(op.results) <= _MOST_PARTS:
            continue
        if not wanted.isdisjoint(op.results):
            shapes = [np.shape(r.recorded.values[n]) for n in op.results]
            orders = list(itertools.permutations(range(len(op.results))))[1:]
            for order in [each for each in orders if [shapes[n] for n in each] == shapes]:

                def run(x: Sequence[Any], op: Op = op, order: tuple[int, ...] = order) -> list[Any]:
                    made = op.run(x)
                    return [made[n] for n in order]

                yield running(k, op, op.place, f"the parts of split in the order {_ordinals(order)}", run)
            if len(set(shapes)) == 1:
                yield from _parts_by_head(r, k, op)


def _cut_parts(r: Region) -> Iterator[Change]:
    """Parts that are cut out of a value one by one, in another order."""
    wanted = {a for n in r.bad[:DEEP] for a in locate.ancestors(r.parted.own.trace, n)}
    for some in _cut(r, wanted):
        ops = [r.recorded.program.ops[k] for k in some]
        for order in list(itertools.permutations(range(len(some))))[1:]:
            runs = {k: op._replace(run=ops[n].run) for k, op, n in zip(some, ops, order, strict=True)}
            yield Change(ops[0].place, f"the parts that are cut out in the order {_ordinals(order)}", {}, runs)


def _cut(r: Region, wanted: set[int]) -> list[list[int]]:
    """The slices of one size that are cut out of one value, by the value and the size."""
    cut: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for k, op in enumerate(r.recorded.program.ops):
        if op.name == "slice" and op.eqn is not None and not wanted.isdisjoint(op.results):
            cut.setdefault((op.operands[0], np.shape(r.recorded.values[op.results[0]])), []).append(k)
    return [some for some in cut.values() if 2 <= len(some) <= _MOST_PARTS]


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


def _ordinals(order: Sequence[int]) -> str:
    """Numbers counted from 1, as people do."""
    return ", ".join(str(n + 1) for n in order)


def _two(name: str) -> Callable[[Sequence[Any]], list[Any]]:
    return lambda x: [_TWO[name](x[0], x[1])]


def _keeping(side: int) -> Callable[[Sequence[Any]], list[Any]]:
    return lambda x: [x[side]]


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


def _comparisons(r: Region) -> Iterator[Change]:
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


def factors(r: Region) -> Iterator[Change]:
    """A value of the region, or one that agrees just before it, is multiplied by a number in the other program."""
    trace, others = r.parted.own.trace, r.parted.other.trace.values
    before = [n for k in r.ops for n in r.recorded.program.ops[k].operands if trace.values[n].varies]
    for n in dict.fromkeys([*r.bad[:10], *before[:12]]):
        a = trace.values[n].array
        if not a.size or not np.any(a):
            continue
        for m in r.theirs[:24]:
            b = others[m].array
            ratio = _ratio(a, b)
            # One number is some multiple of every other: only a round one says something.
            if ratio is None or abs(ratio - 1) < 1e-9 or (a.size < 3 and "." in _number(ratio)):
                continue
            words = f"a factor {_number(ratio)} is missing{_mean_or_sum(r, ratio, n)}"
            change = _of_result(r, n, _used(r, n), words, functools.partial(np.multiply, ratio))
            yield change._replace(taken=_agreeing(r, n), given=m)


def _ratio(a: np.ndarray, b: np.ndarray) -> float | None:
    if a.size != b.size:
        return None
    x, y = np.sort(a, None), np.sort(b, None)
    top = int(np.argmax(np.abs(x)))
    for other in (y, y[::-1]):
        ratio = float(other[top] / x[top]) if x[top] else math.nan
        if math.isfinite(ratio) and ratio and fingerprint.close(x * ratio, other):
            return ratio
    return None


def _number(x: float) -> str:
    """A number, as it was probably meant."""
    for top in range(1, 4097):
        if abs(x * top - round(x * top)) < 1e-9 and round(x * top):
            return f"{round(x * top)}" if top == 1 else f"{round(x * top)}/{top}"
    for n in range(2, 4097):
        if abs(x * x * n - 1) < 1e-9:
            return f"1/sqrt({n})"
        if abs(x * x - n) < 1e-9:
            return f"sqrt({n})"
    return f"{x:.10g}"


def _mean_or_sum(r: Region, ratio: float, n: int) -> str:
    """That one number is a sum and no mean, or the other way round, where that many were summed."""
    count = max(ratio, 1 / ratio)
    if r.parted.own.trace.values[n].size != 1 or count < 1.5 or abs(count - round(count)) > 1e-6:
        return ""
    if round(count) not in _counts(r) or (ratio > 1 and not _is_divided(r, n, round(count))):
        return ""
    return ": a sum in the place of a mean" if ratio < 1 else ": a mean in the place of a sum"


def _is_divided(r: Region, n: int, count: int) -> bool:
    """Whether a value was divided by a number of terms somewhere."""
    made = {m: op for op in r.recorded.program.ops for m in op.results}
    near = [made[a] for a in locate.ancestors(r.parted.own.trace, n) if a in made]
    divisors = [r.recorded.values[op.operands[1]] for op in near if op.name == "div"]
    return any(np.ndim(x) == 0 and float(x) == count for x in divisors)


def _counts(r: Region) -> set[int]:
    """How many numbers a sum may have: those that are summed here, and what the other program counted."""
    values = r.parted.own.trace.values
    summed = [op for op in r.recorded.program.ops if op.name == "reduce_sum" and values[op.results[0]].varies]
    sizes = {n for op in summed for n in (values[op.operands[0]].size, *values[op.operands[0]].shape)}
    single = (v.array for v in r.parted.other.trace.values if v.size == 1)
    counted = {round(x) for x in (float(y.ravel()[0]) for y in single) if math.isfinite(x) and x == round(x)}
    return sizes | counted


def addends(r: Region) -> Iterator[Change]:
    """A value that both programs have is added in the other one alone, as a residual connection is."""
    trace = r.parted.own.trace
    fine = [n for n, v in enumerate(trace.values) if v.varies and not v.moved and locate.agreed(r.parted, n)]
    before = [n for k in r.ops for n in r.recorded.program.ops[k].operands if trace.values[n].varies]
    for n in dict.fromkeys([*before[:4], *r.bad[:4]]):
        x = r.recorded.values[n]
        for other in [m for m in reversed(fine) if m != n and np.size(r.recorded.values[m]) == np.size(x)][:12]:
            for added in itertools.islice(structures.ways(np.asarray(r.recorded.values[other]), np.shape(x)), 2):
                words = f"the value of {trace.values[other].place.brief} is not added"
                yield Change(_used(r, n), words, {n: np.add(x, added)}, {}, taken=_agreeing(r, n))


def _used(r: Region, n: int) -> Place:
    """The place of a value of the region; of one that agrees, the place in the region that takes it."""
    values = r.parted.own.trace.values
    if n in r.bad:
        return values[n].place
    return next((op.place for op in r.ops.values() if n in op.operands), values[r.bad[0]].place)


def _agreeing(r: Region, n: int) -> int | None:
    return n if locate.agreed(r.parted, n) else None


def biases(r: Region) -> Iterator[Change]:
    """A tensor that no leaf was made from is added to, or multiplied with, a value."""
    trace = r.parted.own.trace
    before = [n for k in r.ops for n in r.recorded.program.ops[k].operands if trace.values[n].varies]
    for n in dict.fromkeys([*before[:12], *r.bad[:6]]):
        shape = np.shape(r.recorded.values[n])
        for name, tensor in r.unused.items():
            for axis in range(len(shape)):
                if tensor.ndim == 1 and shape[axis] == tensor.size:
                    wide = tensor.reshape([-1 if k == axis else 1 for k in range(len(shape))])
                    x = np.asarray(r.recorded.values[n])
                    place = trace.values[n].place
                    yield Change(place, f"{name} is not added", {n: x + wide}, {})
                    yield Change(place, f"{name} is not multiplied with", {n: x * wide}, {})
                    yield Change(place, f"{name} is not subtracted", {n: x - wide}, {})


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "gelu (exact, by erf)": lambda x: x * special.ndtr(x),
    "gelu (approximate, by tanh)": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "gelu (quick, by sigmoid)": lambda x: x * special.expit(1.702 * x),
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x * special.expit(x),
    "tanh": np.tanh,
    "sigmoid": special.expit,
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "leaky_relu (0.01)": lambda x: np.where(x > 0, x, 0.01 * x),
    "leaky_relu (0.1)": lambda x: np.where(x > 0, x, 0.1 * x),
    "leaky_relu (0.2)": lambda x: np.where(x > 0, x, 0.2 * x),
    "relu6": lambda x: np.clip(x, 0, 6),
    "softplus": lambda x: np.logaddexp(x, 0),
    "mish": lambda x: x * np.tanh(np.logaddexp(x, 0)),
    "hard_sigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "hard_swish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "hard_tanh": lambda x: np.clip(x, -1, 1),
    "selu": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x)),
    "exp": np.exp,
    "log_sigmoid": lambda x: -np.logaddexp(-x, 0),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "square": np.square,
    "abs": np.abs,
    "sqrt": np.sqrt,
    "softmax over the last axis": lambda x: special.softmax(x, -1),
    "softmax over the axis before the last": lambda x: special.softmax(x, -2),
    "softmax over the first axis": lambda x: special.softmax(x, 0),
    "log_softmax over the last axis": lambda x: special.log_softmax(x, -1),
    "normalised by its length": lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True),
}


def activations(r: Region) -> Iterator[Change]:
    """A function of an agreeing value is another function of it, or is missing."""
    trace = r.parted.own.trace
    before = [n for k in r.ops for n in r.recorded.program.ops[k].operands if locate.agreed(r.parted, n)]
    for n in list(dict.fromkeys(before))[:8]:
        x = r.recorded.values[n]
        if not trace.values[n].varies or not hasattr(x, "dtype") or x.dtype != np.float64 or not np.ndim(x):
            continue
        fit = {name: fn for name, fn in ACTIVATIONS.items() if "before the last" not in name or np.ndim(x) > 1}
        made = {name: np.asarray(fn(np.asarray(x))) for name, fn in fit.items()}
        theirs = [name for name, y in made.items() if np.isfinite(y).all() and counterpart(r, y, n) is not None]
        if not theirs:
            continue
        bad = [b for b in r.bad[: 2 * DEEP] if np.shape(r.recorded.values[b]) == np.shape(x)]
        for b in bad:
            y = trace.values[b].array
            own = next((name for name, z in made.items() if fingerprint.close(y, z)), None)
            for name in theirs:
                if own is not None:
                    yield Change(trace.values[b].place, f"{name} in the place of {own}", {b: made[name]}, {})
        for b in bad[:8]:
            whose = "" if n in locate.ancestors(trace, b) else f" of what {trace.values[n].place.brief} gives"
            for name in theirs:
                yield Change(trace.values[b].place, f"{name}{whose} in its place", {b: made[name]}, {})
        for k, op in list(r.ops.items())[:4]:
            for side, operand in enumerate(op.operands):
                if operand == n:
                    for name in theirs:
                        run = changing(op, side, giving(made[name]))
                        change = running(k, op, op.place, f"{name} before {op.name} is missing", run)
                        yield change._replace(taken=n)


def orders(r: Region) -> Iterator[Change]:
    """Two operations in a row the other way round, as an epsilon inside a root and outside of it, or a sum and a relu.

    The first has one operand that varies; its result is one of the second's.
    """
    ops = r.recorded.program.ops
    made = {n: k for k, op in enumerate(ops) for n in op.results}
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


def operands(r: Region) -> Iterator[Change]:
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
                agrees = locate.agreed(r.parted, n) and not locate.wrong_constant(r.parted, op.operands)
                size = trace.values[n].size
                for m in [m for m in r.theirs[:30] if agrees and k == first and others[m].size == size]:
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
        some, others = (_of_line(r, op) for op in (first, second))
        if len(some) == len(others):
            swapped = dict(zip((*some, *others), (*others, *some), strict=True))
            ops = {
                k: op._replace(operands=tuple(swapped.get(n, n) for n in op.operands))
                for k, op in enumerate(program.ops)
                if not swapped.keys().isdisjoint(op.operands)
            }
            place, other = sorted((first.place, second.place), key=lambda each: each.line or ())
            yield Change(place, f"it and the value of {other.brief} exchanged", {}, ops, weak=True)


def _of_line(r: Region, op: Op) -> list[int]:
    """The results of all operations of a name at a line."""
    ops = r.recorded.program.ops
    return [other.results[0] for other in ops if (other.name, other.place.line) == (op.name, op.place.line)]


def arrangements(r: Region) -> Iterator[Change]:
    """The numbers of a value in another order: axes split the other way round, rolled, reversed, transposed."""
    trace = r.parted.own.trace
    before = [n for k in r.ops for n in r.recorded.program.ops[k].operands if trace.values[n].varies]
    chains = {c for n in before[:6] for c in locate.ancestors(trace, n) if trace.values[c].moved}
    for op in r.recorded.program.ops:
        if op.name == "reshape" and op.results[0] in chains | set(r.bad[:DEEP]) and op.eqn is not None:
            yield from _split_otherwise(r, op)
    for k, op in enumerate(r.recorded.program.ops):
        if op.name == "transpose" and op.results[0] in chains | set(r.bad[:DEEP]):
            yield running(k, op, op.place, "without this transposition", _keeping(0))
    yield from _transposed_otherwise(r, chains | set(r.bad[:DEEP]))
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
            yield _of_result(r, n, place, "of the other sign", lambda y: -y)
        if x.dtype.kind == "f" and x.size and x.min() >= 0 and x.max() <= 1:
            yield _of_result(r, n, place, "1 minus it in its place", lambda y: 1 - y)


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


def _of_result(r: Region, n: int, place: Place, words: str, change: Callable[[Any], Any]) -> Change:
    """A value changed where it is made, which may be in many turns or calls."""
    for k, op in enumerate(r.recorded.program.ops):
        if op.results == (n,):
            return running(k, op, place, words, _then(op, change))
    return Change(place, words, {n: change(np.asarray(r.recorded.values[n]))}, {})


def _then(op: Op, change: Callable[[Any], Any]) -> Callable[[Sequence[Any]], list[Any]]:
    return lambda x: [change(y) for y in op.run(x)]


def repeats(r: Region) -> Iterator[Change]:
    """Parts of an axis that are repeated one by one (`jnp.repeat`), or all of them in turn (`jnp.tile`)."""
    trace = r.parted.own.trace
    made = {n: k for k, op in enumerate(r.recorded.program.ops) for n in op.results}
    given = (n for k in r.ops for n in r.recorded.program.ops[k].operands)
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


def _split_otherwise(r: Region, op: Op) -> Iterator[Change]:
    """An axis that is split into several, split in another order: for every such reshape of the region at once."""
    old, new = np.shape(r.recorded.values[op.operands[0]]), np.shape(r.recorded.values[op.results[0]])
    count = len(new) - len(old) + 1
    if not old or not 2 <= count <= _MOST_PARTS:
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
            words = words if count == 2 else f"they should lie in the order {_ordinals(order)}"
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


# In the order in which they are tried: those that say most precisely what is wrong come first.
KINDS: list[Kind] = [
    literals, without, activations, variants.pools, variants.functions, variants.paddings, operations, factors,
    structures.states, biases, addends, orders, structures.scales, structures.axes, structures.weights,
    structures.tables, variants.reductions, variants.choices, variants.smoothings,
    variants.resizes, structures.masks, structures.rolls, structures.dilations,
    repeats, arrangements, exchanged, variants.turns, interleaved, variants.norms, solved, structures.computed,
    operands,
]  # fmt: skip
