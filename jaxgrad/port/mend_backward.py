"""What would mend a wrong gradient of a function whose outputs are right.

A gradient that is stopped and should not be, one that should be and is not, and a custom rule in the place of the
derivative of what it computes. A change counts where all gradients then agree.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from jaxgrad import jax_seam
from jaxgrad.jax_seam import jaxpr_as_fun
from jaxgrad.port.jax_values import Op, Recorded
from jaxgrad.port.locate import Mend, Parted, Verdict
from jaxgrad.port.values import Place

# Each change is compiled anew, so only so many are tried.
_MOST = 16


class Change(NamedTuple):
    """The place of an operation, the change in words, and the operations in the place of others by their index."""

    place: Place
    words: str
    ops: dict[int, Op]


def mended(
    verdict: Verdict,
    parted: Parted,
    recorded: Recorded,
    suspects: Sequence[int],
    off: Callable[[Recorded], float | None],
) -> Verdict:
    """The verdict with the first change with which all gradients agree.

    Args:
        verdict: of the backward pass.
        parted: the two runs.
        recorded: the JAX program with its custom rules.
        suspects: values, by number, behind whose uses the gradients part.
        off: how far the gradients of a program are off, None where they do not agree.
    """
    for change in itertools.islice(_changes(parted, recorded, suspects), _MOST):
        ops = tuple(change.ops.get(k, op) for k, op in enumerate(recorded.program.ops))
        residual = off(recorded._replace(program=recorded.program._replace(ops=ops)))
        if residual is not None:
            mend = Mend(change.place, change.words, residual)
            lines = dict.fromkeys((*filter(None, (change.place.line,)), *verdict.region))
            return verdict._replace(jax=change.place, region=tuple(lines)[:4], mends=(mend,))
    return verdict


def _changes(parted: Parted, recorded: Recorded, suspects: Sequence[int]) -> Iterator[Change]:
    ops = recorded.program.ops
    for k, op in enumerate(ops):
        if op.name == "stop_gradient":
            yield Change(op.place, "the gradient should not be stopped", {k: op._replace(run=lambda x: [x[0]])})
    for k, op in enumerate(ops):
        if op.name.startswith("custom_") and (body := jax_seam.called(op.eqn)) is not None:
            words = "the rule should be the derivative of what is computed"
            yield Change(op.place, words, {k: op._replace(run=_primal(body))})
    values = parted.own.trace.values
    followed = list(dict.fromkeys(n for suspect in suspects for n in _moved(recorded, suspect)))
    for k, op in enumerate(ops):
        for side, n in enumerate(op.operands):
            if n in followed and not values[op.results[0]].moved:
                whose = values[n].place.brief
                yield Change(op.place, f"the gradient of {whose} should be stopped", {k: _stopped(op, side)})


def _moved(recorded: Recorded, number: int) -> list[int]:
    """A value and what is only moved from it."""
    found = [number]
    for op in recorded.program.ops:
        if op.operands and op.operands[0] in found and recorded.trace.values[op.results[0]].moved:
            found += op.results
    return found


def _primal(body: Any) -> Callable[[Sequence[Any]], list[Any]]:
    call = jaxpr_as_fun(body)
    return lambda x: list(call(*x))


def _stopped(op: Op, side: int) -> Op:
    def run(x: Sequence[Any]) -> list[Any]:
        return op.run([jax.lax.stop_gradient(y) if n == side else y for n, y in enumerate(x)])

    return op._replace(run=run)
