"""One setting of a check: every engine's answer compared with what is expected, and who stands alone.

The order of things: the function under test runs as the setting says; an oracle says in float64 what should have come,
and how much noise the type's arithmetic makes of it; where they differ, noise that the function's own arithmetic has
is looked at too, and then the definition of the derivative. A setting in which the function, or nothing else, can be
asked ends as not judged, with the reason.
"""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.checking import taylor
from jaxgrad.checking.compare import Noise, compare, exact, floored, is_number, scaled, stands_alone
from jaxgrad.checking.expected import Expected, combined, expect, measured, samples_for, stacked
from jaxgrad.checking.findings import (
    AGREES,
    DIFFERS,
    HAND,
    NOT_JUDGED,
    TRUTH,
    Finding,
    Setting,
    Tensor,
)
from jaxgrad.checking.measure import excess
from jaxgrad.checking.oracles import Oracle
from jaxgrad.checking.oracles import jax as in_jax
from jaxgrad.checking.oracles.jax import Function, jax_oracle
from jaxgrad.checking.pullback import Pulled, inner_product, pull
from jaxgrad.checking.question import Call, Question, numbers_of, widened
from jaxgrad.checking.taylor import Judgement
from jaxgrad.checking.transforms import TRANSFORMS, Asked, Group, Transform, question
from jaxgrad.errors import JaxgradError
from jaxgrad.jaxprs import casts
from jaxgrad.jaxprs.noise import EXACT


@dataclasses.dataclass(frozen=True)
class Subject:
    """A function under test with everything that is asked of it.

    `kept` is where answers are kept that several settings need: the same examples come back in each.
    """

    name: str
    call: Call
    hand: Function
    oracles: tuple[Oracle, ...]
    tolerance: float | Mapping[str, float] | None
    nan: str
    shardings: Any
    sizes: str = ""
    kept: dict[Any, Any] = dataclasses.field(default_factory=dict)


@contextlib.contextmanager
def in_type(dtype: str) -> Iterator[None]:
    """JAX's settings for a comparison in a type: 64-bit types in float64 alone, products at full precision."""
    with jax.default_matmul_precision("highest"), jax.enable_x64(dtype == "float64"):
        yield


def judge(subject: Subject, setting: Setting, asked_for: bool) -> Finding:
    """What one setting shows. Where the function refuses, it is not judged, or wrong if it was `asked_for` by name."""
    row = TRANSFORMS[setting.transform]
    every = not subject.kept.get(setting.transform + " in every pattern", False)
    of = Asked(subject.hand, subject.call, setting.dtype, setting.seed, subject.shardings, every)
    if setting.transform == "jit" and (why := _not_linear(subject)):
        return _outcome(setting, (), DIFFERS, why, alone=HAND)
    try:
        with in_type(setting.dtype):
            groups = row.groups(of)
            runs = [row.run(subject.hand, group, of) for group in groups]
            names = _names(subject, row, groups[0].questions[0]) if groups else None
            subject.kept[setting.transform + " in every pattern"] = True
    except JaxgradError:
        raise
    except Exception as error:
        return _refused(subject, setting, error, asked_for)
    if names is None:
        return _outcome(setting, (), AGREES, "no input has another size to be drawn in")
    if not subject.oracles and (setting.dtype, setting.transform) in (("float64", "jit"), ("float64", "grad_of_grad")):
        return _by_itself(subject, setting, groups[0], runs[0][0], names)
    try:
        asked = [_gathered(subject, setting, group, run, names) for group, run in zip(groups, runs, strict=True)]
    except Unanswered as unanswered:
        wrong = subject.kept.get("wrong")
        if wrong is not None:
            name = next(name for name, j in wrong[HAND].items() if j.verdict == "wrong")
            return _outcome(setting, (), DIFFERS, str(unanswered), first=name, alone=HAND, taylor=wrong)
        return _outcome(setting, (), NOT_JUDGED, str(unanswered))
    return _judged(subject, asked, tuple(tensor for one in asked for tensor in _tensors(subject, one)))


def _given_tolerance(subject: Subject, dtype: str) -> float | None:
    """The caller's tolerance in a type; None where noise decides."""
    return subject.tolerance.get(dtype) if isinstance(subject.tolerance, Mapping) else subject.tolerance


def _by_itself(subject: Subject, setting: Setting, group: Group, run: Pulled, names: Pulled) -> Finding:
    """Without an oracle, float64 is judged by the definition of the derivative alone."""
    (q,) = group.questions
    tensors = tuple(
        Tensor(name, kind, floored(exact(value), value, "float64"), False, {HAND: np.asarray(value)}, {})
        for part, kind in _KINDS.items()
        for name, value in zip(getattr(names, part), getattr(run, part), strict=True)
    )
    second = TRANSFORMS[setting.transform].second
    with in_type("float64"):
        judged = _by_definition(subject, q, second, {HAND: run.inputs})
    limit = _given_tolerance(subject, "float64")
    left_out = {
        leaf.name
        for leaf, dx in zip(subject.call.of_kind("input"), run.inputs, strict=True)
        if leaf.plain and not np.any(dx)
    }
    of_hand = {name: j for name, j in judged[HAND].items() if name not in left_out}
    # A tolerance that was given is one for the slope, as long as f shows one at all.
    of_hand = {name: j for name, j in of_hand.items() if limit is None or not j.error <= limit}
    wrong = next((name for name, j in of_hand.items() if j.verdict == "wrong"), None)
    if wrong is not None:
        return _outcome(setting, tensors, DIFFERS, "", first=wrong, alone=HAND, taylor=judged)
    unsure = [f"{name}: {j.why}" for name, j in of_hand.items() if j.verdict == "undecided"]
    if unsure:
        return _outcome(setting, tensors, NOT_JUDGED, "the definition cannot tell: " + "; ".join(unsure), taylor=judged)
    told = [f"{name}: {j.why}" for name, j in of_hand.items() if j.verdict in ("kink", "narrow")]
    if any(j.verdict == "narrow" for j in of_hand.values()):
        with in_type("float64"):
            cast = casts.narrowest(in_jax.program(subject.hand, q, second))
        told += [f"it computes in {cast.dtype} inside ({cast})"] if cast else []
    return _outcome(setting, tensors, AGREES, "; ".join(told), taylor=judged)


class Unanswered(Exception):
    """No oracle answers in this setting; the message says why."""


def _outcome(setting: Setting, tensors: tuple[Tensor, ...], outcome: str, why: str, **rest: Any) -> Finding:
    known: dict[str, Any] = {"taylor": {}, "first": None, "alone": None, "passed": outcome == AGREES}
    return Finding(setting, tensors, outcome=outcome, why=why, **{**known, **rest})


def forward(subject: Subject, dtype: str) -> Any:
    """The jaxpr of the function itself, in a type; traced in the caller's context."""
    q = question(Asked(subject.hand, subject.call, dtype, 0, None))
    return jax.make_jaxpr(subject.hand)(q.inputs, q.carried)


def not_deterministic(subject: Subject, setting: Setting) -> str:
    """That one call gave two answers, in a sentence; nothing where the two are the same bits."""
    row = TRANSFORMS[setting.transform]
    of = Asked(subject.hand, subject.call, setting.dtype, setting.seed, subject.shardings)
    with in_type(setting.dtype):
        group = row.groups(of)[0]
        once, again = (row.run(subject.hand, group, of)[0] for _ in range(2))
        names = _names(subject, row, group.questions[0])
    for part, kind in _KINDS.items():
        for name, a, b in zip(getattr(names, part), getattr(once, part), getattr(again, part), strict=True):
            if not np.array_equal(a, b, equal_nan=is_number(a)):
                gap = np.abs(np.asarray(a, np.complex128) - np.asarray(b, np.complex128))
                what = name if kind == "output" else f"the cotangent of {name}"
                return (
                    f"it is not deterministic: called twice with the same arguments, it gives two answers, and {what}"
                    f" differs by {np.nanmax(gap):.3g} at most"
                )
    return ""


def flaws(subject: Subject, setting: Setting) -> Iterator[tuple[str, str]]:
    """The oracles that contradict themselves in a setting's type, each with a sentence."""
    with in_type(setting.dtype):
        q = question(Asked(subject.hand, subject.call, setting.dtype, setting.seed, None))
        for oracle in subject.oracles:
            if flaw := oracle.flaw(q):
                yield oracle.name, flaw


def _refused(subject: Subject, setting: Setting, error: Exception, asked_for: bool) -> Finding:
    """The function raised: whose fault that is, and what leaves the setting out."""
    said = _first_line(error)
    rule = _not_linear(subject)
    if rule:
        return _outcome(setting, (), DIFFERS, f"{rule} JAX says: {said}", alone=HAND)
    bad_rule = _says_rule(str(error))
    why = (
        f"the function's own rule is at fault, in {setting}: JAX says {said}"
        if bad_rule
        else f"the function refuses {setting.dtype} under {setting.transform}: it says {said}"
    )
    option = f"leave it out with dtypes= or transforms= ({setting})"
    outcome = DIFFERS if asked_for or bad_rule else NOT_JUDGED
    return _outcome(setting, (), outcome, f"{why}; {option}", alone=HAND if bad_rule else None)


def _not_linear(subject: Subject) -> str:
    """That a rule of `jax.custom_jvp` is not linear in its tangents, in a sentence; nothing where it is.

    JAX transposes such a rule as if it were linear: it fails with words of its own, or drops what is not.
    """
    if "linear" not in subject.kept:
        subject.kept["linear"] = ""
        for dtype in ("float64", "float32"):
            with contextlib.suppress(Exception), in_type(dtype):
                subject.kept["linear"] = _tangents_not_linear(subject, dtype)
                break
    return subject.kept["linear"]


def _tangents_not_linear(subject: Subject, dtype: str) -> str:
    if not casts.has_custom_jvp(forward(subject, dtype)):
        return ""
    q = question(Asked(subject.hand, subject.call, dtype, 0, None))

    def tangents(factor: float) -> list[Any]:
        along = [v * v.dtype.type(factor) for v in q.directions]
        fn = lambda inputs: numbers_of(subject.hand(inputs, q.carried))  # noqa: E731
        return [np.asarray(t) for t in jax.jvp(fn, (q.inputs,), (along,))[1]]

    once, back, none = tangents(1.0), tangents(-2.0), tangents(0.0)
    for t, other, zero in zip(once, back, none, strict=True):
        size = np.max(np.abs(t), initial=0.0) + np.max(np.abs(zero), initial=0.0)
        if np.max(np.abs(other + 2 * t), initial=0.0) > 1e-3 * size or np.max(np.abs(zero), initial=0.0) > 1e-3 * size:
            return (
                "its jax.custom_jvp rule is not linear in the tangents: along -2 v it does not give -2 times what it"
                " gives along v, or along 0 not 0."
            )
    return ""


def _says_rule(said: str) -> bool:
    """Whether JAX's message is of a custom rule that does not fit its function."""
    told = (
        "custom_vjp bwd",
        "Custom VJP bwd",
        "custom_vjp fwd",
        "Custom VJP fwd",
        "Custom JVP rule",
        "custom JVP rule",
    )
    return any(words in said for words in told)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # What was raised while the program ran comes with a traceback, and ends in its message.
    told = lines[-1] if lines and "Traceback" in lines[0] else lines[0] if lines else "(no message)"
    return f"{type(error).__name__}: {told[:300]}"


def _names(subject: Subject, row: Transform, q: Question) -> Pulled:
    inputs = [leaf.name for leaf in subject.call.of_kind("input")]
    if row.inputs is not None:
        return Pulled([], [], list(row.inputs))
    if row.second:
        return Pulled([], [], inputs)
    return Pulled(in_jax.names_of_outputs(subject.hand, q), in_jax.node_names(subject.hand, q), inputs)


# Who says what to expect, and what it says.


class _Source(NamedTuple):
    """The engine that says what to expect, what it expects, and the names of its nodes."""

    name: str
    expected: Expected
    nodes: list[str]


def _source(subject: Subject, q: Question, dtype: str, second: bool, key: Any) -> _Source:
    """The first oracle that answers in float64; the function's own float64 where there is none, once it is accepted.

    Raises `Unanswered` where the function cannot answer for itself, and `JaxgradError` where no oracle can.
    """
    place = (key, dtype, second)
    if place not in subject.kept:
        with in_type("float64"):
            subject.kept[place] = _asked_of(subject, widened(q), dtype, second)
    return subject.kept[place]


def _asked_of(subject: Subject, q: Question, dtype: str, second: bool) -> _Source:
    reasons = []
    asked_first = [(oracle, oracle.sample) for oracle in subject.oracles if oracle.sample is not None]
    for oracle, sample in asked_first:
        try:
            expected = expect(sample(q, second), dtype)
            return _Source(oracle.name, expected, [] if second else oracle.nodes(q))
        except Exception as error:
            # Of the second order it is no fault of an oracle to have none.
            if isinstance(error, JaxgradError) and not second:
                raise
            reasons.append(f"{oracle.name} raises in float64: {_first_line(error)}")
    if asked_first and second:
        raise Unanswered("no oracle has a second order here: " + "; ".join(reasons))
    if asked_first:
        raise JaxgradError(f"{subject.name}: no oracle answers; {'; '.join(reasons)}")
    _accept(subject)
    own = functools.partial(in_jax.rounded, subject.hand, q, second)
    try:
        return _Source(TRUTH, expect(own, dtype), [] if second else in_jax.node_names(subject.hand, q))
    except Exception as error:
        raise Unanswered(f"there is no oracle, and in float64 the function says {_first_line(error)}") from error


def _own(subject: Subject) -> Oracle:
    return jax_oracle(TRUTH, subject.hand)


def _accept(subject: Subject) -> None:
    """Without an oracle the function's gradient in float64 stands in for one, if the definition accepts it.

    Raises `Unanswered` where it cannot tell; a gradient that is wrong there is wrong in every setting.
    """
    if "accepted" not in subject.kept:
        subject.kept["accepted"] = _acceptance(subject)
    why = subject.kept["accepted"]
    if why:
        raise Unanswered(why)


def _acceptance(subject: Subject) -> str:
    of = Asked(subject.hand, subject.call, "float64", 0, subject.shardings)
    try:
        with in_type("float64"):
            q = question(of)
            answer = in_jax.pulled(subject.hand, q, False)
            judged = _by_definition(subject, q, False, {HAND: answer.inputs})[HAND]
    except Exception as error:
        return f"there is no oracle, and in float64 the function says {_first_line(error)}"
    wrong = {name: j for name, j in judged.items() if j.verdict == "wrong"}
    if wrong:
        subject.kept["wrong"] = {HAND: judged}
        name, j = next(iter(wrong.items()))
        return f"there is no oracle, and in float64 the cotangent of {name} is not the derivative: {j.why}"
    unsure = [f"{name} ({j.why})" for name, j in judged.items() if j.verdict == "undecided"]
    if unsure:
        return "there is no oracle, and the definition of the derivative cannot tell of " + ", ".join(unsure)
    return ""


def _by_definition(
    subject: Subject, q: Question, second: bool, gradients: dict[str, list[Any]]
) -> dict[str, dict[str, Judgement]]:
    """What Taylor's remainder in float64 says of each engine's cotangents, by input."""

    def value(inputs: list[Any]) -> Any:
        if second:
            return inner_product(q.directions, pull(subject.hand, inputs, q.carried, q.dys).inputs)
        return inner_product(q.dys, numbers_of(subject.hand(inputs, q.carried)))

    inputs = [jnp.asarray(x) for x in q.inputs]
    found = taylor.judge(value, inputs, gradients, jax.random.key(0))
    names = [leaf.name for leaf in subject.call.of_kind("input")]
    return {engine: dict(zip(names, of, strict=True)) for engine, of in found.items()}


# Every engine's values beside what is expected.


class _Asked(NamedTuple):
    """One group of a setting: what was run, what was expected of it and what other engines say."""

    setting: Setting
    row: Transform
    group: Group
    hand: Pulled
    names: Pulled
    source: _Source
    truth: Pulled
    noise: Pulled
    others: dict[str, tuple[Pulled, list[str]]]


def _gathered(subject: Subject, setting: Setting, group: Group, run: list[Pulled], names: Pulled) -> _Asked:
    """Everything known of a group; arrays of several examples are stacked along a new first axis."""
    row = TRANSFORMS[setting.transform]
    keys = [(setting.seed, group.label, number) for number in range(len(group.questions))]
    sources = [
        _source(subject, q, setting.dtype, row.second, key) for q, key in zip(group.questions, keys, strict=True)
    ]
    if setting.dtype != "float64" and _draws_numbers(subject):
        sources = [_drawn_in_type(subject, q, setting, s) for q, s in zip(group.questions, sources, strict=True)]
    questions = [widened(q) for q in group.questions]
    truths = [row.expect(s.expected.answer, q) for s, q in zip(sources, questions, strict=True)]
    noises = [_noise(row, s.expected, q, setting.dtype) for s, q in zip(sources, questions, strict=True)]
    return _Asked(
        setting,
        row,
        group,
        _joined(run, _stacked),
        names,
        sources[0],
        _joined(truths, _stacked),
        _joined(noises, _stacked_noise),
        _natives(subject, setting, group),
    )


def _draws_numbers(subject: Subject) -> bool:
    """Whether the function draws random numbers from a key, which are others in float64 than in a narrower type."""
    if "draws" not in subject.kept:
        subject.kept["draws"] = False
        for dtype in ("float64", "float32"):
            with contextlib.suppress(Exception), in_type(dtype):
                subject.kept["draws"] = casts.holds(forward(subject, dtype), ("random_bits", "threefry2x32"))
                break
    return subject.kept["draws"]


def _drawn_in_type(subject: Subject, q: Question, setting: Setting, source: _Source) -> _Source:
    """What to expect of a function that draws random numbers: what an oracle answers that drew the same ones.

    The noise of other draws tells its size alone. Raises `Unanswered` where no oracle draws in JAX.
    """
    second = TRANSFORMS[setting.transform].second
    oracle = next((oracle for oracle in subject.oracles if oracle.program is not None), None)
    if oracle is None:
        raise Unanswered(
            f"it draws random numbers, which are others in {setting.dtype} than in float64: give a reference in JAX"
        )
    with in_type(setting.dtype):
        answer, nodes = oracle.pull(q, second)
    truth = Pulled(*([np.asarray(x, np.float64) if is_number(x) else x for x in part] for part in answer))
    noise = Pulled(
        *(
            [_of_size(n, t, x, setting.dtype) for n, t, x in zip(*parts, strict=True)]
            for parts in zip(source.expected.noise, source.expected.answer, truth, strict=True)
        )
    )
    return _Source(oracle.name, Expected(truth, noise), nodes)


def _of_size(noise: Noise, other: np.ndarray, expected: np.ndarray, dtype: str) -> Noise:
    """Noise of the same size relative to an array, the same for every element."""
    if not is_number(expected) or not expected.size:
        return noise
    size = float(np.linalg.norm(noise.deviation)) / (float(np.linalg.norm(other)) or 1.0)
    even = np.full(expected.shape, size * float(np.max(np.abs(expected))))
    return floored(Noise(even, noise.samples, (1.0,), np.zeros(expected.shape, bool)), expected, dtype)


def _joined(each: Sequence[Pulled], join: Callable[[list[Any]], Any]) -> Pulled:
    return Pulled(*([join(list(leaves)) for leaves in zip(*parts, strict=True)] for parts in zip(*each, strict=True)))


def _stacked(leaves: list[Any]) -> np.ndarray:
    return np.stack(leaves) if len(leaves) > 1 else np.asarray(leaves[0])


def _stacked_noise(noises: list[Noise]) -> Noise:
    return stacked(noises) if len(noises) > 1 else noises[0]


def _noise(row: Transform, expected: Expected, q: Question, dtype: str) -> Pulled:
    """The noise of what a row expects: the oracle's own, or of forward mode that of the pairing."""
    if row.inputs is None:
        return expected.noise
    # The errors of the cotangents' elements, each times its direction's, as if they were independent; the sum of
    # their sizes stands for those that are not.
    parts = zip(q.directions, expected.noise.inputs, strict=True)
    total = np.asarray(sum(float(np.sum(np.abs(v) * noise.deviation)) for v, noise in parts))
    samples = expected.noise.inputs[0].samples
    return Pulled([], [], [floored(Noise(total, samples, (1.0,), np.zeros((), bool)), total, dtype)])


def _natives(subject: Subject, setting: Setting, group: Group) -> dict[str, tuple[Pulled, list[str]]]:
    """What the oracles answer in the setting's own type; those that refuse it are left out."""
    if setting.transform not in ("jit", "reach"):
        return {}
    found = {}
    for oracle in subject.oracles:
        with contextlib.suppress(Exception), in_type(setting.dtype):
            found[oracle.name] = oracle.pull(group.questions[0], False)
    return found


def _calibration(subject: Subject, dtype: str, seed: int) -> dict[tuple[str, int], float]:
    """By how much the oracle's own error in a type exceeds the noise measured for it, from 1 to 8, by place.

    Where an engine rounds more than the program shows (sums in a narrow accumulator, a fast approximation), what it
    makes of the oracle is the size of what it makes of the function.
    """
    place = ("calibration", dtype, seed)
    if place not in subject.kept:
        subject.kept[place] = {}
        with contextlib.suppress(Exception), in_type(dtype):
            q = question(Asked(subject.hand, subject.call, dtype, seed, None))
            source = _source(subject, q, dtype, False, (seed, "", 0))
            native = next(o.pull(q, False)[0] for o in subject.oracles if o.name == source.name)
            for part in Pulled._fields:
                each = zip(
                    getattr(native, part),
                    getattr(source.expected.answer, part),
                    getattr(source.expected.noise, part),
                    strict=True,
                )
                for number, (own, truth, noise) in enumerate(each):
                    subject.kept[place][part, number] = excess(own, truth, noise)
    return subject.kept[place]


_KINDS = {"outputs": "output", "nodes": "node", "inputs": "input"}


def _tensors(subject: Subject, asked: _Asked) -> Iterator[Tensor]:
    """A tensor for each array of the answers."""
    factors = {} if asked.setting.dtype == "float64" else _calibration(subject, asked.setting.dtype, asked.setting.seed)
    for part, kind in _KINDS.items():
        for number, name in enumerate(getattr(asked.names, part)):
            at: int | None = number
            if part == "nodes":
                at = asked.source.nodes.index(name) if name in asked.source.nodes else None
            yield _tensor(subject, asked, part, kind, name, number, at, factors.get((part, number), 1.0))


def _tensor(
    subject: Subject, asked: _Asked, part: str, kind: str, name: str, number: int, at: int | None, factor: float
) -> Tensor:
    setting, source = asked.setting, asked.source
    hand = getattr(asked.hand, part)[number]
    values = {HAND: hand}
    for engine, (pulled, nodes) in asked.others.items():
        if part != "nodes":
            values[engine] = np.asarray(getattr(pulled, part)[number])
        elif name in nodes:
            values[engine] = np.asarray(pulled.nodes[nodes.index(name)])
    shown = f"{name} ({asked.group.label})" if asked.group.label else name
    limit = _given_tolerance(subject, setting.dtype)
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
        noise = noise._replace(unsure=noise.unsure | _astray(subject, truth, values, noise, setting.dtype))
        values = {HAND: hand}
    if part == "inputs" and asked.row.inputs is None and _left_out(subject, number, hand, truth):
        return Tensor(shown, kind, noise, False, {}, {}, f"{name} is a plain number without a gradient, on purpose")
    if setting.dtype == "float64":
        against = source.name
        truth = values.get(against, truth)
        values = {**values, against: truth}
        chosen = list(itertools.combinations(values, 2)) if len(values) > 2 else [(HAND, against)]
        pairs = {(a, b): compare(values[b], values[a], scaled(noise, 2**0.5), "float64", limit) for a, b in chosen}
        return Tensor(shown, kind, noise, limit is not None, values, pairs)
    noise = scaled(noise, factor)
    pairs = {(engine, TRUTH): compare(truth, value, noise, setting.dtype, limit) for engine, value in values.items()}
    return Tensor(shown, kind, noise, limit is not None, {**values, TRUTH: truth}, pairs)


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


# From tensors to an outcome.


def _judged(subject: Subject, asked: Sequence[_Asked], tensors: tuple[Tensor, ...]) -> Finding:
    """Who is wrong and where, or why nothing can be said."""
    setting = asked[0].setting
    notes: list[str] = []
    if not all(t.agree for t in tensors):
        tensors, notes = _appealed(subject, asked, tensors)
    if setting.transform == "reach" and not all(t.agree for t in tensors):
        tensors, more = _without_conventions(subject, asked, tensors)
        notes += more
    first = next((t for t in tensors if not t.agree), None)
    judged: dict[str, dict[str, Judgement]] = {}
    if first is not None and setting.dtype == "float64" and setting.transform in ("jit", "grad_of_grad"):
        judged = _defined(subject, asked[0], tensors)
    alone = stands_alone(first.pairs) if first else None
    wrong = [engine for engine, of in judged.items() if any(j.verdict == "wrong" for j in of.values())]
    if first is not None and alone is None:
        alone = wrong[0] if len(wrong) == 1 else _only_differing(subject, first)
    if first is not None:
        notes += _of_mesh(subject, setting)
        known: dict[str, Any] = {"first": first.name, "alone": alone, "taylor": judged}
        return _outcome(setting, tensors, DIFFERS, "; ".join(notes), **known, iterates=_iterates(subject, asked[0]))
    nan = next(((t, d.both_nan) for t in tensors for d in t.pairs.values() if d.both_nan), None)
    if nan and subject.nan != "equal" and setting.transform != "reach":
        why = f"{nan[0].name} is not a number in every engine, {nan[1]}; if that is meant, give nan='equal'"
        return _outcome(setting, tensors, DIFFERS, why, first=nan[0].name)
    unjudged = [why for t in tensors if (why := _why_not_judged(t, setting))]
    # Far from usual numbers much may drown; what is left is worth its verdict.
    if unjudged and (setting.transform != "reach" or len(unjudged) == len(tensors)):
        return _outcome(setting, tensors, NOT_JUDGED, "; ".join([*unjudged, *notes]))
    return _outcome(setting, tensors, AGREES, "; ".join([*notes, *(t.note for t in tensors if t.note)]))


def _of_mesh(subject: Subject, setting: Setting) -> list[str]:
    """What is often forgotten where a function is split over devices."""
    if setting.transform == "sharded":
        return ["split over the mesh it gives something else than whole: perhaps a psum over the mesh is missing"]
    with contextlib.suppress(Exception), in_type("float64"):
        q = question(Asked(subject.hand, subject.call, "float64", setting.seed, None))
        if casts.holds(in_jax.program(subject.hand, q, False), ("shard_map",)):
            return ["it holds a shard_map: perhaps a psum over its mesh is missing"]
    return []


def _iterates(subject: Subject, asked: _Asked) -> bool:
    """Whether the function or an oracle in JAX holds a loop that ends when a condition is met."""
    q = widened(asked.group.questions[0])
    for fn in (subject.hand, *(oracle.program for oracle in subject.oracles if oracle.program is not None)):
        with contextlib.suppress(Exception), in_type("float64"):
            if casts.holds(jax.make_jaxpr(fn)(q.inputs, q.carried), ("while",)):
                return True
    return False


def _only_differing(subject: Subject, first: Tensor) -> str | None:
    """The one engine that is not what was expected, by an oracle in float64 or by several oracles that agree."""
    wrong = [pair[0] for pair, d in first.pairs.items() if not d.agrees]
    against = {pair[1] for pair in first.pairs}
    told = len(first.pairs) > 1 or len(subject.oracles) > 1
    return wrong[0] if len(wrong) == 1 and len(against) == 1 and told else None


def _why_not_judged(tensor: Tensor, setting: Setting) -> str:
    """Why a tensor that agrees says nothing, or nothing where it does."""
    for d in tensor.pairs.values():
        if not d.judged and d.faint:
            return (
                f"{d.faint} of {d.size} elements of {tensor.name} drown in their rounding in {setting.dtype}"
                f" ({d.noise:.0%} of the whole)"
            )
        if not d.judged:
            return f"{d.unjudged} of {d.size} elements of {tensor.name} hang on a choice that rounding flips"
    return ""


def _appealed(
    subject: Subject, asked: Sequence[_Asked], tensors: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], list[str]]:
    """The tensors judged again with what the function's own arithmetic adds, where that explains their differences.

    First the noise that its own program has, measured as the oracle's is: another right formula may round more. Then,
    in float64, that of a narrower type that it computes in. Neither hides a mistake larger than such noise.
    """
    if any(d.not_finite for t in tensors for d in t.pairs.values()):
        return tensors, []
    notes: list[str] = []
    for dtype, note in _narrower(subject, asked[0]):
        noises = [_own_noise(subject, one, dtype) for one in asked]
        if None in noises:
            continue
        again = [
            tensor
            for one, noise in zip(asked, noises, strict=True)
            if noise is not None
            for tensor in _tensors(subject, one._replace(noise=noise))
        ]
        explained = [new if new.agree and not old.agree else old for old, new in zip(tensors, again, strict=True)]
        if note and any(new is not old for old, new in zip(tensors, explained, strict=True)):
            notes.append(note)
        tensors = tuple(explained)
        if all(t.agree for t in tensors):
            break
    return tensors, notes


def _without_conventions(
    subject: Subject, asked: Sequence[_Asked], tensors: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], list[str]]:
    """Among edges drawn for it, a function may have a kink at 0, where two right subgradients differ.

    Inputs that are exactly 0 are left out where the definition, asked at one of them alone, does not call the
    function's cotangent wrong. Inputs that the caller gives are not: there a difference of conventions counts.
    """
    spared: dict[str, None] = {}
    again: list[Tensor] = []
    for one in asked:
        inputs = list(one.noise.inputs)
        for number, leaf in enumerate(subject.call.of_kind("input")):
            tensor = next(t for t in tensors if t.name == f"{leaf.name} ({one.group.label})")
            at = next((d.at for d in tensor.pairs.values() if not d.agrees and d.not_finite is None), None)
            x = np.asarray(one.group.questions[0].inputs[number])
            if (
                at is not None
                and x.shape == tensor.noise.unsure.shape
                and x[at] == 0
                and _kink(subject, one, number, at)
            ):
                inputs[number] = inputs[number]._replace(unsure=inputs[number].unsure | (x == 0))
                spared[leaf.name] = None
        again += _tensors(subject, one._replace(noise=one.noise._replace(inputs=inputs)))
    if not spared:
        return tensors, []
    return tuple(again), [f"at 0 the cotangent of {', '.join(spared)} is another subgradient than the oracle's"]


def _kink(subject: Subject, asked: _Asked, number: int, at: tuple[int, ...]) -> bool:
    """Whether the function's cotangent of one input that is 0 is right, or a subgradient, where no other input is 0."""
    q = widened(asked.group.questions[0])
    inputs = [np.where(x == 0, 2.0**-10, x) for x in q.inputs]
    inputs[number][at] = 0.0
    try:
        with in_type("float64"):
            alone = q._replace(inputs=inputs)
            gradients = {HAND: in_jax.pulled(subject.hand, alone, False).inputs}
            judged = _by_definition(subject, alone, False, gradients)[HAND]
    except Exception:
        return False
    return judged[subject.call.of_kind("input")[number].name].verdict in ("kink", "right")


def _narrower(subject: Subject, asked: _Asked) -> Iterator[tuple[str, str]]:
    """The types whose noise may explain a difference, each with what to say of it."""
    setting = asked.setting
    if setting.dtype != "float64":
        yield setting.dtype, ""
        return
    inside = []
    for oracle in (_own(subject), *subject.oracles):
        cast = _cast(subject, oracle, asked)
        if cast is not None and cast.dtype in ("float32", "bfloat16", "float16"):
            who = subject.name if oracle.name == TRUTH else oracle.name
            inside.append((cast.dtype, f"{who} computes in {cast.dtype} inside ({cast}), and was judged as that"))
    # The noise of its own program has the roundings of the type inside, where JAX can tell.
    yield setting.dtype, inside[0][1] if inside else ""
    yield from inside


def _cast(subject: Subject, oracle: Oracle, asked: _Asked) -> casts.Cast | None:
    fn = oracle.program
    if fn is None:
        return None
    with in_type("float64"):
        return casts.narrowest(in_jax.program(fn, widened(asked.group.questions[0]), asked.row.second))


def _own_noise(subject: Subject, asked: _Asked, dtype: str) -> Pulled | None:
    """The noise of every engine's own program together; None where the function's cannot be followed."""
    noises = []
    for number, q in enumerate(asked.group.questions):
        key = (asked.setting.seed, asked.group.label, number)
        oracle = _source(subject, q, dtype, asked.row.second, key).expected
        both = oracle.noise
        try:
            for engine in (_own(subject), *subject.oracles):
                # The one that was measured already kept its sums in the wide type, as 16-bit types may not.
                if engine.sample is not None and (engine.name != asked.source.name or _is_narrow(dtype)):
                    both = _with_noise_of(engine, both, asked, widened(q), dtype)
        except Exception:
            return None
        noises.append(_noise(asked.row, Expected(oracle.answer, both), widened(q), dtype))
    return _joined(noises, _stacked_noise)


def _is_narrow(dtype: str) -> bool:
    return float(jnp.finfo(dtype).eps) > float(jnp.finfo(np.float32).eps)


def _with_noise_of(engine: Oracle, noise: Pulled, asked: _Asked, q: Question, dtype: str) -> Pulled:
    """Noise, and that of an engine's program. Nodes stand in each program's own order, and it need not have all."""
    assert engine.sample is not None
    with in_type("float64"):
        sample = engine.sample(q, asked.row.second)
        answer = sample(EXACT, 0)
        # A program of JAX's own may keep the sums of reductions in its type; torch's never do.
        own = measured(sample, answer, dtype, samples_for(answer), narrow=True)
        nodes = engine.nodes(q) if noise.nodes else []
    of_nodes = [own.nodes[nodes.index(name)] if name in nodes else None for name in asked.source.nodes]
    return Pulled(
        [combined(pair) for pair in zip(noise.outputs, own.outputs, strict=True)],
        [
            theirs if mine is None else combined((theirs, mine))
            for theirs, mine in zip(noise.nodes, of_nodes, strict=True)
        ],
        [combined(pair) for pair in zip(noise.inputs, own.inputs, strict=True)],
    )


def _defined(subject: Subject, asked: _Asked, tensors: tuple[Tensor, ...]) -> dict[str, dict[str, Judgement]]:
    """What the definition of a derivative says of the engines that differ.

    What is differentiated is the function under test: where outputs differ, an oracle has another function, and only
    the function's own cotangents are judged.
    """
    other = any(t.kind == "output" and not t.agree for t in tensors)
    gradients = {HAND: asked.hand.inputs}
    if not other:
        gradients.update({engine: pulled.inputs for engine, (pulled, _) in asked.others.items()})
        gradients.setdefault(asked.source.name, asked.truth.inputs)
    try:
        with in_type("float64"):
            return _by_definition(subject, widened(asked.group.questions[0]), asked.row.second, gradients)
    except Exception:
        # A function that cannot be moved along a line, such as one that checks its arguments, is judged without.
        return {}
