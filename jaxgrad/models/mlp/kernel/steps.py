"""All steps of a chunk in one kernel launch; under `vmap`, those of many models in one launch."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float

from jaxgrad.models.mlp.forward import Batch, Params
from jaxgrad.models.mlp.kernel import launch as launches


def kernel_steps(
    params: Params,
    opt_state: Any,
    batches: Batch,
    update: Callable[[Any, Any], tuple[Any, Any]],
    *,
    platform: str,
    dtype: str,
) -> tuple[Params, Any, Float[Array, " n_steps"]]:
    """Parameters, optimizer state and losses after the steps of `batches`, of shape `(n_steps, batch, ...)`.

    `update`, of gradients and the optimizer's state, is that of plain SGD on any schedule: what it makes of a gradient
    of 1 is minus the rate of that step.
    `platform` is one of `launch.run_models`, whose errors this raises.
    """

    def rate(opt_state: Any, _: None) -> tuple[Any, Float[Array, ""]]:
        updated, opt_state = update(jnp.ones((), params.W1.dtype), opt_state)
        return opt_state, -updated

    opt_state, rates = jax.lax.scan(rate, opt_state, None, length=len(batches.Y))
    params, losses = _launcher(platform, dtype)(params, batches, rates)
    return params, opt_state, losses


@functools.cache
def _launcher(platform: str, dtype: str) -> Callable[[Params, Batch, Array], tuple[Params, Array]]:
    """The launch of one model, whose `vmap` is a launch with a program for each."""
    run = functools.partial(launches.run_models, platform=platform, dtype=dtype)

    @custom_vmap
    def launch(params: Params, batches: Batch, rates: Array) -> tuple[Params, Array]:
        return jax.tree.map(lambda x: x[0], run(*jax.tree.map(lambda x: x[None], (params, batches, rates))))

    @launch.def_vmap
    def of_models(axis_size: int, batched: Any, *args: Any) -> Any:
        stacked = jax.tree.map(
            lambda x, b: x if b else jnp.broadcast_to(x, (axis_size, *x.shape)), args, tuple(batched)
        )
        out = run(*stacked)
        return out, jax.tree.map(lambda _: True, out)

    return launch
