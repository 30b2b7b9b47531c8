"""The line of a function's own rule that a failed check blames, for whoever reads the failure beside the source.

Every `jax.custom_vjp` that the function calls is met while it runs on a question's arguments. The rule whose cotangents
are farthest from those of its primal, differentiated by JAX, is the wrong one, and the line is that which makes the
wrong cotangent.
"""

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import jax_seam
from jaxgrad.checking.findings import Report
from jaxgrad.checking.oracles import jax as in_jax
from jaxgrad.checking.oracles.jax import Function
from jaxgrad.checking.question import Question, applied, call
from jaxgrad.checking.taylor import random_direction
from jaxgrad.checking.three_way import with_sizes
from jaxgrad.checking.transforms import Asked, question
from jaxgrad.mutation.program import Place, Program, results, rule_of, trace, trace_pullback
from jaxgrad.settings import compared_in


class _Rule(NamedTuple):
    """A custom rule that was met, and what it was called with."""

    rule: Any
    args: tuple[Any, ...]


class _Suspect(NamedTuple):
    """A cotangent that a rule makes: how far it is from what it should be, relative to it, and where it is made."""

    distance: float
    place: Place


def wrong_line(
    report: Report, fn: Callable[..., Any], *args: Any, kwargs: Any = None, static_argnums: Any = (),
    no_gradient: Any = (), domains: Any = "normal", **others: Any,
) -> Place | None:  # fmt: skip
    """The line that a failed check of `fn` blames; its options are those of `check`, most of which say nothing here.

    It is one of a rule's backward pass where a cotangent is wrong, of what makes the output where that is, and else
    the function's first. None where no line is known, and where the report has not failed.
    """
    found = wrong_rule(
        report, fn, *args, kwargs=kwargs, static_argnums=static_argnums, no_gradient=no_gradient, domains=domains
    )
    return _first_line(fn) if found is None and not all(f.passed for f in report.findings) else found


def wrong_rule(
    report: Report, fn: Callable[..., Any], *args: Any, kwargs: Any = None, static_argnums: Any = (),
    no_gradient: Any = (), domains: Any = "normal", **others: Any,
) -> Place | None:  # fmt: skip
    """The line of a rule's backward pass, or of what makes an output, that a failed check of `fn` blames, or None.

    A rule is blamed only if its cotangents are farther from those of its primal than rounding takes them.
    """
    finding = next((f for f in report.findings if not f.passed), None)
    if finding is None:
        return None
    # Only an explanation: what cannot be run again has its place nonetheless.
    with contextlib.suppress(Exception), compared_in(finding.setting.dtype):
        _, sized, sized_kwargs = next(with_sizes(args, dict(kwargs or {}), _sizes(finding.setting.sizes)))
        asked = call(fn, sized, sized_kwargs, static_argnums, no_gradient, domains)
        q = question(Asked(applied(fn, asked), asked, finding.setting.dtype, finding.setting.seed, None))
        hand = applied(fn, asked)
        if any(t.kind == "output" and t.name == finding.first for t in finding.tensors):
            return _of_output(hand, q, str(finding.first))
        suspects = [suspect for met in _rules(hand, q) for suspect in _suspects(met)]
        worst = max(suspects, key=lambda suspect: suspect.distance, default=None)
        # Rounding is a few units of the type's last place; half of its digits are more than that.
        if worst is not None and worst.distance > float(jnp.finfo(finding.setting.dtype).eps) ** 0.5:
            return worst.place
    return None


def _sizes(said: str) -> dict[str, tuple[int]]:
    """The one choice of `vary` that a setting was made with, from its words, such as "n=7, m=3"."""
    return {name: (int(size),) for name, _, size in (part.partition("=") for part in said.split(", ")) if size}


def _of_output(hand: Function, q: Question, name: str) -> Place | None:
    """The line that makes an output."""
    program = trace(lambda inputs: hand(inputs, q.carried), q.inputs).program
    at = in_jax.names_of_outputs(hand, q).index(name)
    return _made_at(program, list(program.outputs)[at])


def _rules(hand: Function, q: Question) -> list[_Rule]:
    """The rules that a function meets, each as it is first called, with numbers where JAX traces nothing around it.

    They are caught as they are called: of a rule inside a traced function JAX tells the line of the call alone.
    """
    met: dict[int, _Rule] = {}
    with jax_seam.noting_rules(lambda rule, args: met.setdefault(id(rule), _Rule(rule, args))), jax.disable_jit():
        hand(q.inputs, q.carried)
    return list(met.values())


def _suspects(met: _Rule) -> Iterator[_Suspect]:
    """Every cotangent that a rule makes, with its distance from that of the primal."""
    args = tuple(jax.tree.map(_concrete, arg) if _is_tree(arg) else arg for arg in met.args)
    rule = rule_of(met.rule, args, ())
    program, leaves = trace_pullback(met.rule, *args).program, jax.tree.leaves(rule.dynamic)
    dys = random_direction(jax.random.key(0), [program.shapes[slot] for slot in [*program.inputs][len(leaves) :]])
    made = results(program, [*leaves, *dys])
    plain = trace_pullback(lambda *dynamic: met.rule.__wrapped__(*rule.join(dynamic)), *rule.dynamic).program
    expected = results(plain, [*leaves, *dys])
    for name, wanted in expected.items():
        # A cotangent that is an input, such as the output's own, is made by no line, and None stands for zeros.
        value, at = (made[name], _made_at(program, name)) if name in made else (np.zeros_like(wanted), None)
        if (place := at or _first_line(met.rule.bwd)) is not None:
            yield _Suspect(_distance(np.asarray(value), np.asarray(wanted)), place)


def _is_tree(arg: Any) -> bool:
    return all(hasattr(leaf, "dtype") for leaf in jax.tree.leaves(arg))


def _concrete(leaf: Any) -> Any:
    """A number for what JAX was tracing."""
    if not isinstance(leaf, jax.core.Tracer):
        return leaf
    shape, dtype = leaf.shape, leaf.dtype
    if not jnp.issubdtype(dtype, jnp.inexact):
        return jnp.zeros(shape, dtype)
    return jax.random.normal(jax.random.key(leaf.size), shape, dtype)


def _made_at(program: Program, name: str) -> Place | None:
    """The line that makes one of a program's results; None where it is one of the inputs."""
    slot = program.outputs[name]
    place = next((step.place for step in reversed(program.steps) if slot in step.results), None)
    return place if place is not None and place.line else None


def _distance(value: np.ndarray, expected: np.ndarray) -> float:
    wide = expected.astype(np.complex128 if expected.dtype.kind == "c" else np.float64)
    gap = float(np.linalg.norm(value.astype(wide.dtype) - wide)) / (float(np.linalg.norm(wide)) or 1.0)
    return gap if math.isfinite(gap) else math.inf


def _first_line(fn: Any) -> Place | None:
    """The line on which a function, or the rule of a `jax.custom_jvp`, begins."""
    for one in (fn.jvp if isinstance(fn, jax.custom_jvp) else None, fn):
        code = None if one is None else getattr(inspect.unwrap(one), "__code__", None)
        # `defjvps` makes a rule of its own, whose lines are JAX's.
        if code is not None and not code.co_filename.startswith(str(jax.__path__[0])):
            return Place(code.co_filename, code.co_firstlineno, (code.co_name,), ())
    return None
