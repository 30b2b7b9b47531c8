"""What is missing or too much: a factor, a bias, a residual, or what the other program does not do."""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from jaxgrad.port import fingerprint, locate
from jaxgrad.port.changes import structures
from jaxgrad.port.changes.region import (
    DEEP,
    Change,
    Region,
    makers,
    of_result,
    taken,
)
from jaxgrad.port.rounding import PRODUCTS
from jaxgrad.port.values import Place


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


def missing(r: Region) -> Iterator[Change]:
    """A value of the region, or one that agrees just before it, is multiplied by a round number, or a root of one."""
    return _factors(r, is_round=True)


def odd(r: Region) -> Iterator[Change]:
    """The same by any number: where nothing else explains it, as what is computed of weights may."""
    return _factors(r, is_round=False)


def _factors(r: Region, is_round: bool) -> Iterator[Change]:
    trace, others = r.parted.own.trace, r.parted.other.trace.values
    before = taken(r)
    for n in dict.fromkeys([*r.bad[:10], *before[:12]]):
        a = trace.values[n].array
        if not a.size or not np.any(a):
            continue
        for m in r.theirs[:24]:
            b = others[m].array
            ratio = _ratio(a, b)
            if ratio is None or abs(ratio - 1) < 1e-9:
                continue
            number = _number(ratio)
            if is_round == ("." in number):
                continue
            # One number is some multiple of every other: only a round one says something.
            if a.size < 3 and not is_round:
                continue
            words = f"a factor {number} is missing{_mean_or_sum(r, ratio, n)}"
            change = of_result(r, n, _used(r, n), words, functools.partial(np.multiply, ratio))
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
    made = makers(r)
    near = [r.recorded.program.ops[made[a]] for a in locate.ancestors(r.parted.own.trace, n) if a in made]
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
    before = taken(r)
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
    before = taken(r)
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
