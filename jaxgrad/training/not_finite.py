"""Where numbers go wrong: the first step of a chunk that is not finite, and the first node of that step."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, PRNGKeyArray

from jaxgrad.batches import indices
from jaxgrad.models.mlp import backward
from jaxgrad.models.mlp import fused as closed_forms
from jaxgrad.models.mlp.forward import BACKWARD_ORDER, Batch, Gradients, Nodes, Params, forward, zero_taps
from jaxgrad.training.config import Config
from jaxgrad.training.state import State
from jaxgrad.training.step import GRADIENTS, fused, run_steps


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
    examples: Batch,
    n_steps: int,
) -> Found | None:
    """The first step, of the `n_steps` after `state`, whose loss, gradients or new state are not finite.

    Steps are taken one at a time, which gives the same bits as a chunk of them. None if all are finite.
    `state` is donated.
    """
    for step in range(int(state.step), int(state.step) + n_steps):
        before = jax.tree.map(jnp.copy, state)
        state, losses = run_steps(
            state, key, examples, gradients=config.gradients, optimizer=optimizer, dtype=config.dtype,
            batch_size=config.batch_size, n_steps=1,
        )  # fmt: skip
        if not all_finite((state, losses)):
            batch = batch_of(config, key, step, examples)
            return Found(step, _first(config, in_type(config, before.params), batch, state, losses))
    return None


def batch_of(config: Config, key: PRNGKeyArray, step: int, examples: Batch) -> Batch:
    """The examples that a run takes at a step."""
    rows = indices(key, step, config.batch_size, len(examples.Y))
    return jax.tree.map(lambda array: array[rows], examples)


def in_type(config: Config, params: Params) -> Params:
    """The parameters in the type that forward and backward compute in."""
    return jax.tree.map(lambda p: p.astype(config.dtype), params)


def _first(config: Config, params: Params, batch: Batch, after: State, losses: Array) -> str:
    """Forward, then backward, then the optimizer: what of a step that is not finite was so first."""
    sound = bool(all_finite(losses))
    # Closed forms pass by nodes of the notebook's forward, and are finite where these are not.
    if not sound or config.gradients in WITH_NODES:
        node = _first_not_finite(Nodes._fields, jax.jit(forward)(params, batch))
        if node or not sound:
            return f"in its forward pass the node {node or 'loss'} was the first that was not finite"
    gradients = WITH_NODES.get(config.gradients, _fused)(params, batch)
    cotangents = {**gradients.nodes._asdict(), **gradients.params._asdict()}
    name = _first_not_finite(BACKWARD_ORDER, cotangents) or _first_not_finite(
        Params._fields, jax.jit(GRADIENTS.get(config.gradients, fused))(params, batch)[1]
    )
    if name is not None:
        return f"its loss was finite, and in its backward pass the gradient of {name} was the first that was not"
    name = _first_not_finite(Params._fields, after.params)
    what = "the optimizer's state" if name is None else f"the parameter {name}"
    return f"its loss and gradients were finite, and after the optimizer's update {what} was not"


def _first_not_finite(names: Iterable[str], arrays: Any) -> str | None:
    by_name = arrays if isinstance(arrays, dict) else arrays._asdict()
    return next((name for name in names if by_name[name] is not None and not all_finite(by_name[name])), None)


@jax.jit
def _fused(params: Params, batch: Batch) -> Gradients:
    return closed_forms.fused(params, batch)


@jax.jit
def _by_node(params: Params, batch: Batch) -> Gradients:
    return backward.by_node(params, batch, forward(params, batch))


@jax.jit
def _jax_grad(params: Params, batch: Batch) -> Gradients:
    def loss(params: Params, taps: Nodes) -> Array:
        return forward(params, batch, taps).loss

    value, (dparams, dnodes) = jax.value_and_grad(loss, argnums=(0, 1))(params, zero_taps(params, batch))
    return Gradients(value, dparams, dnodes)


# Engines that have a cotangent for every node of the notebook; those of any other are told of by the closed forms.
WITH_NODES = {"by-node": _by_node, "jax-grad": _jax_grad}
