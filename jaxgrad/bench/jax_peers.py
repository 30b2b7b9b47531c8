"""jaxgrad's own competitors: the training step of `jaxgrad.training`, many in one program or one at a time."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgrad.batches import indices
from jaxgrad.bench.peak import jax_precision
from jaxgrad.bench.peers import Place, Ready
from jaxgrad.bench.task import Task, sizes_of
from jaxgrad.bench.task import examples as examples_of
from jaxgrad.errors import JaxgradError
from jaxgrad.models.mlp.forward import Batch, Params
from jaxgrad.models.mlp.kernel import launch
from jaxgrad.models.mlp.record import MODEL
from jaxgrad.training.state import State
from jaxgrad.training.step import run_steps, start


def training(gradients: str, scan: bool, task: Task, place: Place, n_steps: int) -> Ready:
    """`training.step.run_steps`: `n_steps` as one program if `scan`, else a program of one step in a Python loop."""
    optimizer = optax.sgd(task.learning_rate)
    key, examples = task.key, examples_of(task)

    def begin() -> State:
        return start(jax.tree.map(jnp.array, task.params), optimizer)

    program, seconds, temp = compiled(
        run_steps, begin(), key, examples, model=MODEL, sizes=sizes_of(task), gradients=gradients,
        optimizer=optimizer, dtype="float32", batch_size=task.size.batch, n_steps=n_steps if scan else 1,
    )  # fmt: skip

    def advance(state: State) -> tuple[State, list[Array]]:
        losses = []
        for _ in range(1 if scan else n_steps):
            state, loss = program(state, key, examples)
            losses.append(loss)
        return state, losses

    return Ready(begin, advance, seconds, temp)


def kernel(task: Task, place: Place, n_steps: int) -> Ready:
    """All `n_steps` in one launch of the one-kernel step, where a kernel can be compiled.

    Raises `JaxgradError` on a CPU, and for a size that the device has no room for.
    """
    if place.jax_device == "cpu":
        raise JaxgradError("a CPU has the kernel in interpret mode only, whose time says nothing")
    return launched(task, place.jax_device, n_steps)


def launched(task: Task, platform: str, n_steps: int) -> Ready:
    """`kernels.launch.run_models` of one model on a platform, its batches drawn in bulk as `run_steps` does."""
    precision = jax.lax.Precision.HIGHEST if jax_precision() == "highest" else jax.lax.Precision.DEFAULT
    key, examples = task.key, examples_of(task)
    rates = jnp.full((1, n_steps), task.learning_rate, jnp.float32)

    def steps(
        params: Params, first: Array, key: PRNGKeyArray, examples: Batch
    ) -> tuple[Params, Array, Float[Array, " n"]]:
        numbers = first + jnp.arange(n_steps, dtype=jnp.int32)
        rows = jax.vmap(lambda step: indices(key, step, task.size.batch, len(examples.Y)))(numbers)
        batches = jax.tree.map(lambda array: array[rows][None], examples)
        params, losses = launch.run_models(params, batches, rates, platform=platform, precision=precision)
        return params, first + n_steps, losses[0]

    def begin() -> tuple[Params, Array]:
        return jax.tree.map(lambda p: jnp.array(p)[None], task.params), jnp.zeros((), jnp.int32)

    program, seconds, temp = compiled(jax.jit(steps, donate_argnums=(0, 1)), *begin(), key, examples)

    def advance(state: tuple[Params, Array]) -> tuple[tuple[Params, Array], Array]:
        params, first, losses = program(*state, key, examples)
        return (params, first), losses

    return Ready(begin, advance, seconds, temp)


def compiled(jitted: Any, *args: Any, **static: Any) -> tuple[Any, float, int | None]:
    """The program of a jitted function, the seconds it took to trace and compile, and its temporary bytes."""
    began = time.perf_counter()
    program = jitted.lower(*args, **static).compile()
    return program, time.perf_counter() - began, temp_bytes(program)


def temp_bytes(program: Any) -> int | None:
    """The most memory that a compiled program needs beside arguments and results; None where XLA does not say."""
    analysis = program.memory_analysis()
    return None if analysis is None else int(analysis.temp_size_in_bytes)
