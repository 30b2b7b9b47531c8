"""Gated linear unit with SiLU."""

from typing import TypeAlias

import jax
from jaxtyping import Array, Float

from jaxgrad.ops._shards import summed
from jaxgrad.ops.precision import widen

Pair: TypeAlias = tuple[Float[Array, "*shape"], Float[Array, "*shape"]]


@jax.custom_vjp
def swiglu(gate: Float[Array, "*shape"], up: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    r"""`silu(gate) * up`, elementwise.

    With $s = 1/(1 + e^{-a})$ of the gate $a$ and $y = a\,s\,u$,
    $$da = dy \odot u \odot (s + a\,s\,(1 - s)), \qquad du = dy \odot a\,s .$$

    Computed in float32 at least. Residuals: `gate` and `up`; the sigmoid is made again, where autodiff keeps it and
    the product besides. Source: Shazeer 2020, arXiv:2002.05202, eq. 6; derivation ours.
    """
    return swiglu_fwd(gate, up)[0]


def swiglu_fwd(gate: Float[Array, "*shape"], up: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Pair]:
    """The output and the residuals `(gate, up)`."""
    wide = widen(gate)
    return (wide * jax.lax.logistic(wide) * widen(up)).astype(up.dtype), (gate, up)


def swiglu_bwd(residuals: Pair, dy: Float[Array, "*shape"]) -> Pair:
    """Cotangents of `gate` and `up`."""
    gate, up = residuals
    wide, dwide = widen(gate), widen(dy)
    s = jax.lax.logistic(wide)
    dgate = dwide * widen(up) * (s + wide * s * (1 - s))
    return summed(dgate, gate), summed(dwide * wide * s, up)


swiglu.defvjp(swiglu_fwd, swiglu_bwd)
