"""What a reader's derivative is held against: the right ones of a batch, and those with a known mistake."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.checking.compare import Scale, scale
from jaxgrad.models import mlp_backward
from jaxgrad.models.mlp import Gradients, Nodes, Params, forward
from jaxgrad.mutation.operators import used_steps
from jaxgrad.mutation.program import Program, results, trace
from jaxgrad.mutation.score import Mutant, mutants_of
from jaxgrad.parity import own_score
from jaxgrad.parity.cases import Case
from jaxgrad.parity.engines import roundings

NAMES = (*Nodes._fields, *Params._fields)


class Answers(NamedTuple):
    """One batch, in float64, by the names of its 20 nodes and 6 parameters.

    `right` are the derivatives by `jax.grad`, `scales` what a difference from them is measured against, `ours` the
    hand-written ones, and `primals` the values themselves. `programs` are our backward passes, node by node and in
    closed forms, to make mistakes in.
    """

    right: dict[str, np.ndarray]
    scales: dict[str, Scale]
    ours: dict[str, np.ndarray]
    primals: dict[str, np.ndarray]
    programs: tuple[Program, ...]
    inputs: tuple[Any, ...]


def answers(case: Case) -> Answers:
    """The answers for a case: every cotangent by `jax.grad` and by hand. Raises what `parity.engines.run` raises."""
    right, variance = (_by_name(tree) for tree in roundings(case, wide_sums=1.0))
    scales = {name: scale(right[name], variance[name]) for name in NAMES}
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        params, batch = jax.tree.map(jnp.asarray, (case.params, case.batch))
        programs = (
            trace(own_score.by_node, params, batch, starts=lambda place: place.file == mlp_backward.__file__).program,
            trace(mlp_backward.fused, params, batch, starts=own_score.in_rule).program,
        )
        inputs = tuple(jax.tree.leaves((params, batch)))
        ours = _by_name(jax.jit(own_score.by_node)(params, batch))
        primals = {**jax.jit(forward)(params, batch)._asdict(), **params._asdict()}
    return Answers(right, scales, ours, {name: np.asarray(x) for name, x in primals.items()}, programs, inputs)


def mistakes(known: Answers, name: str) -> Iterator[tuple[Mutant, np.ndarray]]:
    """What comes out for `name` with each mistake that can be made in deriving it from the right cotangents above."""
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        for program in known.programs:
            slot = _slots(program).get(name)
            if slot is not None:
                yield from _wrong_values(program, slot, _own_steps(program)[name], known.inputs)


def _wrong_values(
    program: Program, slot: int, own: set[int], inputs: tuple[Any, ...]
) -> Iterator[tuple[Mutant, np.ndarray]]:
    """The value in a slot with each mistake in its own steps; only what it depends on is run."""
    for mutant in mutants_of(program):
        if mutant.at in own:
            steps = (*program.steps[: mutant.at], mutant.step, *program.steps[mutant.at + 1 :])
            wrong = program._replace(steps=steps, outputs={"": slot})
            used = used_steps(wrong)
            pruned = wrong._replace(steps=tuple(step for at, step in enumerate(steps) if at in used))
            yield mutant, np.asarray(results(pruned, inputs)[""])


def is_sum_of_uses(known: Answers, name: str, mutant: Mutant) -> bool:
    """Whether the mutant's step is the one that adds up the cotangents of the uses of `name`."""
    node_by_node, _ = known.programs
    here = mutant.place.file == mlp_backward.__file__
    return here and mutant.operator == "an addend dropped" and _slots(node_by_node)[name] in mutant.step.results


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
    return {path.rpartition(".")[2]: slot for path, slot in program.outputs.items() if path != ".loss"}


def _by_name(gradients: Gradients) -> dict[str, np.ndarray]:
    return {
        name: np.asarray(x) for name, x in (*gradients.nodes._asdict().items(), *gradients.params._asdict().items())
    }
