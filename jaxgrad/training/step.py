"""Parameters, optimizer state and a batch -> the next ones; thousands of steps in one jitted call."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgrad.batches import indices
from jaxgrad.models.mlp import backward
from jaxgrad.models.mlp import fused as closed_forms
from jaxgrad.models.mlp.forward import Batch, Params, forward
from jaxgrad.training.mesh import split_rows
from jaxgrad.training.state import State


def fused(params: Params, batch: Batch) -> tuple[Float[Array, ""], Params]:
    """Loss and gradients of the hand-written closed forms."""
    gradients = closed_forms.fused(params, batch)
    return gradients.loss, gradients.params


def by_node(params: Params, batch: Batch) -> tuple[Float[Array, ""], Params]:
    """Loss and gradients of the hand-written derivatives, node by node."""
    gradients = backward.by_node(params, batch, forward(params, batch))
    return gradients.loss, gradients.params


def jax_grad(params: Params, batch: Batch) -> tuple[Float[Array, ""], Params]:
    """Loss and gradients by `jax.grad`."""
    return jax.value_and_grad(lambda p: forward(p, batch).loss)(params)


GRADIENTS: dict[str, Callable[[Params, Batch], tuple[Float[Array, ""], Params]]] = {
    "fused": fused,
    "by-node": by_node,
    "jax-grad": jax_grad,
}

# Ways that take all steps of a chunk in one kernel, whose platform is JAX's own where none is given.
IN_KERNEL = {"kernel": None, "kernel-interpreted": "interpret"}


def check_support(gradients: str) -> None:
    """Raise `JaxgradError` where JAX's platform here cannot take steps in this way."""
    if gradients in IN_KERNEL:
        # Pallas takes as long to import as the rest of training.
        from jaxgrad.models.mlp.kernel.launch import require_support

        require_support(IN_KERNEL[gradients] or jax.default_backend())


def start(params: Params, optimizer: optax.GradientTransformation) -> State:
    """The state before the first step."""
    return State(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def steps(
    state: State,
    key: PRNGKeyArray,
    examples: Batch,
    *,
    gradients: str,
    optimizer: optax.GradientTransformation,
    dtype: str,
    batch_size: int,
    n_steps: int,
    mesh: Mesh | None = None,
) -> tuple[State, Float[Array, " n_steps"]]:
    """`n_steps` steps and the loss of each, before its update, as one program without a host in its loop.

    The batch of a step is `indices(key, step, ...)` of `examples`, whatever chunk the step falls in. Losses and
    gradients are computed in `dtype` and applied in the parameters' own type. Over a `mesh`, of `training.mesh`, a
    step's batch is split over its axis `data`; how the parameters are split is how `state` lies there.
    `gradients` is a name of `GRADIENTS`, or one of `IN_KERNEL`, for plain SGD on one device, whose chunks of one
    step may differ from longer ones by rounding. Raises `KeyError` for another, and what `check_support` raises.
    """
    # Drawn for all steps at once: random bits and rows cost far less in bulk than one step at a time.
    numbers = state.step + jnp.arange(n_steps, dtype=jnp.int32)
    rows = jax.vmap(lambda step: indices(key, step, batch_size, len(examples.Y)))(numbers)
    batches = jax.tree.map(lambda array: array[rows], examples)
    if mesh is not None:
        batches = split_rows(mesh, batches)
    if gradients in IN_KERNEL:
        from jaxgrad.models.mlp.kernel.steps import kernel_steps

        platform = IN_KERNEL[gradients] or jax.default_backend()
        params, opt_state, losses = kernel_steps(
            state.params, state.opt_state, batches, optimizer.update, platform=platform, dtype=dtype
        )
        return State(params, opt_state, state.step + n_steps), losses
    loss_and_gradients = GRADIENTS[gradients]

    def step(state: State, batch: Batch) -> tuple[State, Float[Array, ""]]:
        narrow = jax.tree.map(lambda p: p.astype(dtype), state.params)
        loss, grads = loss_and_gradients(narrow, batch)
        grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(params, opt_state, state.step + 1), loss

    return jax.lax.scan(step, state, batches)


# A state is donated to its next one: their buffers are the same, and a run holds one copy of its parameters.
run_steps = jax.jit(
    steps,
    static_argnames=("gradients", "optimizer", "dtype", "batch_size", "n_steps", "mesh"),
    donate_argnames=("state",),
)
