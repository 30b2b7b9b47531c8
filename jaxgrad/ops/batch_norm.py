"""Batch normalisation over all axes but the last, with Bessel's correction."""

import functools
import math
from typing import TypeAlias

import jax
from jax.lax import broadcast_to_rank
from jaxtyping import Array, Float

from jaxgrad.ops._shards import summed
from jaxgrad.ops.precision import widen

Residuals: TypeAlias = tuple[Float[Array, "*batch d"], Float[Array, " d"], Float[Array, "... d"]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_norm(
    x: Float[Array, "*batch d"], gain: Float[Array, "... d"], bias: Float[Array, "... d"], eps: float = 1e-5
) -> Float[Array, "*batch d"]:
    r"""`gain * (x - mean) / sqrt(var + eps) + bias` with the statistics of this batch.

    With $\mu = \frac1n\sum_i x_i$, $r = \bigl(\frac1{n-1}\sum_i (x_i-\mu)^2 + \varepsilon\bigr)^{-1/2}$,
    $\hat x = r\,(x-\mu)$ and sums over the batch,
    $$db = \sum_i dy_i, \qquad dg = \sum_i dy_i\,\hat x_i, \qquad
      dx = g\,r\,\Bigl(dy - \tfrac1n\,db - \tfrac1{n-1}\,\hat x\,dg\Bigr),$$
    because $\partial r/\partial x_j = -r^3 (x_j-\mu)/(n-1)$, whose path through $\hat x$ sums to
    $-g\,r\,\hat x_j\,dg/(n-1)$, and because $\sum_i \hat x_i = 0$ leaves the mean's path with $-\frac1n g\,r\,db$.
    The $n-1$ of Bessel's correction stays in the last term; $\varepsilon$ is inside $r$ and exact.

    `gain` and `bias` are `(d,)` or `(1, d)`. Sums are in float32 at least. `eps` is static.
    Residuals: `x_hat`, `r`, `gain`; the input itself is not kept.
    Raises `ValueError` for a batch of one row, whose variance divides by zero.
    Source: Ioffe & Szegedy 2015, arXiv:1502.03167, with n - 1 for n as in the notebook; derivation ours.
    """
    return batch_norm_fwd(x, gain, bias, eps)[0]


def batch_norm_fwd(
    x: Float[Array, "*batch d"], gain: Float[Array, "... d"], bias: Float[Array, "... d"], eps: float = 1e-5
) -> tuple[Float[Array, "*batch d"], Residuals]:
    """The output and the residuals `(x_hat, r, gain)`."""
    axes, n = tuple(range(x.ndim - 1)), math.prod(x.shape[:-1])
    if n < 2:
        raise ValueError(f"batch norm over {n} row(s): Bessel's correction divides by n - 1; give at least 2 rows")
    # Arrays of one number a feature are given the rank of x here and below, because
    # jax_numpy_rank_promotion="raise" forbids it to be left to jnp.
    wide = widen(x)
    diff = wide - broadcast_to_rank(wide.mean(axes), x.ndim)
    var_inv = jax.lax.rsqrt((diff * diff).sum(axes) / (n - 1) + eps)
    x_hat = (diff * broadcast_to_rank(var_inv, x.ndim)).astype(x.dtype)
    y = broadcast_to_rank(gain, x.ndim) * x_hat + broadcast_to_rank(bias, x.ndim)
    return y, (x_hat, var_inv, gain)


def batch_norm_bwd(
    eps: float, residuals: Residuals, dy: Float[Array, "*batch d"]
) -> tuple[Float[Array, "*batch d"], Float[Array, "... d"], Float[Array, "... d"]]:
    """Cotangents of `x`, `gain` and `bias`; `eps` is already inside the residual `r`."""
    x_hat, var_inv, gain = residuals
    axes, n = tuple(range(dy.ndim - 1)), math.prod(dy.shape[:-1])
    wide, wide_x_hat = widen(dy), widen(x_hat)
    dbias = wide.sum(axes)
    dgain = (wide * wide_x_hat).sum(axes)
    by_feature = widen(gain).reshape(-1) * var_inv, dbias / n, dgain / (n - 1)
    scale, by_mean, by_var = (broadcast_to_rank(v, dy.ndim) for v in by_feature)
    dx = scale * (wide - by_mean - wide_x_hat * by_var)
    return (
        dx.astype(x_hat.dtype),
        summed(dgain.reshape(gain.shape), gain),
        summed(dbias.reshape(gain.shape), gain),
    )


batch_norm.defvjp(batch_norm_fwd, batch_norm_bwd)
