"""Who says what to expect of a question: an oracle in float64, or the function where the definition accepts it."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.checking import taylor
from jaxgrad.checking.compare import Noise, floored, is_number, limit
from jaxgrad.checking.domains import moved
from jaxgrad.checking.expected import SMALL, Expected, by_own_errors, expect, few_samples, first_look
from jaxgrad.checking.findings import (
    HAND,
    TRUTH,
    Setting,
)
from jaxgrad.checking.measure import excess
from jaxgrad.checking.oracles import Oracle, Samples
from jaxgrad.checking.oracles import jax as in_jax
from jaxgrad.checking.pullback import Pulled, inner_product, pull
from jaxgrad.checking.question import Question, in_type, numbers_of, size_of, survives, taken_to, widened
from jaxgrad.checking.subject import Subject, first_line
from jaxgrad.checking.taylor import Judgement
from jaxgrad.checking.transforms import FIRST, SECOND, TRANSFORMS, Asked, Transform, question
from jaxgrad.errors import JaxgradError
from jaxgrad.jaxprs import casts, walk
from jaxgrad.settings import compared_in


class Unanswered(Exception):
    """No oracle answers in this setting; the message says why."""


class Source(NamedTuple):
    """The engine that says what to expect, what it expects, and the names of its nodes."""

    name: str
    expected: Expected
    nodes: list[str]


def source_of(
    subject: Subject, q: Question, dtype: str, second: bool, key: tuple[int, str], whole: bool = True
) -> Source:
    """The first oracle that answers in float64; the function's own float64 where there is none, once it is accepted.

    `key` is the question's seed and its name among `Group.examples`. What is found is kept until `forget_examples`;
    where it has to be `whole`, noise that was found at a first look is measured again.
    Raises `Unanswered` where the function cannot answer for itself, and `JaxgradError` where no oracle can.
    """
    place = (key, dtype, second)
    kept = subject.kept.sources.get(place)
    if kept is None or (whole and not kept.expected.whole):
        with compared_in("float64"):
            wide = widened(q)
            shared = None if whole else _of_float64(subject, dtype, second, key)
            kept = subject.kept.sources[place] = shared or _asked_of(subject, wide, dtype, second, whole)
    return kept


def _of_float64(subject: Subject, dtype: str, second: bool, key: tuple[int, str]) -> Source | None:
    """What to expect in float32 by what was found in float64, where both are asked with the same numbers."""
    source = subject.kept.sources.get((key, "float64", second)) if dtype == "float32" else None
    if source is None or source.expected.narrow is None:
        return None
    answer, _, whole, narrow = source.expected
    return source._replace(expected=Expected(answer, by_own_errors(answer, narrow, dtype), whole, narrow))


def forget_examples(subject: Subject) -> None:
    """Let go of what is expected of examples that one setting alone has."""
    kept = subject.kept.sources.items()
    subject.kept.sources = {place: source for place, source in kept if place[0][1] in (FIRST, SECOND)}


def _asked_of(subject: Subject, q: Question, dtype: str, second: bool, whole: bool) -> Source:
    reasons = []
    asked_first = [(oracle, oracle.samples) for oracle in subject.oracles if oracle.samples is not None]
    for oracle, samples in asked_first:
        try:
            asked = samples(q, second)
            expected = expect(asked, dtype) if whole else _at_first_look(oracle, asked, q, dtype, second)
            return Source(oracle.name, expected, [] if second else oracle.nodes(q))
        except Exception as error:
            # Of the second order it is no fault of an oracle to have none.
            if isinstance(error, JaxgradError) and not second:
                raise
            reasons.append(f"{oracle.name} raises in float64: {first_line(error)}")
    if asked_first and second:
        raise Unanswered("no oracle has a second order here: " + "; ".join(reasons))
    if asked_first:
        raise JaxgradError(f"{subject.name}: no oracle answers; {'; '.join(reasons)}")
    _accept(subject)
    own = functools.partial(in_jax.rounded, subject.hand, q, second)
    try:
        # Its own error in float32 is what is in question there, and no measure of it.
        look = expect if whole else few_samples if size_of(q) <= SMALL else first_look
        expected = look(own, dtype)
        return Source(TRUTH, expected, [] if second else in_jax.node_names(subject.hand, q))
    except Exception as error:
        raise Unanswered(f"there is no oracle, and in float64 the function says {first_line(error)}") from error


def _at_first_look(oracle: Oracle, sampled: Samples, q: Question, dtype: str, second: bool) -> Expected:
    if size_of(q) <= SMALL:
        return few_samples(sampled, dtype)

    def answered(dtype: str) -> Pulled:
        with compared_in(dtype):
            return oracle.pull(taken_to(q, dtype), second)[0]

    expected = first_look(sampled, dtype, answered)
    # In float32 the same is asked only where it is asked with the same numbers.
    return expected if dtype != "float64" or survives(q, "float32") else expected._replace(narrow=None)


def _accept(subject: Subject) -> None:
    """Without an oracle the function's gradient in float64 stands in for one, if the definition accepts it.

    Raises `Unanswered` where it cannot tell; a gradient that is wrong there is wrong in every setting.
    """
    if subject.kept.unaccepted is None:
        subject.kept.unaccepted = _acceptance(subject)
    if subject.kept.unaccepted:
        raise Unanswered(subject.kept.unaccepted)


def _acceptance(subject: Subject) -> str:
    of = Asked(subject.hand, subject.call, "float64", 0, subject.shardings)
    try:
        with compared_in("float64"):
            judged = own_by_definition(subject, question(of))
    except Exception as error:
        return f"there is no oracle, and in float64 the function says {first_line(error)}"
    wrong = {name: j for name, j in judged.items() if j.verdict == "wrong"}
    if wrong:
        subject.kept.wrong = {HAND: judged}
        name, j = next(iter(wrong.items()))
        return f"there is no oracle, and in float64 the cotangent of {name} is not the derivative: {j.why}"
    unsure = [f"{name} ({j.why})" for name, j in judged.items() if j.verdict == "undecided"]
    if unsure:
        return "there is no oracle, and the definition of the derivative cannot tell of " + ", ".join(unsure)
    return ""


def by_definition(
    subject: Subject, q: Question, second: bool, gradients: dict[str, list[Any]]
) -> dict[str, dict[str, Judgement]]:
    """What Taylor's remainder in float64 says of each engine's cotangents, by input."""

    def value(inputs: list[Any]) -> Any:
        if second:
            return inner_product(q.directions, pull(subject.hand, inputs, q.carried, q.dys).inputs)
        return inner_product(q.dys, numbers_of(subject.hand(inputs, q.carried)))

    inputs = [jnp.asarray(x) for x in q.inputs]
    key = jax.random.key(0)
    found = taylor.judge(value, inputs, gradients, key)
    program = jax.make_jaxpr(value)(inputs)
    cast = casts.narrowest(program)
    if cast is not None:
        # What cannot be widened, or measured, is judged by its jumps alone.
        with contextlib.suppress(Exception):
            explained = _explained(subject, q, second, cast.dtype)
            formula = _formula(subject, q, second, cast)
            asked_wide = gradients if formula is None else {**gradients, HAND: formula}
            wide = taylor.judge(lambda inputs: walk.widened(program, inputs)[0], inputs, asked_wide, key)
            off: dict[str, list[float | None]] = {engine: [None] * len(inputs) for engine in gradients}
            if formula is not None:
                off[HAND] = _off(gradients[HAND], formula)
            found = {
                engine: [_as_wide(*each, cast) for each in zip(of, wide[engine], off[engine], explained, strict=True)]
                for engine, of in found.items()
            }
    if HAND in found:
        with contextlib.suppress(Exception):
            found[HAND] = _beside_kinks(subject, q, second, value, gradients[HAND], found[HAND])
    names = [leaf.name for leaf in subject.call.of_kind("input")]
    return {engine: dict(zip(names, of, strict=True)) for engine, of in found.items()}


def own_by_definition(subject: Subject, q: Question) -> dict[str, Judgement]:
    """What Taylor's remainder says of the function's own cotangents, by input."""
    return by_definition(subject, q, False, {HAND: in_jax.pulled(subject.hand, q, False).inputs})[HAND]


# Points beside a kink, whose gradients are those that a subgradient there may lie between.
_BESIDE = 8


def _beside_kinks(
    subject: Subject,
    q: Question,
    second: bool,
    value: Callable[[list[Any]], Any],
    gradient: list[Any],
    judged: list[Judgement],
) -> list[Judgement]:
    """The judgements, and where an input is at kinks those of the function's gradient beside them.

    A subgradient shows little of the rule that gave it. Where several kinks meet it only has to lie between the
    gradients beside them, along a few directions.
    """
    several = [j.verdict == "undecided" and j.why in taylor.SEVERAL for j in judged]
    numbers = [number for number, j in enumerate(judged) if j.verdict == "kink" or several[number]]
    if not numbers:
        return judged
    points = [
        [in_type(moved(np.asarray(x), seed, number), "float64") for number, x in enumerate(q.inputs)]
        for seed in range(_BESIDE)
    ]
    pulled = [in_jax.pulled(subject.hand, q._replace(inputs=point), second).inputs for point in points]
    given = {HAND: [jnp.asarray(dx) for dx in pulled[0]]}
    beside = taylor.judge(value, list(map(jnp.asarray, points[0])), given, jax.random.key(0), inputs=numbers)[HAND]
    found = list(judged)
    for number, j in zip(numbers, beside, strict=True):
        if j.verdict == "wrong":
            found[number] = j._replace(why=f"beside a kink here, {j.why}")
        elif several[number] and j.verdict != "undecided" and _between(gradient[number], [of[number] for of in pulled]):
            why = "several kinks meet here: beside them the gradient is right, and here it lies between those"
            found[number] = j._replace(verdict="kink", why=why)
    return found


def _between(gradient: Any, others: list[Any]) -> bool:
    """Whether a gradient lies between others along random directions, or beyond by at most what they span."""
    shape = np.shape(gradient)
    for direction in np.random.default_rng(0).standard_normal((3, *shape)):
        slopes = [float(np.real(np.sum(direction * np.asarray(dx)))) for dx in others]
        span = max(slopes) - min(slopes)
        if not min(slopes) - span <= np.real(np.sum(direction * np.asarray(gradient))) <= max(slopes) + span:
            return False
    return True


def _explained(subject: Subject, q: Question, second: bool, dtype: str) -> list[float]:
    """How far a cotangent that is computed in a type may be from the derivative, by input: the limit of its noise."""
    expected = expect(functools.partial(in_jax.rounded, subject.hand, q, second), dtype)
    pairs = zip(expected.answer.inputs, expected.noise.inputs, strict=True)
    sizes = ((float(np.linalg.norm(dx)), float(np.linalg.norm(n.deviation)), n.samples) for dx, n in pairs)
    return [limit(1.0, samples) * noise / size if size else np.inf for size, noise, samples in sizes]


def _formula(subject: Subject, q: Question, second: bool, cast: casts.Cast) -> list[Any] | None:
    """The function's cotangents by its own backward pass with every float in float64.

    None where that pass computes in a type that is narrower than the function's: then its rounding is a mistake.
    """
    program = in_jax.program(subject.hand, q, second)
    own = casts.narrowest(program)
    if own is None or jnp.finfo(own.dtype).eps > jnp.finfo(cast.dtype).eps:
        return None
    with contextlib.suppress(Exception):
        results = walk.widened(program, jax.tree.leaves(q))
        return results[len(results) - len(q.inputs) :]
    return None


def _off(own: list[Any], other: list[Any]) -> list[float | None]:
    """How far cotangents are from others, by input, as a part of their size."""
    return [
        float(np.linalg.norm(a - b) / size) if (size := np.linalg.norm(b)) else 0.0
        for a, b in ((np.asarray(x), np.asarray(y)) for x, y in zip(own, other, strict=True))
    ]


def _as_wide(own: Judgement, wide: Judgement, off: float | None, most: float, cast: casts.Cast) -> Judgement:
    """The judgement of a gradient of a function that computes in a narrow type inside, by its program in float64.

    `wide` is of the gradient itself, of which the narrow type explains an error of at most `most`; or, where `off` is
    given, of its formula in float64, from which the gradient is so far off.
    """
    if wide.verdict == "undecided" or not most < 0.5:
        return own
    if wide.verdict == "wrong" and (off is not None or not wide.error <= most):
        within = "" if off is not None else f"; {cast.dtype} explains an error of {most:.1g} at most"
        return wide._replace(why=f"in float64 throughout, {wide.why}{within}")
    if off is None:
        return wide._replace(verdict="narrow", why=f"as far as {cast.dtype} inside shows, to {most:.1g}, it is right")
    if off > most:
        return wide._replace(verdict="undecided", why=f"{cast.dtype} inside puts it {off:.1g} off what float64 gives")
    return wide._replace(verdict="narrow", why=f"right in float64 throughout; {cast.dtype} inside is {off:.0e} off")


def drawn_in_type(subject: Subject, q: Question, setting: Setting, source: Source) -> Source:
    """What to expect of a function that draws random numbers: what an oracle answers that drew the same ones.

    The noise of other draws tells its size alone. Raises `Unanswered` where no oracle draws in JAX.
    """
    second = TRANSFORMS[setting.transform].second
    oracle = next((oracle for oracle in subject.oracles if oracle.program is not None), None)
    if oracle is None:
        raise Unanswered(
            f"it draws random numbers, which are others in {setting.dtype} than in float64: give a reference in JAX"
        )
    with compared_in(setting.dtype):
        answer, nodes = oracle.pull(q, second)
    truth = Pulled(*([np.asarray(x, np.float64) if is_number(x) else x for x in part] for part in answer))
    noise = Pulled(
        *(
            [_of_size(n, t, x, setting.dtype) for n, t, x in zip(*parts, strict=True)]
            for parts in zip(source.expected.noise, source.expected.answer, truth, strict=True)
        )
    )
    return Source(oracle.name, Expected(truth, noise, source.expected.whole), nodes)


def _of_size(noise: Noise, other: np.ndarray, expected: np.ndarray, dtype: str) -> Noise:
    """Noise of the same size relative to an array, the same for every element."""
    if not is_number(expected) or not expected.size:
        return noise
    size = float(np.linalg.norm(noise.deviation)) / (float(np.linalg.norm(other)) or 1.0)
    even = np.full(expected.shape, size * float(np.max(np.abs(expected))))
    return floored(Noise(even, noise.samples, (1.0,), np.zeros(expected.shape, bool)), expected, dtype)


def noise_of(row: Transform, expected: Expected, q: Question, dtype: str) -> Pulled:
    """The noise of what a row expects: the oracle's own, or of forward mode that of the pairing."""
    if row.inputs is None:
        return expected.noise
    # The errors of the cotangents' elements, each times its direction's, as if they were independent; the sum of
    # their sizes stands for those that are not.
    parts = zip(q.directions, expected.noise.inputs, strict=True)
    total = np.asarray(sum(float(np.sum(np.abs(v) * noise.deviation)) for v, noise in parts))
    samples = expected.noise.inputs[0].samples
    return Pulled([], [], [floored(Noise(total, samples, (1.0,), np.zeros((), bool)), total, dtype)])


def calibration(subject: Subject, dtype: str, seed: int, whole: bool) -> dict[tuple[str, int], float]:
    """By how much the oracle's own error in a type exceeds the noise measured for it, from 1 to 8, by place.

    Where an engine rounds more than the program shows (sums in a narrow accumulator, a fast approximation), what it
    makes of the oracle is the size of what it makes of the function.
    """
    factors = subject.kept.calibrations.get((dtype, seed, whole))
    if factors is None:
        factors = subject.kept.calibrations[dtype, seed, whole] = {}
        with contextlib.suppress(Exception), compared_in(dtype):
            q = question(Asked(subject.hand, subject.call, dtype, seed, None))
            source = source_of(subject, q, dtype, False, (seed, FIRST), whole)
            if source.expected.narrow is not None:
                # Noise that was found by the oracle's own error is of its size.
                return factors
            native = next(o.pull(q, False)[0] for o in subject.oracles if o.name == source.name)
            for part in Pulled._fields:
                each = zip(
                    getattr(native, part),
                    getattr(source.expected.answer, part),
                    getattr(source.expected.noise, part),
                    strict=True,
                )
                for number, (own, truth, noise) in enumerate(each):
                    factors[part, number] = excess(own, truth, noise)
    return factors
