"""Gaussian error linear unit, exact or in its tanh approximation."""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgrad.ops.precision import widen

# Of the approximation's cubic term, from eq. 2 of its source.
CUBIC = 0.044715


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gelu(x: Float[Array, "*shape"], approximate: bool = False) -> Float[Array, "*shape"]:
    r"""`x * Phi(x)`, elementwise, with the distribution function of the standard normal.

    With $\Phi(x) = \frac12\operatorname{erfc}(-x/\sqrt2)$ and $\varphi(x) = \Phi'(x) = e^{-x^2/2}/\sqrt{2\pi}$,
    $$y = x\,\Phi(x), \qquad dx = dy \odot (\Phi(x) + x\,\varphi(x)).$$
    Approximated, $\Phi$ is $\frac12(1+t)$ with $t = \tanh u$ and $u = \sqrt{2/\pi}\,(x + c\,x^3)$, whose derivative is
    $$\varphi = \tfrac12\,(1 - t^2)\,u', \qquad u' = \sqrt{2/\pi}\,(1 + 3\,c\,x^2),$$
    and `dx` is the same product rule: the exact derivative of the approximation.

    `approximate` is static. Computed in float32 at least. Residuals: `x`.
    Source: Hendrycks & Gimpel 2016, arXiv:1606.08415, section 2; derivation ours.
    """
    return gelu_fwd(x, approximate)[0]


def gelu_fwd(
    x: Float[Array, "*shape"], approximate: bool = False
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """The output and the residual `x`."""
    wide = widen(x)
    # erfc and not 1 + erf: for x far below zero the sum would lose every digit.
    cdf = 0.5 * (1 + _tanh(wide)) if approximate else 0.5 * jax.lax.erfc(-wide / math.sqrt(2))
    return (wide * cdf).astype(x.dtype), x


def gelu_bwd(approximate: bool, x: Float[Array, "*shape"], dy: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"]]:
    """Cotangent of `x`."""
    wide = widen(x)
    if approximate:
        t = _tanh(wide)
        cdf = 0.5 * (1 + t)
        pdf = 0.5 * (1 - t * t) * math.sqrt(2 / math.pi) * (1 + 3 * CUBIC * wide * wide)
    else:
        cdf = 0.5 * jax.lax.erfc(-wide / math.sqrt(2))
        pdf = jnp.exp(-0.5 * wide * wide) / math.sqrt(2 * math.pi)
    return ((widen(dy) * (cdf + wide * pdf)).astype(x.dtype),)


def _tanh(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return jnp.tanh(math.sqrt(2 / math.pi) * (x + CUBIC * x * x * x))


gelu.defvjp(gelu_fwd, gelu_bwd)
