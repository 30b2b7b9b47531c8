"""(seed, step) -> the row indices of a batch: one function, the only source of batches."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Int32, PRNGKeyArray


def indices(
    key: PRNGKeyArray, step: int | Int[Array, ""], batch_size: int, n_examples: int | Int[Array, ""]
) -> Int32[Array, " batch_size"]:
    """Rows of the batch of a step, drawn with replacement from `range(n_examples)`.

    A pure function of its arguments: a resumed run, another engine or another machine draws the same rows, and
    so does a float64 run, because the type is int32 whatever the default. `batch_size` is static.
    """
    return jax.random.randint(jax.random.fold_in(key, step), (batch_size,), 0, n_examples, dtype=jnp.int32)
