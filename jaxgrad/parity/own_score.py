"""This project's own backward passes, with one mistake at a time: does parity on a case notice every one?

Each mutant of `by_node`, of `fused` and of every operation is compared in float64 with `jax.grad`, within the measured
noise of the latter: on cases at the seed's initialisation, where every mutant that is not equivalent must differ, and
on the same cases with the zeros and ones that the seed warns of, which hide mistakes. `rows` measures both.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import ops
from jaxgrad.checking.compare import Noise, compare, scaled
from jaxgrad.checking.measure import Measured, measure, shaken
from jaxgrad.checking.taylor import random_direction
from jaxgrad.models.mlp import backward
from jaxgrad.models.mlp import fused as closed_forms
from jaxgrad.models.mlp.forward import Batch, Gradients, Nodes, Params, forward
from jaxgrad.mutation.program import Place, Program, results, trace, trace_pullback
from jaxgrad.mutation.score import Mutant, Score, score_on, survivors
from jaxgrad.parity import cases
from jaxgrad.parity.cases import Case
from jaxgrad.parity.engines import measured

DRAWS = 20

# With every size the same, each transpose can be left out and each sum taken over the other axis.
SQUARE = {"batch_size": 6, "h_size": 6, "n": 2, "emb_size": 3, "vocab_size": 6}


class Row(NamedTuple):
    """One backward pass: its mutants at the seed's initialisation, and those that zeros and ones let live besides."""

    name: str
    score: Score
    hidden: tuple[Mutant, ...]


class _Subject(NamedTuple):
    """A backward pass as a program, and of a case its inputs and the expected results, by name, with their noise."""

    name: str
    program: Program
    inputs: Callable[[Case], list[Any]]
    expected: Callable[[Case], Measured]


def rows(chosen: Sequence[Case], sizes: Mapping[str, int], draws: int = DRAWS) -> Iterator[Row]:
    """A row for every backward pass, judged on cases of the sizes that `random_case` would be given.

    Raises `JaxgradError` where a backward pass differs from `jax.grad` without a mistake in it.
    """
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        for subject in _subjects(chosen[0]):
            drawn = (subject.inputs(cases.random_case(100 + k, **sizes)) for k in range(draws))
            score = score_on(subject.program, *_judged(subject, chosen), drawn)
            usual = [zeros_and_ones(case) for case in chosen]
            hidden = survivors(subject.program, score.killed, *_judged(subject, usual))
            yield Row(subject.name, score, hidden)


def zeros_and_ones(case: Case) -> Case:
    """The case with the usual initialisation instead of the seed's: W2, b2 and bn_bias zero, bn_gain one."""
    usual = {
        name: (np.ones_like if name == "bn_gain" else np.zeros_like)(getattr(case.params, name))
        for name in ("W2", "b2", "bn_gain", "bn_bias")
    }
    return case._replace(name=f"{case.name}, zeros and ones", params=case.params._replace(**usual))


def _judged(subject: _Subject, chosen: Sequence[Case]) -> tuple[list[list[Any]], Callable[[int, dict[str, Any]], bool]]:
    """The cases' inputs, and whether results agree with what `jax.grad` says of them."""
    expected = [subject.expected(case) for case in chosen]

    def agrees(number: int, results: dict[str, Any]) -> bool:
        right, noise = expected[number]
        # Both sides are rounded.
        return all(
            compare(right[name], np.asarray(results[name]), scaled(noise[name], 2**0.5), "float64").agrees
            for name in subject.program.outputs
        )

    return [subject.inputs(case) for case in chosen], agrees


def _subjects(like: Case) -> Iterator[_Subject]:
    params, batch = _arrays(like)
    for name, fn, starts in (("by_node", by_node, _by_hand), ("fused", closed_forms.fused, in_rule)):
        program = trace(fn, params, batch, starts=starts).program
        yield _Subject(name, program, lambda case: jax.tree.leaves(_arrays(case)), _jax_grad)
    for name, (op, op_forward, arguments) in _OPS.items():
        args = arguments(*_in_forward(like))
        program, plain = (trace_pullback(fn, *args).program for fn in (op, _first(op_forward)))
        # A cotangent of the output as any next operation may give it, the same in every case.
        dys = random_direction(jax.random.key(1), [program.shapes[slot] for slot in [*program.inputs][len(args) :]])

        def inputs(case: Case, arguments: Any = arguments, dys: Any = dys) -> list[Any]:
            return [*arguments(*_in_forward(case)), *dys]

        yield _Subject(name, program, inputs, _of_plain(plain, inputs))


def _of_plain(plain: Program, inputs: Callable[[Case], list[Any]]) -> Callable[[Case], Measured]:
    run = shaken(lambda *leaves: results(plain, leaves))
    return lambda case: measure(run, "float64", *inputs(case))


def by_node(params: Params, batch: Batch) -> Gradients:
    """The derivatives by node, with the forward pass that they need."""
    return backward.by_node(params, batch, forward(params, batch))


def _by_hand(place: Place) -> bool:
    return place.file == backward.__file__


def in_rule(place: Place) -> bool:
    """Whether a step is in the backward half of an operation; in `fused`, what depends on those is backward too."""
    return any(function.endswith("_bwd") for function in place.functions)


def _jax_grad(case: Case) -> Measured:
    return Measured(*map(_by_path, measured(case, "float64")))


def _by_path(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: isinstance(node, Noise))
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _arrays(case: Case) -> tuple[Params, Batch]:
    return jax.tree.map(jnp.asarray, (case.params, case.batch))


def _in_forward(case: Case) -> tuple[Params, Batch, Nodes]:
    params, batch = _arrays(case)
    return params, batch, forward(params, batch)


def _first(op_forward: Callable[..., tuple[Any, Any]]) -> Callable[..., Any]:
    """The output of an operation's forward half, which JAX can differentiate by itself."""
    return lambda *args: op_forward(*args)[0]


# Each operation, its forward half, and its arguments where the model uses it.
_OPS: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[[Params, Batch, Nodes], tuple[Any, ...]]]] = {
    "embedding": (ops.embedding, ops.embedding_fwd, lambda params, batch, nodes: (params.C, batch.X)),
    "linear": (ops.linear, ops.linear_fwd, lambda params, batch, nodes: (nodes.h, params.W2, params.b2)),
    "batch_norm": (
        ops.batch_norm,
        ops.batch_norm_fwd,
        lambda params, batch, nodes: (nodes.h_prenorm, params.bn_gain, params.bn_bias),
    ),
    "tanh": (ops.tanh, ops.tanh_fwd, lambda params, batch, nodes: (nodes.h_norm,)),
    "cross_entropy": (ops.cross_entropy, ops.cross_entropy_fwd, lambda params, batch, nodes: (nodes.logits, batch.Y)),
}


NAMES = ("by_node", "fused", *_OPS)


def own_cases() -> dict[str, tuple[Case, dict[str, int]]]:
    """What this project is scored on, by title: each case, and the sizes to draw others of the same by."""
    return {"The notebook's batch": (cases.seed_case(), {}), "All sizes 6": (cases.random_case(0, **SQUARE), SQUARE)}


def table(scored: Sequence[Row]) -> str:
    """The rows in Markdown."""
    heads = (
        "backward pass",
        "mutants",
        "equivalent",
        "killed at the seed's initialisation",
        "of these alive at zeros and ones",
    )
    cells = [
        (row.name, sum(map(len, row.score)), len(row.score.equivalent), len(row.score.killed), len(row.hidden))
        for row in scored
    ]
    lines = [heads, ("---", *["---:"] * (len(heads) - 1)), *cells]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
