"""Batch-norm statistics over a whole split, with which a trained model's logits depend on no batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgrad.batches import blocks
from jaxgrad.models.mlp.forward import Params, Statistics, prenorm


def calibrate(params: Params, X: Int[Array, "examples n"]) -> Statistics:
    """Mean and unbiased variance of `h_prenorm` over all contexts X, as the seed's statistics of one batch are.

    Two passes, a block of rows at a time: the variance is summed around the mean, so nothing cancels.
    Raises `ValueError` for fewer than 2 contexts.
    """
    if len(X) < 2:
        raise ValueError(f"calibration over {len(X)} context(s): the variance divides by n - 1; give at least 2")
    rows, kept = blocks(jnp.asarray(X))
    # Counted on the host: a sum of float32 ones stops growing at 2^24 of them.
    return _calibrate(params, rows, kept, float(len(X)))


@jax.jit
def _calibrate(
    params: Params, rows: Int[Array, "blocks rows n"], kept: Float[Array, "blocks rows"], n: float
) -> Statistics:
    def over_rows(of_rows: Callable[[Array], Array]) -> Float[Array, " h_size"]:
        def block(args: tuple[Array, Array]) -> Float[Array, " h_size"]:
            X, weight = args
            return weight.astype(params.W1.dtype) @ of_rows(prenorm(params, X))

        return jax.lax.map(block, (rows, kept)).sum(0)

    mean = over_rows(lambda h: h) / n
    var = over_rows(lambda h: (h - mean) ** 2) / (n - 1)
    return Statistics(mean[None], var[None])
