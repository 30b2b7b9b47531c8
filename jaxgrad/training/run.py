"""A whole run: chunks of steps, metrics, evaluation, and the folder that it leaves."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import files
from jaxgrad.corpus import Corpus
from jaxgrad.errors import JaxgradError
from jaxgrad.models.mlp import Batch, Params, Statistics, init
from jaxgrad.training import checkpoints, evaluate, plot
from jaxgrad.training.checkpoints import Checkpoint
from jaxgrad.training.config import Config, checked, optimizer, schedule
from jaxgrad.training.step import State, run_steps, start

# A chunk's batches are gathered before it starts: this bounds them to a few tens of megabytes at any batch size.
ROWS_PER_CHUNK = 4_000_000

SPLITS = ("train", "dev", "test")


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


def train(
    config: Config, corpus: Corpus, folder: Path, report: Callable[[Progress], None] = lambda progress: None
) -> Losses:
    """Train, evaluate, and leave a run folder; `report` is called between jitted calls.

    The folder gets config.json, metrics.jsonl (a line of step, mean loss and learning rate every `log_every`
    steps), loss.png, checkpoint/ and, last, losses.json. Raises `JaxgradError` for a value out of range, a folder
    that exists and is not empty or cannot be written, a corpus other than the config's, and a loss that is not
    finite.
    """
    checked(config)
    _claim(folder)
    files.write_json(folder / "config.json", dataclasses.asdict(config))
    with precision(config):
        key = jax.random.key(config.seed)
        init_key, batch_key = jax.random.split(key)
        state = start(initial_params(config, init_key), optimizer(config))
        state = _steps(config, state, batch_key, corpus, folder, report)
        statistics = evaluate.calibrate(state.params, jnp.asarray(corpus.train.X))
        losses = split_losses(state.params, statistics, corpus)
        # A step's loss is that before its update, so what the last update spoiled shows only here.
        if not np.isfinite(losses).all():
            raise JaxgradError(
                f"the trained loss is not finite; lower the learning rate, which is {config.learning_rate}"
            )
        checkpoints.save(folder / "checkpoint", Checkpoint(state, jax.random.key_data(batch_key), statistics))
    plot.save_loss_curve(folder)
    files.write_json(folder / "losses.json", losses._asdict())
    return losses


def initial_params(config: Config, key: jax.Array) -> Params:
    """The parameters that a run starts from; float64 runs keep float64 parameters, all others float32."""
    dtype = jnp.float64 if config.dtype == "float64" else jnp.float32
    return init(key, len(config.vocabulary), config.context, config.embedding, config.hidden, dtype)


def load(folder: Path) -> tuple[Config, Params, Statistics]:
    """The config, final parameters and calibrated statistics of a finished run.

    Raises `JaxgradError` for a folder that is no run, a run without a checkpoint, and files that were altered.
    """
    config = load_config(folder)
    with precision(config):
        like = jax.eval_shape(lambda: _empty_checkpoint(config))
        checkpoint = checkpoints.restore(folder / "checkpoint", like)
    return config, checkpoint.state.params, checkpoint.statistics


def load_config(folder: Path) -> Config:
    """The config of a run folder; raises `JaxgradError` where it is missing or not one that jaxgrad wrote."""
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        fixed = {
            name: tuple((key, value) for key, value in values[name]) for name in ("optimizer_args", "schedule_args")
        }
        return checked(Config(**{**values, **fixed, "vocabulary": tuple(values["vocabulary"])}))
    except OSError as error:
        raise JaxgradError(f"{path}: cannot be read ({error.strerror}); give the folder of a run") from None
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise JaxgradError(f"{path}: is not a config that jaxgrad wrote ({error})") from None


def split_losses(params: Params, statistics: Statistics, corpus: Corpus) -> Losses:
    """The mean loss of each split."""
    return Losses(*(evaluate.mean_loss(params, statistics, getattr(corpus, name)) for name in SPLITS))


def precision(config: Config) -> contextlib.AbstractContextManager:
    """The JAX setting that a run of this config needs: 64-bit types for float64, none for the others."""
    return jax.enable_x64(config.dtype == "float64")


def _steps(
    config: Config, state: State, key: jax.Array, corpus: Corpus, folder: Path, report: Callable[[Progress], None]
) -> State:
    examples = Batch(jnp.asarray(corpus.train.X), jnp.asarray(corpus.train.Y))
    transformation, rate = optimizer(config), schedule(config)
    longest = max(1, min(config.chunk, ROWS_PER_CHUNK // config.batch_size))
    began, waiting = time.monotonic(), np.empty(0)
    done = 0
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as metrics:
        while done < config.steps:
            n_steps = min(longest, config.steps - done)
            state, losses = run_steps(
                state, key, examples,
                gradients=config.gradients, optimizer=transformation, dtype=config.dtype,
                batch_size=config.batch_size, n_steps=n_steps,
            )  # fmt: skip
            # Losses that do not fill a metrics line wait for the next chunk, or for the end of the run.
            waiting = np.append(waiting, np.asarray(losses, np.float64))
            first = done + n_steps - len(waiting)
            done += n_steps
            whole = len(waiting) if done == config.steps else len(waiting) - len(waiting) % config.log_every
            lines = []
            for at in range(0, whole, config.log_every):
                line = waiting[at : min(at + config.log_every, whole)]
                step = first + at + len(line)
                lines.append({"step": step, "loss": float(line.mean()), "learning_rate": float(rate(step - 1))})
            waiting = waiting[whole:]
            if not np.isfinite([line["loss"] for line in lines]).all():
                bad = next(line["step"] for line in lines if not np.isfinite(line["loss"]))
                raise JaxgradError(
                    f"the loss is not finite within the {config.log_every} steps before step {bad};"
                    f" lower the learning rate, which is {config.learning_rate}"
                )
            metrics.write("".join(json.dumps(line) + "\n" for line in lines))
            metrics.flush()
            latest = lines[-1]["loss"] if lines else float(waiting.mean())
            report(Progress(done, latest, done / (time.monotonic() - began)))
    return state


def _claim(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = any(folder.iterdir())
    except OSError as error:
        raise JaxgradError(f"{folder}: cannot be a run folder ({error.strerror}); give another --out") from None
    if taken:
        raise JaxgradError(f"{folder}: exists and is not empty; give another --out, or remove it first")


def _empty_checkpoint(config: Config) -> Checkpoint:
    key = jax.random.key(config.seed)
    params = initial_params(config, key)
    row = jnp.zeros_like(params.bn_gain)
    return Checkpoint(start(params, optimizer(config)), jax.random.key_data(key), Statistics(row, row))
