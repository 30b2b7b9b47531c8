"""A whole run: chunks of steps, metrics, checkpoints, evaluation, and the folder that it leaves."""

import concurrent.futures
import contextlib
import hashlib
import logging
import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Float64, PRNGKeyArray

from jaxgrad import files, memory
from jaxgrad.corpus import Corpus
from jaxgrad.errors import JaxgradError
from jaxgrad.training import checkpoints, distributed, evaluate, not_finite, plot
from jaxgrad.training import folder as folders
from jaxgrad.training import mesh as meshes
from jaxgrad.training.checkpoints import Checkpoint, Metadata
from jaxgrad.training.config import (
    SINCE,
    Config,
    changed,
    checked,
    deciding,
    flat,
    flat_sizes,
    optimizer,
    record,
    schedule,
    schedule_steps,
)
from jaxgrad.training.folder import Held, Line
from jaxgrad.training.initial import check_initial, drawn_params, initial_params
from jaxgrad.training.state import State
from jaxgrad.training.step import check_support, run_steps, start

# A chunk's batches are gathered before it starts: this bounds them to a few tens of megabytes at any batch size.
ROWS_PER_CHUNK = 4_000_000

SPLITS = ("train", "dev", "test")

logger = logging.getLogger(__name__)


class Progress(NamedTuple):
    """Where a run stands after a chunk: steps taken, mean loss of the last metrics line, steps per second so far."""

    step: int
    loss: float
    steps_per_second: float


class Losses(NamedTuple):
    """Mean cross-entropy of each split, in nats per symbol, under statistics of the training split."""

    train: float
    dev: float
    test: float


class Stopped(Exception):
    """A run was asked to stop, and has: `checkpoint` is where it can be resumed from, after `step` steps."""

    def __init__(self, checkpoint: Path, step: int):
        super().__init__(f"stopped at step {step}, saved as {checkpoint}")
        self.checkpoint, self.step = checkpoint, step


class RunState(NamedTuple):
    """All that decides the rest of a run; `waiting` are the losses that no metrics line holds yet."""

    state: State
    key: PRNGKeyArray
    waiting: Float64[np.ndarray, " losses"]


class Run(NamedTuple):
    """What does not change while a run goes on; `held` is its folder as the process that writes to it holds it."""

    config: Config
    corpus: Corpus
    folder: Path
    examples: Any
    optimizer: optax.GradientTransformation
    rate: optax.Schedule
    corpus_sha256: str
    mesh: Mesh | None
    held: Held | None = None


Report = Callable[[Progress], None]
Stop = Callable[[], bool]


def train(
    config: Config,
    corpus: Corpus,
    folder: Path,
    report: Report = lambda progress: None,
    stop: Stop = lambda: False,
    mesh: Mesh | None = None,
) -> Losses:
    """Train, evaluate, and leave a run folder; `report` and `stop` are called between jitted calls.

    The folder gets config.json, metrics.jsonl (a line of step, mean loss and learning rate every `log_every`
    steps), checkpoints/STEP/, loss.png and, last, losses.json. Over a `mesh` of `training.mesh` each step is split;
    the mesh may span processes, which then all call this, and the folder is process 0's. Raises `Stopped` after
    `stop` has returned true, and `JaxgradError` for a value out of range, a folder that exists and is not empty, is
    in use or cannot be written, a corpus or a checkpoint to start from that is not the config's, and numbers that are
    not finite.
    """
    distributed.compare(_told("a new run", config, corpus, mesh))
    checked(config)
    check_corpus(config, corpus)
    check_memory(config)
    with precision(config):
        check_initial(config)

    def begin() -> tuple[Held, RunState]:
        folders.claim(folder)
        held = opened.enter_context(folders.locked(folder))
        # Between the first look and the lock another process may have begun a run here.
        folders.claim(folder)
        checkpoints.remove_partial(held.at)
        folders.save_config(held.at, config)
        return held, fresh(config)

    with contextlib.ExitStack() as opened, precision(config):
        run = _prepared(config, corpus, folder, mesh)
        return _go_on(*_placed(run, begin), report, stop)


def resume(
    folder: Path,
    corpus: Corpus,
    report: Report = lambda progress: None,
    stop: Stop = lambda: False,
    mesh: Mesh | None = None,
    steps: int | None = None,
) -> Losses:
    """Go on with a run that was stopped or killed, from its latest valid checkpoint, and end as if it never had been.

    Parameters and metrics.jsonl become those of an undisturbed run, bit for bit where the mesh is the same, and up
    to rounding under another: sums over the batch are then taken in other parts. Damaged checkpoints are set aside,
    and logged. A run that is finished only has its losses returned, unless `steps`, which then are those of the whole
    run, are more than it had: it is continued to them, under its old schedule, which past its end is what optax makes
    of it; the notebook's goes on at a tenth of the rate. Raises as `train` does, and `JaxgradError` for a folder that
    is no run, whose checkpoints are all damaged or whose files were altered, and for fewer steps than it had.
    """
    before = folders.load_config(folder)
    config = before if steps is None else _continued(before, steps, folder)
    finished = _finished(folder, before) if config == before else None
    distributed.compare({**_told("a resumed run", config, corpus, mesh), "finished": finished})
    check_corpus(config, corpus)
    if finished is not None:
        return finished
    check_memory(config)

    def begin() -> tuple[Held, RunState]:
        held = opened.enter_context(folders.locked(folder))
        if folders.load_config(held.at) not in (before, config):
            raise JaxgradError(f"{folder}: was continued by another process just now; look at it, and start again")
        return held, _rewound(run._replace(held=held), continued=config != before)

    with contextlib.ExitStack() as opened, precision(config):
        run = _prepared(config, corpus, folder, mesh)
        return _go_on(*_placed(run, begin), report, stop)


def load(folder: Path, best: bool = False) -> tuple[Config, Any, Any]:
    """The config, parameters and statistics of a run's latest valid checkpoint, or of that of the lowest dev loss.

    Statistics are what predictions take beside the parameters, `()` of a model without any.

    What was passed over because it is damaged, and a run that is not finished, are logged as warnings.
    Raises `JaxgradError` for a folder that is no run, a run without a valid checkpoint, and files that were altered.
    """
    config = folders.load_config(folder)
    path = _latest(folder, checkpoints.saved(folder))
    if path is None:
        raise JaxgradError(
            f"{folder}: there is no checkpoint; was the run stopped before its first? Go on with --resume {folder}"
        )
    if best:
        path = checkpoints.best(checkpoints.saved(folder)) or path
    _check_decided(config, folder, checkpoints.metadata(path))
    if not best and int(path.name) < config.steps:
        logger.warning("%s: is after %s of %d steps; finish it with --resume", folder, path.name, config.steps)
    with precision(config):
        checkpoint = checkpoints.restore(path, shapes(config))
    return config, checkpoint.state.params, checkpoint.statistics


def examples_of(config: Config, split: Any) -> Any:
    """A split as the config's model has its batches, on JAX's default device."""
    return record(config).batch(jnp.asarray(split.X), jnp.asarray(split.Y))


def finished(config: Config, params: Any, split: Any) -> Any:
    """What predictions take beside the parameters, from the training split."""
    return record(config).finish(params, split, config.sizes)


def fresh(config: Config) -> RunState:
    """Where a run of this config starts: its parameters, optimizer state and the key of its batches."""
    init_key, batch_key = jax.random.split(jax.random.key(config.seed))
    return RunState(start(initial_params(config, init_key), optimizer(config)), batch_key, np.empty(0))


def split_losses(config: Config, params: Any, statistics: Any, corpus: Corpus) -> Losses:
    """The mean loss of each split; `statistics` are what predictions take beside the parameters."""
    return Losses(*(_mean_loss(config, params, statistics, getattr(corpus, name)) for name in SPLITS))


def _mean_loss(config: Config, params: Any, statistics: Any, split: Any) -> float:
    return evaluate.mean_loss(record(config), config.sizes, params, statistics, split)


def precision(config: Config) -> contextlib.AbstractContextManager:
    """The JAX setting that a run of this config needs: 64-bit types for float64, none for the others."""
    return jax.enable_x64(config.dtype == "float64")


def check_corpus(config: Config, corpus: Corpus) -> None:
    """Raise `JaxgradError` for a corpus that a run of this config cannot take, before anything is compiled.

    Inside jit a symbol out of range would make a loss NaN, and a row's number beyond int32 another row's.
    """
    if corpus.vocabulary != config.vocabulary:
        raise JaxgradError("the corpus has another vocabulary than the config; build the config from this corpus")
    for name, least in {"train": 2, "dev": 1, "test": 1}.items():
        _check_split(name, getattr(corpus, name), least, config)


def _check_split(name: str, split: Any, least: int, config: Config) -> None:
    n, symbols, model = len(split.Y), len(config.vocabulary), record(config)
    if not least <= n < 2**31:
        raise JaxgradError(f"the {name} split has {n} examples; it must have at least {least}, fewer than 2^31")
    for array_name, array, shape in zip("XY", (split.X, split.Y), model.shapes(config.sizes), strict=True):
        if array.shape != (n, *shape):
            raise JaxgradError(f"{name}.{array_name} has the shape {array.shape}; the config needs {(n, *shape)}")
    for array_name, array in (("X", split.X), ("Y", split.Y)):
        counted = array if array_name == "X" or model.ignored is None else array[array != model.ignored]
        if counted.size and (counted.min() < 0 or counted.max() >= symbols):
            raise JaxgradError(
                f"{name}.{array_name} has symbols from {counted.min()} to {counted.max()};"
                f" they must lie in 0..{symbols - 1}, the vocabulary"
            )


def check_memory(config: Config) -> None:
    """Raise `JaxgradError` where a step takes more than the memory there is, counted before anything is made."""
    numbers = record(config).numbers(config.sizes, len(config.vocabulary), config.batch_size // config.accumulate)
    sizes = ", ".join(f"{name} {value}" for name, value in flat_sizes(config).items())
    memory.check(
        numbers * (8 if config.dtype == "float64" else 4),
        f"training with {sizes} and batches of {config.batch_size}",
    )


def state_before(config: Config, folder: Path, examples: Any, step: int) -> tuple[State, PRNGKeyArray]:
    """The state of a run before a step, and its key, bit for bit: from the last valid checkpoint that is early enough.

    Raises `JaxgradError` where that checkpoint cannot be read.
    """
    path, _ = checkpoints.latest_valid([path for path in checkpoints.saved(folder) if int(path.name) <= step])
    if path is None:
        state, key, _ = fresh(config)
    else:
        checkpoint = checkpoints.restore(path, shapes(config))
        state, key = checkpoint.state, jax.random.wrap_key_data(checkpoint.key)
    transformation, longest = optimizer(config), _longest_chunk(config)
    while (done := int(state.step)) < step:
        state, _ = run_steps(
            state, key, examples, model=record(config), sizes=config.sizes, gradients=config.gradients,
            optimizer=transformation, dtype=config.dtype, batch_size=config.batch_size,
            n_steps=min(longest, step - done), accumulate=config.accumulate,
        )  # fmt: skip
    return state, key


def _prepared(config: Config, corpus: Corpus, folder: Path, mesh: Mesh | None) -> Run:
    model = record(config)
    check_support(model, config.gradients)
    if mesh is not None and config.gradients in model.kernels:
        raise JaxgradError(
            f"gradients is {config.gradients!r}, which is one device's; leave the mesh out, or use fused"
        )
    examples = examples_of(config, corpus.train)
    if mesh is not None:
        examples = jax.device_put(jax.tree.map(np.asarray, examples), meshes.replicated(mesh))
    return Run(config, corpus, folder, examples, optimizer(config), schedule(config), _sha256(corpus), mesh)


def _placed(run: Run, begin: Callable[[], tuple[Held, RunState]]) -> tuple[Run, RunState]:
    """What `begin` returns, which only process 0 calls: the run with its folder held, and its state on the mesh."""
    if run.mesh is None:
        held, current = begin()
        return run._replace(held=held), current
    like = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes(run.config))
    begun: list[tuple[Held, RunState]] = []

    def arrays() -> tuple[State, Any]:
        begun.append(begin())
        current = begun[0][1]
        return current.state, jax.random.key_data(current.key)

    state, key = distributed.from_leader(arrays, (like.state, like.key))
    state = jax.device_put(jax.device_get(state), meshes.of_state(run.mesh, record(run.config), run.optimizer, state))
    # A key itself cannot be put on devices of other processes; its data can.
    key = jax.random.wrap_key_data(jax.device_put(np.asarray(key), meshes.replicated(run.mesh)))
    if not begun:
        return run, RunState(state, key, np.empty(0))
    # The folder, and losses that wait for their metrics line, are the leader's.
    (held, current), *_ = begun
    return run._replace(held=held), RunState(state, key, current.waiting)


def _gathered(run: Run, current: RunState) -> RunState:
    """The state with its arrays on one device, or on the host if they were split."""
    if run.mesh is None:
        return current
    state, key = distributed.whole((current.state, jax.random.key_data(current.key)))
    return current._replace(state=state, key=jax.random.wrap_key_data(key))


def _rewound(run: Run, continued: bool) -> RunState:
    """The state of the latest valid checkpoint, with damaged ones set aside and metrics cut to it.

    Nothing of a run that cannot go on is touched. What a continued run ended with goes before its metrics are cut: a
    kill between the two leaves a run that is to be finished, and not one that is finished and lacks a line.
    """
    at = _at(run)
    path = _latest(run.folder, checkpoints.saved(run.folder))
    if path is None:
        if continued:
            folders.extend(at, run.config)
        folders.rewind_metrics(at, 0)
        checkpoints.remove_partial(at)
        logger.warning("%s: was stopped before its first checkpoint, so it starts anew", run.folder)
        return fresh(run.config)
    metadata = checkpoints.metadata(path)
    if metadata.corpus_sha256 != run.corpus_sha256:
        raise JaxgradError(f"{run.folder}: was trained on another corpus; give that one with --corpus")
    checkpoint = checkpoints.restore(path, shapes(run.config))
    _check_decided(run.config, run.folder, metadata)
    folders.check_metrics(at, metadata.metrics_bytes, metadata.metrics_sha256)
    if continued:
        folders.extend(at, run.config)
    folders.rewind_metrics(at, metadata.metrics_bytes)
    checkpoints.remove_partial(at)
    for damaged in [other for other in checkpoints.saved(at) if not checkpoints.is_valid(other)]:
        aside = checkpoints.set_aside(damaged)
        if int(damaged.name) < int(path.name):
            logger.warning("%s: the checkpoint is damaged, and is now %s", run.folder / "checkpoints" / damaged.name,
                           aside.name)  # fmt: skip
    return RunState(checkpoint.state, jax.random.wrap_key_data(checkpoint.key), np.array(metadata.waiting))


def _at(run: Run) -> Path:
    """The path that the run's folder is written through, if that is still where its name leads."""
    if run.held is None:
        raise RuntimeError(f"{run.folder} is not held by this process")
    folders.check_held(run.held)
    return run.held.at


def _check_decided(config: Config, folder: Path, metadata: Metadata) -> None:
    """Raise `JaxgradError` where a checkpoint was saved under another config than the folder has."""
    now, before = deciding(config), {**SINCE, **metadata.config}
    apart = [name for name in {**now, **before} if now.get(name) != before.get(name)]
    if apart:
        told = (f"{name} is {str(now.get(name))[:40]} and was {str(before.get(name))[:40]}" for name in apart)
        raise JaxgradError(
            f"{folder}/config.json: is not what the run was trained with: {'; '.join(told)}; put it back"
        )


def _continued(config: Config, steps: int, folder: Path) -> Config:
    """The config of a run that goes on to more steps, or to as many."""
    if steps < config.steps:
        raise JaxgradError(
            f"{folder}: is a run of {config.steps} steps; --steps counts them too, and {steps} are fewer"
        )
    if steps == config.steps:
        return config
    return checked(changed(config, steps=steps, schedule_steps=schedule_steps(config)))


def _told(what: str, config: Config, corpus: Corpus, mesh: Mesh | None) -> dict[str, Any]:
    """All that the processes of one run must have been told the same; where the corpus lies is each one's own."""
    return {
        "run": what,
        **{name: value for name, value in flat(config).items() if name != "corpus"},
        "examples": _sha256(corpus) if jax.process_count() > 1 else "",
        "mesh": None if mesh is None else dict(mesh.shape),
    }


def _latest(folder: Path, saved: list[Path]) -> Path | None:
    """The latest valid checkpoint; None where there is none at all."""
    path, damaged = checkpoints.latest_valid(saved)
    if path is None and damaged:
        steps = ", ".join(path.name for path in damaged)
        # Nothing is begun anew unasked: what is damaged may be on a disk that comes back, or in a backup.
        ends = [path for path in (folder / "losses.json",) if os.path.lexists(path)]
        remove = shlex.join(["rm", "-r", *map(str, (folder / "checkpoints", *ends))])
        raise JaxgradError(
            f"{folder}: all checkpoints are damaged: steps {steps}; put one back from a copy, or train from the first"
            f" step to the same end: {remove} && jaxgrad train --resume {shlex.quote(str(folder))}"
        )
    for bad in damaged:
        logger.warning("%s: the checkpoint is damaged, so %s is used", bad, path)
    return path


def _finished(folder: Path, config: Config) -> Losses | None:
    """The losses of a run that has ended; raises `JaxgradError` where they are not those of its last checkpoint."""
    path, advice = folder / "losses.json", "remove it to have it made again"
    if not os.path.lexists(path):
        return None
    losses = files.read_json(path, Losses, "losses", advice)
    last = _path(folder, config.steps)
    if checkpoints.is_valid(last) and checkpoints.metadata(last).losses not in (None, tuple(losses)):
        raise JaxgradError(f"{path}: has not the losses of checkpoint {config.steps}; {advice}")
    return losses


def _go_on(run: Run, current: RunState, report: Report, stop: Stop) -> Losses:
    """The chunks that are left, a checkpoint being written beside the next ones, and the end of the run."""
    config = run.config
    every, longest = _save_every(config, len(run.examples.Y)), _longest_chunk(config)
    began, first = time.monotonic(), int(current.state.step)
    done, wanted = first, False
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        writing = pool.submit(lambda: None)
        while done < config.steps and not wanted:
            n_steps = min(longest, config.steps - done)
            current, lines = _chunk(run, current, n_steps, pool)
            if lines is None:
                writing.result()
                raise _not_finite(run, done, n_steps)
            if distributed.leads():
                folders.append_metrics(_at(run), lines)
            done += n_steps
            latest = lines[-1].loss if lines else float(current.waiting.mean())
            report(Progress(done, latest, (done - first) / (time.monotonic() - began)))
            wanted = distributed.any_of_us(stop())
            if done < config.steps and (wanted or done // every > (done - n_steps) // every):
                writing.result()
                gathered = _gathered(run, current)
                if distributed.leads():
                    statistics = finished(config, gathered.state.params, run.corpus.train)
                    dev_loss = _mean_loss(config, gathered.state.params, statistics, run.corpus.dev)
                    writing = pool.submit(_save(run, gathered, statistics, dev_loss))
        writing.result()
    if done < config.steps:
        raise Stopped(_path(run.folder, done), done)
    return _end(run, _gathered(run, current))


def _chunk(
    run: Run, current: RunState, n_steps: int, pool: concurrent.futures.Executor
) -> tuple[RunState, list[Line] | None]:
    """`n_steps` more steps and the metrics lines that they fill; None for lines if a number is not finite."""
    config = run.config
    state, losses = run_steps(
        current.state, current.key, run.examples, model=record(config), sizes=config.sizes,
        gradients=config.gradients, optimizer=run.optimizer, dtype=config.dtype, batch_size=config.batch_size,
        n_steps=n_steps, mesh=run.mesh, accumulate=config.accumulate,
    )  # fmt: skip
    sound = not_finite.all_finite((state, losses))
    # Python hears of signals between its own instructions only: not inside of XLA, where a chunk may take long.
    pool.submit(jax.block_until_ready, sound).result()
    done = int(state.step)
    waiting = np.append(current.waiting, np.asarray(losses, np.float64))
    # Losses that do not fill a line wait for the next chunk, or for the end of the run.
    whole = len(waiting) - len(waiting) % config.log_every
    now = RunState(state, current.key, waiting[whole:])
    return now, _lines(run, done - len(waiting), waiting[:whole]) if sound else None


def _lines(run: Run, first: int, losses: Float64[np.ndarray, " losses"]) -> list[Line]:
    lines = []
    for at in range(0, len(losses), run.config.log_every):
        line = losses[at : at + run.config.log_every]
        step = first + at + len(line)
        lines.append(Line(step, float(line.mean()), float(run.rate(step - 1))))
    return lines


def _save(
    run: Run, current: RunState, statistics: Any, dev_loss: float, losses: Losses | None = None
) -> Callable[[], None]:
    """Start to write a checkpoint; the function that is returned ends it and removes those that need not stay."""
    at = _at(run)
    metadata = Metadata(
        dev_loss if np.isfinite(dev_loss) else None,
        tuple(current.waiting.tolist()),
        *folders.metrics_mark(at),
        run.corpus_sha256,
        deciding(run.config),
        losses,
    )
    arrays = Checkpoint(current.state, jax.random.key_data(current.key), statistics)
    finish = checkpoints.begin(_path(at, int(current.state.step)), arrays, metadata)

    def write() -> None:
        finish()
        checkpoints.tidy(at, run.config.keep)

    return write


def _end(run: Run, current: RunState) -> Losses:
    def write() -> Float64[np.ndarray, "3"]:
        statistics = finished(run.config, current.state.params, run.corpus.train)
        losses = split_losses(run.config, current.state.params, statistics, run.corpus)
        # A step's loss is that before its update, so what the last update spoiled shows only here.
        if not np.isfinite(losses).all():
            raise JaxgradError(
                f"the trained loss is not finite; lower the learning rate, which is {run.config.learning_rate}"
            )
        at = _at(run)
        if not _path(at, run.config.steps).exists():
            _save(run, current, statistics, losses.dev, losses)()
        # Those of a last line that is not full are in the checkpoint too, from which a continued run fills it.
        if len(current.waiting):
            folders.append_metrics(_at(run), _lines(run, run.config.steps - len(current.waiting), current.waiting))
        plot.save_loss_curve(at)
        files.write_json(_at(run) / "losses.json", losses._asdict())
        return np.array(losses)

    # All processes wait for it: a run has ended when it is on the disk.
    return Losses(*map(float, distributed.from_leader(write, np.zeros(3))))


def _not_finite(run: Run, done: int, n_steps: int) -> JaxgradError:
    """What went wrong in the chunk after `done` steps; nothing of it was kept."""
    config = run.config
    if not distributed.leads():
        return JaxgradError(f"steps {done} to {done + n_steps} are not finite; process 0 says what was so first")
    # On one device, whatever the mesh: the folder's checkpoints say all that is needed.
    examples = examples_of(config, run.corpus.train)
    state, key = state_before(config, run.folder, examples, done)
    found = not_finite.find(config, run.optimizer, state, key, examples, n_steps)
    if found is None:
        return JaxgradError(
            f"steps {done} to {done + n_steps} were not finite, and are when run again: a broken device?"
        )
    good, _ = checkpoints.latest_valid(checkpoints.saved(run.folder))
    kept = "there is no checkpoint before it" if good is None else f"the last good checkpoint is {good}"
    return JaxgradError(
        f"step {found.step} is not finite: {found.what}; its batch is that of seed {config.seed} and this step,"
        f" and {kept}; lower the learning rate, which is {config.learning_rate}, or look at the step with:"
        f" jaxgrad parity --replay {shlex.quote(str(run.folder))} --step {found.step} --dtype {config.dtype}"
    )


def _save_every(config: Config, n_examples: int) -> int:
    """A checkpoint calibrates on all examples: as rare as this, it costs about a hundredth of the steps between."""
    return config.save_every or max(50_000, 8 * n_examples // config.batch_size)


def _longest_chunk(config: Config) -> int:
    return max(1, min(config.chunk, config.save_every or config.chunk, ROWS_PER_CHUNK // config.batch_size))


def _path(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / str(step)


def _sha256(corpus: Corpus) -> str:
    digest = hashlib.sha256("".join(corpus.vocabulary).encode())
    for array in jax.tree.leaves((corpus.train, corpus.dev, corpus.test)):
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def shapes(config: Config) -> Checkpoint:
    """Shapes and types of the config's checkpoints."""

    def empty() -> Checkpoint:
        key = jax.random.key(config.seed)
        params = drawn_params(config, key)
        extra = record(config).extra(params, config.sizes)
        return Checkpoint(start(params, optimizer(config)), jax.random.key_data(key), extra)

    return jax.eval_shape(empty)
