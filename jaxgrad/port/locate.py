"""The first place where two programs part: a JAX function beside a PyTorch module, or beside another JAX function.

Values of one are looked up among the other's, whatever their layouts. From an output that differs one goes back
through values without a counterpart to those that have one: what lies between is where the mistake is. A value without
a counterpart that leads to one with a counterpart is only another way to compute the same.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.checking.heat import heat
from jaxgrad.checking.oracles import rules
from jaxgrad.errors import JaxgradError
from jaxgrad.port import fingerprint, jax_values, torch_values
from jaxgrad.port.fingerprint import EXACT, SCATTERED, SWAPPED, Layout
from jaxgrad.port.mapping import Mapping as WeightMapping
from jaxgrad.port.match import Setting, filled, flat_call, odd_ones, prepare, redrawn, search
from jaxgrad.port.values import Line, Place, Step, Trace
from jaxgrad.progress import Progress, kept, silent

AGREES, FORWARD, BACKWARD, LAYOUT, BUFFER = "agrees", "forward", "backward", "layout of the output", "buffer"
# A backward pass has twice the operations of a forward pass and more cancellation.
BACKWARD_TOLERANCE = 1e-8
# Of how many operations a backward pass is compiled as a whole.
_MOST_COMPILED = 300
# Operations of either library that take a part of a value, and those that join several.
_CUTS = frozenset("slice dynamic_slice split select unbind unsafe_split split_with_sizes chunk".split())
_JOINS = frozenset("stack concatenate cat".split())
_STEPS = ("the other program", "which weight goes where", "all values", "all cotangents", "what would mend it")


class Pair(NamedTuple):
    """Two values that agree: their numbers in the two traces, and how the first lies beside the second."""

    own: int
    other: int
    layout: Layout


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
    values without a counterpart on each side, None where a side has none. `region` and `other_region` are the lines
    from there on, of the first few. `distance` is the relative difference of the first values, None where they have
    no like. `mends` are changes that explain it, `behind` what is wrong after the first is mended. `agreeing` counts
    the values that agree of those that were looked up. `mapping` is that of the weights; `notes` are remarks. `steps`
    and `other_steps` are all values, for the page, and `off` is where in its array the first value is off, as
    `checking.heat` maps it. `complete` is false where it was stopped while a change that mends it was looked for.
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
    """Two runs and what of them agrees. `pairs` are by the number of the first run's value."""

    own: Side
    other: Side
    pairs: dict[int, Pair]
    twisted: frozenset[int]
    tolerance: float


def compare(
    fn: Callable[..., Any],
    params: Any,
    *inputs: Any,
    torch: Any = None,
    jax: Callable[..., Any] | None = None,
    mapping: WeightMapping | None = None,
    names: Mapping[str, str] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    torch_inputs: Sequence[Any] | None = None,
    seed: int = 0,
    use: str = "float32",
    suggest: bool = True,
    progress: Progress = silent,
) -> Verdict:
    """Find the first place where `fn(params, *inputs)` and another program part.

    Both are run in float64 with the same new numbers for the weights, neither is changed, and nothing is marked.

    Args:
        fn: the JAX function.
        params: its tree of parameters, arrays or their shapes.
        inputs: its other arguments, arrays or shapes.
        torch: the `nn.Module` or function of tensors that it is a port of.
        jax: or another JAX function, with the same arguments.
        mapping: which leaf is made from which tensors, as `match` gives it; without it the two are matched first.
        names: torch names by leaf paths, for the match.
        kwargs: keyword arguments of both programs.
        torch_inputs: the module's inputs where they differ from JAX's.
        seed: of the numbers that both are given.
        use: the type that `fn` is used in; what it computes in this type by its own choice is no difference.
        suggest: whether to look for what would mend a difference.
        progress: is told how many steps are done, of how many, and which is next.

    A `KeyboardInterrupt` while a change is looked for has the verdict without one as its `found`; one that comes once
    the weights are placed has their mapping.

    Raises `JaxgradError` where neither or both of `torch` and `jax` are given, and where one of the programs raises.
    """
    if (torch is None) == (jax is None):
        raise JaxgradError("compare needs one other program: torch=module or jax=function")
    if torch is None:
        return _beside_jax(fn, jax, params, inputs, kwargs or {}, seed, use, suggest, progress)
    return _beside_torch(
        fn, params, inputs, torch, mapping, names or {}, kwargs or {}, torch_inputs, seed, use, suggest, progress
    )


def _beside_torch(
    fn: Callable[..., Any],
    params: Any,
    inputs: Sequence[Any],
    module: Any,
    given: WeightMapping | None,
    names: Mapping[str, str],
    kwargs: Mapping[str, Any],
    torch_inputs: Sequence[Any] | None,
    seed: int,
    use: str,
    suggest: bool,
    progress: Progress,
) -> Verdict:
    notes: list[str] = []
    progress(0, len(_STEPS), _STEPS[0])
    setting = prepare(fn, params, inputs, module, kwargs, torch_inputs, seed)
    progress(1, len(_STEPS), _STEPS[1])
    is_module = hasattr(module, "named_parameters")
    found = given if given is not None else search(setting, module, names, strict=False)
    odd = odd_ones(found) if given is None and not names else {}
    found = found._replace(
        entries=tuple(e._replace(rule=odd[e.path], proved=False) if e.path in odd else e for e in found.entries)
    )
    notes += [
        f"{path} agrees with the values only if it is {'used as it is' if rule.steps else 'transposed'}, unlike all"
        " others of its name; it is taken as they are (names={...} decides otherwise)"
        for path, rule in odd.items()
    ]
    by_path = {entry.path: entry for entry in found.entries}
    arrays = []
    for number, (path, leaf) in enumerate(setting.leaves):
        entry = by_path.get(path)
        if entry is None:
            notes.append(f"no tensor was found for the leaf {path} {tuple(leaf.shape)}")
            arrays.append(_own(leaf, (seed, 8, number)))
        else:
            arrays.append(rules.apply(entry.rule, setting.tensors))
    if is_module:
        used = _used(setting.torch.trace)
        notes += [f"no leaf was found for the tensor {n} {found.tensors[n]}" for n in found.unused if n in used]
        if module.training and any(
            "dropout" in v.place.op or "bernoulli" in v.place.op for v in setting.torch.trace.values
        ):
            notes.append("the torch module is in training mode and drops values at random; call module.eval()")
    with kept(lambda: found, lambda: "compare was stopped when the weights were placed"):
        progress(2, len(_STEPS), _STEPS[2])
        recorded = jax_values.record(setting.fn, [*arrays, *setting.others], len(arrays), use)
        parted = part(recorded.trace, setting.torch.trace)
        verdict = judged(parted, "torch")
        buffers = _buffers(parted, setting, module) if is_module else None
        if verdict.agrees and buffers is not None:
            verdict = verdict._replace(agrees=False, kind=BUFFER, sentence=buffers)
        if verdict.agrees:
            progress(3, len(_STEPS), _STEPS[3])
            verdict = _backward(setting, arrays, found, use, suggest) or verdict
    verdict = verdict._replace(mapping=found, notes=tuple(notes))
    leaves = [path for path, _ in setting.leaves]
    return _mended(verdict, suggest, progress, parted, recorded, leaves, {n: setting.tensors[n] for n in found.unused})


def _mended(verdict: Verdict, suggest: bool, progress: Progress, *region: Any) -> Verdict:
    """The verdict with what would mend a difference, where that is wanted and can be known."""
    from jaxgrad.port import mend

    if not suggest or verdict.agrees or verdict.kind not in (FORWARD, LAYOUT):
        return verdict
    progress(4, len(_STEPS), _STEPS[4])
    stopped = verdict._replace(complete=False)
    with kept(lambda: stopped, lambda: f"compare was stopped while it looked for what would mend it: {stopped}"):
        return mend.mended(verdict, *region)


def _beside_jax(
    fn: Callable[..., Any],
    other: Any,
    params: Any,
    inputs: Sequence[Any],
    kwargs: Mapping[str, Any],
    seed: int,
    use: str,
    suggest: bool,
    progress: Progress,
) -> Verdict:
    progress(2, len(_STEPS), _STEPS[2])
    given = filled(inputs, seed)
    call, leaves, others = flat_call(fn, params, given, kwargs)
    second, _, _ = flat_call(other, params, given, kwargs)
    arrays = [_own(leaf, (seed, 8, number)) for number, (_, leaf) in enumerate(leaves)]
    recorded = jax_values.record(call, [*arrays, *others], len(arrays), use)
    theirs = jax_values.record(second, [*arrays, *others], len(arrays), use)
    parted = part(recorded.trace, theirs.trace)
    verdict = judged(parted, "the other function")
    if verdict.agrees:
        progress(3, len(_STEPS), _STEPS[3])
        a = jax_values.record(call, [*arrays, *others], len(arrays), use, open_custom=False)
        b = jax_values.record(second, [*arrays, *others], len(arrays), use, open_custom=False)
        again = part(a.trace, b.trace)
        dys = _dys(again, seed)
        of_own, of_other = jax_cotangents(a, again.own.outputs, dys), jax_cotangents(b, again.other.outputs, dys)
        pairs = {
            n: Pair(n, m, Layout(EXACT, (), True)) for n, m in zip(a.program.inputs, b.program.inputs, strict=True)
        }
        verdict = _first_backward(again, of_own, of_other, pairs, "the other function") or verdict
    return _mended(verdict, suggest, progress, parted, recorded, [path for path, _ in leaves], {})


def _own(leaf: Any, seed: tuple[int, ...]) -> np.ndarray:
    """Numbers for a leaf: its own moved off what is constant, or new ones where only its shape is given."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return np.random.default_rng(seed).standard_normal(leaf.shape) / max(leaf.shape[-1:], default=1) ** 0.5
    return redrawn(np.asarray(leaf, np.float64), seed)


def _used(trace: Trace) -> set[str]:
    return {
        trace.values[n].place.module
        for v in trace.values
        for n in v.operands
        if trace.values[n].place.op == "parameter"
    }


# What agrees.


def part(own: Trace, other: Trace, tolerance: float = fingerprint.TOLERANCE) -> Parted:
    """Look up every value of a trace among those of another."""
    numbers = [n for n, v in enumerate(other.values) if fingerprint.told(v.array)]
    index = fingerprint.index([other.values[n].array for n in numbers])
    pairs: dict[int, Pair] = {}
    for n, value in enumerate(own.values):
        if not fingerprint.told(value.array):
            continue
        best: tuple[int, int, Pair] | None = None
        for found in fingerprint.like(value.array, index, tolerance):
            m = numbers[found]
            if other.values[m].varies != value.varies:
                continue
            how = fingerprint.layout(value.array, other.values[m].array, tolerance)
            if how is None:
                continue
            rank = [EXACT, fingerprint.TRANSPOSED, SWAPPED, SCATTERED].index(how.kind)
            if best is None or (rank, m) < best[:2]:
                best = rank, m, Pair(n, m, how)
            if how.kind == EXACT:
                # Those that follow were made later.
                break
        if best is not None:
            pairs[n] = best[2]
    return Parted(_side(own), _side(other), pairs, _twisted(own, pairs), tolerance)


def _twisted(trace: Trace, pairs: Mapping[int, Pair]) -> frozenset[int]:
    """Values with axes of one size swapped, computed from values without: keys for queries give scores transposed."""
    found: set[int] = set()
    for n, pair in pairs.items():
        if pair.layout.kind != SWAPPED:
            continue
        sources = _nearest(trace, n, pairs)
        kinds = {pairs[m].layout.kind for m in sources}
        # What is computed from images with their channels last has them last, wherever the other program has them.
        kinds |= {pairs[m].layout.kind for m in trace.values[n].operands if m in pairs and trace.values[m].varies}
        otherwise = SWAPPED in kinds or fingerprint.TRANSPOSED in kinds
        if found.intersection(sources) or (EXACT in kinds and not otherwise and not trace.values[n].moved):
            found.add(n)
    return frozenset(found)


def _side(trace: Trace) -> Side:
    return Side(trace, tuple(n for n in trace.outputs if trace.values[n].array.size))


def agreed(parted: Parted, number: int) -> bool:
    """Whether a value of the first program has a counterpart in which its numbers lie as they should.

    Numbers whose axes of one size are swapped, where those of what they were computed from are not, do not.
    """
    pair = parted.pairs.get(number)
    if pair is None or pair.layout.kind == SCATTERED:
        return False
    return number not in parted.twisted


def _nearest(trace: Trace, n: int, pairs: Mapping[int, Pair]) -> list[int]:
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
            n for n in own if parted.own.trace.values[n].array.size == of_other[m].array.size
        ]
        if same:
            found.append((same[0], m))
            own.remove(same[0])
    return found


def same_numbers(parted: Parted, n: int, m: int) -> bool:
    """Whether an output is another, in its layout or, where the shapes differ, in some other."""
    a, b = parted.own.trace.values[n].array, parted.other.trace.values[m].array
    if a.size != b.size:
        return False
    if np.squeeze(a).shape == np.squeeze(b).shape:
        return fingerprint.close(a.ravel(), b.ravel(), parted.tolerance)
    how = fingerprint.layout(a, b, parted.tolerance)
    return how is not None


# Where they part.


def slices(parted: Parted, counterparts: set[int] | None = None) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """The values on either side that lead to a difference and have no counterpart, and the outputs that differ.

    `counterparts` are the values of the other program that agree, where they are known already.
    """
    wrong = [(n, m) for n, m in aligned(parted) if not same_numbers(parted, n, m)]
    if not wrong:
        return [], [], []
    of_other = _counterparts(parted) if counterparts is None else counterparts
    own = _reached(parted.own.trace, [n for n, _ in wrong], lambda n: agreed(parted, n))
    other = _reached(parted.other.trace, [m for _, m in wrong], lambda m: m in of_other)
    other = sorted({*other, *_steps(parted.other.trace, other, of_other)})
    return own, other, wrong


def _counterparts(parted: Parted) -> set[int]:
    """The values of the other program that some agreed value of the first is, however they are stored."""
    own = [n for n in parted.pairs if agreed(parted, n) and parted.own.trace.values[n].varies]
    index = fingerprint.index([parted.own.trace.values[n].array for n in own])
    found = {parted.pairs[n].other for n in own}
    for m, value in enumerate(parted.other.trace.values):
        if m in found or not value.varies or not fingerprint.told(value.array):
            continue
        for k in fingerprint.like(value.array, index, parted.tolerance):
            how = fingerprint.layout(index.arrays[k], value.array, parted.tolerance)
            if how is not None and how.kind not in (SCATTERED,):
                found.add(m)
                break
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
    # Of these, what only a part is known of to be right. Of what is joined, such as a loop's turns, that says nothing.
    partly: set[int] = set()
    for n in range(len(trace.values) - 1, -1, -1):
        value, agrees = trace.values[n], stops(n)
        if not value.varies or not (n in right or agrees):
            continue
        cut = not agrees and n in partly
        if cut and value.place.op in _JOINS:
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


def _steps(trace: Trace, found: Sequence[int], agreed: set[int]) -> list[int]:
    """The steps without a counterpart inside the operations found."""
    wanted = {(trace.values[n].place.module, trace.values[n].place.op, trace.values[n].operands) for n in found}
    return [
        n
        for n, v in enumerate(trace.values)
        if ": " in v.place.op
        and v.place.op.split(": ")[1] not in torch_values.ALTERNATIVES
        and (v.place.module, v.place.op.split(": ")[0], v.operands) in wanted
        and n not in agreed
        and fingerprint.told(v.array)
    ]


def judged(parted: Parted, other_name: str) -> Verdict:
    """The verdict of two runs' values."""
    theirs = _counterparts(parted)
    own, other, wrong = slices(parted, theirs)
    looked_up = [n for n, v in enumerate(parted.own.trace.values) if v.varies and fingerprint.told(v.array)]
    counts = sum(agreed(parted, n) for n in looked_up), len(looked_up)
    nothing = Verdict(
        True, AGREES, "", (), None, None, (), (), None, (), (), counts, None, (), other_name, *_told(parted, theirs)
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
                agrees=False, kind=LAYOUT, sentence=said, jax=here, region=_lines([here]), other_region=()
            )
        ends = parted.other.trace.values[other[0]].place if other else None
        last: tuple[Agreement, ...] = ()
        if pair is not None:
            last = (Agreement(here, parted.other.trace.values[pair.other].place),)
        said = f"the function ends where {other_name} goes on"
        return nothing._replace(
            agrees=False, kind=FORWARD, sentence=said, last=last, jax=None, other=ends, region=_lines([here]),
            other_region=_lines(parted.other.trace.values[k].place for k in other),
        )  # fmt: skip
    # A mask says nothing by itself, nor do zeros.
    first = _first_told(trace, own)
    blamed = _blamed(parted, first)
    places = [trace.values[k].place for k in own]
    others = parted.other.trace
    begins = others.values[_first_told(others, other)].place if other else None
    said = f"the first value without a counterpart in {other_name} is made by {blamed.op}"
    return nothing._replace(
        agrees=False,
        kind=FORWARD,
        sentence=said,
        last=_last(parted, first),
        jax=blamed,
        other=begins,
        region=_lines([blamed, *places]),
        other_region=_lines(parted.other.trace.values[k].place for k in other),
        distance=distance(parted, first, other),
        off=off(parted, first, other),
    )


def _first_told(trace: Trace, numbers: Sequence[int]) -> int:
    """The first of some values that says something, else the first."""
    return next((n for n in numbers if fingerprint.told(trace.values[n].array)), numbers[0])


def _told(parted: Parted, counterparts: set[int]) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
    """All values of both programs that depend on the inputs, for the page."""

    def shown(trace: Trace) -> list[int]:
        return [n for n, v in enumerate(trace.values) if v.varies and not v.moved and v.place.op != "input"]

    def step(trace: Trace, n: int, agrees: bool, like: int | None) -> Step:
        value = trace.values[n]
        return Step(value.place, value.array.shape, agrees if fingerprint.told(value.array) else None, like)

    mine, others = parted.own.trace, parted.other.trace
    numbers = {n: k for k, n in enumerate(shown(others))}

    def like(n: int) -> int | None:
        return numbers.get(_root(others, parted.pairs[n].other)) if agreed(parted, n) else None

    own = tuple(step(mine, n, agreed(parted, n), like(n)) for n in shown(mine))
    return own, tuple(step(others, n, n in counterparts, None) for n in numbers)


def _only_layout(parted: Parted, n: int, m: int) -> bool:
    a, b = parted.own.trace.values[n].array, parted.other.trace.values[m].array
    return a.size == b.size and fingerprint.close(np.sort(a, None), np.sort(b, None), parted.tolerance)


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
        Agreement(trace.values[_root(trace, n)].place, values[_root(parted.other.trace, parted.pairs[n].other)].place)
        for n in found
    )


def _root(trace: Trace, n: int) -> int:
    while trace.values[n].moved and trace.values[n].operands:
        n = trace.values[n].operands[0]
    return n


def _blamed(parted: Parted, first: int) -> Place:
    """The place of a value, or of a constant among its operands that the other program has not, such as a mask."""
    trace = parted.own.trace
    place = trace.values[first].place
    mine = place.line
    for n in trace.values[first].operands:
        if (move := _disordered(parted, n)) is not None:
            return trace.values[move].place
    for n in trace.values[first].operands:
        value = trace.values[n]
        if value.varies or value.array.size < 2 or not value.array.any():
            continue
        chain = [k for k in _ancestors(trace, n) if trace.values[k].place.lines]
        if _has(parted, n) or not chain:
            continue
        if any(trace.values[k].place.op == "parameter" for k in _ancestors(trace, n)):
            continue
        # The first number that the other program has not, or the last line of a mask, before this line uses it.
        begins = _first_unlike(parted, n)
        if begins is not None and begins.line is not None and begins.line != mine:
            return begins
        lines = [trace.values[k].place for k in chain if trace.values[k].place.line != mine]
        if lines:
            return lines[-1]
    return place


def _first_unlike(parted: Parted, n: int) -> Place | None:
    """Where a constant begins to be none of the other program's; None where its numbers say nothing."""
    trace = parted.own.trace

    def unlike(k: int) -> bool:
        pair = parted.pairs.get(k)
        differs = pair is None or pair.layout.kind == SCATTERED
        return differs and bool(trace.values[k].operands) and fingerprint.told(trace.values[k].array)

    found, todo = set[int](), [n]
    while todo:
        k = todo.pop()
        if unlike(k) and k not in found:
            found.add(k)
            todo += trace.values[k].operands
    return trace.values[min(found)].place if found else None


def _disordered(parted: Parted, n: int) -> int | None:
    """The first move behind which a value has a shape of the other program's, and its numbers in another order.

    Heads split as (depth, heads) in the place of (heads, depth) hold the right numbers.
    """
    trace, others = parted.own.trace, parted.other.trace.values
    if not trace.values[n].moved or not trace.values[n].varies:
        return None
    index = fingerprint.index([v.array for v in others])

    def disordered(m: int) -> bool | None:
        """Whether a value is like none of its shape; None where there is none of its shape."""
        array = trace.values[m].array
        found = [others[k].array for k in fingerprint.like(array, index, parted.tolerance)]
        same = [x for x in found if np.squeeze(x).shape == np.squeeze(array).shape]
        return all(not fingerprint.close(array.ravel(), x.ravel(), parted.tolerance) for x in same) if same else None

    if disordered(n) is not True:
        return None
    chain = [n]
    while trace.values[chain[-1]].operands and trace.values[trace.values[chain[-1]].operands[0]].moved:
        chain.append(trace.values[chain[-1]].operands[0])
    last = next((k for k, m in enumerate(chain) if disordered(m) is False), len(chain))
    return chain[last - 1]


def _ancestors(trace: Trace, n: int) -> list[int]:
    found: set[int] = set()
    todo = [n]
    while todo:
        k = todo.pop()
        if k not in found:
            found.add(k)
            todo += trace.values[k].operands
    return sorted(found)


def _has(parted: Parted, n: int) -> bool:
    """Whether the other program has a constant, or its complement."""
    array = parted.own.trace.values[n].array
    if array.size < 2:
        return False
    if array.min() == array.max():
        return False
    for value in parted.other.trace.values:
        other = value.array
        if value.varies or other.size < 2 or other.min() == other.max():
            continue
        for x in (other, 1 - other):
            big, small = (array, x) if array.size >= x.size else (x, array)
            fits = big.shape[big.ndim - small.ndim :] == small.shape
            if fits and np.array_equal(big, np.broadcast_to(small, big.shape)):
                return True
    return False


def distance(parted: Parted, first: int, others: Sequence[int]) -> float | None:
    """How far a value is from the nearest of its size among those that the other program has there."""
    a = parted.own.trace.values[first].array
    sizes = [
        relative(np.sort(a, None), np.sort(parted.other.trace.values[m].array, None))
        for m in others[:12]
        if parted.other.trace.values[m].array.size == a.size
    ]
    return min(sizes, default=None)


def off(parted: Parted, first: int, others: Sequence[int]) -> dict[str, Any] | None:
    """Where a value is off from the nearest of its size that the other program has there; None where none has it."""
    a = parted.own.trace.values[first].array
    alike = [parted.other.trace.values[m].array for m in others[:12]]
    alike = [b for b in alike if b.size == a.size]
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


def relative(a: np.ndarray, b: np.ndarray) -> float:
    """The 2-norm of a difference over that of the second, over what are ordinary numbers in both."""
    ok = fingerprint.ordinary_of(a) & fingerprint.ordinary_of(b)
    size = float(np.linalg.norm(b[ok]))
    return float(np.linalg.norm(a[ok] - b[ok])) / size if size else float(np.linalg.norm(a[ok]))


def _lines(places: Iterable[Place]) -> tuple[Line, ...]:
    return tuple(dict.fromkeys(place.line for place in places if place.line is not None))[:4]


def _buffers(parted: Parted, setting: Setting, module: Any) -> str | None:
    """What is wrong with the buffers that the module changed in its call; None where nothing is."""
    changed = {
        n: b
        for n, b in setting.torch.buffers.items()
        if n in setting.tensors and not np.array_equal(b, setting.tensors[n])
    }
    outputs = [parted.own.trace.values[n].array for n in parted.own.outputs]
    missing = [
        name
        for name, buffer in changed.items()
        if not any(
            x.size == buffer.size and fingerprint.close(x.ravel(), buffer.ravel(), parted.tolerance) for x in outputs
        )
    ]
    if not missing:
        return None
    name = missing[0]
    alike = [x for x in outputs if x.size == changed[name].size]
    told = min((relative(x.ravel(), changed[name].ravel()) for x in alike), default=None)
    how = "no output of the function has its size" if told is None else f"the nearest output is {told:.1e} off"
    return (
        f"the call in training mode updates the buffer {', '.join(missing)}, and no output of the function is the"
        f" updated value ({how}): the momentum's convention, the biased variance, or an update that is not returned"
    )


# Backward.


def jax_cotangents(
    recorded: jax_values.Recorded,
    outputs: Sequence[int],
    dys: Sequence[np.ndarray],
    only: frozenset[int] | None = None,
) -> dict[int, np.ndarray]:
    """The cotangents of all float values of a run, or `only` of some, for those of some outputs.

    Custom rules must not have been opened.
    """
    program, values = recorded.program, recorded.values
    trace = recorded.trace
    # What is made of constants alone, such as the numbers that weights are initialised with, has no derivative.
    made, inputs = set[int](), set(program.inputs)
    for op in program.ops:
        if not made.isdisjoint(op.operands) or not inputs.isdisjoint(op.operands):
            made.update(op.results)
    ops = [op for op in program.ops if made.intersection(op.results)]
    at = [n for n in (*program.inputs, *sorted(made)) if _is_float(values[n])]
    kept = {n: x for n, x in values.items() if n not in made}

    def run(added: dict[int, Any]) -> list[Any]:
        known = {n: x + added[n] if n in added else x for n, x in kept.items()}
        for op in ops:
            for n, x in zip(op.results, op.run([known[k] for k in op.operands]), strict=True):
                known[n] = x + added[n] if n in added else x
        return [known[n] for n in outputs]

    with jax_values.float64():
        zeros = {n: jnp.zeros(jnp.shape(values[n])) for n in at if only is None or n in only}
        given = [jnp.asarray(dy).reshape(jnp.shape(values[n])) for n, dy in zip(outputs, dys, strict=True)]

        def pull(at: Any, dys: Any) -> Any:
            return jax.vjp(run, at)[1](dys)[0]

        # A program of many operations has most of them many times, and is compiled faster one by one.
        pulled = (pull if len(ops) > _MOST_COMPILED else jax.jit(pull))(zeros, given)
    return {n: np.asarray(x) for n, x in pulled.items() if trace.values[n].array.size}


def _is_float(x: Any) -> bool:
    return hasattr(x, "dtype") and x.dtype == np.float64


def _dys(parted: Parted, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng((seed, 9))
    return [rng.standard_normal(parted.own.trace.values[n].array.shape) for n in parted.own.outputs]


def _backward(
    setting: Setting, arrays: Sequence[np.ndarray], found: WeightMapping, use: str, suggest: bool
) -> Verdict | None:
    """The verdict on cotangents, None where they agree."""
    recorded = jax_values.record(setting.fn, [*arrays, *setting.others], len(arrays), use, open_custom=False)
    parted = part(recorded.trace, setting.torch.trace)
    pairs = [(n, m) for n, m in aligned(parted) if _is_float(recorded.values[n])]
    floats = [y.dtype.is_floating_point for y in setting.torch.outputs]
    rng = np.random.default_rng(9)
    given = {m: rng.standard_normal(parted.other.trace.values[m].array.shape) for m in setting.torch.trace.outputs}
    dys = []
    for n, m in pairs:
        how = fingerprint.layout(parted.own.trace.values[n].array, parted.other.trace.values[m].array, parted.tolerance)
        shape = parted.own.trace.values[n].array.shape
        dys.append(fingerprint.moved(given[m], how or Layout(EXACT, (), True), shape, back=True))
    wanted = {m for _, m in pairs}
    theirs_dys = [
        given[m] if m in wanted and is_float else np.zeros_like(given[m])
        for m, is_float in zip(setting.torch.trace.outputs, floats, strict=True)
    ]
    try:
        of_other = torch_values.cotangents(setting.torch, theirs_dys)
    except RuntimeError as error:
        raise JaxgradError(f"the torch module raised in its backward pass: {error}") from error
    if not of_other:
        return None
    outputs = [n for n, _ in pairs]
    of_own = jax_cotangents(recorded, outputs, dys)
    by_name = {v.place.module: k for k, v in enumerate(setting.torch.trace.values) if v.place.op == "parameter"}
    most = largest(of_other)
    wrong = _wrong(_weight_gradients(setting, found, recorded, of_own, of_other, by_name), most)
    inputs = {n: parted.pairs[n] for n in recorded.program.inputs[len(arrays) :] if n in parted.pairs}
    verdict = _first_backward(parted, of_own, of_other, inputs, "torch", bool(wrong))
    if verdict is None and not wrong:
        return None
    if verdict is None:
        leaf = wrong[0].leaf
        consumers = [v.place for v in recorded.trace.values if recorded.program.inputs[leaf] in v.operands]
        after = _suspect(recorded.trace, recorded.program.inputs[leaf])
        place = after or next(iter(consumers), None)
        said = f"outputs agree, and the gradient of {setting.leaves[leaf][0]} does not{_padding(setting, wrong[0])}"
        region = _lines([place] if place else [])
        base = judged(parted, "torch")
        verdict = base._replace(agrees=False, kind=BACKWARD, sentence=said, jax=place, region=region)
    if not suggest:
        return verdict

    def off(changed: jax_values.Recorded) -> float | None:
        """How far the gradients of a changed program are off, None where they do not agree."""
        own = jax_cotangents(changed, outputs, dys, frozenset(recorded.program.inputs))
        differs = functools.partial(_differs, parted, own, of_other, most)
        gradients = _weight_gradients(setting, found, changed, own, of_other, by_name)
        if _wrong(gradients, most) or any(map(differs, inputs.values())):
            return None
        return max((relative(each.own, each.theirs) for each in gradients), default=0.0)

    from jaxgrad.port import mend_backward

    return mend_backward.mended(verdict, parted, recorded, _unlike_detached(parted, of_own, of_other), off)


def _unlike_detached(parted: Parted, of_own: Mapping[int, np.ndarray], of_other: Mapping[int, np.ndarray]) -> list[int]:
    """The values whose gradient the other program stops, for some use at least, and that have another here."""
    values, most = parted.other.trace.values, largest(of_other)
    stopped = {n for v in values if v.place.op == "detach" for n in v.operands}
    found = []
    for n, pair in parted.pairs.items():
        if pair.other not in stopped or parted.own.trace.values[n].moved or n not in of_own:
            continue
        theirs = of_other.get(pair.other, np.zeros(values[pair.other].array.shape))
        shape = parted.own.trace.values[n].array.shape
        if not near(of_own[n], fingerprint.moved(theirs, pair.layout, shape, back=True), most):
            found.append(n)
    return found


class _Gradients(NamedTuple):
    """A leaf, a tensor that it is made from, and the gradients of that in the two programs."""

    leaf: int
    tensor: str
    own: np.ndarray
    theirs: np.ndarray


def _padding(setting: Setting, wrong: _Gradients) -> str:
    """That the row of an embedding's padding has no gradient in torch, where that is all that differs."""
    module = dict(setting.torch.module.named_modules()).get(wrong.tensor.rpartition(".")[0])
    row = getattr(module, "padding_idx", None)
    if row is None:
        return ""
    without = wrong.own.copy()
    without[row] = 0.0
    if not near(without, wrong.theirs, float(np.abs(wrong.own).max(initial=0.0))):
        return ""
    return f": row {row} has none in torch, whose embedding has padding_idx={row}"


def _weight_gradients(
    setting: Setting,
    found: WeightMapping,
    recorded: jax_values.Recorded,
    of_own: Mapping[int, np.ndarray],
    of_other: Mapping[int, np.ndarray],
    by_name: Mapping[str, int],
) -> list[_Gradients]:
    """The gradients of all tensors that leaves are made from, for every such leaf."""
    paths = {path: k for k, (path, _) in enumerate(setting.leaves)}
    total: dict[str, np.ndarray] = {}
    users: dict[str, list[int]] = {}
    same = {n: first for first, names in _tied_names(setting).items() for n in names}
    for entry in found.entries:
        leaf = paths.get(entry.path)
        if leaf is None or not entry.rule.sources:
            continue
        for name, dx in rules.transposed(entry.rule, of_own[recorded.program.inputs[leaf]], found.tensors).items():
            first = same.get(name, name)
            total[first] = total.get(first, 0.0) + dx
            users.setdefault(first, []).append(leaf)
    gradients = []
    for name, dx in total.items():
        if name in by_name and _wants_gradient(setting, by_name[name]):
            theirs = of_other.get(by_name[name], np.zeros_like(dx))
            gradients += [_Gradients(leaf, name, dx, theirs) for leaf in users[name]]
    return gradients


def _wrong(gradients: Iterable[_Gradients], most: float) -> list[_Gradients]:
    """Those that differ; `most` is the size of the largest cotangent of all."""
    return [each for each in gradients if not near(each.own, each.theirs, most)]


def _wants_gradient(setting: Setting, number: int) -> bool:
    x = setting.torch.tensors.get(number)
    return x is not None and bool(x.requires_grad)


def _tied_names(setting: Setting) -> dict[str, list[str]]:
    if not hasattr(setting.torch.module, "named_parameters"):
        return {}
    found: dict[str, list[str]] = {}
    for name, first in torch_values.tied(setting.torch.module).items():
        found.setdefault(first, []).append(name)
    return found


def near(a: np.ndarray, b: np.ndarray, largest: float) -> bool:
    """Whether two cotangents agree, within what a backward pass of float64 makes of rounding.

    `largest` is the size of the largest cotangent of all: what cancels to 0 is noise of that size.
    """
    scale = max(float(np.abs(a).max(initial=0.0)), float(np.abs(b).max(initial=0.0)))
    return a.shape == b.shape and bool((np.abs(a - b) <= BACKWARD_TOLERANCE * scale + 1e-13 * largest).all())


def largest(cotangents: Mapping[int, np.ndarray]) -> float:
    """The size of the largest number of all cotangents."""
    return max((float(np.abs(x).max(initial=0.0)) for x in cotangents.values()), default=0.0)


def _first_backward(
    parted: Parted,
    of_own: Mapping[int, np.ndarray],
    of_other: Mapping[int, np.ndarray],
    ends: Mapping[int, Pair],
    other_name: str,
    known: bool = False,
) -> Verdict | None:
    """The first pair in backward order whose cotangents differ, if any input's does, or one is `known` to."""
    differs = functools.partial(_differs, parted, of_own, of_other, largest(of_other))
    if not known and not any(differs(pair) for pair in ends.values()):
        return None
    roots = {p.other: p for p in reversed(list(parted.pairs.values())) if _comparable(parted, p, of_other)}
    ordered = [roots[m] for m in sorted(roots, reverse=True)]
    first = next((p for p in ordered if differs(p)), None)
    if first is None:
        first = next((p for p in ends.values() if differs(p)), None)
    if first is None:
        return None
    trace = parted.own.trace
    suspect = _suspect(trace, first.own)
    place = suspect or next(
        (v.place for v in trace.values if first.own in v.operands and not v.moved), trace.values[first.own].place
    )
    here = Agreement(trace.values[first.own].place, parted.other.trace.values[first.other].place)
    detached = (v.place for v in parted.other.trace.values if first.other in v.operands and v.place.op == "detach")
    after = next(detached, None) if suspect is None else None
    theirs = of_other[first.other]
    own = of_own.get(first.own, np.zeros(trace.values[first.own].array.shape))
    back = fingerprint.moved(theirs, first.layout, own.shape, back=True)
    counts = sum(not differs(p) for p in ordered), len(ordered)
    return Verdict(
        False, BACKWARD, f"outputs agree, and cotangents part behind {place.op}", (here,), place, after,
        _lines([place]), _lines([after] if after else []), relative(own.ravel(), back.ravel()), (), (), counts, None,
        (), other_name, *_told(parted, _counterparts(parted)), off=mapped(own, np.asarray(back).reshape(own.shape)),
    )  # fmt: skip


def _differs(
    parted: Parted, of_own: Mapping[int, np.ndarray], of_other: Mapping[int, np.ndarray], most: float, pair: Pair
) -> bool:
    """Whether the cotangents of a pair differ; `most` is the size of the largest of all."""
    theirs = of_other.get(pair.other)
    if theirs is None:
        # Integers and values that torch keeps without a gradient have none to compare.
        return False
    shape = parted.own.trace.values[pair.own].array.shape
    own = of_own.get(pair.own, np.zeros(shape))
    return not near(own, fingerprint.moved(theirs, pair.layout, shape, back=True), most)


def _comparable(parted: Parted, pair: Pair, of_other: Mapping[int, np.ndarray]) -> bool:
    value = parted.own.trace.values[pair.own]
    return value.varies and not value.moved and pair.other in of_other and pair.layout.kind != SCATTERED


def _suspect(trace: Trace, number: int) -> Place | None:
    """The operation with a derivative of its own that a value goes into: a custom rule, stop_gradient."""
    todo, seen = [number], set()
    while todo:
        n = todo.pop()
        for m, v in enumerate(trace.values):
            if n in v.operands and m not in seen:
                seen.add(m)
                if v.place.op.startswith("custom_") or v.place.op == "stop_gradient":
                    return v.place
                if v.moved:
                    todo.append(m)
    return None
