"""A training step as a user of Equinox and optax would write it, around a model of `make` and `loss`."""

import importlib
import time
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgrad.batches import indices
from jaxgrad.bench.jax_peers import temp_bytes
from jaxgrad.bench.peers import Place, Ready, module_of
from jaxgrad.bench.task import Task
from jaxgrad.bench.task import examples as examples_of


def training(task: Task, place: Place, n_steps: int) -> Ready:
    """A Python loop over an `eqx.filter_jit` step that draws its batch."""
    written = importlib.import_module(f"jaxgrad.bench.{module_of(task, 'equinox')}")
    key, examples = task.key, examples_of(task)
    optimizer = optax.sgd(task.learning_rate)
    loss_and_gradients: Any = eqx.filter_value_and_grad(written.loss)

    def train_step(
        fixed: tuple[PRNGKeyArray, Any], model: eqx.Module, opt_state: Any, step: Array
    ) -> tuple[eqx.Module, Any, Array, Float[Array, ""]]:
        key, examples = fixed
        rows = indices(key, step, task.size.batch, len(examples.Y))
        batch = task.model.batch(examples.X[rows], examples.Y[rows])
        loss, grads = loss_and_gradients(model, batch)
        updates, opt_state = optimizer.update(grads, opt_state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), opt_state, step + 1, loss

    # Typed as the plain function it is called like, it also has `lower`.
    jitted: Any = eqx.filter_jit(train_step, donate="all-except-first")

    def begin() -> tuple[eqx.Module, Any, Array]:
        model = written.make(task.params, task.size.sizes)
        return model, optimizer.init(eqx.filter(model, eqx.is_inexact_array)), jnp.zeros((), jnp.int32)

    def advance(state: tuple[eqx.Module, Any, Array]) -> tuple[tuple[eqx.Module, Any, Array], list[Array]]:
        losses = []
        for _ in range(n_steps):
            model, opt_state, step, loss = jitted((key, examples), *state)
            state = (model, opt_state, step)
            losses.append(loss)
        return state, losses

    began = time.perf_counter()
    program = jitted.lower((key, examples), *begin()).compile()
    return Ready(begin, advance, time.perf_counter() - began, temp_bytes(program.compiled))
