"""Softmax."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgrad.ops.precision import widen


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def softmax(x: Float[Array, "*shape"], axis: int = -1) -> Float[Array, "*shape"]:
    r"""`exp(x) / sum(exp(x))` along an axis.

    With $y_i = e^{x_i} / \sum_k e^{x_k}$, $\partial y_i/\partial x_j = y_i\,([i = j] - y_j)$, so
    $$dx_j = y_j\,\Bigl(dy_j - \sum_i dy_i\,y_i\Bigr).$$
    The maximum is subtracted for range; it moves no value, so it has no part in the cotangent.

    Computed in float32 at least; `axis` is static. Residuals: the output.
    Source: Bridle 1990; derivation ours.
    """
    return softmax_fwd(x, axis)[0]


def softmax_fwd(x: Float[Array, "*shape"], axis: int = -1) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """The output, which is also the residual."""
    wide = widen(x)
    exps = jnp.exp(wide - jax.lax.stop_gradient(wide.max(axis, keepdims=True)))
    y = (exps / exps.sum(axis, keepdims=True)).astype(x.dtype)
    return y, y


def softmax_bwd(axis: int, y: Float[Array, "*shape"], dy: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"]]:
    """Cotangent of `x`."""
    probs, wide = widen(y), widen(dy)
    return ((probs * (wide - (wide * probs).sum(axis, keepdims=True))).astype(y.dtype),)


softmax.defvjp(softmax_fwd, softmax_bwd)
