"""What a reader's derivative is held against: the right ones of a batch, and those with a known mistake."""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.checking.compare import Noise, scaled
from jaxgrad.models.mlp import backward
from jaxgrad.models.mlp.forward import EPS, Nodes, Params, forward
from jaxgrad.mutation.operators import stale_operand, used_steps
from jaxgrad.mutation.program import Program, Step, trace, values
from jaxgrad.mutation.score import Mutant, mutants_of
from jaxgrad.parity import own_score
from jaxgrad.parity.cases import Case
from jaxgrad.parity.engines import Gradients, measured

NAMES = (*Nodes._fields, *Params._fields)


class Derivation(NamedTuple):
    """A backward pass of ours to make mistakes in: its program, and the value of every slot.

    `slots` say where the cotangent of each name is; `own` are the steps between it and the cotangents made before it.
    """

    program: Program
    values: dict[int, Any]
    slots: dict[str, int]
    own: dict[str, set[int]]


class Answers(NamedTuple):
    """One batch, in float64, by the names of its 20 nodes and 6 parameters.

    `right` are the derivatives by `jax.grad`, `noise` gives for a type how far from them rounding takes an array of
    it, `ours` are the hand-written ones, and `primals` the values themselves. `derivations` are our backward passes,
    node by node and in closed forms.
    """

    right: dict[str, np.ndarray]
    noise: Callable[[str], dict[str, Noise]]
    ours: dict[str, np.ndarray]
    primals: dict[str, np.ndarray]
    derivations: tuple[Derivation, ...]


def answers(case: Case) -> Answers:
    """The answers for a case: every cotangent by `jax.grad` and by hand. Raises what `parity.engines.run` raises."""
    right = _by_name(measured(case, "float64").values)
    # Few readers use more than one type, and each type's noise is measured when it is first asked for.
    noise = functools.cache(functools.partial(_noise, case))
    with _wide():
        params, batch = jax.tree.map(jnp.asarray, (case.params, case.batch))
        ways = {name: own_score.whole(case.model, case.sizes, name) for name in ("by-node", "fused")}
        programs = tuple(
            trace(way, params, batch, starts=own_score.starts(case.model, name)).program for name, way in ways.items()
        )
        inputs = jax.tree.leaves((params, batch))
        derivations = tuple(Derivation(p, values(p, inputs), _slots(p), _own_steps(p)) for p in programs)
        ours = _by_name(jax.tree.map(np.asarray, jax.jit(ways["by-node"])(params, batch)))
        primals = {**jax.jit(forward)(params, batch)._asdict(), **params._asdict()}
    return Answers(right, noise, ours, {name: np.asarray(x) for name, x in primals.items()}, derivations)


def _noise(case: Case, dtype: str) -> dict[str, Noise]:
    """The noise of an array's difference from the right one, which in float64 has as much itself."""
    noise = _by_name(measured(case, dtype).noise)
    return {name: scaled(one, 2**0.5 if dtype == "float64" else 1.0) for name, one in noise.items()}


def mistakes(known: Answers, name: str) -> Iterator[tuple[Mutant, np.ndarray]]:
    """What comes out for `name` with each mistake that can be made in deriving it from the right cotangents above."""
    for derivation in known.derivations:
        for mutant in mutants_of(derivation.program) if name in derivation.slots else ():
            if mutant.at in derivation.own[name]:
                yield mutant, _again(derivation, name, steps={mutant.at: mutant.step})


def other_variables(known: Answers, name: str) -> Iterator[tuple[str, np.ndarray]]:
    """What comes out for `name` with any variable of the same shape in place of another, and the mistake in words.

    The mutants among `mistakes` try the likeliest only: those that were made last.
    """
    for derivation in known.derivations:
        for at in sorted(derivation.own.get(name, ())):
            for mistake in stale_operand(derivation.program, at, most=None):
                yield mistake.words, _again(derivation, name, steps={at: mistake.step})


def without_paths(known: Answers, name: str, through: tuple[str, ...]) -> np.ndarray:
    """What comes out for `name` if nothing comes back through the nodes `through`, as if they were constants."""
    node_by_node, _ = known.derivations
    stopped = {node_by_node.slots[node]: np.zeros_like(known.right[node]) for node in through}
    return _again(node_by_node, name, values=stopped)


# Where a reader's epsilon may be another: which derivation of ours is like the reader's, whether the lines are those of
# backward, of forward, or of both, and whether the cotangents above come from the right epsilon all the same.
EPSILONS = (
    (0, (True,), False),
    (0, (False,), False),
    (0, (False, True), False),
    (0, (False,), True),
    (1, (False,), True),
)


def with_epsilon(
    known: Answers, name: str, epsilon: float, derivation: int, lines: tuple[bool, ...], right_above: bool
) -> np.ndarray:
    """What comes out for `name` with another epsilon in one of the places of `EPSILONS`; the right one if in none."""
    like = known.derivations[derivation]
    if name not in like.slots:
        return known.right[name]
    slots = {slot for backward in lines for slot in _epsilons(like.program, backward)}
    above = {slot: like.values[slot] for other, slot in like.slots.items() if other != name and right_above}
    return _again(like, name, values={**above, **{slot: np.float64(epsilon) for slot in slots}})


def _epsilons(program: Program, backward: bool) -> set[int]:
    """The slots that hold the epsilon of forward's lines, or of backward's."""
    used = (slot for step in program.steps if step.backward == backward for slot in step.operands)
    return {slot for slot in used if slot in program.constants and np.array_equal(program.constants[slot], EPS)}


@contextlib.contextmanager
def _wide() -> Iterator[None]:
    """The types and the precision that answers are computed in, whatever the reader's settings are."""
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        yield


def _again(
    derivation: Derivation, name: str, steps: Mapping[int, Step] = {}, values: Mapping[int, Any] = {}
) -> np.ndarray:
    """The cotangent of `name` with other steps, or other values in slots; only what depends on them runs again."""
    program, slot = derivation.program, derivation.slots[name]
    changed = dict(values)
    with _wide():
        for at in sorted(used_steps(program._replace(outputs={name: slot}))):
            step = steps.get(at, program.steps[at])
            if at in steps or not changed.keys().isdisjoint(step.operands):
                made = step.run(*(changed.get(operand, derivation.values[operand]) for operand in step.operands))
                changed.update(zip(step.results, made, strict=True))
                changed.update(values)  # a value that was given stays, although its own step ran again
        return np.asarray(changed.get(slot, derivation.values[slot]))


def is_sum_of_uses(known: Answers, name: str, mutant: Mutant) -> bool:
    """Whether the mutant's step is the one that adds up the cotangents of the uses of `name`."""
    node_by_node, _ = known.derivations
    here = mutant.place.file == backward.__file__
    return here and mutant.operator == "an addend dropped" and node_by_node.slots[name] in mutant.step.results


def _own_steps(program: Program) -> dict[str, set[int]]:
    """For every name the steps between it and the cotangents made before it."""
    slots, claimed = _slots(program), set[int]()
    maker = {slot: at for at, step in enumerate(program.steps) for slot in step.results}
    own = {}
    for name in sorted(slots, key=lambda name: maker.get(slots[name], -1)):
        own[name] = used_steps(program._replace(outputs={name: slots[name]})) - claimed
        claimed |= own[name]
    return own


def _slots(program: Program) -> dict[str, int]:
    """Where the program keeps the cotangent of each name; its outputs are the paths of a `Gradients`."""
    return {re.findall(r"\w+", path)[-1]: slot for path, slot in program.outputs.items() if path != ".loss"}


def _by_name(gradients: Gradients) -> dict[str, Any]:
    return {**gradients.nodes, **gradients.params._asdict()}
