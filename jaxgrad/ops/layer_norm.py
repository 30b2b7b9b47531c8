"""Layer normalisation over the last axis."""

import functools
from typing import TypeAlias

import jax
from jax.lax import broadcast_to_rank
from jaxtyping import Array, Float

from jaxgrad.ops._shards import summed
from jaxgrad.ops.precision import row_sums, widen

Residuals: TypeAlias = tuple[
    Float[Array, "*batch d"], Float[Array, "*batch 1"], Float[Array, "*batch 1"], Float[Array, " d"]
]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(
    x: Float[Array, "*batch d"], gain: Float[Array, " d"], bias: Float[Array, " d"], eps: float = 1e-5
) -> Float[Array, "*batch d"]:
    r"""`gain * (x - mean) / sqrt(var + eps) + bias` with the statistics of each row.

    With $\mu = \frac1d\sum_j x_j$, $r = \bigl(\frac1d\sum_j (x_j-\mu)^2 + \varepsilon\bigr)^{-1/2}$,
    $\hat x = r\,(x-\mu)$ and $d\hat x = dy \odot g$,
    $$dx = r\,\Bigl(d\hat x - \tfrac1d\sum_j d\hat x_j - \hat x\,\tfrac1d\sum_j d\hat x_j\,\hat x_j\Bigr), \qquad
      dg = \sum_{batch} dy \odot \hat x, \qquad db = \sum_{batch} dy,$$
    because $\partial r/\partial x_j = -r^3 (x_j-\mu)/d$, whose path through $\hat x$ leaves the last term, and
    because $\sum_j \hat x_j = 0$ leaves the mean's path with the second. Gain and bias were spread over the batch, so
    their cotangents are summed over it. The sums over j are products of $dy$ and $dy \odot \hat x$ with $g$, so that
    neither $d\hat x$ nor $\hat x$ is stored.

    The variance divides by d, as layer norms do, and not by d - 1. Sums are in float32 at least. `eps` is static.
    Residuals: `x`, which the branch beside a norm keeps too, `gain`, and two numbers a row.
    Source: Ba, Kiros & Hinton 2016, arXiv:1607.06450, eq. 4; derivation ours.
    """
    return layer_norm_fwd(x, gain, bias, eps)[0]


def layer_norm_fwd(
    x: Float[Array, "*batch d"], gain: Float[Array, " d"], bias: Float[Array, " d"], eps: float = 1e-5
) -> tuple[Float[Array, "*batch d"], Residuals]:
    """The output and the residuals `(x, mean, r, gain)`."""
    wide, d = widen(x), x.shape[-1]
    mean = row_sums(wide) / d
    diff = wide - mean
    std_inv = jax.lax.rsqrt(row_sums(diff * diff) / d + eps)
    # jnp would make the ranks equal by itself, but not under jax_numpy_rank_promotion="raise".
    y = broadcast_to_rank(widen(gain), x.ndim) * (diff * std_inv) + broadcast_to_rank(widen(bias), x.ndim)
    return y.astype(x.dtype), (x, mean, std_inv, gain)


def layer_norm_bwd(
    eps: float, residuals: Residuals, dy: Float[Array, "*batch d"]
) -> tuple[Float[Array, "*batch d"], Float[Array, " d"], Float[Array, " d"]]:
    """Cotangents of `x`, `gain` and `bias`; `eps` is already inside the residual `r`."""
    x, mean, std_inv, gain = residuals
    batch, d = tuple(range(dy.ndim - 1)), dy.shape[-1]
    wide, wide_gain, x_hat = widen(dy), widen(gain), (widen(x) - mean) * std_inv
    by_x_hat = wide * x_hat
    dgain, dbias = by_x_hat.sum(batch), wide.sum(batch)
    along_ones, along_x_hat = row_sums(wide, wide_gain) / d, row_sums(by_x_hat, wide_gain) / d
    dx = std_inv * (wide * broadcast_to_rank(wide_gain, dy.ndim) - along_ones - x_hat * along_x_hat)
    return summed(dx, x), summed(dgain, gain), summed(dbias, gain)


layer_norm.defvjp(layer_norm_fwd, layer_norm_bwd)
