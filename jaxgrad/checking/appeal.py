"""Differences looked at again: what the function's own arithmetic, or a kink at an edge, explains of them."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import jax.numpy as jnp
import numpy as np

from jaxgrad.checking.expected import Expected, combined, exactly, measured
from jaxgrad.checking.findings import (
    TRUTH,
    Tensor,
)
from jaxgrad.checking.oracles import Oracle
from jaxgrad.checking.oracles import jax as in_jax
from jaxgrad.checking.pullback import Pulled
from jaxgrad.checking.question import Question, widened
from jaxgrad.checking.sources import noise_of, own_by_definition, source_of
from jaxgrad.checking.subject import Subject, forward, own_oracle
from jaxgrad.checking.tensors import Gathered, joined, stacked_noise, tensors_of
from jaxgrad.jax_seam import ClosedJaxpr
from jaxgrad.jaxprs import casts
from jaxgrad.settings import compared_in


def appealed(
    subject: Subject, asked: Sequence[Gathered], tensors: tuple[Tensor, ...], hopeless: bool = False
) -> tuple[tuple[Tensor, ...], list[str]]:
    """The tensors judged again with what the function's own arithmetic adds, where that explains their differences.

    Where it is `hopeless`, because they are known to be mistakes, nothing is measured.

    Nothing is explained by a narrower type that the backward pass alone computes in: that is a choice of the rule, and
    not the function's. First comes the noise that its own program has, measured as the oracle's is: another right
    formula may round more. Then, in float64, that of a narrower type that it computes in. Neither hides a mistake
    larger than such noise.
    """
    if asked[0].setting.transform != "reach" and any(d.not_finite for t in tensors for d in t.pairs.values()):
        return tensors, []
    only = _only_backward(subject, asked[0])
    if only is not None:
        return tensors, [f"its backward pass computes in {only.dtype} ({only}), and its forward pass does not"]
    notes: list[str] = []
    for dtype, note in () if hopeless else _narrower(subject, asked[0]):
        noises = [_own_noise(subject, one, dtype) for one in asked]
        if None in noises:
            continue
        again = [
            tensor
            for one, noise in zip(asked, noises, strict=True)
            if noise is not None
            for tensor in tensors_of(subject, one._replace(noise=noise))
        ]
        explained = [new if new.agree and not old.agree else old for old, new in zip(tensors, again, strict=True)]
        if note and note not in notes and any(new is not old for old, new in zip(tensors, explained, strict=True)):
            notes.append(note)
        tensors = tuple(explained)
        if all(t.agree for t in tensors):
            break
    return tensors, notes


def _only_backward(subject: Subject, asked: Gathered) -> casts.Cast | None:
    """Where the function's backward pass computes in a type that is narrower than that of a setting and of its forward.

    None where it does not, or where JAX cannot tell.
    """
    with contextlib.suppress(Exception):
        inside = cast_of(own_oracle(subject), asked)
        if inside is None or _eps(inside.dtype) <= _eps(asked.setting.dtype):
            return None
        with compared_in("float64"):
            own = casts.narrowest(forward(subject, "float64"))
        return inside if own is None or _eps(own.dtype) < _eps(inside.dtype) else None
    return None


def _eps(dtype: str) -> float:
    return float(jnp.finfo(dtype).eps)


def _narrower(subject: Subject, asked: Gathered) -> Iterator[tuple[str, str]]:
    """The types whose noise may explain a difference, each with what to say of it."""
    setting = asked.setting
    if setting.dtype != "float64":
        yield setting.dtype, ""
        return
    inside = []
    for oracle in (own_oracle(subject), *subject.oracles):
        cast = cast_of(oracle, asked)
        if cast is not None and cast.dtype in ("float32", "bfloat16", "float16"):
            inside.append((cast.dtype, f"{_who(subject, oracle)} computes in {cast.dtype} inside ({cast}), {_JUDGED}"))
        elif (number := _of_pullback(oracle, asked, casts.written_in_float32)) is not None:
            told = f"{_who(subject, oracle)} has a number in {number.dtype} ({number}), {_JUDGED}"
            inside.append((number.dtype, told))
    # The noise of its own program has the roundings of the type inside, where JAX can tell.
    yield setting.dtype, inside[0][1] if inside else ""
    yield from inside


_JUDGED = "and was judged as that"


def _who(subject: Subject, oracle: Oracle) -> str:
    return subject.name if oracle.name == TRUTH else oracle.name


def cast_of(oracle: Oracle, asked: Gathered) -> casts.Cast | None:
    """Where an oracle's program first computes in a narrower type than float64, if JAX can tell."""
    return _of_pullback(oracle, asked, casts.narrowest)


def _of_pullback(
    oracle: Oracle, asked: Gathered, look: Callable[[ClosedJaxpr], casts.Cast | None]
) -> casts.Cast | None:
    """What is found in an oracle's program, if it has one that can be traced: some take nothing but what is split."""
    fn = oracle.program
    if fn is None:
        return None
    with contextlib.suppress(Exception), compared_in("float64"):
        return look(in_jax.program(fn, widened(asked.group.questions[0]), asked.row.second))
    return None


def _own_noise(subject: Subject, asked: Gathered, dtype: str) -> Pulled | None:
    """The noise of every engine's own program together; None where the function's cannot be followed."""
    noises = []
    for q, name in zip(asked.group.questions, asked.group.examples, strict=True):
        oracle = source_of(subject, q, dtype, asked.row.second, (asked.setting.seed, name)).expected
        both = oracle.noise
        try:
            for engine in (own_oracle(subject), *subject.oracles):
                # The one that was measured already kept its sums in the wide type, as 16-bit types may not.
                if engine.samples is not None and (engine.name != asked.source.name or _is_narrow(dtype)):
                    both = _with_noise_of(engine, both, asked, widened(q), dtype)
        except Exception:
            return None
        noises.append(noise_of(asked.row, Expected(oracle.answer, both), widened(q), dtype))
    return joined(noises, stacked_noise)


def _is_narrow(dtype: str) -> bool:
    return _eps(dtype) > _eps("float32")


def _with_noise_of(engine: Oracle, noise: Pulled, asked: Gathered, q: Question, dtype: str) -> Pulled:
    """Noise, and that of an engine's program. Nodes stand in each program's own order, and it need not have all."""
    assert engine.samples is not None
    with compared_in("float64"):
        sampled = engine.samples(q, asked.row.second)
        # A program of JAX's own may keep the sums of reductions in its type; torch's never do.
        own = measured(sampled, exactly(sampled), dtype, narrow=True)
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


def without_fusion(
    subject: Subject, asked: Sequence[Gathered], tensors: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], list[str]]:
    """The tensors of a function that is not finite among inputs drawn for it only because XLA fused what it computes.

    A fused program computes a number twice where that is faster, and rounds it in two ways: of 1e18 and its own maximum
    the difference is then no longer 0 or less, and its exponential overflows.
    """
    spared: list[str] = []
    again: list[Tensor] = []
    for one in asked:
        told = [t for t in tensors if t.name.endswith(f" ({one.group.label})")]
        if any(d.not_finite for t in told for d in t.pairs.values()):
            with contextlib.suppress(Exception), compared_in(one.setting.dtype):
                apart = in_jax.step_by_step(subject.hand, one.group.questions[0])
                other = tensors_of(subject, one._replace(hand=apart))
                if all(t.agree for t in other):
                    told = other
                    spared.append(one.group.label)
        again += told
    if not spared:
        return tensors, []
    return tuple(again), [f"fused it is not finite at inputs that are {', '.join(spared)}; step by step it is right"]


def without_conventions(
    subject: Subject, asked: Sequence[Gathered], tensors: tuple[Tensor, ...]
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
        again += tensors_of(subject, one._replace(noise=one.noise._replace(inputs=inputs)))
    if not spared:
        return tensors, []
    return tuple(again), [f"at 0 the cotangent of {', '.join(spared)} is another subgradient than the oracle's"]


def _kink(subject: Subject, asked: Gathered, number: int, at: tuple[int, ...]) -> bool:
    """Whether the function's cotangent of one input that is 0 is right, or a subgradient, where no other input is 0."""
    q = widened(asked.group.questions[0])
    inputs = [np.where(x == 0, 2.0**-10, x) for x in q.inputs]
    inputs[number][at] = 0.0
    try:
        with compared_in("float64"):
            judged = own_by_definition(subject, q._replace(inputs=inputs))
    except Exception:
        return False
    return judged[subject.call.of_kind("input")[number].name].verdict in ("kink", "right")
