"""The mean loss of a split."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxgrad.batches import ROWS_AT_ONCE, blocks
from jaxgrad.models.model import Model
from jaxgrad.ops import cross_entropy


def mean_loss(model: Model, sizes: Any, params: Any, extra: Any, split: Any) -> float:
    """Mean cross-entropy of a split in nats per symbol; targets that the model ignores are not counted.

    `extra` is what the model's predictions take beside its parameters.
    """
    _, of_target = model.shapes(sizes)
    rows = max(1, ROWS_AT_ONCE // math.prod(of_target))
    batches, kept = blocks(model.batch(jnp.asarray(split.X), jnp.asarray(split.Y)), rows)
    # Counted on the host: a sum of float32 ones stops growing at 2^24 of them.
    counted = split.Y.size if model.ignored is None else int(np.count_nonzero(np.asarray(split.Y) != model.ignored))
    return float(_mean_loss(params, extra, batches, kept, float(counted), model=model, sizes=sizes))


@functools.partial(jax.jit, static_argnames=("model", "sizes"))
def _mean_loss(
    params: Any, extra: Any, batches: Any, kept: Float[Array, "blocks rows"], n: float, *, model: Model, sizes: Any
) -> Array:
    def block(args: tuple[Any, Array]) -> Float[Array, ""]:
        batch, weight = args
        logits = model.predict(params, extra, batch.X, sizes)
        Y = batch.Y.reshape(-1)
        weight = jnp.broadcast_to(weight.reshape(-1, *(1,) * (batch.Y.ndim - 1)), batch.Y.shape).reshape(-1)
        if model.ignored is not None:
            weight, Y = jnp.where(model.ignored == Y, 0, weight), jnp.where(model.ignored == Y, 0, Y)
        losses = jax.vmap(cross_entropy)(logits.reshape(-1, logits.shape[-1]), Y)
        return jnp.sum(weight * losses)

    return jax.lax.map(block, (batches, kept)).sum() / n
