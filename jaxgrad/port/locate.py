"""The first place where the values of two programs part.

Values of one are looked up among the other's, whatever their layouts. From an output that differs one goes back
through values without a counterpart to those that have one: what lies between is where the mistake is. A value without
a counterpart that leads to one with a counterpart is only another way to compute the same.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxgrad.checking.heat import heat
from jaxgrad.errors import JaxgradError
from jaxgrad.port import fingerprint, torch_values
from jaxgrad.port.fingerprint import EXACT, SCATTERED, SWAPPED, Held, Layout, Sketch
from jaxgrad.port.mapping import Mapping as WeightMapping
from jaxgrad.port.rounding import COARSEST, FINEST, Noise
from jaxgrad.port.values import Line, Place, Step, Trace, Value

AGREES, FORWARD, BACKWARD, LAYOUT, BUFFER = "agrees", "forward", "backward", "layout of the output", "buffer"
# Operations of either library that take a part of a value, and those that join several.
_CUTS = frozenset("slice dynamic_slice split select unbind unsafe_split split_with_sizes chunk".split())
_TAKES = _CUTS | {"gather", "rev"}
_JOINS = frozenset("stack concatenate cat".split())


class Pair(NamedTuple):
    """Two values that agree: their numbers in the two traces, and how the first lies beside the second.

    `shape` is that of the second.
    """

    own: int
    other: int
    layout: Layout
    shape: tuple[int, ...]


class Agreement(NamedTuple):
    """Two places at which the two programs have the same numbers."""

    jax: Place
    other: Place


class Mend(NamedTuple):
    """A change with which the next values agree: the place, the change in words, and how far they are then off."""

    place: Place
    words: str
    residual: float


class Verdict(NamedTuple):
    """Where two programs part.

    `kind` is one of the words above; `sentence` says it. `last` are the last agreements, `jax` and `other` the first
    values without a counterpart on each side, None where a side has none; of a function that ends too early it is where
    it ends. `region` and `other_region` are the lines from there on, of the first few. `distance` is the relative
    difference of the first values, None where they have no like. `mends` are changes that explain it, `behind` what is
    wrong after the first is mended. `agreeing` counts the values that agree of those that were looked up. `mapping` is
    that of the weights; `notes` are remarks. `steps` and `other_steps` are all values, for the page, and `off` is where
    in its array the first value is off, as `checking.heat` maps it. `complete` is false where it was stopped while a
    change that mends it was looked for.
    """

    agrees: bool
    kind: str
    sentence: str
    last: tuple[Agreement, ...]
    jax: Place | None
    other: Place | None
    region: tuple[Line, ...]
    other_region: tuple[Line, ...]
    distance: float | None
    mends: tuple[Mend, ...]
    behind: tuple[str, ...]
    agreeing: tuple[int, int]
    mapping: WeightMapping | None
    notes: tuple[str, ...]
    other_name: str
    steps: tuple[Step, ...] = ()
    other_steps: tuple[Step, ...] = ()
    off: dict[str, Any] | None = None
    complete: bool = True

    def __str__(self) -> str:
        from jaxgrad.port.explain import text

        return text(self)

    def html(self) -> str:
        """The verdict as a page that needs no network."""
        from jaxgrad.port.page import html

        return html(self)

    def as_json(self) -> dict[str, Any]:
        """The verdict as data for JSON, schema `jaxgrad.port/1`."""
        from jaxgrad.port.explain import as_json

        return as_json(self)


class Side(NamedTuple):
    """A recorded program beside another: its trace, its float outputs, and what its values are found to be."""

    trace: Trace
    outputs: tuple[int, ...]


class Parted(NamedTuple):
    """Two runs and what of them agrees. `pairs` are by the number of the first run's value.

    `noise` has the tolerance of each.
    """

    own: Side
    other: Side
    pairs: dict[int, Pair]
    twisted: frozenset[int]
    noise: Noise


# What agrees.


def part(own: Trace, other: Trace, noise: Noise) -> Parted:
    """Look up every value of a trace among those of another."""
    numbers = [n for n, v in enumerate(other.values) if fingerprint.told(v.held)]
    index = fingerprint.index([other.values[n].held for n in numbers])
    pairs: dict[int, Pair] = {}
    for n, value in enumerate(own.values):
        if not fingerprint.told(value.held):
            continue
        best: tuple[int, int, Pair] | None = None
        places = [(n, m) for m in numbers]
        for found, how in matching(value.held, index, places, noise, functools.partial(_beside, own, other)):
            m = numbers[found]
            if other.values[m].varies != value.varies:
                continue
            rank = [EXACT, fingerprint.TRANSPOSED, SWAPPED, SCATTERED].index(how.kind)
            if best is None or (rank, m) < best[:2]:
                best = rank, m, Pair(n, m, how, other.values[m].shape)
            if how.kind == EXACT:
                # Those that follow were made later.
                break
        if best is not None:
            pairs[n] = best[2]
    return Parted(_side(own), _side(other), pairs, _twisted(own, pairs), noise)


def matching(
    x: Held,
    index: fingerprint.Index,
    numbers: Sequence[tuple[int, int]],
    noise: Noise,
    layout: Callable[[int, int, float], Layout | None],
) -> Iterator[tuple[int, Layout]]:
    """Those of an index that are an array, by their position in it, and how they lie: what rounding allows.

    Args:
        x: the array.
        index: of those that it is looked up among.
        numbers: for each of these the values of the first and of the second run that are then compared.
        noise: the tolerances.
        layout: how two values lie beside each other within a tolerance.
    """
    any_found = False
    for k in fingerprint.like(x, index, FINEST):
        if (how := layout(*numbers[k], FINEST)) is not None:
            any_found = True
            yield k, how
    if any_found:
        return
    for k in fingerprint.like(x, index, COARSEST):
        tolerance = noise.tolerance(*numbers[k])
        if tolerance > FINEST and (how := layout(*numbers[k], tolerance)) is not None:
            yield k, how


def _beside(own: Trace, other: Trace, n: int, m: int, tolerance: float) -> Layout | None:
    return _layout(own.values[n], other.values[m], tolerance)


def _layout(own: Value, other: Value, tolerance: float) -> Layout | None:
    """How a value lies beside another; where of both there are sketches alone, the first is computed again."""
    how = fingerprint.layout(own.held, other.held, tolerance)
    if how is None and isinstance(own.held, Sketch) and isinstance(other.held, Sketch):
        how = fingerprint.layout(own.array, other.held, tolerance)
    return how


def _twisted(trace: Trace, pairs: Mapping[int, Pair]) -> frozenset[int]:
    """Values with axes of one size swapped, computed from values without: keys for queries give scores transposed."""
    found: set[int] = set()
    for n, pair in pairs.items():
        if pair.layout.kind != SWAPPED:
            continue
        sources = nearest(trace, n, pairs)
        kinds = {pairs[m].layout.kind for m in sources}
        # What is computed from images with their channels last has them last, wherever the other program has them.
        kinds |= {pairs[m].layout.kind for m in trace.values[n].operands if m in pairs and trace.values[m].varies}
        otherwise = SWAPPED in kinds or fingerprint.TRANSPOSED in kinds
        if found.intersection(sources) or (EXACT in kinds and not otherwise and not trace.values[n].moved):
            found.add(n)
    return frozenset(found)


def _side(trace: Trace) -> Side:
    return Side(trace, tuple(n for n in trace.outputs if trace.values[n].size))


def agreed(parted: Parted, number: int) -> bool:
    """Whether a value of the first program has a counterpart in which its numbers lie as they should.

    Numbers whose axes of one size are swapped, where those of what they were computed from are not, do not.
    """
    pair = parted.pairs.get(number)
    if pair is None or pair.layout.kind == SCATTERED:
        return False
    return number not in parted.twisted


def nearest(trace: Trace, n: int, pairs: Mapping[int, Pair]) -> list[int]:
    """The nearest values with a counterpart that a value was computed from, those aside that were only moved."""
    found, seen, todo = [], set(), list(trace.values[n].operands)
    while todo:
        m = todo.pop()
        value = trace.values[m]
        if m in seen or not value.varies:
            continue
        seen.add(m)
        if m in pairs and not (value.moved and value.operands):
            found.append(m)
        else:
            todo += value.operands
    return found


def aligned(parted: Parted) -> list[tuple[int, int]]:
    """Which output is which: in their order where as many, else by value and then by size."""
    own, other = list(parted.own.outputs), list(parted.other.outputs)
    if len(own) == len(other):
        return list(zip(own, other, strict=True))
    found = []
    of_other = parted.other.trace.values
    for m in list(other):
        same = [n for n in own if same_numbers(parted, n, m)] or [
            n for n in own if parted.own.trace.values[n].size == of_other[m].size
        ]
        if same:
            found.append((same[0], m))
            own.remove(same[0])
    return found


def same_numbers(parted: Parted, n: int, m: int) -> bool:
    """Whether an output is another, in its layout or, where the shapes differ, in some other."""
    first, second = parted.own.trace.values[n], parted.other.trace.values[m]
    if first.size != second.size:
        return False
    a, b = first.array, second.array
    return parted.noise.agree(n, m, lambda tolerance: in_order(a, b, tolerance))


def in_order(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    """Whether two arrays of one size hold the same numbers in the order in which outputs should."""
    if np.squeeze(a).shape == np.squeeze(b).shape:
        return fingerprint.close_as_they_lie(a, b, tolerance)
    return fingerprint.layout(a, b, tolerance) is not None


# Where they part.


def slices(parted: Parted, known: set[int] | None = None) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """The values on either side that lead to a difference and have no counterpart, and the outputs that differ.

    `known` are the values of the other program that agree, where they are known already.
    """
    wrong = [(n, m) for n, m in aligned(parted) if not same_numbers(parted, n, m)]
    if not wrong:
        return [], [], []
    of_other = counterparts(parted) if known is None else known
    own = _reached(parted.own.trace, [n for n, _ in wrong], lambda n: agreed(parted, n))
    other = _reached(parted.other.trace, [m for _, m in wrong], lambda m: m in of_other)
    other = sorted({*other, *_inner_steps(parted.other.trace, other, of_other)})
    return own, other, wrong


def counterparts(parted: Parted) -> set[int]:
    """The values of the other program that some agreed value of the first is, however they are stored."""
    own = [n for n in parted.pairs if agreed(parted, n) and parted.own.trace.values[n].varies]
    index = fingerprint.index([parted.own.trace.values[n].held for n in own])
    found = {parted.pairs[n].other for n in own}
    for m, value in enumerate(parted.other.trace.values):
        if m in found or not value.varies or not fingerprint.told(value.held):
            continue
        numbers = [(n, m) for n in own]
        beside = functools.partial(_beside, parted.own.trace, parted.other.trace)
        if any(how.kind != SCATTERED for _, how in matching(value.held, index, numbers, parted.noise, beside)):
            found.add(m)
    return found


def _reached(trace: Trace, ends: Iterable[int], stops: Callable[[int], bool]) -> list[int]:
    """What leads to the ends without passing a value with a counterpart, and leads to no such value itself."""
    reached: set[int] = set()
    todo = [n for n in ends if not stops(n)]
    while todo:
        n = todo.pop()
        if n in reached:
            continue
        reached.add(n)
        todo += [m for m in trace.values[n].operands if trace.values[m].varies and not stops(m)]
    # What another value with a counterpart is computed from is right, computed in another way.
    right: set[int] = set()
    # Of these, what only a part is known of to be right. Of what is joined, such as a loop's turns, that says nothing,
    # and nothing of what has other parts without a counterpart: what is shifted has most of its parts.
    partly: set[int] = set()
    parts: dict[int, list[int]] = {}
    for n in reached:
        if trace.values[n].place.op in _CUTS and fingerprint.told(trace.values[n].held):
            parts.setdefault(trace.values[n].operands[0], []).append(n)
    for n in range(len(trace.values) - 1, -1, -1):
        value, agrees = trace.values[n], stops(n)
        if not value.varies or not (n in right or agrees):
            continue
        cut = not agrees and n in partly
        if cut and (value.place.op in _JOINS or not right.issuperset(parts.get(n, ()))):
            right.discard(n)
            continue
        for m in value.operands:
            if m in reached:
                part = value.place.op in _CUTS or (cut and value.moved)
                if m not in right and part:
                    partly.add(m)
                elif not part:
                    partly.discard(m)
                right.add(m)
    return sorted(reached - right) or sorted(reached)


def _inner_steps(trace: Trace, found: Sequence[int], agreed: set[int]) -> list[int]:
    """The steps without a counterpart inside the operations found."""
    wanted = {(trace.values[n].place.module, trace.values[n].place.op, trace.values[n].operands) for n in found}
    return [
        n
        for n, v in enumerate(trace.values)
        if ": " in v.place.op
        and v.place.op.split(": ")[1] not in torch_values.ALTERNATIVES
        and (v.place.module, v.place.op.split(": ")[0], v.operands) in wanted
        and n not in agreed
        and fingerprint.told(v.held)
    ]


def judged(parted: Parted, other_name: str) -> Verdict:
    """The verdict of two runs' values."""
    theirs = counterparts(parted)
    own, other, wrong = slices(parted, theirs)
    looked_up = [n for n, v in enumerate(parted.own.trace.values) if v.varies and fingerprint.told(v.held)]
    counts = sum(agreed(parted, n) for n in looked_up), len(looked_up)
    nothing = Verdict(
        True, AGREES, "", (), None, None, (), (), None, (), (), counts, None, (), other_name, *steps(parted, theirs)
    )
    pairs = aligned(parted)
    if not pairs:
        raise JaxgradError("the two programs have no output of one size, so there is nothing to compare")
    if not wrong:
        return nothing._replace(sentence=f"all {len(pairs)} outputs agree")
    trace = parted.own.trace
    n, m = wrong[0]
    if not own:
        # The output is a value of the other program, only not its output.
        here = trace.values[n].place
        pair = parted.pairs.get(n)
        if pair is not None and _only_layout(parted, n, m):
            said = f"{trace.names[trace.outputs.index(n)]} holds the right numbers in another order"
            return nothing._replace(
                agrees=False, kind=LAYOUT, sentence=said, jax=here, region=lines_of([here]), other_region=()
            )
        ends = parted.other.trace.values[other[0]].place if other else None
        last: tuple[Agreement, ...] = ()
        if pair is not None:
            last = (Agreement(here, parted.other.trace.values[pair.other].place),)
        said = f"the function ends where {other_name} goes on"
        return nothing._replace(
            agrees=False, kind=FORWARD, sentence=said, last=last, jax=here, other=ends, region=lines_of([here]),
            other_region=lines_of(parted.other.trace.values[k].place for k in other),
        )  # fmt: skip
    # A mask says nothing by itself, nor do zeros.
    first = first_told(trace, own)
    others = parted.other.trace
    theirs_first = first_told(others, other) if other else None
    blamed = _mistaken(parted, first, theirs_first, other) or blame(parted, first)
    places = [trace.values[k].place for k in own]
    begins = None if theirs_first is None else others.values[theirs_first].place
    said = f"the first value without a counterpart in {other_name} is made by {blamed.op}"
    return nothing._replace(
        agrees=False,
        kind=FORWARD,
        sentence=said,
        last=_last(parted, first),
        jax=blamed,
        other=begins,
        region=lines_of([blamed, *places]),
        other_region=lines_of(parted.other.trace.values[k].place for k in other),
        distance=distance(parted, first, other),
        off=off(parted, first, other),
    )


def first_told(trace: Trace, numbers: Sequence[int]) -> int:
    """The first of some values that says something, else the first."""
    return next((n for n in numbers if fingerprint.told(trace.values[n].held)), numbers[0])


def steps(parted: Parted, agreeing: set[int]) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
    """All values of both programs that depend on the inputs, for the page."""

    def shown(trace: Trace) -> list[int]:
        return [n for n, v in enumerate(trace.values) if v.varies and not v.moved and v.place.op != "input"]

    def step(trace: Trace, n: int, agrees: bool, like: int | None) -> Step:
        value = trace.values[n]
        return Step(value.place, value.shape, agrees if fingerprint.told(value.held) else None, like)

    mine, others = parted.own.trace, parted.other.trace
    numbers = {n: k for k, n in enumerate(shown(others))}

    def like(n: int) -> int | None:
        return numbers.get(root(others, parted.pairs[n].other)) if agreed(parted, n) else None

    own = tuple(step(mine, n, agreed(parted, n), like(n)) for n in shown(mine))
    return own, tuple(step(others, n, n in agreeing, None) for n in numbers)


def _only_layout(parted: Parted, n: int, m: int) -> bool:
    a, b = parted.own.trace.values[n].array, parted.other.trace.values[m].array
    if a.size != b.size:
        return False
    a, b = np.sort(a, None), np.sort(b, None)
    return parted.noise.agree(n, m, lambda tolerance: fingerprint.close(a, b, tolerance))


def _last(parted: Parted, first: int) -> tuple[Agreement, ...]:
    """The nearest values before `first` that agree."""
    trace = parted.own.trace
    found: dict[int, None] = {}
    todo, seen = [first], set()
    while todo:
        n = todo.pop(0)
        for m in trace.values[n].operands:
            if m in seen or not trace.values[m].varies:
                continue
            seen.add(m)
            if agreed(parted, m):
                found[m] = None
            else:
                todo.append(m)
    values = parted.other.trace.values
    return tuple(
        Agreement(trace.values[root(trace, n)].place, values[root(parted.other.trace, parted.pairs[n].other)].place)
        for n in found
    )


def root(trace: Trace, n: int) -> int:
    while trace.values[n].moved and trace.values[n].operands:
        n = trace.values[n].operands[0]
    return n


def _mistaken(parted: Parted, first: int, theirs: int | None, region: Sequence[int]) -> Place | None:
    """Where a wrong part was taken, if that is what the first differing operation is given: the last turn, a shift.

    `theirs` is the first of the other program's values in its `region`. The part is a value of both programs or a mask,
    and the other program's operation has another there of its size.
    """
    if theirs is None:
        return None
    trace, others = parted.own.trace.values, parted.other.trace.values

    def same(n: int, m: int) -> bool:
        how = fingerprint.layout(trace[n].held, others[m].held)
        return how is not None and how.kind != SCATTERED

    own = [n for n in trace[first].operands if not any(same(n, m) for m in others[theirs].operands)]
    rest = [m for m in others[theirs].operands if not any(same(n, m) for n in trace[first].operands)]
    if len(own) != 1 or not trace[own[0]].varies or [others[m].size for m in rest].count(trace[own[0]].size) != 1:
        return None
    if not agreed(parted, own[0]) and fingerprint.told(trace[own[0]].held):
        return None
    # What the other program takes elsewhere, too, is another turn of a loop.
    used = {root(parted.other.trace, m) for k in region for m in others[k].operands}
    if any(same(own[0], m) for m in used):
        return None
    place = trace[root(parted.own.trace, own[0])].place
    return place if place.op in _TAKES else None


def blame(parted: Parted, first: int) -> Place:
    """The place of a value, or of a constant among its operands that the other program has not, such as a mask."""
    trace = parted.own.trace
    place = trace.values[first].place
    mine = place.line
    for n in trace.values[first].operands:
        if (move := _disordered(parted, n)) is not None:
            return trace.values[move].place
    for n in trace.values[first].operands:
        value = trace.values[n]
        if value.varies or value.size < 2 or not value.array.any():
            continue
        chain = [k for k in ancestors(trace, n) if trace.values[k].place.lines]
        if _has(parted, n) or not chain:
            continue
        if any(trace.values[k].place.op == "parameter" for k in ancestors(trace, n)):
            # Weights that are only moved, as to where they are added, are the other program's.
            begins = first_unlike(parted, n, computed=True)
            if begins is not None and begins.line is not None and not agreed(parted, n):
                return begins
            continue
        # The first number that the other program has not, or the last line of a mask, before this line uses it.
        begins = first_unlike(parted, n)
        if begins is not None and begins.line is not None and begins.line != mine:
            return begins
        lines = [trace.values[k].place for k in chain if trace.values[k].place.line != mine]
        if lines:
            return lines[-1]
    return place


def wrong_constant(parted: Parted, numbers: Sequence[int]) -> bool:
    """Whether one of some values is an array that depends on no input, and that the other program has not."""
    values = parted.own.trace.values
    some = [n for n in numbers if not values[n].varies and np.ptp(values[n].array if values[n].size else 0.0) > 0]
    return any(not agreed(parted, n) and not _has(parted, n) for n in some)


def first_unlike(parted: Parted, n: int, computed: bool = False) -> Place | None:
    """Where a constant begins to be none of the other program's; None where its numbers say nothing.

    With `computed` only what is computed is looked at, and not what is moved.
    """
    trace = parted.own.trace

    def unlike(k: int) -> bool:
        pair, value = parted.pairs.get(k), trace.values[k]
        differs = pair is None or pair.layout.kind == SCATTERED
        # What is no number says nothing, but that it should not be one.
        says = fingerprint.told(value.held) or (value.size > 0 and bool(np.isnan(value.array).all()))
        return differs and bool(value.operands) and says

    found, todo = set[int](), [n]
    while todo:
        k = todo.pop()
        if unlike(k) and k not in found:
            found.add(k)
            todo += trace.values[k].operands
    found = {k for k in found if not (computed and trace.values[k].moved)}
    return trace.values[min(found)].place if found else None


def _disordered(parted: Parted, n: int) -> int | None:
    """The first move behind which a value has a shape of the other program's, and its numbers in another order.

    Heads split as (depth, heads) in the place of (heads, depth) hold the right numbers.
    """
    trace, others = parted.own.trace, parted.other.trace.values
    if not trace.values[n].moved or not trace.values[n].varies:
        return None
    index = fingerprint.index([v.held for v in others])

    def disordered(m: int) -> bool | None:
        """Whether a value is like none of its shape; None where there is none of its shape."""
        held = trace.values[m].held
        shape = [n for n in held.shape if n > 1]
        found = [others[k].held for k in fingerprint.like(held, index)]
        same = [x for x in found if [n for n in x.shape if n > 1] == shape]
        return all(not fingerprint.same(held, x, fingerprint.TOLERANCE) for x in same) if same else None

    if disordered(n) is not True:
        return None
    chain = [n]
    while trace.values[chain[-1]].operands and trace.values[trace.values[chain[-1]].operands[0]].moved:
        chain.append(trace.values[chain[-1]].operands[0])
    last = next((k for k, m in enumerate(chain) if disordered(m) is False), len(chain))
    return chain[last - 1]


def ancestors(trace: Trace, n: int) -> list[int]:
    found: set[int] = set()
    todo = [n]
    while todo:
        k = todo.pop()
        if k not in found:
            found.add(k)
            todo += trace.values[k].operands
    return sorted(found)


def _has(parted: Parted, n: int) -> bool:
    """Whether the other program has a constant, its complement, or, of two numbers, others where these are.

    A mask of true and false is one that is added, of zeros and large negative numbers.
    """
    array = parted.own.trace.values[n].array
    if array.size < 2 or array.min() == array.max():
        return False
    two_valued = _two_valued(array)
    for value in parted.other.trace.values:
        if value.varies or value.size < 2:
            continue
        other = value.array
        if other.min() == other.max():
            continue
        alike = [(array, other), (array, 1 - other)]
        if two_valued and _two_valued(other):
            largest = other == other.max()
            alike = [(array == array.max(), largest), (array == array.max(), ~largest)]
        for own, x in alike:
            big, small = (own, x) if own.size >= x.size else (x, own)
            fits = big.shape[big.ndim - small.ndim :] == small.shape
            if fits and np.array_equal(big, np.broadcast_to(small, big.shape)):
                return True
    return False


def _two_valued(x: np.ndarray) -> bool:
    return bool(((x == x.min()) | (x == x.max())).all())


def distance(parted: Parted, first: int, others: Sequence[int]) -> float | None:
    """How far a value is from the nearest of its size among those that the other program has there."""
    a = parted.own.trace.values[first].array
    sizes = [
        relative(np.sort(a, None), np.sort(parted.other.trace.values[m].array, None))
        for m in others[:12]
        if parted.other.trace.values[m].size == a.size
    ]
    return min(sizes, default=None)


def off(parted: Parted, first: int, others: Sequence[int]) -> dict[str, Any] | None:
    """Where a value is off from the nearest of its size that the other program has there; None where none has it."""
    a = parted.own.trace.values[first].array
    values = parted.other.trace.values
    alike = [values[m].array for m in others[:12] if values[m].size == a.size]
    if not alike:
        return None
    return mapped(a, laid_like(min(alike, key=lambda b: relative(np.sort(a, None), np.sort(b, None))), a))


def mapped(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """Where one array is off from another of its shape, as parts of the tolerance of the whole."""
    known = b[fingerprint.ordinary_of(b)]
    size = float(np.sqrt(np.mean(known**2))) if known.size else 0.0
    return heat(a, b, fingerprint.TOLERANCE * (size or 1.0))


def laid_like(b: np.ndarray, a: np.ndarray) -> np.ndarray:
    """An array in the layout of another of its size: with the order of axes in which the two are nearest."""
    own, other = np.squeeze(a), np.squeeze(b)
    # Of more axes there are too many orders to try.
    orders = itertools.permutations(range(other.ndim)) if other.ndim <= 5 else ()
    fits = [way for order in orders if (way := other.transpose(order)).shape == own.shape]
    return min(fits or [b.reshape(own.shape)], key=lambda way: relative(own, way)).reshape(a.shape)


def relative(a: Held, b: Held) -> float:
    """The 2-norm of a difference over that of the second, over what are ordinary numbers in both.

    Where of one there is only a sketch, it is estimated from their weighted sums.
    """
    if isinstance(a, Sketch) or isinstance(b, Sketch):
        a, b = fingerprint.sums(a), fingerprint.sums(b)
    ok = fingerprint.ordinary_of(a) & fingerprint.ordinary_of(b)
    size = float(np.linalg.norm(b[ok]))
    return float(np.linalg.norm(a[ok] - b[ok])) / size if size else float(np.linalg.norm(a[ok]))


def lines_of(places: Iterable[Place]) -> tuple[Line, ...]:
    return tuple(dict.fromkeys(place.line for place in places if place.line is not None))[:4]
