"""A training step as a user of Flax NNX and optax would write it, around a model of `make` and `loss`."""

import importlib
import time
from typing import Any

import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgrad.batches import indices
from jaxgrad.bench.jax_peers import temp_bytes
from jaxgrad.bench.peers import Place, Ready, module_of
from jaxgrad.bench.task import Task
from jaxgrad.bench.task import examples as examples_of


def training(task: Task, place: Place, n_steps: int) -> Ready:
    """A Python loop over an `nnx.jit` step that draws its batch."""
    written = importlib.import_module(f"jaxgrad.bench.{module_of(task, 'flax')}")
    key, examples = task.key, examples_of(task)

    @nnx.jit
    def train_step(model: nnx.Module, optimizer: nnx.Optimizer, key: PRNGKeyArray, examples: Any) -> Float[Array, ""]:
        rows = indices(key, optimizer.step[...].astype(jnp.int32), task.size.batch, len(examples.Y))
        batch = task.model.batch(examples.X[rows], examples.Y[rows])
        loss, grads = nnx.value_and_grad(written.loss)(model, batch)
        optimizer.update(model, grads)
        return loss

    def begin() -> tuple[nnx.Module, nnx.Optimizer]:
        model = written.make(task.params, task.size.sizes)
        return model, nnx.Optimizer(model, optax.sgd(task.learning_rate), wrt=nnx.Param)

    def advance(state: tuple[nnx.Module, nnx.Optimizer]) -> tuple[tuple[nnx.Module, nnx.Optimizer], list[Array]]:
        return state, [train_step(*state, key, examples) for _ in range(n_steps)]

    began = time.perf_counter()
    program = train_step.lower(*begin(), key, examples).compile()
    return Ready(begin, advance, time.perf_counter() - began, temp_bytes(program))
