"""Many runs at once: one program whose every array has a leading axis of models, by vmap over whole runs.

A sweep that is given a folder saves where it stands, and goes on from there: the groups in which models run together
are kept, because how many are stacked decides in which order their products are summed, and so the last bits.
"""

import dataclasses
import functools
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgrad.corpus import Corpus
from jaxgrad.errors import JaxgradError
from jaxgrad.training import checkpoints
from jaxgrad.training import folder as folders
from jaxgrad.training.config import Config, changed, checked, flat_sizes, optimizer, record
from jaxgrad.training.folder import Held
from jaxgrad.training.run import (
    ROWS_PER_CHUNK,
    Losses,
    Stopped,
    examples_of,
    finished,
    fresh,
    precision,
    split_losses,
)
from jaxgrad.training.state import State
from jaxgrad.training.step import check_support, run_steps, steps

# The losses of a run that diverged: it ranks last, and stops no other.
DIVERGED = Losses(float("inf"), float("inf"), float("inf"))

# A checkpoint holds the parameters of all models under way, and takes a moment: as rare as this, none is noticed.
SAVE_SECONDS = 30.0

_BY_MODEL = PartitionSpec("models")

logger = logging.getLogger(__name__)


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


class Place(NamedTuple):
    """The metadata of a sweep's checkpoint: the models of each group so far, the one under way last, and its steps.

    `plan` is the hash of the plan that the sweep follows.
    """

    groups: tuple[int, ...]
    taken: int
    plan: str


class Kept(NamedTuple):
    """A sweep's folder, held; the hash of its plan; the seconds between two checkpoints; and when to stop."""

    held: Held
    plan: str
    seconds: float = SAVE_SECONDS
    stop: Callable[[], bool] = lambda: False


class _Models(NamedTuple):
    """What `_run` turns into the next: every array has a leading axis of models."""

    states: State
    keys: PRNGKeyArray
    learning_rates: Float[Array, " models"]


class _Saved(NamedTuple):
    """What a checkpoint of a sweep holds: the models under way, and what is known of all, as the bits of float64."""

    models: Any
    losses: Any
    curves: Any


def grid(
    base: Config, seeds: Sequence[int], learning_rates: Sequence[float], sizes: Mapping[str, Sequence[Any]]
) -> list[Config]:
    """A config for every combination, those of the same sizes together.

    `sizes` gives the values of each size that varies. Raises `JaxgradError` for a value out of range, and for more
    than one value of a size that shapes the examples, of which a sweep has one set.
    """
    for field in dataclasses.fields(base.sizes):
        if field.metadata.get("examples") and len(sizes.get(field.name, ())) > 1:
            raise JaxgradError(f"{field.name} shapes the examples, which all runs of a sweep share; give one value")
    combinations = itertools.product(itertools.product(*sizes.values()), learning_rates, seeds)
    return [
        checked(changed(base, **dict(zip(sizes, own, strict=True)), learning_rate=rate, seed=seed))
        for own, rate, seed in combinations
    ]


def told(config: Config) -> str:
    """The sizes that a sweep tells of, in words: the model's own, or all where it has none."""
    swept = record(config).swept
    return ", ".join(f"{name} {size}" for name, size in flat_sizes(config).items() if swept in (None, name))


def sweep(
    configs: list[Config],
    corpus: Corpus,
    memory: int,
    devices: Sequence[jax.Device],
    report: Callable[[Progress], None] = lambda progress: None,
    kept: Kept | None = None,
) -> tuple[list[Swept], Rates]:
    """Train all configs, split over `devices`, as many at once as `memory` bytes of each hold; the best dev loss first.

    Configs may differ in seed, learning rate and sizes, and in nothing else. A run has the parameters, keys
    and batches that it has when trained alone, and the same losses up to rounding: a product of stacked matrices
    sums in another order than one alone. `Rates.alone` is measured on some steps of the first config.

    With `kept` the sweep goes on from the checkpoints of its folder, if there are any, to the results that it would
    have had undisturbed, bit for bit. Raises `Stopped` after `kept.stop` was true, and `JaxgradError` where one model
    takes more than `memory`, for gradients that the platform has not, and for checkpoints of another plan.
    """
    check_support(record(configs[0]), configs[0].gradients)
    mesh = Mesh(np.array(devices), ("models",))
    n_steps_each = configs[0].steps
    losses = np.zeros((len(configs), len(Losses._fields)))
    curves = np.zeros((len(configs), -(-n_steps_each // configs[0].log_every)))
    taken_here, spent, saved_at = 0, 0.0, time.monotonic()
    with precision(configs[0]), jax.default_device(devices[0]):
        place, models = _restored(configs, mesh, losses, curves, kept)
        examples = examples_of(configs[0], corpus.train)
        everywhere = jax.device_put(examples, NamedSharding(mesh, PartitionSpec()))
        begun = sum(place.groups[:-1])
        # All of them before the first step of any: a size that does not fit is refused while nothing is lost by it.
        groups = list(_groups(configs, place.groups, everywhere, memory, mesh))
        for number, (group, program) in enumerate(groups):
            if number < len(place.groups) - 1:
                continue
            rows = slice(begun, begun + len(group))
            if models is None:
                place = place._replace(groups=(*place.groups, len(group)), taken=0)
                models = jax.device_put(_start(group, mesh), NamedSharding(mesh, _BY_MODEL))
            for at, n_steps in _chunks(group[0], len(group)):
                if at < place.taken:
                    continue
                began = time.monotonic()
                models, of_steps = jax.block_until_ready(program(n_steps)(models, everywhere))
                spent += time.monotonic() - began
                taken_here += n_steps * len(group)
                place = place._replace(taken=at + n_steps)
                windows = _windows(np.asarray(of_steps, np.float64)[: len(group)], group[0].log_every)
                first = at // group[0].log_every
                curves[rows, first : first + windows.shape[1]] = windows
                done = begun * n_steps_each + place.taken * len(group)
                report(Progress(done, len(configs) * n_steps_each, taken_here / spent))
                if ended := place.taken == n_steps_each:
                    losses[rows] = _evaluated(group, jax.device_put(models.states.params, devices[0]), corpus, examples)
                if kept is not None:
                    stop = kept.stop() and done < len(configs) * n_steps_each
                    if ended or stop or time.monotonic() - saved_at >= kept.seconds:
                        path = _save(kept, done, _packed(models, losses, curves), place)
                        saved_at = time.monotonic()
                    if stop:
                        raise Stopped(path, done)
            begun, models = begun + len(group), None
        rates = Rates(taken_here / spent if spent else 0.0, _alone(configs[0], examples))
    swept = [Swept(config, Losses(*losses[k].tolist()), curves[k]) for k, config in enumerate(configs)]
    return sorted(swept, key=lambda run: run.losses.dev), rates


def _restored(
    configs: list[Config], mesh: Mesh, losses: np.ndarray, curves: np.ndarray, kept: Kept | None
) -> tuple[Place, _Models | None]:
    """Where the folder's latest valid checkpoint stands, and its models; `losses` and `curves` are filled from it."""
    nothing = Place((), 0, "" if kept is None else kept.plan), None
    if kept is None:
        return nothing
    checkpoints.remove_partial(kept.held.at)
    path, damaged = checkpoints.latest_valid(checkpoints.saved(kept.held.at))
    for bad in damaged:
        logger.warning("%s: the checkpoint of step %s is damaged, and passed over", kept.held.shown, bad.name)
        checkpoints.set_aside(bad)
    if path is None:
        return nothing
    place = checkpoints.metadata_of(path, Place)
    if place.plan != kept.plan:
        raise JaxgradError(f"{kept.held.shown}: its plan is not the one that it was begun with; put that one back")
    begun = sum(place.groups[:-1])
    group = configs[begun : begun + place.groups[-1]]
    like = jax.eval_shape(lambda: _packed(_start(group, mesh), losses, curves))
    saved = checkpoints.restore(path, like)
    losses[:], curves[:] = (np.asarray(bits).view(np.float64) for bits in (saved.losses, saved.curves))
    models = saved.models._replace(keys=jax.random.wrap_key_data(saved.models.keys))
    return place, jax.device_put(models, NamedSharding(mesh, _BY_MODEL))


def _packed(models: _Models, losses: np.ndarray, curves: np.ndarray) -> _Saved:
    """What files have a type for: a key's data, and float64 as bits, which JAX takes whatever its settings."""
    keys = jax.random.key_data(models.keys)
    return _Saved(models._replace(keys=keys), losses.view(np.uint32), curves.view(np.uint32))


def _save(kept: Kept, step: int, saved: _Saved, place: Place) -> Path:
    """Write a checkpoint, and remove those before the last two: the last may be cut by a power failure."""
    folders.check_held(kept.held)
    path = kept.held.at / "checkpoints" / str(step)
    checkpoints.begin(path, saved, place)()
    checkpoints.tidy(kept.held.at, 2, lambda paths: None)
    return kept.held.shown / "checkpoints" / str(step)


@functools.partial(jax.jit, static_argnames=("config", "n_steps", "mesh"), donate_argnames=("models",))
def _run(
    models: _Models, examples: Any, *, config: Config, n_steps: int, mesh: Mesh
) -> tuple[_Models, Float[Array, "models n_steps"]]:
    def one(state: State, key: PRNGKeyArray, learning_rate: Float[Array, ""], examples: Any) -> Any:
        # The rate is an array here, so that runs which differ in it alone are one program.
        transformation = optimizer(dataclasses.replace(config, learning_rate=cast(float, learning_rate)))
        return steps(
            state, key, examples,
            model=record(config), sizes=config.sizes, gradients=config.gradients, optimizer=transformation,
            dtype=config.dtype, batch_size=config.batch_size, n_steps=n_steps,
        )  # fmt: skip

    def of_a_device(models: _Models, examples: Any) -> tuple[_Models, Float[Array, "models n_steps"]]:
        states, losses = jax.vmap(one, in_axes=(0, 0, 0, None))(*models, examples)
        return models._replace(states=states), losses

    # Devices say nothing to each other; a kernel cannot tell the check that so it is.
    return jax.shard_map(
        of_a_device, mesh=mesh, in_specs=(_BY_MODEL, PartitionSpec()), out_specs=(_BY_MODEL, _BY_MODEL), check_vma=False
    )(models, examples)


def _start(group: list[Config], mesh: Mesh) -> _Models:
    """The group's models, and copies of its last to make them a multiple of the devices."""
    group = group + [group[-1]] * (-len(group) % mesh.size)
    begun = [fresh(config) for config in group]
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(one.state for one in begun))
    rates = jnp.array([config.learning_rate for config in group], jax.tree.leaves(states.params)[0].dtype)
    return _Models(states, jnp.stack([one.key for one in begun]), rates)


def _chunks(config: Config, models: int) -> list[tuple[int, int]]:
    """The first step of each launch, and how many it has: whole metrics windows, with few batches at once."""
    longest = min(config.chunk, ROWS_PER_CHUNK // (config.batch_size * models))
    whole = config.log_every * max(1, longest // config.log_every)
    return [(at, min(whole, config.steps - at)) for at in range(0, config.steps, whole)]


def _groups(
    configs: list[Config], sizes: Sequence[int], examples: Any, memory: int, mesh: Mesh
) -> Iterator[tuple[list[Config], Callable[[int], Any]]]:
    """Configs that run together, and their compiled program for a number of steps; the first groups have `sizes`."""
    known = iter(sizes)
    for _, same_size in itertools.groupby(configs, lambda config: config.sizes):
        waiting = list(same_size)
        while waiting:
            size = next(known, None)
            if size is None:
                group, program = _fitting(waiting, examples, memory, mesh)
            else:
                group, program = waiting[:size], _programs(waiting[:size], examples, mesh)
            yield group, program
            waiting = waiting[len(group) :]


def _fitting(
    configs: list[Config], examples: Any, memory: int, mesh: Mesh
) -> tuple[list[Config], Callable[[int], Any]]:
    """As many of the configs, from the first, as fit by the compiler's account of each device's memory."""
    each = -(-len(configs) // mesh.size)
    while True:
        group = configs[: each * mesh.size]
        program = _programs(group, examples, mesh)
        need = _bytes(program(_chunks(group[0], len(group))[0][1]))
        if need <= memory:
            return group, program
        if each == 1:
            raise JaxgradError(
                f"one model with {told(group[0])} and batches of {group[0].batch_size} takes"
                f" {need / 2**20:,.1f} MiB with its data, and a device has {memory / 2**20:,.1f}; allow more memory,"
                " or make it smaller"
            )
        each = min(each - 1, max(1, each * memory // need))


def _programs(group: list[Config], examples: Any, mesh: Mesh) -> Callable[[int], Any]:
    return functools.cache(functools.partial(_compiled, group, examples, mesh))


def _compiled(group: list[Config], examples: Any, mesh: Mesh, n_steps: int) -> Any:
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


def _evaluated(group: list[Config], params: Any, corpus: Corpus, examples: Any) -> list[Losses]:
    """The losses of each model of a group; those that are not finite are of one that diverged."""
    found = []
    for k, config in enumerate(group):
        own = jax.tree.map(lambda p, k=k: p[k], params)
        losses = split_losses(config, own, finished(config, own, examples), corpus)
        found.append(losses if np.isfinite(losses).all() else DIVERGED)
    return found


def _alone(config: Config, examples: Any) -> float:
    """Steps per second of one run, without compilation."""
    _, n_steps = _chunks(config, 1)[0]
    state, key, _ = fresh(config)
    transformation = optimizer(config)
    seconds = []
    # The first call compiles; of the others the middle one counts.
    for _ in range(4):
        began = time.monotonic()
        state, losses = run_steps(
            state, key, examples, model=record(config), sizes=config.sizes, gradients=config.gradients,
            optimizer=transformation, dtype=config.dtype, batch_size=config.batch_size, n_steps=n_steps,
        )  # fmt: skip
        losses.block_until_ready()
        seconds.append(time.monotonic() - began)
    return n_steps / float(np.median(seconds[1:]))
