"""Hyperbolic tangent."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_vjp
def tanh(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    r"""`tanh(x)`, elementwise.

    With $h = \tanh x = \sinh x / \cosh x$, the quotient rule gives
    $$\frac{dh}{dx} = \frac{\cosh^2 x - \sinh^2 x}{\cosh^2 x} = 1 - h^2, \qquad dx = dh \odot (1 - h^2).$$

    Residuals: `h`; the input is not kept.
    Source: the notebook's activation; derivation ours.
    """
    return tanh_fwd(x)[0]


def tanh_fwd(x: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """The output `h`, which is also the residual."""
    h = jnp.tanh(x)
    return h, h


def tanh_bwd(h: Float[Array, "*shape"], dh: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"]]:
    """Cotangent of `x`."""
    return (dh * (1 - h * h),)


tanh.defvjp(tanh_fwd, tanh_bwd)
