"""Gaussian error linear unit, exact or in its tanh approximation."""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgrad.ops.precision import widen

# Of the approximation's cubic term, from eq. 2 of its source.
CUBIC = 0.044715

# The ratio (1 - Phi(a)) / phi(a), over t = 1 / (1 + SCALE a), as a polynomial in t: fitted to 2.2e-8 of its value for
# all a >= 0, less than half a rounding in float32.
SCALE = 0.3
MILLS = (
    -0.02697351892, 0.09727901669, -0.07573388262, -0.08256630602, 0.05906699729, 0.03887784062,
    0.1522495691, 0.2180528574, 0.2730631224, 0.2999984076, 0.3000000065,
)  # fmt: skip


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gelu(x: Float[Array, "*shape"], approximate: bool = False) -> Float[Array, "*shape"]:
    r"""`x * Phi(x)`, elementwise, with the distribution function of the standard normal.

    With $\Phi(x) = \frac12\operatorname{erfc}(-x/\sqrt2)$ and $\varphi(x) = \Phi'(x) = e^{-x^2/2}/\sqrt{2\pi}$,
    $$y = x\,\Phi(x), \qquad dx = dy \odot (\Phi(x) + x\,\varphi(x)).$$
    Below float64, $\Phi(-a) = \varphi(a)\,M(a)$ with a polynomial for Mills' ratio $M$, so that one exponential gives
    both functions, and all digits far below zero, where $1 + \operatorname{erf}$ has none.
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
    return (wide * normal(wide, approximate)[0]).astype(x.dtype), x


def gelu_bwd(approximate: bool, x: Float[Array, "*shape"], dy: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"]]:
    """Cotangent of `x`."""
    # Without a barrier, a compiler that sees both passes stores what they share, an array that is cheaper made twice.
    x, dy = jax.lax.optimization_barrier((x, dy))
    wide = widen(x)
    cdf, pdf = normal(wide, approximate)
    return ((widen(dy) * (cdf + wide * pdf)).astype(x.dtype),)


def normal(x: Float[Array, "*shape"], approximate: bool) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """`Phi` and its derivative, exact or approximated."""
    if approximate:
        t = jnp.tanh(math.sqrt(2 / math.pi) * (x + CUBIC * x * x * x))
        return 0.5 * (1 + t), 0.5 * (1 - t * t) * math.sqrt(2 / math.pi) * (1 + 3 * CUBIC * x * x)
    pdf = jnp.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
    if x.dtype == jnp.float64:
        # erfc and not 1 + erf: for x far below zero the sum would lose every digit.
        return 0.5 * jax.lax.erfc(-x / math.sqrt(2)), pdf
    # Not abs, whose derivative at 0 would be 0.
    t = 1 / (1 + SCALE * jnp.where(x < 0, -x, x))
    ratio = jnp.full_like(t, MILLS[0])
    for coefficient in MILLS[1:]:
        ratio = ratio * t + coefficient
    tail = pdf * (t * ratio)
    return jnp.where(x < 0, tail, 1 - tail), pdf


gelu.defvjp(gelu_fwd, gelu_bwd)
