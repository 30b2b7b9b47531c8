"""Gated linear unit with GELU."""

import functools
from typing import TypeAlias

import jax
from jaxtyping import Array, Float

from jaxgrad.ops._shards import summed
from jaxgrad.ops.gelu import normal
from jaxgrad.ops.precision import widen

Pair: TypeAlias = tuple[Float[Array, "*shape"], Float[Array, "*shape"]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def geglu(
    gate: Float[Array, "*shape"], up: Float[Array, "*shape"], approximate: bool = False
) -> Float[Array, "*shape"]:
    r"""`gelu(gate) * up`, elementwise, with GELU exact or approximated by tanh.

    With $G(a) = a\,\Phi(a)$ and $y = G(a)\,u$,
    $$da = dy \odot u \odot (\Phi(a) + a\,\varphi(a)), \qquad du = dy \odot a\,\Phi(a),$$
    where $\Phi$ and its derivative $\varphi$ are those of `gelu`.

    `approximate` is static. Computed in float32 at least. Residuals: `gate` and `up`.
    Source: Shazeer 2020, arXiv:2002.05202, eq. 6; derivation ours.
    """
    return geglu_fwd(gate, up, approximate)[0]


def geglu_fwd(
    gate: Float[Array, "*shape"], up: Float[Array, "*shape"], approximate: bool = False
) -> tuple[Float[Array, "*shape"], Pair]:
    """The output and the residuals `(gate, up)`."""
    wide = widen(gate)
    return (wide * normal(wide, approximate)[0] * widen(up)).astype(up.dtype), (gate, up)


def geglu_bwd(approximate: bool, residuals: Pair, dy: Float[Array, "*shape"]) -> Pair:
    """Cotangents of `gate` and `up`."""
    # As in `gelu`, so that nothing is stored between the passes.
    gate, up, dy = jax.lax.optimization_barrier((*residuals, dy))
    wide, dwide = widen(gate), widen(dy)
    cdf, pdf = normal(wide, approximate)
    dgate = dwide * widen(up) * (cdf + wide * pdf)
    return summed(dgate, residuals[0]), summed(dwide * wide * cdf, residuals[1])


geglu.defvjp(geglu_fwd, geglu_bwd)
