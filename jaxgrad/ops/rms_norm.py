"""Root-mean-square normalisation over the last axis."""

import functools
from typing import TypeAlias

import jax
from jax.lax import broadcast_to_rank
from jaxtyping import Array, Float

from jaxgrad.ops._shards import summed
from jaxgrad.ops.precision import row_sums, widen

Residuals: TypeAlias = tuple[Float[Array, "*batch d"], Float[Array, "*batch 1"], Float[Array, " d"]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def rms_norm(
    x: Float[Array, "*batch d"], gain: Float[Array, " d"], eps: float = 1e-6, offset: float = 0.0
) -> Float[Array, "*batch d"]:
    r"""`(offset + gain) * x / rms(x)`; an offset of 1 is Gemma's form, whose gain starts at 0.

    With $r = (\frac1d\sum_j x_j^2 + \varepsilon)^{-1/2}$, $\hat x = r\,x$ and $d\hat x = dy \odot (o + g)$,
    $$dx = r\,\bigl(d\hat x - \hat x\,\tfrac1d\sum_j d\hat x_j\,\hat x_j\bigr), \qquad
      dg = \sum_{batch} dy \odot \hat x,$$
    because $\partial r/\partial x_j = -r^3 x_j / d$, and $r^3 x_i x_j = r\,\hat x_i \hat x_j$.

    Sums are in float32 at least; `eps` and `offset` are static. A row of zeros gives zeros.
    Residuals: `x`, `gain` and one number a row, `r`.
    Source: Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4; derivation ours.
    """
    return rms_norm_fwd(x, gain, eps, offset)[0]


def rms_norm_fwd(
    x: Float[Array, "*batch d"], gain: Float[Array, " d"], eps: float = 1e-6, offset: float = 0.0
) -> tuple[Float[Array, "*batch d"], Residuals]:
    """The output and the residuals `(x, r, gain)`."""
    wide = widen(x)
    rms_inv = jax.lax.rsqrt(row_sums(wide * wide) / x.shape[-1] + eps)
    factor = broadcast_to_rank(widen(gain) + offset, x.ndim)
    return (factor * (wide * rms_inv)).astype(x.dtype), (x, rms_inv, gain)


def rms_norm_bwd(
    eps: float, offset: float, residuals: Residuals, dy: Float[Array, "*batch d"]
) -> tuple[Float[Array, "*batch d"], Float[Array, " d"]]:
    """Cotangents of `x` and `gain`; `eps` is already inside the residual `r`."""
    x, rms_inv, gain = residuals
    wide, factor, x_hat = widen(dy), widen(gain) + offset, widen(x) * rms_inv
    by_x_hat = wide * x_hat
    dgain = by_x_hat.sum(tuple(range(dy.ndim - 1)))
    along_x_hat = row_sums(by_x_hat, factor) / x.shape[-1]
    dx = rms_inv * (wide * broadcast_to_rank(factor, dy.ndim) - x_hat * along_x_hat)
    return summed(dx, x), summed(dgain, gain)


rms_norm.defvjp(rms_norm_fwd, rms_norm_bwd)
