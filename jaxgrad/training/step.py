"""Parameters, optimizer state and a batch -> the next ones; thousands of steps in one jitted call."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgrad.batches import indices
from jaxgrad.models.model import Model, gradients_of
from jaxgrad.training.accumulate import accumulated
from jaxgrad.training.mesh import split_rows
from jaxgrad.training.state import State

# The last number that `fold_in` takes: no step has it, so that dropout shares no key with a batch's rows.
_DROPOUT = 2**32 - 1


def check_support(model: Model, gradients: str) -> None:
    """Raise `JaxgradError` where JAX's platform here cannot take the model's steps in this way."""
    if gradients in model.kernels:
        model.kernels[gradients].check(jax.default_backend())


def start(params: Any, optimizer: optax.GradientTransformation) -> State:
    """The state before the first step."""
    return State(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def steps(
    state: State,
    key: PRNGKeyArray,
    examples: Any,
    *,
    model: Model,
    sizes: Any,
    gradients: str,
    optimizer: optax.GradientTransformation,
    dtype: str,
    batch_size: int,
    n_steps: int,
    mesh: Mesh | None = None,
    accumulate: int = 1,
) -> tuple[State, Float[Array, " n_steps"]]:
    """`n_steps` steps and the loss of each, before its update, as one program without a host in its loop.

    The batch of a step is `indices(key, step, ...)` of `examples`, whatever chunk the step falls in. Losses and
    gradients are computed in `dtype` and applied in the parameters' own type. Over a `mesh`, of `training.mesh`, a
    step's batch is split over its axis `data`; how the parameters are split is how `state` lies there. The batch is
    taken in `accumulate` parts, one after another.
    `gradients` is one of the model's `ways`; those of its kernels are for plain SGD on one device, and chunks of one
    step may then differ from longer ones by rounding. Raises `KeyError` for another, and what `check_support` raises.
    """
    # Drawn for all steps at once: random bits and rows cost far less in bulk than one step at a time.
    numbers = state.step + jnp.arange(n_steps, dtype=jnp.int32)
    rows = jax.vmap(lambda step: indices(key, step, batch_size, len(examples.Y)))(numbers)
    batches = jax.tree.map(lambda array: array[rows], examples)
    if mesh is not None:
        batches = split_rows(mesh, batches)
    if gradients in model.kernels:
        params, opt_state, losses = model.kernels[gradients].steps(
            state.params, state.opt_state, batches, optimizer.update, dtype
        )
        return State(params, opt_state, state.step + n_steps), losses
    loss_and_gradients = accumulated(model, gradients_of(model, gradients), accumulate)
    dropout = jax.random.fold_in(key, _DROPOUT)

    def step(state: State, batch: Any) -> tuple[State, Float[Array, ""]]:
        narrow = jax.tree.map(lambda p: p.astype(dtype), state.params)
        loss, grads = loss_and_gradients(narrow, batch, sizes, jax.random.fold_in(dropout, state.step))
        grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(params, opt_state, state.step + 1), loss

    return jax.lax.scan(step, state, batches)


# A state is donated to its next one: their buffers are the same, and a run holds one copy of its parameters.
run_steps = jax.jit(
    steps,
    static_argnames=(
        "model",
        "sizes",
        "gradients",
        "optimizer",
        "dtype",
        "batch_size",
        "n_steps",
        "mesh",
        "accumulate",
    ),
    donate_argnames=("state",),
)
