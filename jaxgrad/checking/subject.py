"""What is asked about: a function under test with its call, its oracles and the answers that settings share."""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from jaxgrad.checking.findings import (
    TRUTH,
)
from jaxgrad.checking.oracles import Oracle
from jaxgrad.checking.oracles.jax import Function, jax_oracle
from jaxgrad.checking.question import Call, shaped
from jaxgrad.checking.taylor import Judgement
from jaxgrad.jaxprs import casts
from jaxgrad.settings import compared_in


@dataclasses.dataclass
class Kept:
    """What was found out about a function in one setting and holds in others; None where it was not yet asked.

    `batched` are the transformations that were run in every pattern of batched arguments. `ruled` says whether the
    function has custom rules, and so a forward pass of its own where it is differentiated. In a sentence each, empty
    where all is well, `not_linear` says that a rule of `jax.custom_jvp` is not linear, `unsteady` that one call gives
    two answers, and `unaccepted` why the function cannot stand in for an oracle. `flaw` names an oracle that
    contradicts itself, with a sentence, or is two empty ones. `wrong` is what the definition says of a gradient that it
    rejects; `proven` is, by order and name, how far cotangents of inputs are off that it rejects, as a part of their
    size. `answered` are the oracles that did, and `refused` says what others said. `sources` and `calibrations` are by
    question.
    """

    batched: set[str] = dataclasses.field(default_factory=set)
    draws: bool | None = None
    ruled: bool | None = None
    not_linear: str | None = None
    unsteady: str | None = None
    unaccepted: str | None = None
    flaw: tuple[str, str] | None = None
    wrong: dict[str, dict[str, Judgement]] | None = None
    proven: dict[tuple[bool, str], float] = dataclasses.field(default_factory=dict)
    answered: set[str] = dataclasses.field(default_factory=set)
    refused: dict[str, str] = dataclasses.field(default_factory=dict)
    sources: dict[Any, Any] = dataclasses.field(default_factory=dict)
    calibrations: dict[Any, dict[tuple[str, int], float]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Subject:
    """A function under test with everything that is asked of it.

    `kept` holds answers that several settings need: the same examples come back in each.
    """

    name: str
    call: Call
    hand: Function
    oracles: tuple[Oracle, ...]
    tolerance: float | Mapping[str, float] | None
    nan: str
    shardings: Any
    sizes: str = ""
    kept: Kept = dataclasses.field(default_factory=Kept)


def given_tolerance(subject: Subject, dtype: str) -> float | None:
    """The caller's tolerance in a type; None where noise alone decides."""
    return subject.tolerance.get(dtype) if isinstance(subject.tolerance, Mapping) else subject.tolerance


def forward(subject: Subject, dtype: str) -> Any:
    """The jaxpr of the function itself, in a type; traced in the caller's context."""
    return jax.make_jaxpr(subject.hand)(*shaped(subject.call, dtype))


def draws_numbers(subject: Subject) -> bool:
    """Whether the function draws random numbers from a key, which are others in float64 than in a narrower type."""
    if subject.kept.draws is None:
        subject.kept.draws = _holds(subject, ("random_bits", "threefry2x32"))
    return subject.kept.draws


def has_rules(subject: Subject) -> bool:
    """Whether the function has custom rules: where it is differentiated, another program gives its outputs then."""
    if subject.kept.ruled is None:
        subject.kept.ruled = _holds(subject, casts.CUSTOM_RULES)
    return subject.kept.ruled


def _holds(subject: Subject, names: tuple[str, ...]) -> bool:
    for dtype in ("float64", "float32", "bfloat16"):
        with contextlib.suppress(Exception), compared_in(dtype):
            return casts.holds(forward(subject, dtype), names)
    return False


def own_oracle(subject: Subject) -> Oracle:
    return jax_oracle(TRUTH, subject.hand)


def first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if any(map(str.isalnum, line))]
    # What was raised while the program ran comes with a traceback, and ends in its message.
    told = lines[-1] if lines and "Traceback" in lines[0] else lines[0] if lines else "(no message)"
    return f"{type(error).__name__}: {told[:300]}"
