"""Many runs at once: one program whose every array has a leading axis of models, by vmap over whole runs."""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgrad.corpus import Corpus
from jaxgrad.errors import JaxgradError
from jaxgrad.models.mlp import Batch, Params
from jaxgrad.training import evaluate
from jaxgrad.training.config import Config, checked, optimizer
from jaxgrad.training.run import ROWS_PER_CHUNK, Losses, fresh, precision, split_losses
from jaxgrad.training.state import State
from jaxgrad.training.step import check_support, run_steps, steps

# The losses of a run that diverged: it ranks last, and stops no other.
DIVERGED = Losses(float("inf"), float("inf"), float("inf"))

_BY_MODEL = PartitionSpec("models")


class Swept(NamedTuple):
    """One run of a sweep: its config, its losses, and the mean loss of every `log_every` steps, in nats."""

    config: Config
    losses: Losses
    curve: Float[np.ndarray, " windows"]


class Progress(NamedTuple):
    """Where a sweep stands: steps of all models together, of how many, and those per second so far."""

    model_steps: int
    of: int
    per_second: float


class Rates(NamedTuple):
    """Model-steps per second: of runs together, and of one run at a time. Compilation is in neither."""

    together: float
    alone: float


class _Models(NamedTuple):
    """What `_run` turns into the next: every array has a leading axis of models."""

    states: State
    keys: PRNGKeyArray
    learning_rates: Float[Array, " models"]


def grid(base: Config, seeds: list[int], learning_rates: list[float], hidden: list[int]) -> list[Config]:
    """A config for every combination, those of one size together; raises `JaxgradError` for a value out of range."""
    combinations = itertools.product(hidden, learning_rates, seeds)
    return [
        checked(dataclasses.replace(base, hidden=size, learning_rate=rate, seed=seed))
        for size, rate, seed in combinations
    ]


def sweep(
    configs: list[Config],
    corpus: Corpus,
    memory: int,
    devices: Sequence[jax.Device],
    report: Callable[[Progress], None] = lambda progress: None,
) -> tuple[list[Swept], Rates]:
    """Train all configs, split over `devices`, as many at once as `memory` bytes of each hold; the best dev loss first.

    Configs may differ in seed, learning rate and hidden size, and in nothing else. A run has the parameters, keys
    and batches that it has when trained alone, and the same losses up to rounding: a product of stacked matrices
    sums in another order than one alone. `Rates.alone` is measured on some steps of the first config.
    Raises `JaxgradError` where one model takes more than `memory`, and for gradients that the platform has not.
    """
    check_support(configs[0].gradients)
    mesh = Mesh(np.array(devices), ("models",))
    total = sum(config.steps for config in configs)
    swept: list[Swept] = []
    done, spent = 0, 0.0
    with precision(configs[0]), jax.default_device(devices[0]):
        examples = Batch(jnp.asarray(corpus.train.X), jnp.asarray(corpus.train.Y))
        everywhere = jax.device_put(examples, NamedSharding(mesh, PartitionSpec()))
        for group, program in _groups(configs, everywhere, memory, mesh):
            curves = []
            models = jax.device_put(_start(group, mesh), NamedSharding(mesh, _BY_MODEL))
            for n_steps in _chunks(group[0], len(group)):
                began = time.monotonic()
                models, losses = jax.block_until_ready(program(n_steps)(models, everywhere))
                spent += time.monotonic() - began
                done += n_steps * len(group)
                curves.append(_windows(np.asarray(losses, np.float64), group[0].log_every))
                report(Progress(done, total, done / spent))
            params = jax.device_put(models.states.params, devices[0])
            swept += _evaluated(group, params, np.concatenate(curves, axis=1), corpus, examples)
        rates = Rates(done / spent, _alone(configs[0], examples))
    return sorted(swept, key=lambda run: run.losses.dev), rates


@functools.partial(jax.jit, static_argnames=("config", "n_steps", "mesh"), donate_argnames=("models",))
def _run(
    models: _Models, examples: Batch, *, config: Config, n_steps: int, mesh: Mesh
) -> tuple[_Models, Float[Array, "models n_steps"]]:
    def one(state: State, key: PRNGKeyArray, learning_rate: Float[Array, ""], examples: Batch) -> Any:
        # The rate is an array here, so that runs which differ in it alone are one program.
        transformation = optimizer(dataclasses.replace(config, learning_rate=cast(float, learning_rate)))
        return steps(
            state, key, examples,
            gradients=config.gradients, optimizer=transformation, dtype=config.dtype,
            batch_size=config.batch_size, n_steps=n_steps,
        )  # fmt: skip

    def of_a_device(models: _Models, examples: Batch) -> tuple[_Models, Float[Array, "models n_steps"]]:
        states, losses = jax.vmap(one, in_axes=(0, 0, 0, None))(*models, examples)
        return models._replace(states=states), losses

    # Devices say nothing to each other; a kernel cannot tell the check that so it is.
    return jax.shard_map(
        of_a_device, mesh=mesh, in_specs=(_BY_MODEL, PartitionSpec()), out_specs=(_BY_MODEL, _BY_MODEL), check_vma=False
    )(models, examples)


def _start(group: list[Config], mesh: Mesh) -> _Models:
    """The group's models, and copies of its last to make them a multiple of the devices."""
    group = group + [group[-1]] * (-len(group) % mesh.size)
    standings = [fresh(config) for config in group]
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(standing.state for standing in standings))
    rates = jnp.array([config.learning_rate for config in group], states.params.W1.dtype)
    return _Models(states, jnp.stack([standing.key for standing in standings]), rates)


def _chunks(config: Config, models: int) -> list[int]:
    """The steps of each launch: whole metrics windows, few enough that the batches of all models stay small."""
    longest = min(config.chunk, ROWS_PER_CHUNK // (config.batch_size * models))
    whole = config.log_every * max(1, longest // config.log_every)
    return [min(whole, config.steps - at) for at in range(0, config.steps, whole)]


def _groups(
    configs: list[Config], examples: Batch, memory: int, mesh: Mesh
) -> Iterator[tuple[list[Config], Callable[[int], Any]]]:
    """Configs that run together, and their compiled program for a number of steps."""
    for _, same_size in itertools.groupby(configs, lambda config: config.hidden):
        waiting = list(same_size)
        while waiting:
            group, program = _fitting(waiting, examples, memory, mesh)
            yield group, program
            waiting = waiting[len(group) :]


def _fitting(
    configs: list[Config], examples: Batch, memory: int, mesh: Mesh
) -> tuple[list[Config], Callable[[int], Any]]:
    """As many of the configs, from the first, as fit by the compiler's account of each device's memory."""
    each = -(-len(configs) // mesh.size)
    while True:
        group = configs[: each * mesh.size]
        program = functools.cache(functools.partial(_compiled, group, examples, mesh))
        need = _bytes(program(_chunks(group[0], len(group))[0]))
        if need <= memory:
            return group, program
        if each == 1:
            raise JaxgradError(
                f"one model with hidden {group[0].hidden} and batches of {group[0].batch_size} takes"
                f" {need / 2**20:,.1f} MiB with its data, and a device has {memory / 2**20:,.1f}; allow more memory,"
                " or make it smaller"
            )
        each = min(each - 1, max(1, each * memory // need))


def _compiled(group: list[Config], examples: Batch, mesh: Mesh, n_steps: int) -> Any:
    sharding = NamedSharding(mesh, _BY_MODEL)
    models = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(lambda: _start(group, mesh)),
    )
    return _run.lower(models, examples, config=group[0], n_steps=n_steps, mesh=mesh).compile()


def _bytes(program: Any) -> int:
    """What a program holds on a device at its peak; donated arrays count once."""
    m = program.memory_analysis()
    return m.temp_size_in_bytes + m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes


def _windows(losses: Float[np.ndarray, "models n_steps"], width: int) -> Float[np.ndarray, "models windows"]:
    starts = np.arange(0, losses.shape[1], width)
    sizes = np.diff(np.append(starts, losses.shape[1]))
    return np.add.reduceat(losses, starts, axis=1) / sizes


def _evaluated(
    group: list[Config], params: Params, curves: Float[np.ndarray, "models windows"], corpus: Corpus, examples: Batch
) -> Iterator[Swept]:
    for k, config in enumerate(group):
        own = jax.tree.map(lambda p, k=k: p[k], params)
        losses = split_losses(own, evaluate.calibrate(own, examples.X), corpus)
        yield Swept(config, losses if np.isfinite(losses).all() else DIVERGED, curves[k])


def _alone(config: Config, examples: Batch) -> float:
    """Steps per second of one run, without compilation."""
    n_steps = _chunks(config, 1)[0]
    state, key, _ = fresh(config)
    transformation = optimizer(config)
    seconds = []
    # The first call compiles; of the others the middle one counts.
    for _ in range(4):
        began = time.monotonic()
        state, losses = run_steps(
            state, key, examples, gradients=config.gradients, optimizer=transformation, dtype=config.dtype,
            batch_size=config.batch_size, n_steps=n_steps,
        )  # fmt: skip
        losses.block_until_ready()
        seconds.append(time.monotonic() - began)
    return n_steps / float(np.median(seconds[1:]))
