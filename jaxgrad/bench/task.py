"""What every competitor is given: sizes, parameters, examples, the key of the batches; and what a step costs."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import batches, corpus
from jaxgrad.errors import JaxgradError
from jaxgrad.models.mlp.forward import Batch, Params, init
from jaxgrad.models.mlp.sizes import Sizes

EMB_SIZE = 10
SEED = 0
LEARNING_RATE = 0.1


class Size(NamedTuple):
    """Rows of a batch and hidden neurons, under a name."""

    name: str
    batch: int
    hidden: int


SIZES = {size.name: size for size in (Size("seed", 32, 200), Size("middle", 1024, 1024), Size("large", 8192, 4096))}


class Task(NamedTuple):
    """Train from `params`, by SGD at `learning_rate`, on the batches that `key` draws from `examples`; NumPy arrays."""

    size: Size
    params: Params
    examples: corpus.Split
    key_data: np.ndarray
    learning_rate: float = LEARNING_RATE

    @property
    def key(self) -> jax.Array:
        """The key of the batches, on JAX's default device."""
        return jax.random.wrap_key_data(jnp.asarray(self.key_data))


def task(size: Size, data: corpus.Corpus) -> Task:
    """The task of a size on the training split of a corpus, the same on every machine.

    Raises `JaxgradError` for a size that has no batch norm.
    """
    if size.batch < 2 or size.hidden < 1:
        raise JaxgradError(
            f"batch is {size.batch} and hidden {size.hidden}; Bessel's correction needs 2 rows, and a layer 1 neuron"
        )
    drawn, initial = jax.random.split(jax.random.key(SEED))
    params = init(initial, len(data.vocabulary), data.train.X.shape[1], EMB_SIZE, size.hidden)
    return Task(size, jax.tree.map(np.asarray, params), data.train, np.asarray(jax.random.key_data(drawn)))


def sizes_of(task: Task) -> Sizes:
    """The sizes of the task's model."""
    return Sizes(hidden=task.size.hidden, context=task.examples.X.shape[1], embedding=EMB_SIZE)


def examples(task: Task) -> Batch:
    """The examples on JAX's default device."""
    return Batch(jnp.asarray(task.examples.X), jnp.asarray(task.examples.Y))


def rows(task: Task, n_steps: int) -> np.ndarray:
    """The rows of the first `n_steps` batches, int32 (n_steps, batch): those that JAX's competitors draw themselves."""
    draw = jax.vmap(lambda step: batches.indices(task.key, step, task.size.batch, len(task.examples.Y)))
    return np.asarray(jax.jit(draw)(np.arange(n_steps, dtype=np.int32)))


def flops(task: Task) -> int:
    r"""Floating-point operations of one step's products and of the embedding's sum.

    A product of (m, k) and (k, n) takes $2mnk$. Each of the two linear layers has three of one size: $xW$ forward;
    $dy\,W^T$ and $x^T dy$ backward. With B rows, E = n · emb_size inputs, H neurons and V symbols that is
    $3 \cdot 2BEH + 3 \cdot 2BHV = 6BH(E + V)$. Looking rows up computes nothing; the scatter-add of their
    cotangents takes BE additions. Elementwise operations are left out, as is usual.
    """
    n_emb, h_size = task.params.W1.shape
    vocab_size, batch = task.params.C.shape[0], task.size.batch
    return 6 * batch * h_size * (n_emb + vocab_size) + batch * n_emb
