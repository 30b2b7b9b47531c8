"""What pictures of a run show: its metrics, and its hidden layer while its steps are taken again."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from jaxgrad.corpus import Corpus
from jaxgrad.errors import JaxgradError
from jaxgrad.jaxprs.taps import node_values
from jaxgrad.models.model import Model
from jaxgrad.plots.hidden import LEVELS, SATURATED, Watched
from jaxgrad.training.config import optimizer, record
from jaxgrad.training.folder import METRICS, load_config, read_metrics
from jaxgrad.training.not_finite import in_type
from jaxgrad.training.run import ROWS_PER_CHUNK, check_corpus, examples_of, precision, state_before
from jaxgrad.training.step import check_support, run_steps

ROWS_WATCHED = 2048
# Few lengths of jitted calls, each compiled once, reach every step.
CHUNKS = (4096, 512, 64, 8, 1)


def columns(
    folder: Path,
) -> tuple[Int[np.ndarray, " lines"], Float[np.ndarray, " lines"], Float[np.ndarray, " lines"]]:
    """Steps, losses in nats and learning rates of a run's metrics lines.

    Raises `JaxgradError` for a folder that is no run, and for one whose metrics are missing, empty or not as written.
    """
    load_config(folder)
    lines = read_metrics(folder)
    if not lines:
        raise JaxgradError(f"{folder / METRICS}: has no line yet; go on with the run: jaxgrad train --resume {folder}")
    steps, losses, rates = map(np.array, zip(*lines, strict=True))
    return steps, losses, rates


def marks(steps: int) -> list[int]:
    """Steps that are even on a log axis, two for each doubling: 0, 1, 2, 3, 4, 6, 8, 12, ... and `steps` itself."""
    between = sorted({2**k for k in range(31)} | {3 * 2**k for k in range(30)})
    return [0, *(step for step in between if step < steps), steps]


def watch(folder: Path, corpus: Corpus, report: Callable[[int], None] = lambda step: None) -> Watched:
    """Take a run's steps again, as far as its metrics reach, and look at its hidden layer on the way, at `marks`.

    Training is a pure function of the config, so these are the numbers that the run had; those of a kernel or a mesh
    up to rounding. The batch has `ROWS_WATCHED` examples, spread evenly over the training split. `report` is given
    the steps taken.
    Raises `JaxgradError` for a folder that is no run, one without metrics, another corpus, gradients that the
    platform has not, and a model without a layer that saturates.
    """
    config = load_config(folder)
    check_corpus(config, corpus)
    model = record(config)
    check_support(model, config.gradients)
    if model.hidden is None:
        raise JaxgradError(f"{folder}: is a run of the model {model.name}, which has no hidden layer that saturates")
    at = marks(int(columns(folder)[0][-1]))
    rows = np.unique(np.linspace(0, len(corpus.train.Y) - 1, ROWS_WATCHED).astype(np.int64))
    transformation = optimizer(config)
    seen = []
    with precision(config):
        examples = examples_of(config, corpus.train)
        state, key = state_before(config, folder, examples, 0)
        batch = jax.tree.map(lambda array: array[rows], examples)
        for mark in at:
            while (done := int(state.step)) < mark:
                state, _ = run_steps(
                    state, key, examples, model=model, sizes=config.sizes, gradients=config.gradients,
                    optimizer=transformation, dtype=config.dtype, batch_size=config.batch_size,
                    n_steps=_chunk(mark - done, config.batch_size),
                )  # fmt: skip
                report(int(state.step))
            h, h_norm, mean, var = (
                np.asarray(x, np.float64) for x in _hidden(model, config.sizes, in_type(config, state.params), batch)
            )
            seen.append(((np.abs(h) > SATURATED).mean(0), np.quantile(h_norm, LEVELS), mean[0], var[0]))
    return Watched(np.array(at), *(np.stack(column) for column in zip(*seen, strict=True)))


def _chunk(left: int, batch_size: int) -> int:
    return next(n for n in CHUNKS if n <= left and (n == 1 or n * batch_size <= ROWS_PER_CHUNK))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _hidden(model: Model, sizes: Any, params: Any, batch: Any) -> tuple[Array, ...]:
    nodes = node_values(lambda p, b: model.loss(p, b, sizes), params, batch)
    return tuple(nodes[name] for name in model.hidden or ())
