"""Square of the rectified linear unit."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgrad.ops.precision import widen


@jax.custom_vjp
def relu_squared(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    r"""`max(x, 0) ** 2`, elementwise.

    With $y = \max(x, 0)^2$, $$dx = 2\,dy \odot \max(x, 0),$$ which is continuous: there is no kink at 0.

    Computed in float32 at least. Residuals: `x`.
    Source: So et al. 2021, arXiv:2109.08668; derivation ours.
    """
    return relu_squared_fwd(x)[0]


def relu_squared_fwd(x: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """The output and the residual."""
    positive = jnp.maximum(widen(x), 0)
    return (positive * positive).astype(x.dtype), x


def relu_squared_bwd(kept: Float[Array, "*shape"], dy: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"]]:
    """Cotangent of `x`."""
    return ((2 * widen(dy) * jnp.maximum(widen(kept), 0)).astype(kept.dtype),)


relu_squared.defvjp(relu_squared_fwd, relu_squared_bwd)
