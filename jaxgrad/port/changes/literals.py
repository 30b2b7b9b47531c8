"""Numbers that are written into a program: another one that is known, or one that is solved for."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxgrad.port import fingerprint, jax_values, locate
from jaxgrad.port.changes.region import (
    Change,
    Region,
    makers,
)
from jaxgrad.port.values import Place, as_float64

# What angles of a rotation are powers of.
_BASES = (1e4, 1e3, 1e5, 1e2, 1e6, 5e5)


def known(r: Region) -> Iterator[Change]:
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
    ops, made = r.recorded.program.ops, makers(r)
    # A value with a small epsilon too many may still count as agreeing: what is just before the region is looked at.
    first = (n for op in list(r.ops.values())[:4] for n in op.operands)
    before = [ops[made[n]] for n in first if n in made and trace.values[n].varies]
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
