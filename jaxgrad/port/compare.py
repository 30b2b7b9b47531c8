"""Two programs compared: weights placed, values matched, cotangents matched, and what would mend a difference."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.checking.oracles import rules
from jaxgrad.errors import JaxgradError
from jaxgrad.port import cotangents, fingerprint, jax_values, locate, mend, torch_values
from jaxgrad.port.locate import BUFFER, FORWARD, LAYOUT, Parted, Verdict
from jaxgrad.port.mapping import Mapping as WeightMapping
from jaxgrad.port.match import Setting, as_arrays, crossings, filled, flat_call, odd_ones, prepare, redrawn, search
from jaxgrad.port.rounding import Noise, noise_of
from jaxgrad.port.values import Trace
from jaxgrad.progress import Progress, kept, silent

_STEPS = ("the other program", "which weight goes where", "all values", "all cotangents", "what would mend it")


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
    params, inputs = as_arrays((params, inputs))
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
    found, run = (given, None) if given is not None else search(setting, module, names, strict=False, use=use)
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
        if run is None or odd:
            run = jax_values.record(setting.fn, [*arrays, *setting.others], len(arrays), use)
        recorded = run
        noise = Noise(lambda: noise_of(recorded), lambda: torch_values.noise_of(setting.torch))
        parted = locate.part(recorded.trace, setting.torch.trace, noise)
        verdict = locate.judged(parted, "torch")
        buffers = _buffers(parted, setting, module) if is_module else None
        if verdict.agrees and buffers is not None:
            verdict = verdict._replace(agrees=False, kind=BUFFER, sentence=buffers)
        if verdict.agrees:
            progress(3, len(_STEPS), _STEPS[3])
            verdict = cotangents.beside_torch(setting, arrays, found, recorded, parted, use, suggest) or verdict
    if verdict.agrees and given is None and not names:
        notes += [
            f"{c.path} agrees only as {c.tensor}, although torch has {c.namesake}, and JAX {c.other}; weights that are"
            " loaded by their names make another model"
            for c in crossings(found)
        ]
    notes += _hiding(inputs) if verdict.agrees else []
    verdict = verdict._replace(mapping=found, notes=tuple(notes))
    leaves = [path for path, _ in setting.leaves]
    return _mended(verdict, suggest, progress, parted, recorded, leaves, {n: setting.tensors[n] for n in found.unused})


def _mended(verdict: Verdict, suggest: bool, progress: Progress, *region: Any) -> Verdict:
    """The verdict with what would mend a difference, where that is wanted and can be known."""
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
    parted = locate.part(recorded.trace, theirs.trace, Noise(lambda: noise_of(recorded), lambda: noise_of(theirs)))
    verdict = locate.judged(parted, "the other function")
    if verdict.agrees:
        progress(3, len(_STEPS), _STEPS[3])
        args = [*arrays, *others]
        verdict = cotangents.beside_jax(call, second, args, len(arrays), seed, use, "the other function") or verdict
    if verdict.agrees:
        verdict = verdict._replace(notes=tuple(_hiding(inputs)))
    return _mended(verdict, suggest, progress, parted, recorded, [path for path, _ in leaves], {})


def _hiding(inputs: Sequence[Any]) -> list[str]:
    """A note on each input of which all numbers are the same, as those that modules are initialised with are."""
    found = []
    for path, x in jax.tree_util.tree_leaves_with_path(tuple(inputs)):
        if hasattr(x, "dtype") and not isinstance(x, jax.ShapeDtypeStruct) and jnp.issubdtype(x.dtype, jnp.inexact):
            array = np.asarray(x)
            if array.size > 1 and (array == array.flat[0]).all():
                found.append(
                    f"input{jax.tree_util.keystr(path)} is {array.flat[0]:g} everywhere, which hides much, as in"
                    " which order its numbers are; give its shape, or numbers that differ"
                )
    return found


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
        if not any(x.size == buffer.size and fingerprint.close_as_they_lie(x, buffer) for x in outputs)
    ]
    if not missing:
        return None
    name = missing[0]
    alike = [x for x in outputs if x.size == changed[name].size]
    told = min((locate.relative(x.ravel(), changed[name].ravel()) for x in alike), default=None)
    how = "no output of the function has its size" if told is None else f"the nearest output is {told:.1e} off"
    return (
        f"the call in training mode updates the buffer {', '.join(missing)}, and no output of the function is the"
        f" updated value ({how}): the momentum's convention, the biased variance, or an update that is not returned"
    )
