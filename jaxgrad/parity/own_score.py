"""This project's own backward passes, with one mistake at a time: does parity on a case notice every one?

Each mutant of every hand-written way to a model's gradients, and of the operations that it is made of, is compared in
float64 with `jax.grad`, within the measured noise of the latter: on cases whose parameters show mistakes, where every
mutant that is not equivalent must differ, and on the same cases with the zeros and ones of a usual initialisation,
which hide them. `rows` measures both.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import models
from jaxgrad.checking.compare import Difference, Noise, compare, scaled
from jaxgrad.checking.measure import Measured, measure, shaken
from jaxgrad.checking.taylor import random_direction
from jaxgrad.models.model import Model, Operation
from jaxgrad.mutation.program import Place, Program, results, trace, trace_pullback
from jaxgrad.mutation.score import Mutant, Score, mutants_of, score_on, survivors
from jaxgrad.parity import cases
from jaxgrad.parity.cases import Case
from jaxgrad.parity.engines import Gradients, measured
from jaxgrad.settings import compared_in

DRAWS = 20

# Of the model's `tiny` sizes, where there are any.
TINY_BATCH = TINY_VOCABULARY = 6


class Row(NamedTuple):
    """One backward pass: its mutants at the notebook's initialisation, and those that zeros and ones let live."""

    name: str
    score: Score
    hidden: tuple[Mutant, ...]


class _Subject(NamedTuple):
    """A backward pass as a program, and of a case its inputs and the expected results, by name, with their noise."""

    name: str
    program: Program
    inputs: Callable[[Case], list[Any]]
    expected: Callable[[Case], Measured]


def rows(chosen: Sequence[Case], draws: int = DRAWS) -> Iterator[Row]:
    """A row for every backward pass of the cases' model, judged on the cases, which are of the same sizes.

    Raises `JaxgradError` where a backward pass differs from `jax.grad` without a mistake in it.
    """
    with compared_in("float64"):
        for subject in _subjects(chosen[0]):
            drawn = (subject.inputs(_like(chosen[0], 100 + k)) for k in range(draws))
            score = score_on(subject.program, *_judged(subject, chosen), drawn)
            usual = [zeros_and_ones(case) for case in chosen if case.model.hiding is not None]
            hidden = survivors(subject.program, score.killed, *_judged(subject, usual)) if usual else ()
            yield Row(subject.name, score, hidden)


def shares(case: Case) -> list[float]:
    """How far each mutant of each backward pass is off on a case: the largest part of its limit that any result takes.

    Above 1 it differs. Those that only round otherwise, the equivalent ones, are among them.
    """
    found: list[float] = []
    with compared_in("float64"):
        for subject in _subjects(case):
            expected = subject.expected(case)
            differ = functools.partial(_differences, subject, expected)

            def noted(number: int, results: dict[str, Any], differ: Any = differ) -> bool:
                found.append(max(d.share if not d.not_finite else math.inf for d in differ(results)))
                return True

            at = len(found)
            survivors(subject.program, tuple(mutants_of(subject.program)), [subject.inputs(case)], noted)
            # The first is the program without a mistake.
            del found[at]
    return found


def zeros_and_ones(case: Case) -> Case:
    """The case with a usual initialisation, whose zeros and ones hide mistakes, instead of the one that shows them."""
    hiding = case.model.hiding
    return case if hiding is None else case._replace(name=f"{case.name}, zeros and ones", params=hiding(case.params))


def _like(case: Case, seed: int) -> Case:
    """Another case of the same sizes."""
    rows, sizes = len(case.batch.Y), dataclasses.asdict(case.sizes)
    return cases.random_case(seed, rows, case.vocab_size, case.model.name, **sizes)


def _judged(subject: _Subject, chosen: Sequence[Case]) -> tuple[list[list[Any]], Callable[[int, dict[str, Any]], bool]]:
    """The cases' inputs, and whether results agree with what `jax.grad` says of them."""
    expected = [subject.expected(case) for case in chosen]

    def agrees(number: int, results: dict[str, Any]) -> bool:
        return all(d.agrees for d in _differences(subject, expected[number], results))

    return [subject.inputs(case) for case in chosen], agrees


def _differences(subject: _Subject, expected: Measured, results: dict[str, Any]) -> Iterator[Difference]:
    """How each result differs from what is expected of it."""
    right, noise = expected
    for name in subject.program.outputs:
        # Both sides are rounded.
        yield compare(right[name], np.asarray(results[name]), scaled(noise[name], 2**0.5), "float64")


def _subjects(like: Case) -> Iterator[_Subject]:
    params, batch = _arrays(like)
    for name in like.model.nodes:
        way = whole(like.model, like.sizes, name)
        program = trace(way, params, batch, starts=starts(like.model, name), turns=True).program
        yield _Subject(shown(name), program, lambda case: jax.tree.leaves(_arrays(case)), _jax_grad)
    for name, operation in like.model.operations.items():
        args = operation.arguments(params, batch)
        program, plain = (trace_pullback(fn, *args).program for fn in (operation.op, _first(operation.forward)))
        # A cotangent of the output as any next operation may give it, the same in every case.
        dys = random_direction(jax.random.key(1), [program.shapes[slot] for slot in [*program.inputs][len(args) :]])

        def inputs(case: Case, operation: Operation = operation, dys: Any = dys) -> list[Any]:
            return [*operation.arguments(*_arrays(case)), *dys]

        yield _Subject(name, program, inputs, _of_plain(plain, inputs))


def _of_plain(plain: Program, inputs: Callable[[Case], list[Any]]) -> Callable[[Case], Measured]:
    run = shaken(lambda *leaves: results(plain, leaves))
    return lambda case: measure(run, "float64", *inputs(case))


def whole(model: Model, sizes: Any, name: str) -> Callable[[Any, Any], Gradients]:
    """A hand-written way, with the forward pass that it needs."""
    return lambda params, batch: Gradients(*model.nodes[name](params, batch, sizes))


def starts(model: Model, name: str) -> Callable[[Place], bool]:
    """Where the backward half of a hand-written way begins: in a file of backward passes, or in a rule `..._bwd`.

    In closed forms what depends on the rules is backward too.
    """
    return lambda place: place.file in model.hand or in_rule(place)


def _jax_grad(case: Case) -> Measured:
    return Measured(*map(_by_path, measured(case, "float64")))


def _by_path(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: isinstance(node, Noise))
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def in_rule(place: Place) -> bool:
    """Whether a step is in the backward half of an operation."""
    return any(function.endswith("_bwd") for function in place.functions)


def shown(name: str) -> str:
    """A way's name as the table has it, that of its function."""
    return name.replace("-", "_")


def _arrays(case: Case) -> tuple[Any, Any]:
    return jax.tree.map(jnp.asarray, (case.params, case.batch))


def _first(op_forward: Callable[..., tuple[Any, Any]]) -> Callable[..., Any]:
    """The output of an operation's forward half, which JAX can differentiate by itself."""
    return lambda *args: op_forward(*args)[0]


def names(model: Model) -> tuple[str, ...]:
    """The backward passes of a model that have a row each."""
    return (*map(shown, model.nodes), *model.operations)


def own_cases(model: Model) -> dict[str, Case]:
    """What a model is scored on, by title.

    A model with `tiny` sizes is scored at these: words fill their few places, so that a mistake in any turn of a loop
    over time can show, and there are turns enough for each kind of one.
    """
    sizes = {} if model.tiny is None else dataclasses.asdict(model.tiny)
    first = (
        {"The notebook's batch": cases.seed_case()}
        if model.name == models.DEFAULT
        else {"Random words": cases.random_case(0, TINY_BATCH, model=model.name, **sizes)}
    )
    if model.tiny is None:
        return first
    return {**first, f"All sizes {TINY_BATCH}": cases.random_case(0, TINY_BATCH, TINY_VOCABULARY, model.name, **sizes)}


def table(scored: Sequence[Row]) -> str:
    """The rows in Markdown."""
    heads = (
        "backward pass",
        "mutants",
        "equivalent",
        "killed at the notebook's initialisation",
        "of these alive at zeros and ones",
    )
    cells = [
        (row.name, sum(map(len, row.score)), len(row.score.equivalent), len(row.score.killed), len(row.hidden))
        for row in scored
    ]
    lines = [heads, ("---", *["---:"] * (len(heads) - 1)), *cells]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
