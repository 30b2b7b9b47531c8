"""Rows of a table, picked by integer ids."""

import functools
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgrad.ops._shards import summed
from jaxgrad.ops.precision import accumulation_dtype

Residuals: TypeAlias = tuple[Float[Array, "rows 0"], Int[Array, "*batch"]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def embedding(
    table: Float[Array, "rows d"], ids: Int[Array, "*batch"], padding_index: int | None = None
) -> Float[Array, "*batch d"]:
    r"""`table[ids]`; the row `padding_index` is given as it is and has no cotangent.

    With $y_n = T_{i_n}$, a row is used once for every $n$ that names it, and its cotangents add up:
    $$dT_r = \sum_n [i_n = r]\,dy_n,$$
    a scatter-add, done in float32 at least.

    Ids must lie in `range(rows)`: one that does not gives a row of NaN, and no row a cotangent.
    Residuals: the ids, and of the table its height and type.
    Source: the notebook's `C[X]`; derivation ours.
    """
    return embedding_fwd(table, ids, padding_index)[0]


def embedding_fwd(
    table: Float[Array, "rows d"], ids: Int[Array, "*batch"], padding_index: int | None = None
) -> tuple[Float[Array, "*batch d"], Residuals]:
    """The rows and the residuals `(table[:, :0], ids)`."""
    # A slice without columns carries the table's height and type to the backward and holds no memory.
    return table.at[ids].get(mode="fill", wrap_negative_indices=False), (table[:, :0], ids)


def embedding_bwd(
    padding_index: int | None, residuals: Residuals, dy: Float[Array, "*batch d"]
) -> tuple[Float[Array, "rows d"], None]:
    """Cotangent of `table`; integer ids have none."""
    table, ids = residuals
    dtable = scatter_rows(ids.reshape(-1), dy.reshape(-1, dy.shape[-1]), table.shape[0])
    if padding_index is not None:
        dtable = dtable.at[padding_index].set(0)
    return summed(dtable, table), None


def scatter_rows(ids: Int[Array, " n"], dy: Float[Array, "n d"], rows: int) -> Float[Array, "rows d"]:
    """Row `r` is the sum of `dy[n]` over all n with `ids[n] == r`, by scatter-add, in float32 at least."""
    zeros = jnp.zeros((rows, dy.shape[-1]), accumulation_dtype(dy))
    return zeros.at[ids].add(dy.astype(zeros.dtype), wrap_negative_indices=False)


embedding.defvjp(embedding_fwd, embedding_bwd)
