"""Sigmoid linear unit."""

import jax
from jaxtyping import Array, Float

from jaxgrad.ops.precision import widen


@jax.custom_vjp
def silu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    r"""`x * sigmoid(x)`, elementwise.

    With $s = 1/(1 + e^{-x})$, whose derivative is $s\,(1 - s)$, and $y = x s$,
    $$dx = dy \odot (s + x\,s\,(1 - s)).$$

    Computed in float32 at least. Residuals: `x`.
    Source: Elfwing et al. 2017, arXiv:1702.03118; derivation ours.
    """
    return silu_fwd(x)[0]


def silu_fwd(x: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """The output and the residual."""
    wide = widen(x)
    return (wide * jax.lax.logistic(wide)).astype(x.dtype), x


def silu_bwd(kept: Float[Array, "*shape"], dy: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"]]:
    """Cotangent of `x`."""
    wide = widen(kept)
    s = jax.lax.logistic(wide)
    return ((widen(dy) * (s + wide * s * (1 - s))).astype(kept.dtype),)


silu.defvjp(silu_fwd, silu_bwd)
