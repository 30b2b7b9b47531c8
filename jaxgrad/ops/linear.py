"""Affine map of the last axis."""

from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgrad.ops._shards import summed
from jaxgrad.ops.precision import accumulation_dtype

Residuals: TypeAlias = tuple[Float[Array, "*batch d_in"], Float[Array, "d_in d_out"], Float[Array, " d_out"] | None]


@jax.custom_vjp
def linear(
    x: Float[Array, "*batch d_in"], w: Float[Array, "d_in d_out"], b: Float[Array, " d_out"] | None = None
) -> Float[Array, "*batch d_out"]:
    r"""`x @ w + b`, or `x @ w` without a bias; products accumulate in float32 at least.

    With $y_{nj} = \sum_i x_{ni} w_{ij} + b_j$,
    $$dx_{ni} = \sum_j dy_{nj} w_{ij}, \qquad dw_{ij} = \sum_n x_{ni}\,dy_{nj}, \qquad db_j = \sum_n dy_{nj},$$
    that is $dx = dy\,w^\top$ and $dw = x^\top dy$; $b$ is broadcast over the batch, so its cotangent is summed over it.

    Residuals: `x`, `w`, and of `b` its presence and type.
    Source: the notebook's two layers; derivation ours.
    """
    return linear_fwd(x, w, b)[0]


def linear_fwd(
    x: Float[Array, "*batch d_in"], w: Float[Array, "d_in d_out"], b: Float[Array, " d_out"] | None = None
) -> tuple[Float[Array, "*batch d_out"], Residuals]:
    """The output and the residuals `(x, w, b[:0])`."""
    y = _product(x, w)
    if b is None:
        return y, (x, w, None)
    # An array without entries tells the backward that there is a bias, and its type, and holds no memory.
    # jnp would make the ranks equal by itself, but not under jax_numpy_rank_promotion="raise".
    return y + jax.lax.broadcast_to_rank(b, y.ndim), (x, w, b[:0])


def linear_bwd(
    residuals: Residuals, dy: Float[Array, "*batch d_out"]
) -> tuple[Float[Array, "*batch d_in"], Float[Array, "d_in d_out"], Float[Array, " d_out"] | None]:
    """Cotangents of `x`, `w` and `b` (None without a bias)."""
    x, w, b = residuals
    dx = summed(_product(dy, w.T), x)
    rows, drows = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    dw = summed(_product(rows.T, drows), w)
    db = None if b is None else summed(drows.sum(0, dtype=accumulation_dtype(drows)), b)
    return dx, dw, db


def _product(a: Float[Array, "*batch k"], b: Float[Array, "k n"]) -> Float[Array, "*batch n"]:
    out = jnp.matmul(a, b, preferred_element_type=accumulation_dtype(a, b))
    return out.astype(jnp.result_type(a, b))


linear.defvjp(linear_fwd, linear_bwd)
