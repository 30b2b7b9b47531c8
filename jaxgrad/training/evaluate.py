"""Batch-norm statistics over a whole split, and the mean loss of a split under them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgrad.corpus import Split
from jaxgrad.models.mlp import Batch, Params, Statistics, predict, prenorm
from jaxgrad.ops import cross_entropy

ROWS_AT_ONCE = 8192


def calibrate(params: Params, X: Int[Array, "examples n"]) -> Statistics:
    """Mean and unbiased variance of `h_prenorm` over all contexts X, as the seed's statistics of one batch are.

    Two passes, a block of rows at a time: the variance is summed around the mean, so nothing cancels.
    Raises `ValueError` for fewer than 2 contexts.
    """
    if len(X) < 2:
        raise ValueError(f"calibration over {len(X)} context(s): the variance divides by n - 1; give at least 2")
    blocks, kept = _blocks(jnp.asarray(X))
    # Counted on the host: a sum of float32 ones stops growing at 2^24 of them.
    return _calibrate(params, blocks, kept, float(len(X)))


def mean_loss(params: Params, statistics: Statistics, split: Split) -> float:
    """Mean cross-entropy of a split in nats per symbol, under fixed batch-norm statistics."""
    blocks, kept = _blocks(Batch(jnp.asarray(split.X), jnp.asarray(split.Y)))
    return float(_mean_loss(params, statistics, blocks, kept, float(len(split.Y))))


@jax.jit
def _calibrate(
    params: Params, blocks: Int[Array, "blocks rows n"], kept: Float[Array, "blocks rows"], n: float
) -> Statistics:
    def over_rows(of_rows: Callable[[Array], Array]) -> Float[Array, " h_size"]:
        def block(args: tuple[Array, Array]) -> Float[Array, " h_size"]:
            X, weight = args
            return weight.astype(params.W1.dtype) @ of_rows(prenorm(params, X))

        return jax.lax.map(block, (blocks, kept)).sum(0)

    mean = over_rows(lambda h: h) / n
    var = over_rows(lambda h: (h - mean) ** 2) / (n - 1)
    return Statistics(mean[None], var[None])


@jax.jit
def _mean_loss(
    params: Params, statistics: Statistics, blocks: Batch, kept: Float[Array, "blocks rows"], n: float
) -> Array:
    def block(args: tuple[Batch, Array]) -> Float[Array, ""]:
        batch, weight = args
        losses = jax.vmap(cross_entropy)(predict(params, statistics, batch.X), batch.Y)
        return jnp.sum(weight * losses)

    return jax.lax.map(block, (blocks, kept)).sum() / n


def _blocks(examples: Batch | Array) -> tuple[Batch | Array, Float[Array, "blocks rows"]]:
    """Rows in blocks of equal size, the last filled up with row 0, and a weight that is 0 for the filling."""
    n = len(jax.tree.leaves(examples)[0])
    rows = min(n, ROWS_AT_ONCE)
    n_blocks = -(-n // rows)
    at = jnp.arange(n_blocks * rows).reshape(n_blocks, rows)
    kept = (at < n).astype(jnp.float32)
    return jax.tree.map(lambda array: array[jnp.where(at < n, at, 0)], examples), kept
