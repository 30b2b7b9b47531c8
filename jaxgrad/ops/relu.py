"""Rectified linear unit."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_vjp
def relu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    r"""`max(x, 0)`, elementwise.

    $$dx = dy \odot [y > 0],$$ and 0 at 0, where any number in $[0, 1]$ is a subgradient.

    Residuals: the output, which the next operation keeps too.
    Source: Nair & Hinton 2010; derivation ours.
    """
    return relu_fwd(x)[0]


def relu_fwd(x: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """The output and the residual."""
    y = jnp.maximum(x, 0)
    return y, y


def relu_bwd(kept: Float[Array, "*shape"], dy: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"]]:
    """Cotangent of `x`."""
    return (jnp.where(kept > 0, dy, 0),)


relu.defvjp(relu_fwd, relu_bwd)
