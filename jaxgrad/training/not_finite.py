"""Where numbers go wrong: the first step of a chunk that is not finite, and the first node of that step."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, PRNGKeyArray

from jaxgrad.batches import indices
from jaxgrad.jaxprs.taps import node_values
from jaxgrad.models.model import JAX_GRAD, Model, Nodes, gradients_of, graph_of, jax_grad_nodes, named
from jaxgrad.training.config import Config, record
from jaxgrad.training.state import State
from jaxgrad.training.step import run_steps


class Found(NamedTuple):
    """A step, counted from 0 as its batch is, and in words what of it was the first to be not finite."""

    step: int
    what: str


@jax.jit
def all_finite(tree: Any) -> Bool[Array, ""]:
    """Whether every float of a tree is finite: its integers always are."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in floats]).all()


def find(
    config: Config,
    optimizer: optax.GradientTransformation,
    state: State,
    key: PRNGKeyArray,
    examples: Any,
    n_steps: int,
) -> Found | None:
    """The first step, of the `n_steps` after `state`, whose loss, gradients or new state are not finite.

    Steps are taken one at a time, which gives the same bits as a chunk of them. None if all are finite.
    `state` is donated.
    """
    for step in range(int(state.step), int(state.step) + n_steps):
        before = jax.tree.map(jnp.copy, state)
        state, losses = run_steps(
            state, key, examples, model=record(config), sizes=config.sizes, gradients=config.gradients,
            optimizer=optimizer, dtype=config.dtype, batch_size=config.batch_size, n_steps=1,
            accumulate=config.accumulate,
        )  # fmt: skip
        if not all_finite((state, losses)):
            batch = batch_of(config, key, step, examples)
            return Found(step, _first(config, in_type(config, before.params), batch, state, losses))
    return None


def batch_of(config: Config, key: PRNGKeyArray, step: int, examples: Any) -> Any:
    """The examples that a run takes at a step."""
    rows = indices(key, step, config.batch_size, len(examples.Y))
    return jax.tree.map(lambda array: array[rows], examples)


def in_type(config: Config, params: Any) -> Any:
    """The parameters in the type that forward and backward compute in."""
    return jax.tree.map(lambda p: p.astype(config.dtype), params)


def _first(config: Config, params: Any, batch: Any, after: State, losses: Array) -> str:
    """Forward, then backward, then the optimizer: what of a step that is not finite was so first."""
    model, sizes = record(config), config.sizes
    sound = bool(all_finite(losses))
    values = jax.jit(lambda p, b: node_values(lambda p, b: model.loss(p, b, sizes), p, b))(params, batch)
    _, dparams, dnodes = jax.jit(lambda p, b: _nodes(model, config.gradients)(p, b, sizes))(params, batch)
    order = graph_of(model, params, batch, sizes).order
    # Closed forms pass by nodes of the forward pass, and are finite where these are not.
    if not sound or dnodes.keys() >= values.keys():
        node = _first_not_finite(reversed(order), values)
        if node or not sound:
            return f"in its forward pass the node {node or 'loss'} was the first that was not finite"
    way = gradients_of(
        model, config.gradients if config.gradients not in model.kernels else next(iter(model.gradients))
    )
    name = _first_not_finite(order, {**dnodes, **named(dparams)}) or _first_not_finite(
        named(dparams), named(jax.jit(lambda p, b: way(p, b, sizes))(params, batch)[1])
    )
    if name is not None:
        return f"its loss was finite, and in its backward pass the gradient of {name} was the first that was not"
    name = _first_not_finite(named(dparams), named(after.params))
    what = "the optimizer's state" if name is None else f"the parameter {name}"
    return f"its loss and gradients were finite, and after the optimizer's update {what} was not"


def _nodes(model: Model, gradients: str) -> Nodes:
    """The cotangents of nodes of a way to gradients; those of one that has none are told of by the model's first."""
    if gradients == JAX_GRAD:
        return jax_grad_nodes(model)
    return model.nodes[gradients if gradients in model.nodes else next(iter(model.gradients))]


def _first_not_finite(names: Iterable[str], arrays: dict[str, Any]) -> str | None:
    return next((name for name in names if name in arrays and not all_finite(arrays[name])), None)
