"""The first place where two backward passes part, of programs whose outputs agree.

The cotangents of every matched pair of values are compared in backward order, under the layout in which the values
agree, and those of the weights through the mapping.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.checking.oracles import rules
from jaxgrad.errors import JaxgradError
from jaxgrad.port import fingerprint, jax_values, locate, mend_backward, torch_values
from jaxgrad.port.fingerprint import EXACT, SCATTERED, Held, Layout, Sketch
from jaxgrad.port.jax_values import Op
from jaxgrad.port.locate import BACKWARD, Agreement, Pair, Parted, Verdict, lines_of, relative
from jaxgrad.port.mapping import Mapping as WeightMapping
from jaxgrad.port.match import Setting
from jaxgrad.port.rounding import COARSEST, Noise, noise_of
from jaxgrad.port.values import Place, Trace, Value

# A backward pass has twice the operations of a forward pass and more cancellation.
BACKWARD_TOLERANCE = 1e-8
# Where values need a tolerance of their own, cotangents need so many times that: slopes multiply on the way back.
_BACKWARD = 100.0


class Allowance(NamedTuple):
    """By how much cotangents may differ: relative to the largest number of the two, and in any case."""

    relative: float
    least: float


def jax_cotangents(
    recorded: jax_values.Recorded,
    outputs: Sequence[int],
    dys: Sequence[np.ndarray],
    pairs: Mapping[int, Pair],
    only: frozenset[int] | None = None,
) -> dict[int, Held]:
    """The cotangents of the float values of a run, or `only` of some, for those of some outputs.

    A run that was let go is pulled back piece by piece, from the last of its cuts: of what is no input there are
    sketches, in the layout of the other program's value if there is one among the `pairs`. Custom rules must not have
    been opened.
    """
    program, values = recorded.program, recorded.values
    # What is made of constants alone, such as the numbers that weights are initialised with, has no derivative.
    made, inputs = set[int](), set(program.inputs)
    for op in program.ops:
        if not made.isdisjoint(op.operands) or not inputs.isdisjoint(op.operands):
            made.update(op.results)
    found: dict[int, Held] = {}
    pending: dict[int, Any] = {}
    with jax_values.float64():
        for n, dy in zip(outputs, dys, strict=True):
            _add(pending, n, jnp.asarray(dy).reshape(np.shape(values[n])))
        ends = [0, *recorded.cuts, len(program.ops)]
        for start, stop in reversed(list(itertools.pairwise(ends))):
            ops = [op for op in program.ops[start:stop] if made.intersection(op.results)]
            inside = {n for op in ops for n in op.results}
            dys_inside = {n: pending.pop(n) for n in list(pending) if n in inside}
            if not dys_inside:
                continue
            wanted = inside & recorded.floats if only is None else inside & recorded.floats & only
            derived = recorded.floats & (made | inputs)
            shapes = {n: recorded.trace.values[n].shape for n in sorted(wanted)}
            of_inside, of_before = _pulled(ops, values, shapes, derived, dys_inside)
            for n, dx in of_before.items():
                _add(pending, n, dx)
            found.update((n, _kept(recorded, n, dx, pairs.get(n))) for n, dx in of_inside.items())
    for n in inputs & recorded.floats:
        found[n] = np.asarray(pending.get(n, np.zeros(recorded.trace.values[n].shape)))
    return found


def _pulled(
    ops: Sequence[Op],
    values: Mapping[int, Any],
    wanted: Mapping[int, tuple[int, ...]],
    derived: frozenset[int],
    dys: Mapping[int, Any],
) -> tuple[dict[int, Any], dict[int, Any]]:
    """The cotangents of the `wanted` results, by number with their shapes, and of what is `derived` and goes in.

    JAX derives the backward pass, which is then run in NumPy: to compile it would take longer than all else.
    """
    inside = {n for op in ops for n in op.results}
    before = {n: values[n] for op in ops for n in op.operands if n not in inside}
    floats = {n: x for n, x in before.items() if n in derived}
    zeros = {n: np.broadcast_to(0.0, shape) for n, shape in wanted.items()}

    def run(added: dict[int, Any], given: dict[int, Any]) -> dict[int, Any]:
        known = {**before, **given}
        for op in ops:
            for n, x in zip(op.results, op.run([known[k] for k in op.operands]), strict=True):
                known[n] = x + added[n] if n in added else x
        return {n: known[n] for n in dys}

    def pull(added: Any, given: Any, dys: Any) -> Any:
        return jax.vjp(run, added, given)[1](dys)

    given, _ = jax.tree.flatten((zeros, floats, dict(dys)))
    closed, results = jax.make_jaxpr(pull, return_shape=True)(zeros, floats, dict(dys))
    of_inside, of_before = jax.tree.unflatten(jax.tree.structure(results), jax_values.evaluate(closed, given))
    return of_inside, of_before


def _wanted(recorded: jax_values.Recorded, parted: Parted, side: int) -> frozenset[int] | None:
    """The values on one side of the pairs whose cotangents are compared, for a run that was let go; else None, all."""
    if not recorded.cuts:
        return None
    values = parted.own.trace.values
    return frozenset((p.own, p.other)[side] for p in parted.pairs.values() if _is_told(values[p.own], p))


def _add(to: dict[int, Any], number: int, x: Any) -> None:
    to[number] = to[number] + x if number in to else x


def _kept(recorded: jax_values.Recorded, number: int, dx: Any, pair: Pair | None) -> Held:
    """A cotangent, or a sketch of it where the value itself was let go."""
    array = np.asarray(dx)
    if isinstance(recorded.trace.values[number].held, np.ndarray):
        return array
    if pair is None or pair.layout.kind == SCATTERED:
        return fingerprint.in_place(array)
    return fingerprint.in_place(fingerprint.moved(array, pair.layout, pair.shape))


def _dys(parted: Parted, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng((seed, 9))
    return [rng.standard_normal(parted.own.trace.values[n].shape) for n in parted.own.outputs]


def beside_torch(
    setting: Setting,
    arrays: Sequence[np.ndarray],
    found: WeightMapping,
    recorded: jax_values.Recorded,
    parted: Parted,
    use: str,
    suggest: bool,
) -> Verdict | None:
    """The verdict on cotangents of two runs that agree, None where they do, too."""
    if recorded.opened:
        # Derivatives are to be those of its rules.
        recorded = jax_values.record(setting.fn, [*arrays, *setting.others], len(arrays), use, open_custom=False)
        parted = locate.part(recorded.trace, setting.torch.trace, Noise(lambda: noise_of(recorded), parted.noise.other))
    pairs = [(n, m) for n, m in locate.aligned(parted) if n in recorded.floats]
    floats = [y.dtype.is_floating_point for y in setting.torch.outputs]
    rng = np.random.default_rng(9)
    given = {m: rng.standard_normal(parted.other.trace.values[m].shape) for m in setting.torch.trace.outputs}
    dys = []
    for n, m in pairs:
        own, other = parted.own.trace.values[n].array, parted.other.trace.values[m].array
        # They agree within their own tolerance.
        how = fingerprint.layout(own, other, COARSEST)
        shape = parted.own.trace.values[n].shape
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
    inputs = _inputs(parted, recorded.program.inputs[len(arrays) :])
    some = _wanted(recorded, parted, 0)
    of_own = jax_cotangents(recorded, outputs, dys, parted.pairs, None if some is None else some | inputs.keys())
    by_name = {v.place.module: k for k, v in enumerate(setting.torch.trace.values) if v.place.op == "parameter"}
    allowed = allowance(parted, of_other)
    wrong = _wrong(_weight_gradients(setting, found, recorded, of_own, of_other, by_name), allowed)
    verdict = _first_backward(recorded, parted, of_own, of_other, inputs, "torch", bool(wrong))
    if verdict is None and not wrong:
        return None
    if verdict is None:
        leaf = wrong[0].leaf
        consumers = [v.place for v in recorded.trace.values if recorded.program.inputs[leaf] in v.operands]
        after = _suspect(recorded.trace, recorded.program.inputs[leaf])
        place = after or next(iter(consumers), None)
        said = f"outputs agree, and the gradient of {setting.leaves[leaf][0]} does not{_padding(setting, wrong[0])}"
        region = lines_of([place] if place else [])
        base = locate.judged(parted, "torch")
        verdict = base._replace(agrees=False, kind=BACKWARD, sentence=said, jax=place, region=region)
    if not suggest:
        return verdict

    def off(changed: jax_values.Recorded) -> float | None:
        """How far the gradients of a changed program are off, None where they do not agree."""
        own = jax_cotangents(changed, outputs, dys, {}, frozenset(recorded.program.inputs))
        differs = functools.partial(_differs, parted, own, of_other, allowed)
        gradients = _weight_gradients(setting, found, changed, own, of_other, by_name)
        if _wrong(gradients, allowed) or any(map(differs, inputs.values())):
            return None
        return max((relative(each.own, each.theirs) for each in gradients), default=0.0)

    return mend_backward.mended(verdict, parted, recorded, _unlike_detached(parted, of_own, of_other), off)


def _inputs(parted: Parted, own: Sequence[int]) -> dict[int, Pair]:
    """Which input is which: as their numbers say, and in their order where all numbers of one are the same."""
    values, others = parted.own.trace.values, parted.other.trace.values
    theirs = [m for m, v in enumerate(others) if v.place.op == "input"]
    found = {n: parted.pairs[n] for n in own if n in parted.pairs}
    for n, m in zip(own, theirs, strict=False) if len(own) == len(theirs) else ():
        a, b = values[n], others[m]
        if n not in found and a.size and a.shape == b.shape and np.array_equal(a.array, b.array):
            found[n] = Pair(n, m, Layout(EXACT, (), True), b.shape)
    return found


def beside_jax(
    fn: Callable[..., Any], other: Callable[..., Any], args: Sequence[Any], count: int, seed: int, use: str, name: str
) -> Verdict | None:
    """The verdict on the cotangents of two JAX functions of arrays, the first `count` parameters; None where equal."""
    a = jax_values.record(fn, args, count, use, open_custom=False)
    b = jax_values.record(other, args, count, use, open_custom=False)
    parted = locate.part(a.trace, b.trace, Noise(lambda: noise_of(a), lambda: noise_of(b)))
    dys = _dys(parted, seed)
    of_own = jax_cotangents(a, parted.own.outputs, dys, parted.pairs, _wanted(a, parted, 0))
    of_other = jax_cotangents(b, parted.other.outputs, dys, {}, _wanted(b, parted, 1))
    ends = {
        n: Pair(n, m, Layout(EXACT, (), True), a.trace.values[n].shape)
        for n, m in zip(a.program.inputs, b.program.inputs, strict=True)
    }
    return _first_backward(a, parted, of_own, of_other, ends, name)


def _unlike_detached(parted: Parted, of_own: Mapping[int, Held], of_other: Mapping[int, Held]) -> list[int]:
    """The values whose gradient the other program stops, for some use at least, and that have another here."""
    values, allowed = parted.other.trace.values, allowance(parted, of_other)
    stopped = {n for v in values if v.place.op == "detach" for n in v.operands}
    found = []
    for n, pair in parted.pairs.items():
        if (
            pair.layout.kind == SCATTERED
            or pair.other not in stopped
            or parted.own.trace.values[n].moved
            or n not in of_own
        ):
            continue
        theirs = of_other.get(pair.other, np.zeros(values[pair.other].shape))
        if not near(_laid(of_own[n], pair), theirs, allowed):
            found.append(n)
    return found


def _laid(dx: Held, pair: Pair) -> Held:
    """A cotangent in the layout of the other program's value; a sketch is so already."""
    return dx if isinstance(dx, Sketch) else fingerprint.moved(dx, pair.layout, pair.shape)


class _Gradients(NamedTuple):
    """A leaf, a tensor that it is made from, and the gradients of that in the two programs."""

    leaf: int
    tensor: str
    own: np.ndarray
    theirs: Held


def _padding(setting: Setting, wrong: _Gradients) -> str:
    """That the row of an embedding's padding has no gradient in torch, where that is all that differs."""
    module = dict(setting.torch.module.named_modules()).get(wrong.tensor.rpartition(".")[0])
    row = getattr(module, "padding_idx", None)
    if row is None:
        return ""
    without = wrong.own.copy()
    without[row] = 0.0
    if not near(without, wrong.theirs, Allowance(BACKWARD_TOLERANCE, 1e-13 * _size(wrong.own))):
        return ""
    return f": row {row} has none in torch, whose embedding has padding_idx={row}"


def _weight_gradients(
    setting: Setting,
    found: WeightMapping,
    recorded: jax_values.Recorded,
    of_own: Mapping[int, Held],
    of_other: Mapping[int, Held],
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
        of_leaf = of_own[recorded.program.inputs[leaf]]
        assert isinstance(of_leaf, np.ndarray), "the cotangents of inputs are kept"
        for name, dx in rules.transposed(entry.rule, of_leaf, found.tensors).items():
            first = same.get(name, name)
            total[first] = total[first] + dx if first in total else dx
            users.setdefault(first, []).append(leaf)
    gradients = []
    for name, dx in total.items():
        if name in by_name and _wants_gradient(setting, by_name[name]):
            theirs = of_other.get(by_name[name], np.zeros_like(dx))
            gradients += [_Gradients(leaf, name, dx, theirs) for leaf in users[name]]
    return gradients


def _wrong(gradients: Iterable[_Gradients], allowed: Allowance) -> list[_Gradients]:
    """Those that differ."""
    return [each for each in gradients if not near(each.own, each.theirs, allowed)]


def _wants_gradient(setting: Setting, number: int) -> bool:
    return number in setting.torch.edges


def _tied_names(setting: Setting) -> dict[str, list[str]]:
    if not hasattr(setting.torch.module, "named_parameters"):
        return {}
    found: dict[str, list[str]] = {}
    for name, first in torch_values.tied(setting.torch.module).items():
        found.setdefault(first, []).append(name)
    return found


def allowance(parted: Parted, of_other: Mapping[int, Held]) -> Allowance:
    """By how much the cotangents of two runs may differ, within what a backward pass makes of rounding.

    Where the values of the runs needed more than the finest tolerance, cotangents do, too. What cancels to 0 is noise
    of the size of the largest cotangent of all.
    """
    largest = max((_size(x) for x in of_other.values()), default=0.0)
    return Allowance(max(BACKWARD_TOLERANCE, _BACKWARD * parted.noise.used), 1e-13 * largest)


def near(a: Held, b: Held, allowed: Allowance) -> bool:
    """Whether two cotangents agree."""
    if isinstance(a, Sketch) or isinstance(b, Sketch):
        return a.size == b.size and fingerprint.same(a, b, *allowed)
    scale = max(float(np.abs(a).max(initial=0.0)), float(np.abs(b).max(initial=0.0)))
    return a.shape == b.shape and bool((np.abs(a - b) <= allowed.relative * scale + allowed.least).all())


def _size(x: Held) -> float:
    return x.known.scale if isinstance(x, Sketch) else float(np.abs(x).max(initial=0.0))


def _first_backward(
    recorded: jax_values.Recorded,
    parted: Parted,
    of_own: Mapping[int, Held],
    of_other: Mapping[int, Held],
    ends: Mapping[int, Pair],
    other_name: str,
    known: bool = False,
) -> Verdict | None:
    """The first pair in backward order whose cotangents differ, if any input's does, or one is `known` to."""
    differs = functools.partial(_differs, parted, of_own, of_other, allowance(parted, of_other))
    if not known and not any(differs(pair) for pair in ends.values()):
        return None
    roots = {p.other: p for p in reversed(list(parted.pairs.values())) if _comparable(parted, p, of_other)}
    ordered = [roots[m] for m in sorted(roots, reverse=True)]
    first = next((p for p in ordered if differs(p)), None)
    if first is None:
        first = next((p for p in ends.values() if differs(p)), None)
    if first is None:
        return None
    trace, theirs = parted.own.trace, of_other[first.other]
    others = parted.other.trace.values
    detached = [v.place for v in others if first.other in v.operands and v.place.op == "detach"]
    used = _superfluous(recorded, of_own, first, theirs, allowance(parted, of_other))
    suspect = None if used else _suspect(trace, first.own, len(detached))
    place = (
        used
        or suspect
        or next(
            (v.place for v in trace.values if first.own in v.operands and not v.moved), trace.values[first.own].place
        )
    )
    here = Agreement(trace.values[first.own].place, others[first.other].place)
    after = next(iter(detached), None) if suspect is None else None
    own = of_own.get(first.own, np.zeros(trace.values[first.own].shape))
    off = None
    if isinstance(own, np.ndarray) and isinstance(theirs, np.ndarray):
        off = locate.mapped(own, fingerprint.moved(theirs, first.layout, own.shape, back=True).reshape(own.shape))
    counts = sum(not differs(p) for p in ordered), len(ordered)
    return Verdict(
        False, BACKWARD, f"outputs agree, and cotangents part behind {place.op}", (here,), place, after,
        lines_of([place]), lines_of([after] if after else []), _apart(_laid(own, first), theirs), (), (), counts,
        None, (), other_name, *locate.steps(parted, locate.counterparts(parted)), off=off,
    )  # fmt: skip


def _apart(a: Held, b: Held) -> float:
    if isinstance(a, Sketch) or isinstance(b, Sketch):
        return relative(a, b)
    return relative(a.ravel(), b.ravel())


def _differs(
    parted: Parted, of_own: Mapping[int, Held], of_other: Mapping[int, Held], allowed: Allowance, pair: Pair
) -> bool:
    """Whether the cotangents of a pair differ."""
    theirs = of_other.get(pair.other)
    if theirs is None:
        # Integers and values that torch keeps without a gradient have none to compare.
        return False
    own = of_own.get(pair.own, np.zeros(parted.own.trace.values[pair.own].shape))
    return not near(_laid(own, pair), theirs, allowed)


def _comparable(parted: Parted, pair: Pair, of_other: Mapping[int, Held]) -> bool:
    return _is_told(parted.own.trace.values[pair.own], pair) and pair.other in of_other


def _is_told(value: Value, pair: Pair) -> bool:
    """Whether a value's cotangent is compared: of what is only moved that is the cotangent of what it is moved from."""
    return value.varies and not value.moved and pair.layout.kind != SCATTERED


def _superfluous(
    recorded: jax_values.Recorded, of_own: Mapping[int, Held], pair: Pair, theirs: Held, allowed: Allowance
) -> Place | None:
    """The use of a value through which it has all of the cotangent that the other program's has not."""
    own = of_own.get(pair.own)
    if not (isinstance(own, np.ndarray) and isinstance(theirs, np.ndarray)):
        return None
    extra = own - fingerprint.moved(theirs, pair.layout, own.shape, back=True)
    values, number = recorded.values, pair.own
    for op in recorded.program.ops:
        dys = [of_own.get(n) for n in op.results]
        if number not in op.operands or not all(isinstance(dy, np.ndarray) for dy in dys):
            continue

        def use(x: Any, op: Op = op) -> list[Any]:
            return op.run([x if n == number else values[n] for n in op.operands])

        with jax_values.float64():
            (dx,) = jax.vjp(use, jnp.asarray(values[number]))[1](list(map(jnp.asarray, dys)))
        if near(np.asarray(dx), extra, allowed):
            trace = recorded.trace
            uses = (v.place for v in trace.values if op.results[0] in v.operands and not v.moved)
            return next(uses, op.place) if trace.values[op.results[0]].moved else op.place
    return None


def _suspect(trace: Trace, number: int, stopped: int = 0) -> Place | None:
    """The operation with a derivative of its own that a value goes into: a custom rule, stop_gradient.

    Where the gradient is stopped in as many uses as in the other program, `stopped`, these are right.
    """
    stops = sum(number in v.operands and v.place.op == "stop_gradient" for v in trace.values)
    todo, seen = [number], set()
    while todo:
        n = todo.pop()
        for m, v in enumerate(trace.values):
            if n in v.operands and m not in seen:
                seen.add(m)
                if v.place.op.startswith("custom_") or (v.place.op == "stop_gradient" and stops != stopped):
                    return v.place
                if v.moved and v.place.op != "stop_gradient":
                    todo.append(m)
    return None
