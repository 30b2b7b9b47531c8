"""(seed, step) -> the row indices of a batch: one function, the only source of batches. And a split in equal blocks."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int, Int32, PRNGKeyArray

ROWS_AT_ONCE = 8192


def indices(
    key: PRNGKeyArray, step: int | Int[Array, ""], batch_size: int, n_examples: int | Int[Array, ""]
) -> Int32[Array, " batch_size"]:
    """Rows of the batch of a step, drawn with replacement from `range(n_examples)`.

    A pure function of its arguments: a resumed run, another engine or another machine draws the same rows, and
    so does a float64 run, because the type is int32 whatever the default. `batch_size` is static.
    """
    return jax.random.randint(jax.random.fold_in(key, step), (batch_size,), 0, n_examples, dtype=jnp.int32)


def blocks(examples: Any, rows_at_once: int = ROWS_AT_ONCE) -> tuple[Any, Float32[Array, "blocks rows"]]:
    """Rows of a tree of arrays in blocks of equal size, and a weight of each row.

    The last block is filled up with row 0, whose weight there is 0; that of all others is 1.
    """
    n = len(jax.tree.leaves(examples)[0])
    rows = min(n, rows_at_once)
    n_blocks = -(-n // rows)
    at = jnp.arange(n_blocks * rows).reshape(n_blocks, rows)
    kept = (at < n).astype(jnp.float32)
    return jax.tree.map(lambda array: array[jnp.where(at < n, at, 0)], examples), kept
