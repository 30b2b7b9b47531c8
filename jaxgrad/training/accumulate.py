"""A batch's loss and gradients a part of it at a time: the memory of a part, the numbers of the whole."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgrad.models.model import Gradients, Model


def accumulated(model: Model, whole: Gradients, parts: int) -> Gradients:
    r"""`whole`, of the model's `gradients_of`, over a batch in `parts` of equally many rows, one after another.

    The loss is a mean over targets that count. With $n_k$ of them in part k and $n = \sum_k n_k$,
    $$L = \frac1n \sum_k n_k L_k, \qquad dp = \frac1n \sum_k n_k\,dp_k,$$
    which are sums in the parameters' type, and in float32 at least. Dropout is drawn anew for each part.
    """
    if parts == 1:
        return whole

    def gradients(params: Any, batch: Any, sizes: Any, key: PRNGKeyArray | None = None) -> tuple[Array, Any]:
        def part(total: Any, numbered: tuple[Array, Any]) -> tuple[Any, None]:
            number, rows = numbered
            given = whole(params, rows, sizes, None if key is None else jax.random.fold_in(key, number))
            # A part of which no target counts has no mean.
            n = _counted(model, rows.Y, given[0].dtype)
            add = lambda sum_, one: sum_ + jnp.where(n > 0, n * one.astype(sum_.dtype), 0)  # noqa: E731
            return jax.tree.map(add, total, given), None

        # Every `parts`-th row, so that the rows of a part lie on all devices that the batch is split over.
        by_part = jax.tree.map(lambda rows: rows.reshape(-1, parts, *rows.shape[1:]).swapaxes(0, 1), batch)
        zeros = jax.tree.map(_zeros, jax.eval_shape(lambda p, b: whole(p, b, sizes, key), params, batch))
        total, _ = jax.lax.scan(part, zeros, (jnp.arange(parts), by_part))
        n = _counted(model, batch.Y, total[0].dtype)
        return jax.tree.map(lambda sum_: sum_ / n.astype(sum_.dtype), total)

    return gradients


def _counted(model: Model, targets: Array, dtype: Any) -> Float[Array, ""]:
    """How many targets a loss is the mean of."""
    if model.ignored is None:
        return jnp.asarray(targets.size, dtype)
    return jnp.sum(targets != model.ignored).astype(jnp.promote_types(dtype, jnp.float32))


def _zeros(leaf: Any) -> Array:
    return jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32))
