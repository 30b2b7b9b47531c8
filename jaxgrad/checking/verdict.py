"""One setting of a check: every engine's answer compared with what is expected, and who stands alone.

The order of things: the function under test runs as the setting says; an oracle says in float64 what should have come,
and how much noise the type's arithmetic makes of it; where they differ, noise that the function's own arithmetic has
is looked at too, and then the definition of the derivative. A setting in which the function, or nothing else, can be
asked ends as not judged, with the reason.
"""

import contextlib
import functools
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.checking import programs
from jaxgrad.checking.appeal import appealed, cast_of, without_conventions, without_fusion
from jaxgrad.checking.compare import MOST_UNJUDGED, compare, exact, floored, is_number, may_drown, scaled, stands_alone
from jaxgrad.checking.expected import expect
from jaxgrad.checking.findings import (
    ACCURACY,
    AGREES,
    DIFFERS,
    HAND,
    NOT_JUDGED,
    OF_A_LOOP,
    Finding,
    Setting,
    Tensor,
)
from jaxgrad.checking.oracles import Oracle
from jaxgrad.checking.oracles import jax as in_jax
from jaxgrad.checking.pullback import Pulled
from jaxgrad.checking.question import Question, numbers_of, widened
from jaxgrad.checking.sources import Unanswered, by_definition, forget_examples, own_by_definition
from jaxgrad.checking.subject import Subject, first_line, forward, given_tolerance, has_rules
from jaxgrad.checking.taylor import Judgement
from jaxgrad.checking.tensors import KINDS, Gathered, called_apart, gathered, of_a_call, tensors_of
from jaxgrad.checking.transforms import TRANSFORMS, Asked, Group, Transform, answered, question
from jaxgrad.errors import JaxgradError
from jaxgrad.jaxprs import casts, taps
from jaxgrad.settings import compared_in

# The largest share of a tensor's elements that may hang on a choice at a first look.
_MOST_LEFT = 1e-2


def begin(subject: Subject, setting: Setting, pool: Executor) -> None:
    """Have the function's programs of a setting compiled while another is judged.

    What goes wrong is left to `judge`, which comes to it again.
    """
    row, of = TRANSFORMS[setting.transform], _asked(subject, setting)
    with contextlib.suppress(Exception), compared_in(setting.dtype):
        for group in row.groups(of):
            for program in row.programs(group, of):
                programs.begin(program, pool)


def _asked(subject: Subject, setting: Setting) -> Asked:
    every = setting.transform not in subject.kept.batched
    return Asked(subject.hand, subject.call, setting.dtype, setting.seed, subject.shardings, every)


def judge(subject: Subject, setting: Setting, asked_for: bool) -> Finding:
    """What one setting shows. Where the function refuses, it is not judged, or wrong if it was `asked_for` by name."""
    forget_examples(subject)
    row, of = TRANSFORMS[setting.transform], _asked(subject, setting)
    if setting.transform == "jit" and (why := _not_linear(subject)):
        return _outcome(setting, (), DIFFERS, why, alone=HAND)
    try:
        with compared_in(setting.dtype):
            groups = row.groups(of)
            runs = [answered(row, group, of) for group in groups]
            names = _names(subject, row, groups[0].questions[0]) if groups else None
            called = _called(subject, setting, groups)
            if names is not None and subject.kept.unsteady is None:
                subject.kept.unsteady = _unsteady(runs[0][0], answered(row, groups[0], of)[0], names)
            subject.kept.batched.add(setting.transform)
    except JaxgradError:
        raise
    except Exception as error:
        return _refused(subject, setting, error, asked_for)
    if names is None:
        return _outcome(setting, (), AGREES, "no input has another size to be drawn in")
    if not subject.oracles and (setting.dtype, setting.transform) in (("float64", "jit"), ("float64", "grad_of_grad")):
        return _by_itself(subject, setting, groups[0], runs[0][0], names, called)
    try:
        looks = [_looked_at(subject, setting, *each, names, called) for each in zip(groups, runs, strict=True)]
    except Unanswered as unanswered:
        wrong = subject.kept.wrong
        if wrong is not None:
            name = next(name for name, j in wrong[HAND].items() if j.verdict == "wrong")
            return _outcome(setting, (), DIFFERS, str(unanswered), first=name, alone=HAND, taylor=wrong)
        return _outcome(setting, (), NOT_JUDGED, str(unanswered))
    found = _judged(subject, [asked for asked, _ in looks], tuple(tensor for _, seen in looks for tensor in seen))
    if found.outcome == AGREES and subject.kept.flaw is None:
        with compared_in(setting.dtype):
            subject.kept.flaw = _flaw(subject, groups[0].questions[0])
    return found


def _looked_at(
    subject: Subject, setting: Setting, group: Group, run: list[Pulled], names: Pulled, called: list[np.ndarray] | None
) -> tuple[Gathered, tuple[Tensor, ...]]:
    """A group beside what is expected of it, and its tensors: by a first look, or where that is not enough whole.

    It is enough too where all that differs is known to be wrong.
    """
    asked = gathered(subject, setting, group, run, names, called, whole=False)
    tensors = tuple(tensors_of(subject, asked))
    known = not all(t.agree for t in tensors) and _are_proven(subject, [asked], tensors)
    if not asked.source.expected.whole and not known and not _are_settled(tensors, setting.dtype):
        asked = gathered(subject, setting, group, run, names, called)
        tensors = tuple(tensors_of(subject, asked))
    return asked, tensors


def _are_settled(tensors: Sequence[Tensor], dtype: str) -> bool:
    """Whether nearly all was judged at a first look, agrees, and is far above its noise."""
    seen = [d for tensor in tensors for d in tensor.pairs.values()]
    return all(d.agrees and d.judged and d.unjudged <= _MOST_LEFT * d.size and not may_drown(d, dtype) for d in seen)


_TWO_FORWARDS = (
    "where a gradient is taken, a custom rule's own forward pass gives the output, and that is another than the"
    " function's"
)


def _of_two_forwards(outputs: Sequence[str], tensors: Sequence[Tensor], first: Tensor) -> list[str]:
    """That only one of the function's two forward passes is wrong, where they part."""
    alone = {of_a_call(name): name for name in outputs}
    if first.name in alone:
        return [_TWO_FORWARDS]
    if any(t.agree and alone.get(t.name) == first.name for t in tensors):
        return ["called without a gradient it agrees: what is wrong is a custom rule's own forward pass"]
    return []


def _called(subject: Subject, setting: Setting, groups: Sequence[Group]) -> list[np.ndarray] | None:
    """The outputs of the function called without a gradient; None where nothing but the function can give them."""
    if setting.transform != "jit" or not has_rules(subject):
        return None
    return in_jax.called(subject.hand, groups[0].questions[0])


def _forwards_apart(
    subject: Subject, setting: Setting, q: Question, run: Pulled, names: Pulled, called: list[np.ndarray]
) -> Tensor | None:
    """The first output that a call without a gradient gives otherwise, by more than the noise of float64."""
    for number in called_apart(called, run):
        noise = expect(functools.partial(in_jax.rounded, subject.hand, q, False), "float64").noise.outputs[number]
        limit = given_tolerance(subject, "float64")
        values = {HAND: called[number], "its rule": run.outputs[number]}
        d = compare(run.outputs[number], called[number], scaled(noise, 2**0.5), "float64", limit)
        if not d.agrees:
            name = of_a_call(names.outputs[number])
            return Tensor(name, "output", noise, limit is not None, values, {(HAND, "its rule"): d})
    return None


def _by_itself(
    subject: Subject, setting: Setting, group: Group, run: Pulled, names: Pulled, called: list[np.ndarray] | None
) -> Finding:
    """Without an oracle, float64 is judged by the definition of the derivative alone."""
    (q,) = group.questions
    tensors = tuple(
        Tensor(name, kind, floored(exact(value), value, "float64"), False, {HAND: np.asarray(value)}, {})
        for part, kind in KINDS.items()
        for name, value in zip(getattr(names, part), getattr(run, part), strict=True)
    )
    second = TRANSFORMS[setting.transform].second
    with compared_in("float64"):
        apart = called and _forwards_apart(subject, setting, q, run, names, called)
        if apart:
            return _outcome(setting, (*tensors, apart), DIFFERS, _TWO_FORWARDS, first=apart.name)
        judged = by_definition(subject, q, second, {HAND: run.inputs})
    limit = given_tolerance(subject, "float64")
    left_out = {
        leaf.name
        for leaf, dx in zip(subject.call.of_kind("input"), run.inputs, strict=True)
        if leaf.plain and not np.any(dx)
    }
    of_hand = {name: j for name, j in judged[HAND].items() if name not in left_out}
    # A tolerance that was given is one for the slope, as long as f shows one at all.
    of_hand = {name: j for name, j in of_hand.items() if limit is None or not j.error <= limit}
    wrong = next((name for name, j in of_hand.items() if j.verdict == "wrong"), None)
    if second and wrong and not all(np.isfinite(dx).all() for dx in run.inputs) and (kinks := _kinks(subject, q)):
        return _outcome(setting, tensors, NOT_JUDGED, _no_second_order(kinks), taylor=judged)
    if wrong is not None:
        known: dict[str, Any] = {"first": wrong, "alone": HAND, "taylor": judged, "iterates": _iterates(subject, q)}
        return _outcome(setting, tensors, DIFFERS, "", **known)
    undecided = {name: j for name, j in of_hand.items() if j.verdict == "undecided"}
    unsure = [f"{name}: {j.why}" for name, j in undecided.items()]
    if unsure:
        if all(j.error < ACCURACY for j in undecided.values()) and _iterates(subject, q):
            unsure.append(f"perhaps {OF_A_LOOP}")
        return _outcome(setting, tensors, NOT_JUDGED, "the definition cannot tell: " + "; ".join(unsure), taylor=judged)
    told = [f"{name}: {j.why}" for name, j in of_hand.items() if j.verdict in ("kink", "narrow")]
    if any(j.verdict == "narrow" for j in of_hand.values()):
        with compared_in("float64"):
            cast = casts.narrowest(in_jax.program(subject.hand, q, second))
        told += [f"it computes in {cast.dtype} inside ({cast})"] if cast else []
    return _outcome(setting, tensors, AGREES, "; ".join(told), taylor=judged)


def _kinks(subject: Subject, q: Question) -> list[str]:
    """The inputs at which the function has a kink, by the definition of its first derivative."""
    with contextlib.suppress(Exception), compared_in("float64"):
        return [name for name, j in own_by_definition(subject, widened(q)).items() if j.verdict == "kink"]
    return []


def _no_second_order(kinks: Sequence[str]) -> str:
    return f"{', '.join(kinks)}: at a kink there is no second derivative, and it is not finite here"


def _outcome(setting: Setting, tensors: tuple[Tensor, ...], outcome: str, why: str, **rest: Any) -> Finding:
    known: dict[str, Any] = {"taylor": {}, "first": None, "alone": None, "passed": outcome == AGREES}
    return Finding(setting, tensors, outcome=outcome, why=why, **{**known, **rest})


def _unsteady(once: Pulled, again: Pulled, names: Pulled) -> str:
    """That one call gave two answers, in a sentence; nothing where the two are the same bits."""
    for part, kind in KINDS.items():
        for name, a, b in zip(getattr(names, part), getattr(once, part), getattr(again, part), strict=True):
            if not np.array_equal(a, b, equal_nan=is_number(a)):
                gap = np.abs(np.asarray(a, np.complex128) - np.asarray(b, np.complex128))
                what = name if kind == "output" else f"the cotangent of {name}"
                return (
                    f"it is not deterministic: called twice with the same arguments, it gives two answers, and {what}"
                    f" differs by {np.nanmax(gap):.3g} at most"
                )
    return ""


def _flaw(subject: Subject, q: Question) -> tuple[str, str]:
    """An oracle that contradicts itself, with a sentence; two empty strings where none does."""
    for oracle in subject.oracles:
        if flaw := oracle.flaw(q):
            return oracle.name, flaw
    return "", ""


# What JAX says where a traced number stands in the place of a Python value.
_TRACED = ("Tracer", "Non-hashable static", "nondiff_argnums", "Concret")


def _refused(subject: Subject, setting: Setting, error: Exception, asked_for: bool) -> Finding:
    """The function raised: whose fault that is, and what leaves the setting out."""
    said = first_line(error)
    rule = _not_linear(subject)
    if rule:
        return _outcome(setting, (), DIFFERS, f"{rule} JAX says: {said}", alone=HAND)
    bad_rule = _says_rule(str(error))
    why = (
        f"the function's own rule is at fault, in {setting}: JAX says {said}"
        if bad_rule
        else f"the function refuses {setting.dtype} under {setting.transform}: it says {said}"
    )
    option = f"leave it out with {'vary=, ' if setting.sizes else ''}dtypes= or transforms= ({setting})"
    if any(words in f"{type(error).__name__}: {error}" for words in _TRACED):
        option = "if an argument is an option and no array, name it in static_argnums=, or bind it by functools.partial"
    outcome = DIFFERS if asked_for or bad_rule else NOT_JUDGED
    return _outcome(setting, (), outcome, f"{why}; {option}", alone=HAND if bad_rule else None)


def _not_linear(subject: Subject) -> str:
    """That a rule of `jax.custom_jvp` is not linear in its tangents, in a sentence; nothing where it is.

    JAX transposes such a rule as if it were linear: it fails with words of its own, or drops what is not.
    """
    if subject.kept.not_linear is None:
        subject.kept.not_linear = ""
        for dtype in ("float64", "float32"):
            with contextlib.suppress(Exception), compared_in(dtype):
                subject.kept.not_linear = _tangents_not_linear(subject, dtype)
                break
    return subject.kept.not_linear


def _tangents_not_linear(subject: Subject, dtype: str) -> str:
    if not casts.has_custom_jvp(forward(subject, dtype)):
        return ""
    q = question(Asked(subject.hand, subject.call, dtype, 0, None), along=True)

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


def _names(subject: Subject, row: Transform, q: Question) -> Pulled:
    inputs = [leaf.name for leaf in subject.call.of_kind("input")]
    if row.inputs is not None:
        return Pulled([], [], list(row.inputs))
    if row.second:
        return Pulled([], [], inputs)
    return Pulled(in_jax.names_of_outputs(subject.hand, q), in_jax.node_names(subject.hand, q), inputs)


def _judged(subject: Subject, asked: Sequence[Gathered], tensors: tuple[Tensor, ...]) -> Finding:
    """Who is wrong and where, or why nothing can be said."""
    setting = asked[0].setting
    notes: list[str] = []
    judged: dict[str, dict[str, Judgement]] = {}
    if not all(t.agree for t in tensors):
        if setting.dtype == "float64" and setting.transform in ("jit", "grad_of_grad"):
            judged = _defined(subject, asked[0], tensors)
            _prove(subject, asked[0].row.second, tensors, judged)
        tensors, notes = appealed(subject, asked, tensors, _are_proven(subject, asked, tensors))
    if setting.transform == "reach" and not all(t.agree for t in tensors):
        for other in (without_fusion, without_conventions):
            tensors, more = other(subject, asked, tensors)
            notes += more
    tensors, astray = _without_oracles_astray(setting, tensors)
    notes += astray
    first = next((t for t in tensors if not t.agree), None)
    infinite = asked[0].row.second and any(d.not_finite or d.both_nan for t in tensors for d in t.pairs.values())
    if infinite and (kinks := _kinks(subject, asked[0].group.questions[0])):
        return _outcome(setting, tensors, NOT_JUDGED, _no_second_order(kinks))
    alone = stands_alone(first.pairs) if first else None
    if first is not None and alone is None:
        wrong = [engine for engine, of in judged.items() if any(j.verdict == "wrong" for j in of.values())]
        alone = wrong[0] if len(wrong) == 1 else _only_differing(subject, first)
    if first is not None:
        notes += _of_mesh(subject, setting)
        notes += _of_two_forwards(asked[0].names.outputs, tensors, first)
        iterates = _iterates(subject, asked[0].group.questions[0])
        known: dict[str, Any] = {"first": first.name, "alone": alone, "taylor": judged, "iterates": iterates}
        return _outcome(setting, tensors, DIFFERS, "; ".join(notes), **known)
    nan = next(((t, d.both_nan) for t in tensors for d in t.pairs.values() if d.both_nan), None)
    if nan and subject.nan != "equal" and setting.transform != "reach":
        why = f"{nan[0].name} is not a number in every engine, {nan[1]}; if that is meant, give nan='equal'"
        return _outcome(setting, tensors, DIFFERS, why, first=nan[0].name)
    unjudged = [why for t in tensors if (why := _why_not_judged(t, setting))]
    # Far from usual numbers much may drown; what is left is worth its verdict.
    if unjudged and (setting.transform != "reach" or len(unjudged) == len(tensors)):
        return _outcome(setting, tensors, NOT_JUDGED, "; ".join([*unjudged, *notes]))
    notes += _unseen_taps(subject, setting, asked[0].group.questions[0])
    return _outcome(setting, tensors, AGREES, "; ".join([*notes, *(t.note for t in tensors if t.note)]))


def _without_oracles_astray(setting: Setting, tensors: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], list[str]]:
    """The tensors without oracles that are off in a narrow type where the function is not, and who they are.

    What is right there, float64 says: an oracle that loses it in its own arithmetic is no fault of the function.
    """
    if setting.dtype == "float64":
        return tensors, []
    found, astray = [], {}
    for t in tensors:
        off = {pair: d for pair, d in t.pairs.items() if HAND not in pair and not d.agrees and d.not_finite is None}
        right = all(d.agrees for pair, d in t.pairs.items() if HAND in pair)
        if off and right:
            astray.update({engine: f"{d.relative:.2g} of {t.name}" for (engine, _), d in off.items()})
            t = t._replace(pairs={pair: d for pair, d in t.pairs.items() if pair not in off})
        found.append(t)
    told = [f"{engine} itself is off in {setting.dtype}, by {size}" for engine, size in astray.items()]
    return tuple(found), told


# A difference of at least this part of one that was proven to be a mistake is the same mistake.
_SAME = 0.5


def _prove(
    subject: Subject, second: bool, tensors: Sequence[Tensor], judged: Mapping[str, Mapping[str, Judgement]]
) -> None:
    """Keep by how much the inputs are off that are wrong by the definition of the derivative, in whichever engine."""
    wrong = {name for of_engine in judged.values() for name, j in of_engine.items() if j.verdict == "wrong"}
    off = (t for t in tensors if not t.agree and t.kind == "input" and t.name in wrong)
    subject.kept.proven.update({(second, t.name): _off(t) for t in off})


def _are_proven(subject: Subject, asked: Sequence[Gathered], tensors: Sequence[Tensor]) -> bool:
    """Whether all tensors that do not agree are known to be wrong."""
    return all(t.agree or _is_proven(subject, asked, t) for t in tensors)


def _is_proven(subject: Subject, asked: Sequence[Gathered], tensor: Tensor) -> bool:
    """Whether a tensor differs from the function's alone, as an input does that is wrong by definition."""
    proven, second = subject.kept.proven, asked[0].row.second
    names = {tensor.name.removesuffix(f" ({one.group.label})") for one in asked}
    known = [proven[second, name] for name in names if (second, name) in proven]
    of_hand = all(d.agrees or HAND in pair for pair, d in tensor.pairs.items())
    return bool(tensor.kind == "input" and known and of_hand and _off(tensor) >= _SAME * min(known))


def _off(tensor: Tensor) -> float:
    """How far the function's array is from another, as a part of its size."""
    return max(d.relative for pair, d in tensor.pairs.items() if HAND in pair)


def _unseen_taps(subject: Subject, setting: Setting, q: Question) -> list[str]:
    """That nodes were marked where no check can see them."""
    if setting.transform != "jit":
        return []
    with contextlib.suppress(Exception), compared_in(setting.dtype):
        if names := taps.unseen(subject.hand, q.inputs, q.carried):
            return [
                f"nodes marked inside a while_loop, cond, shard_map or custom rule are not compared: {', '.join(names)}"
            ]
    return []


def _of_mesh(subject: Subject, setting: Setting) -> list[str]:
    """What is often forgotten where a function is split over devices."""
    if setting.transform == "sharded":
        return ["split over the mesh it gives something else than whole: perhaps a psum over the mesh is missing"]
    with contextlib.suppress(Exception), compared_in("float64"):
        q = question(Asked(subject.hand, subject.call, "float64", setting.seed, None))
        if casts.holds(in_jax.program(subject.hand, q, False), ("shard_map",)):
            return ["it holds a shard_map: perhaps a psum over its mesh is missing"]
    return []


def _iterates(subject: Subject, q: Question) -> bool:
    """Whether the function or an oracle in JAX holds a loop that ends when a condition is met."""
    q = widened(q)
    for fn in (subject.hand, *(oracle.program for oracle in subject.oracles if oracle.program is not None)):
        with contextlib.suppress(Exception), compared_in("float64"):
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
            most = f", {d.hidden:.0%} of its 2-norm," if d.unjudged <= MOST_UNJUDGED * d.size else ""
            return f"{d.unjudged} of {d.size} elements of {tensor.name}{most} hang on a choice that rounding flips"
    return ""


def _defined(subject: Subject, asked: Gathered, tensors: tuple[Tensor, ...]) -> dict[str, dict[str, Judgement]]:
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
        with compared_in("float64"):
            judged = by_definition(subject, widened(asked.group.questions[0]), asked.row.second, gradients)
        return judged | {o.name: _in_its_type(asked, o, judged[o.name]) for o in subject.oracles if o.name in judged}
    except Exception:
        # A function that cannot be moved along a line, such as one that checks its arguments, is judged without.
        return {}


def _in_its_type(asked: Gathered, oracle: Oracle, judged: Mapping[str, Judgement]) -> dict[str, Judgement]:
    """What the definition says of an oracle, which may compute in a narrower type inside although f does not."""
    cast = cast_of(oracle, asked) if any(j.verdict == "wrong" for j in judged.values()) else None
    if cast is None:
        return dict(judged)
    # A few roundings of that type, as far as the slope along a random direction shows them.
    most = 64 * float(jnp.finfo(cast.dtype).eps)
    told = f"it computes in {cast.dtype} inside ({cast}), and as far as that shows the gradient is right"
    return {
        name: j._replace(verdict="narrow", why=told) if j.verdict == "wrong" and j.error <= most else j
        for name, j in judged.items()
    }
