"""jaxgrad's own competitors: the training step of `jaxgrad.training`, many in one program or one at a time."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from jaxgrad.bench.peers import Place, Ready
from jaxgrad.bench.task import Task
from jaxgrad.bench.task import examples as examples_of
from jaxgrad.errors import JaxgradError
from jaxgrad.models.model import ways
from jaxgrad.training.state import State
from jaxgrad.training.step import run_steps, start


def training(gradients: str, scan: bool, task: Task, place: Place, n_steps: int) -> Ready:
    """`training.step.run_steps`: `n_steps` as one program if `scan`, else a program of one step in a Python loop."""
    if gradients not in ways(task.model):
        raise JaxgradError(f"the model {task.model.name} has no gradients {gradients}")
    optimizer = optax.sgd(task.learning_rate)
    key, examples = task.key, examples_of(task)

    def begin() -> State:
        return start(jax.tree.map(jnp.array, task.params), optimizer)

    program, seconds, temp = compiled(
        run_steps, begin(), key, examples, model=task.model, sizes=task.size.sizes, gradients=gradients,
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
    """All `n_steps` in one launch of a kernel that takes whole steps, where it can be compiled.

    Raises `JaxgradError` on a CPU, for a model without one, and for a size that the device has no room for.
    """
    if "kernel" not in task.model.kernels:
        raise JaxgradError(f"the model {task.model.name} has no kernel that takes whole steps")
    if place.jax_device == "cpu":
        raise JaxgradError("a CPU has the kernel in interpret mode only, whose time says nothing")
    return training("kernel", True, task, place, n_steps)


def compiled(jitted: Any, *args: Any, **static: Any) -> tuple[Any, float, int | None]:
    """The program of a jitted function, the seconds it took to trace and compile, and its temporary bytes."""
    began = time.perf_counter()
    program = jitted.lower(*args, **static).compile()
    return program, time.perf_counter() - began, temp_bytes(program)


def temp_bytes(program: Any) -> int | None:
    """The most memory that a compiled program needs beside arguments and results; None where XLA does not say."""
    analysis = program.memory_analysis()
    return None if analysis is None else int(analysis.temp_size_in_bytes)
