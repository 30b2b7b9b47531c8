"""The mean loss of a split."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgrad.batches import blocks as blocks_of
from jaxgrad.corpus import Split
from jaxgrad.models.mlp.forward import Batch, Params, Statistics, predict
from jaxgrad.ops import cross_entropy


def mean_loss(params: Params, statistics: Statistics, split: Split) -> float:
    """Mean cross-entropy of a split in nats per symbol, under fixed batch-norm statistics."""
    blocks, kept = blocks_of(Batch(jnp.asarray(split.X), jnp.asarray(split.Y)))
    return float(_mean_loss(params, statistics, blocks, kept, float(len(split.Y))))


@jax.jit
def _mean_loss(
    params: Params, statistics: Statistics, blocks: Batch, kept: Float[Array, "blocks rows"], n: float
) -> Array:
    def block(args: tuple[Batch, Array]) -> Float[Array, ""]:
        batch, weight = args
        losses = jax.vmap(cross_entropy)(predict(params, statistics, batch.X), batch.Y)
        return jnp.sum(weight * losses)

    return jax.lax.map(block, (blocks, kept)).sum() / n
