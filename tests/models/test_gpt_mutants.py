"""Parity of the GPT notices every mistake in its two backward passes.

One block's backward is judged against JAX's own of the block, and what is around the blocks against that of the model.
In both the operations of `jaxgrad.ops` that walk blocks of an array are left as they are: mistakes in them have tests
of their own.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.checking.compare import compare, exact
from jaxgrad.models.gpt import by_node, fused
from jaxgrad.models.gpt import forward as model
from jaxgrad.models.gpt.params import Block, Params, nowhere_zero
from jaxgrad.models.gpt.sizes import Sizes
from jaxgrad.models.model import named
from jaxgrad.models.sequence_nodes import Nodes, recorder, zero_taps
from jaxgrad.models.sequences import Batch
from jaxgrad.mutation.program import Place, Program, trace
from jaxgrad.mutation.score import Score, describe, score_on

# Sizes that are the same where they can be, so that transposes can be left out and sums taken over another axis.
DRAWN = jax.jit(nowhere_zero, static_argnums=(1, 2, 3))
SIZES = Sizes(layers=2, heads=2, width=4, block=4, dropout=0.0)
VOCAB = 4
DRAWS = 3
TOLERANCE = 1e-11


class Subject(NamedTuple):
    """A backward pass as a program, its inputs for a seed, and what is expected of it there."""

    program: Program
    inputs: Callable[[int], list[Any]]
    expected: Callable[[int], dict[str, Any]]


def in_model(seed: int) -> tuple[Params, Batch]:
    rng = np.random.default_rng(seed)
    X, Y = rng.integers(0, VOCAB, (2, 4, 4))
    Y[0, 3] = -1
    return DRAWN(jax.random.key(seed), SIZES, VOCAB, jnp.float64), Batch(jnp.asarray(X), jnp.asarray(Y))


def in_block(seed: int) -> tuple[Block, jax.Array, jax.Array]:
    """One block's arrays, its input and the cotangent of its output."""
    blocks = in_model(seed)[0].blocks
    x, dy = jax.random.normal(jax.random.key(seed + 100), (2, 4, 4, 4), jnp.float64)
    return jax.tree.map(lambda leaf: leaf[0], blocks), x, dy


def block_nodes(block: Block, x: jax.Array) -> Nodes:
    nodes, mark = recorder({})
    model.block_forward(block, x, SIZES, None, mark)
    return nodes


def block_by_jax(block: Block, x: jax.Array, dy: jax.Array) -> dict[str, Any]:
    taps = jax.tree.map(jnp.zeros_like, block_nodes(block, x))

    def scalar(block: Block, taps: Nodes) -> jax.Array:
        return (model.block_forward(block, x, SIZES, None, recorder(taps)[1]) * dy).sum()

    dblock, dnodes = jax.grad(scalar, argnums=(0, 1))(block, taps)
    return {**dblock._asdict(), **dnodes}


def model_by_jax(params: Params, batch: Batch) -> dict[str, Any]:
    taps = zero_taps(model.forward, params, batch, SIZES)
    dparams, dnodes = jax.grad(lambda p, t: model.loss(p, batch, SIZES, taps=t), argnums=(0, 1))(params, taps)
    return {**named(dparams), **dnodes}


def block_subject(backward: Callable[..., Any], arguments: Callable[..., Any], starts: Any = None) -> Subject:
    def results(*given: Any) -> dict[str, Any]:
        _, dblock, dnodes = backward(*given)
        return {**dblock._asdict(), **dnodes}

    def inputs(seed: int) -> list[Any]:
        return jax.tree.leaves(arguments(*in_block(seed)))

    program = without_loops(trace(results, *arguments(*in_block(0)), starts=starts).program)
    return Subject(program, inputs, lambda seed: jax.jit(block_by_jax)(*in_block(seed)))


def model_subject(backward: Callable[..., Any], arguments: Callable[..., Any], starts: Any = None) -> Subject:
    def results(*given: Any) -> dict[str, Any]:
        dparams, dnodes = backward(*given)
        return {**named(dparams), **dnodes}

    def inputs(seed: int) -> list[Any]:
        return jax.tree.leaves(arguments(*in_model(seed)))

    program = without_loops(trace(results, *arguments(*in_model(0)), starts=starts).program)
    return Subject(program, inputs, lambda seed: jax.jit(model_by_jax)(*in_model(seed)))


def without_loops(program: Program) -> Program:
    """The program with no mistakes made in the bodies of its loops."""
    steps = (step._replace(backward=step.backward and step.name != "scan") for step in program.steps)
    return program._replace(steps=tuple(steps))


def subjects() -> dict[str, Callable[[], Subject]]:
    def kept_in_block(block: Block, x: jax.Array, dy: jax.Array) -> Any:
        return fused.block_backward(block, fused.block_forward(block, x, SIZES)[1], dy, SIZES)

    return {
        "by node, a block": lambda: block_subject(
            lambda block, nodes, dy: by_node.block_backward(block, nodes, dy, SIZES),
            lambda block, x, dy: (block, block_nodes(block, x), dy),
        ),
        "by node, around the blocks": lambda: model_subject(
            lambda params, batch, nodes: by_node.backward(params, batch, nodes, SIZES),
            lambda params, batch: (params, batch, model.forward(params, batch, SIZES)),
        ),
        "fused, a block": lambda: block_subject(
            kept_in_block,
            lambda *given: given,
            lambda place: any(name == "block_backward" for name in place.functions),
        ),
        "fused, around the blocks": lambda: model_subject(
            lambda params, batch: fused.nodes_fused(params, batch, SIZES)[1:], lambda *given: given, in_rule
        ),
    }


def in_rule(place: Place) -> bool:
    return any(name.endswith("_bwd") for name in place.functions)


@functools.cache
def scored(name: str) -> Score:
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        subject = subjects()[name]()
        right = jax.tree.map(np.asarray, subject.expected(0))

        def agrees(_: int, results: dict[str, Any]) -> bool:
            # Names of outputs are paths of a dict. Rounding is some 1e-15 of a tensor here, and a mistake far more.
            by_name = ((path[2:-2], np.asarray(x)) for path, x in results.items())
            return all(compare(right[n], x, exact(x), "float64", TOLERANCE).agrees for n, x in by_name)

        draws: Iterator[list[Any]] = (subject.inputs(seed) for seed in range(1, DRAWS + 1))
        return score_on(subject.program, [subject.inputs(0)], agrees, draws)


@pytest.mark.parametrize("name", subjects())
def test_no_mutant_that_is_not_equivalent_survives(name: str):
    score = scored(name)
    assert len(score.killed) > 50
    assert score.survived == (), describe(score)


def test_what_is_equivalent_changes_no_value():
    # A row's differences from its mean sum to zero: the second path into `diff` adds nothing to the mean's cotangent.
    # The others take a value for one that is the same: the ones by which a norm's sums are taken for those of another
    # norm, and what attention gave for its copy by heads, where nothing is padded.
    lines = {name: {mutant.place.text for mutant in scored(name).equivalent} for name in subjects()}
    assert lines == {
        "by node, a block": {"dmean = -ddiff.sum(-1, keepdims=True)"},
        "by node, around the blocks": {"dmean = -ddiff.sum(-1, keepdims=True)"},
        "fused, a block": {
            "return jnp.matmul(x, vector[:, None], precision=jax.lax.Precision.HIGHEST)",
            "delta = (widen(dout_heads) * widen(_by_heads(out, queries, groups))).sum(-1)",
        },
        "fused, around the blocks": set(),
    }
