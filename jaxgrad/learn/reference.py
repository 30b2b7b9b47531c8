"""What a reader's derivative is held against: the right ones of a batch, and those with a known mistake."""

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.checking.compare import Noise, scaled
from jaxgrad.jaxprs.taps import node_values
from jaxgrad.models.model import named
from jaxgrad.mutation.operators import stale_operand, used_steps
from jaxgrad.mutation.program import Program, Step, trace, values
from jaxgrad.mutation.score import Mutant, mutants_of
from jaxgrad.parity import own_score
from jaxgrad.parity.cases import Case, names
from jaxgrad.parity.engines import Gradients, measured
from jaxgrad.settings import compared_in


class Derivation(NamedTuple):
    """A backward pass of ours to make mistakes in: its program, and the value of every slot.

    `slots` say where the cotangent of each name is; `own` are the steps between it and the cotangents made before it.
    """

    program: Program
    values: dict[int, Any]
    slots: dict[str, int]
    own: dict[str, set[int]]


class Answers(NamedTuple):
    """The derivatives of a case, in float64, by the names of its model's nodes and parameters.

    Nodes inside of a scan are those of all its turns, stacked. `right` are the derivatives by `jax.grad`, `noise`
    gives for a type how far from them rounding takes an array of it, `ours` are the hand-written ones, and `primals`
    the values themselves. `derivations` are our backward passes, the first of them node by node.
    """

    case: Case
    right: dict[str, np.ndarray]
    noise: Callable[[str], dict[str, Noise]]
    ours: dict[str, np.ndarray]
    primals: dict[str, np.ndarray]
    derivations: tuple[Derivation, ...]


def answers(case: Case) -> Answers:
    """The answers for a case: every cotangent by `jax.grad` and by hand. Raises what `parity.engines.run` raises."""
    found = _by_name(measured(case, "float64").values)
    right = {name: found[name] for name in names(case.model, case.sizes, case.params, case.batch)}
    # Few readers use more than one type, and each type's noise is measured when it is first asked for.
    noise = functools.cache(functools.partial(_noise, case))
    with compared_in("float64"):
        params, batch = jax.tree.map(jnp.asarray, (case.params, case.batch))
        ways = {name: own_score.whole(case.model, case.sizes, name) for name in case.model.nodes}
        programs = tuple(
            trace(way, params, batch, starts=own_score.starts(case.model, name), turns=True).program
            for name, way in ways.items()
        )
        inputs = jax.tree.leaves((params, batch))
        derivations = tuple(Derivation(p, values(p, inputs), _slots(p), _own_steps(p)) for p in programs)
        ours = _by_name(jax.tree.map(np.asarray, jax.jit(next(iter(ways.values())))(params, batch)))
        nodes = jax.jit(lambda p, b: node_values(lambda p, b: case.model.loss(p, b, case.sizes), p, b))(params, batch)
        primals = {name: np.asarray(x) for name, x in {**nodes, **named(params)}.items() if name in right}
    return Answers(case, right, noise, ours, primals, derivations)


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
    node_by_node = known.derivations[0]
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
    like = known.derivations[min(derivation, len(known.derivations) - 1)]
    if name not in like.slots:
        return known.right[name]
    own = known.case.model.lesson.epsilon
    slots = {slot for backward in lines for slot in _epsilons(like.program, backward, own)} if own else ()
    above = {slot: like.values[slot] for other, slot in like.slots.items() if other != name and right_above}
    return _again(like, name, values={**above, **{slot: np.float64(epsilon) for slot in slots}})


def _epsilons(program: Program, backward: bool, epsilon: float) -> set[int]:
    """The slots that hold the epsilon of forward's lines, or of backward's."""
    used = (slot for step in program.steps if step.backward == backward for slot in step.operands)
    return {slot for slot in used if slot in program.constants and np.array_equal(program.constants[slot], epsilon)}


def _again(
    derivation: Derivation, name: str, steps: Mapping[int, Step] = {}, values: Mapping[int, Any] = {}
) -> np.ndarray:
    """The cotangent of `name` with other steps, or other values in slots; only what depends on them runs again."""
    program, slot = derivation.program, derivation.slots[name]
    changed = dict(values)
    with compared_in("float64"):
        for at in sorted(used_steps(program._replace(outputs={name: slot}))):
            step = steps.get(at, program.steps[at])
            if at in steps or not changed.keys().isdisjoint(step.operands):
                made = step.run(*(changed.get(operand, derivation.values[operand]) for operand in step.operands))
                changed.update(zip(step.results, made, strict=True))
                changed.update(values)  # a value that was given stays, although its own step ran again
        return np.asarray(changed.get(slot, derivation.values[slot]))


def is_sum_of_uses(known: Answers, name: str, mutant: Mutant) -> bool:
    """Whether the mutant's step is the one that adds up the cotangents of the uses of `name`."""
    node_by_node = known.derivations[0]
    here = mutant.place.file in known.case.model.hand
    made = _before_stacking(node_by_node.program, node_by_node.slots[name])
    return here and mutant.operator == "an addend dropped" and not made.isdisjoint(mutant.step.results)


def _before_stacking(program: Program, slot: int) -> set[int]:
    """The slots of single turns, where a slot is those of all turns of a scan, stacked; else the slot itself."""
    turns = program.stacks.get(slot)
    return {slot} if turns is None else set[int]().union(*(_before_stacking(program, turn) for turn in turns))


def _own_steps(program: Program) -> dict[str, set[int]]:
    """For every name the steps between it and the cotangents made before it; to stack those of turns is nobody's."""
    claimed = set[int]()
    maker = {slot: at for at, step in enumerate(program.steps) for slot in step.results}
    made = {name: _before_stacking(program, slot) for name, slot in _slots(program).items()}
    own = {}
    for name in sorted(made, key=lambda name: max(maker.get(slot, -1) for slot in made[name])):
        steps = {step for slot in made[name] for step in used_steps(program._replace(outputs={name: slot}))}
        own[name] = steps - claimed
        claimed |= steps
    return own


def _slots(program: Program) -> dict[str, int]:
    """Where the program keeps the cotangent of each name; its outputs are the paths of a `Gradients`."""
    return {
        re.sub(r"^\.params\.|^\.nodes\['|'\]$", "", path): slot
        for path, slot in program.outputs.items()
        if path != ".loss"
    }


def _by_name(gradients: Gradients) -> dict[str, Any]:
    return {**gradients.nodes, **named(gradients.params, lambda leaf: isinstance(leaf, Noise))}
