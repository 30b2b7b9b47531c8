"""Every engine's arrays of one setting beside what is expected of them, each with its noise."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxgrad.checking.compare import Difference, Noise, compare, exact, floored, is_number, scaled, sizes_of
from jaxgrad.checking.domains import EDGES
from jaxgrad.checking.expected import stacked
from jaxgrad.checking.findings import (
    HAND,
    TRUTH,
    Setting,
    Tensor,
)
from jaxgrad.checking.pullback import Pulled
from jaxgrad.checking.question import widened
from jaxgrad.checking.sources import Source, calibration, drawn_in_type, noise_of, source_of
from jaxgrad.checking.subject import Subject, draws_numbers, first_line, given_tolerance
from jaxgrad.checking.threads import of_each
from jaxgrad.checking.transforms import TRANSFORMS, Group, Transform
from jaxgrad.errors import JaxgradError
from jaxgrad.settings import compared_in

KINDS = {"outputs": "output", "nodes": "node", "inputs": "input"}


class Gathered(NamedTuple):
    """One group of a setting: what was run, what was expected of it and what other engines say.

    `called` are the function's outputs where it is called without a gradient, of a function with custom rules.
    """

    setting: Setting
    row: Transform
    group: Group
    hand: Pulled
    names: Pulled
    source: Source
    truth: Pulled
    noise: Pulled
    others: dict[str, tuple[Pulled, list[str]]]
    called: list[np.ndarray] | None = None


def gathered(
    subject: Subject,
    setting: Setting,
    group: Group,
    run: list[Pulled],
    names: Pulled,
    called: list[np.ndarray] | None = None,
    whole: bool = True,
) -> Gathered:
    """Everything known of a group, its noise `whole` or as a first look has it.

    Arrays of several examples are stacked along a new first axis.
    """
    row = TRANSFORMS[setting.transform]
    named = zip(group.questions, group.examples, strict=True)
    sources = [source_of(subject, q, setting.dtype, row.second, (setting.seed, name), whole) for q, name in named]
    if setting.dtype != "float64" and draws_numbers(subject):
        sources = [drawn_in_type(subject, q, setting, s) for q, s in zip(group.questions, sources, strict=True)]
    questions = [widened(q) for q in group.questions]
    truths = [row.expect(s.expected.answer, q) for s, q in zip(sources, questions, strict=True)]
    noises = [noise_of(row, s.expected, q, setting.dtype) for s, q in zip(sources, questions, strict=True)]
    noise = joined(noises, stacked_noise)
    if EDGES in group.examples:
        noise = Pulled(*([_underflowing(n, setting.dtype) for n in part] for part in noise))
    return Gathered(
        setting,
        row,
        group,
        joined(run, _stacked),
        names,
        sources[0],
        joined(truths, _stacked),
        noise,
        _natives(subject, setting, group, sources[0], len(names.outputs)),
        called,
    )


def _underflowing(noise: Noise, dtype: str) -> Noise:
    """Noise where inputs are a type's smallest numbers: what is made of them underflows in one formula and not another.

    The quotient of what did underflow and the square of an input is large again. What is said to be nothing is what
    could not be squared itself, in types that have many such numbers.
    """
    info = jnp.finfo(dtype)
    least = float(info.smallest_normal) ** 0.5 if info.smallest_normal < info.eps**4 else 0.0
    return noise._replace(deviation=np.maximum(noise.deviation, least))


def joined(each: Sequence[Pulled], join: Callable[[list[Any]], Any]) -> Pulled:
    return Pulled(*([join(list(leaves)) for leaves in zip(*parts, strict=True)] for parts in zip(*each, strict=True)))


def _stacked(leaves: list[Any]) -> np.ndarray:
    return np.stack(leaves) if len(leaves) > 1 else np.asarray(leaves[0])


def stacked_noise(noises: list[Noise]) -> Noise:
    return stacked(noises) if len(noises) > 1 else noises[0]


def _natives(
    subject: Subject, setting: Setting, group: Group, source: Source, outputs: int
) -> dict[str, tuple[Pulled, list[str]]]:
    """What the oracles answer in the setting's own type, which has so many outputs; those that refuse it are left out.

    Raises `JaxgradError` for an oracle with another number of outputs.
    """
    if setting.transform not in ("jit", "reach"):
        return {}
    found = {}
    for oracle in subject.oracles:
        if oracle.name == source.name and (known := _known_in(source, setting.dtype)):
            found[oracle.name] = known, source.nodes
            continue
        try:
            with compared_in(setting.dtype):
                found[oracle.name] = oracle.pull(group.questions[0], False)
        except Exception as error:
            # That there is no such operation in a 16-bit type is no fault of an oracle.
            if setting.dtype in ("float64", "float32"):
                subject.kept.refused.setdefault(oracle.name, first_line(error))
    for name, (pulled, _) in found.items():
        if len(pulled.outputs) != outputs:
            raise JaxgradError(f"{name} gives {len(pulled.outputs)} outputs, and the function {outputs}")
    subject.kept.answered.update({source.name, *found})
    return found


def _known_in(source: Source, dtype: str) -> Pulled | None:
    """What a source's oracle has answered in a type itself; None where it was not asked."""
    return {"float64": source.expected.answer, "float32": source.expected.narrow}.get(dtype)


def tensors_of(subject: Subject, asked: Gathered) -> list[Tensor]:
    """A tensor for each array of the answers."""
    dtype, seed = asked.setting.dtype, asked.setting.seed
    factors = {} if dtype == "float64" else calibration(subject, dtype, seed, asked.source.expected.whole)
    compared = []
    for part in KINDS:
        for number, name in enumerate(getattr(asked.names, part)):
            at: int | None = number
            if part == "nodes":
                at = asked.source.nodes.index(name) if name in asked.source.nodes else None
            compared.append((asked, part, name, number, at, factors.get((part, number), 1.0)))
    if asked.called is not None:
        alone = asked._replace(hand=asked.hand._replace(outputs=asked.called))
        for number in called_apart(asked.called, asked.hand):
            name, factor = of_a_call(asked.names.outputs[number]), factors.get(("outputs", number), 1.0)
            compared.append((alone, "outputs", name, number, number, factor))
    arrays = [getattr(of.hand, part)[number] for of, part, _, number, *_ in compared]
    return of_each(lambda array, each: _tensor(subject, array, *each), arrays, compared)


def called_apart(called: Sequence[np.ndarray], differentiated: Pulled) -> list[int]:
    """The numbers of the outputs that are not the same bits where the function is called without a gradient."""
    pairs = enumerate(zip(called, differentiated.outputs, strict=True))
    return [number for number, (a, b) in pairs if not np.array_equal(a, b, equal_nan=is_number(a))]


def of_a_call(name: str) -> str:
    """What an output is called where no gradient is taken."""
    return f"{name} of a call without a gradient"


def _tensor(
    subject: Subject,
    hand: np.ndarray,
    asked: Gathered,
    part: str,
    name: str,
    number: int,
    at: int | None,
    factor: float,
) -> Tensor:
    setting, source, kind = asked.setting, asked.source, KINDS[part]
    values = {HAND: hand}
    for engine, (pulled, nodes) in asked.others.items():
        if part != "nodes":
            values[engine] = np.asarray(getattr(pulled, part)[number])
        elif name in nodes:
            values[engine] = np.asarray(pulled.nodes[nodes.index(name)])
    shown = f"{name} ({asked.group.label})" if asked.group.label else name
    limit = given_tolerance(subject, setting.dtype)
    if at is None:
        # The oracle that says what to expect has no such tap; an engine that has it is compared all the same.
        noise = floored(exact(np.abs(hand)), np.abs(np.asarray(hand, np.float64)), setting.dtype)
        return Tensor(shown, kind, noise, limit is not None, values, {}, f"{source.name} does not tap {name}")
    truth, noise = getattr(asked.truth, part)[at], getattr(asked.noise, part)[at]
    for engine, value in values.items():
        if value.shape != truth.shape:
            raise JaxgradError(
                f"{engine} gives {name} the shape {value.shape}, and {source.name} {truth.shape}; make them equal"
            )
    if setting.transform == "reach":
        astray = _astray(subject, truth, values, noise, setting.dtype)
        noise = noise._replace(unsure=noise.unsure | astray, lost=noise.lost | astray)
        values = {HAND: hand}
    if part == "inputs" and asked.row.inputs is None and _left_out(subject, number, hand, truth):
        return Tensor(shown, kind, noise, False, {}, {}, f"{name} is a plain number without a gradient, on purpose")
    if setting.dtype == "float64":
        against = source.name
        truth = values.get(against, truth)
        values = {**values, against: truth}
        chosen = list(itertools.combinations(values, 2)) if len(values) > 2 else [(HAND, against)]
        apart = scaled(noise, 2**0.5)
    else:
        noise = apart = scaled(noise, factor)
        chosen = [(engine, TRUTH) for engine in values]
        values = {**values, TRUTH: truth}

    def compared(noise: Noise) -> dict[tuple[str, str], Difference]:
        return {(a, b): _compared(subject, values[b], values[a], noise, setting.dtype) for a, b in chosen}

    pairs = compared(apart)
    if part == "inputs" and asked.row.inputs is None and not all(d.agrees for d in pairs.values()):
        least = _least_that_counts(asked, number)
        if all(_largest(value) < least for value in values.values()):
            pairs = compared(apart._replace(deviation=np.maximum(apart.deviation, least)))
    return Tensor(shown, kind, noise, limit is not None, values, pairs)


def _compared(subject: Subject, expected: np.ndarray, actual: np.ndarray, noise: Noise, dtype: str) -> Difference:
    """A comparison by the caller's tolerance, if there is one; one for all types is no less than a type's own noise."""
    limit = given_tolerance(subject, dtype)
    if limit is not None and not isinstance(subject.tolerance, Mapping):
        by_noise = compare(expected, actual, noise, dtype)
        if by_noise.agrees and by_noise.judged:
            return by_noise
    return compare(expected, actual, noise, dtype, limit)


def _least_that_counts(asked: Gathered, number: int) -> float:
    """The size below which nobody could tell an input's cotangent, as a whole, from 0.

    An input that moves by its own size moves the outputs by its size times its cotangent's. What moves them by less
    than the square of float64's roundoff, as a part of what the input moves them by that counts most, is nothing: of a
    fixed point, the derivative in where the iteration began is what is left of it after all its steps, and 0 in a rule.
    """
    moved = [max(_largest(x) for x in alike) for alike in zip(*(q.inputs for q in asked.group.questions), strict=True)]
    most = max(x * _largest(dx) for x, dx in zip(moved, asked.truth.inputs, strict=True))
    return float(np.finfo(np.float64).eps) ** 2 * most / moved[number] if moved[number] else 0.0


def _largest(array: Any) -> float:
    return float(sizes_of(np.asarray(array)).max(initial=0.0))


def _left_out(subject: Subject, number: int, hand: np.ndarray, truth: np.ndarray) -> bool:
    """Whether an input is a plain number that the function's rule gives no gradient, as hyperparameters have none."""
    leaf = subject.call.of_kind("input")[number]
    return leaf.plain and not np.any(hand) and bool(np.any(truth))


def _astray(
    subject: Subject, truth: np.ndarray, values: Mapping[str, np.ndarray], noise: Noise, dtype: str
) -> np.ndarray:
    """Where inputs of unusual size lead an oracle out of its type or domain, so that it says nothing.

    It is not finite there, or in a narrow type every oracle is so far from float64 that noise as it was measured is not
    all there is: then nothing is known of the whole tensor. Without an oracle the function stands in for it.
    """
    oracles = [v for engine, v in values.items() if engine != HAND] if subject.oracles else list(values.values())
    if not is_number(truth):
        return np.zeros(truth.shape, bool)
    with np.errstate(over="ignore"):
        narrow = truth if truth.dtype.kind == "c" else truth.astype(jnp.dtype(dtype))
    lost = np.any([~np.isfinite(np.asarray(v, np.complex128)) for v in (narrow, *oracles)], 0)
    known = noise._replace(unsure=noise.unsure | lost)
    far = dtype != "float64" and not any(compare(truth, v, known, dtype).agrees for v in oracles)
    return np.full(truth.shape, True) if far else lost
