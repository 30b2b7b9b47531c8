"""What every competitor is given: a model and its sizes, parameters, examples, the key of the batches."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import batches, corpus
from jaxgrad.errors import JaxgradError
from jaxgrad.models.model import Benchmark, Model, check_rows

SEED = 0


class Size(NamedTuple):
    """Rows of a batch and the model's sizes, under a name."""

    name: str
    batch: int
    sizes: Any


class Task(NamedTuple):
    """Train from `params`, by SGD at `learning_rate`, on the batches that `key` draws from `examples`; NumPy arrays."""

    model: Model
    size: Size
    params: Any
    examples: Any
    key_data: np.ndarray
    vocab_size: int
    learning_rate: float

    @property
    def key(self) -> jax.Array:
        """The key of the batches, on JAX's default device."""
        return jax.random.wrap_key_data(jnp.asarray(self.key_data))


def benchmark(model: Model) -> Benchmark:
    """What is timed of a model; raises `JaxgradError` where its record does not say."""
    if model.benchmark is None:
        raise JaxgradError(f"the record of the model {model.name} names no sizes to time; give it a benchmark")
    return model.benchmark


def sizes_of(model: Model) -> dict[str, Size]:
    """The sizes that are timed of a model, by name."""
    return {name: Size(name, *size) for name, size in benchmark(model).sizes.items()}


def named_size(model: Model, name: str) -> Size:
    """The size of that name; raises `JaxgradError` where the model has none."""
    known = sizes_of(model)
    if name not in known:
        raise JaxgradError(f"there is no size {name!r}; choose from {', '.join(known)}, or give --batch and --hidden")
    return known[name]


def of_ones_own(model: Model, like: Size, batch: int, hidden: int) -> Size:
    """A size with so many rows, and so many of what sweeps of the model always tell of."""
    return Size("own", batch, dataclasses.replace(like.sizes, **{str(model.swept): hidden}))


def task(model: Model, size: Size, read: Callable[[Any], corpus.Corpus]) -> Task:
    """The task of a size on the training split of `read(sizes)`, a corpus; the same on every machine.

    Raises `JaxgradError` for a batch of too few rows.
    """
    check_rows(model, size.batch)
    data = read(size.sizes)
    drawn, initial = jax.random.split(jax.random.key(SEED))
    params = model.init(initial, size.sizes, len(data.vocabulary), jnp.float32)
    kept = jax.tree.map(np.asarray, params)
    key_data = np.asarray(jax.random.key_data(drawn))
    return Task(model, size, kept, data.train, key_data, len(data.vocabulary), benchmark(model).learning_rate)


def examples(task: Task) -> Any:
    """The examples on JAX's default device."""
    return task.model.batch(jnp.asarray(task.examples.X), jnp.asarray(task.examples.Y))


def rows(task: Task, n_steps: int) -> np.ndarray:
    """The rows of the first `n_steps` batches, int32 (n_steps, batch): those that JAX's competitors draw themselves."""
    draw = jax.vmap(lambda step: batches.indices(task.key, step, task.size.batch, len(task.examples.Y)))
    return np.asarray(jax.jit(draw)(np.arange(n_steps, dtype=np.int32)))


def flops(task: Task) -> int:
    """Floating-point operations of one step, as the model's record counts them."""
    return benchmark(task.model).flops(task.params, task.size.sizes, task.size.batch)
