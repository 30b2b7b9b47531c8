"""Logarithm of the softmax."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgrad.ops.precision import widen


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def log_softmax(x: Float[Array, "*shape"], axis: int = -1) -> Float[Array, "*shape"]:
    r"""`x - log(sum(exp(x)))` along an axis.

    With $y_i = x_i - \log\sum_k e^{x_k}$, $\partial y_i/\partial x_j = [i = j] - e^{y_j}$, so
    $$dx_j = dy_j - e^{y_j} \sum_i dy_i .$$

    Computed in float32 at least; `axis` is static. Residuals: the output.
    Source: the seed notebook's log-probabilities; derivation ours.
    """
    return log_softmax_fwd(x, axis)[0]


def log_softmax_fwd(x: Float[Array, "*shape"], axis: int = -1) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """The output, which is also the residual."""
    wide = widen(x)
    shifted = wide - jax.lax.stop_gradient(wide.max(axis, keepdims=True))
    y = (shifted - jnp.log(jnp.exp(shifted).sum(axis, keepdims=True))).astype(x.dtype)
    return y, y


def log_softmax_bwd(axis: int, y: Float[Array, "*shape"], dy: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"]]:
    """Cotangent of `x`."""
    wide = widen(dy)
    return ((wide - jnp.exp(widen(y)) * wide.sum(axis, keepdims=True)).astype(y.dtype),)


log_softmax.defvjp(log_softmax_fwd, log_softmax_bwd)
