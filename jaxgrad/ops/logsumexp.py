"""Logarithm of a sum of exponentials."""

import functools
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgrad.ops.precision import widen

Residuals: TypeAlias = tuple[Float[Array, "*shape"], Float[Array, "..."], Float[Array, "..."]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def logsumexp(x: Float[Array, "*shape"], axis: int = -1) -> Float[Array, "..."]:
    r"""`log(sum(exp(x)))` along an axis, which it removes.

    With $y = \log\sum_k e^{x_k}$, $\partial y/\partial x_j = e^{x_j - y}$, so $$dx_j = dy\,e^{x_j - y} .$$
    The exponentials are those of the forward: $e^{x_j - y} = e^{x_j - m} / q$ with the maximum $m$ and their sum $q$.
    Where all of a slice is $-\infty$, so is the result, and the cotangent is 0.

    Computed in float32 at least; `axis` is static. Residuals: `x` and two numbers a slice.
    Source: the normaliser of a softmax; derivation ours.
    """
    return logsumexp_fwd(x, axis)[0]


def logsumexp_fwd(x: Float[Array, "*shape"], axis: int = -1) -> tuple[Float[Array, "..."], Residuals]:
    """The output and the residuals."""
    wide = widen(x)
    maximum = jax.lax.stop_gradient(wide.max(axis, keepdims=True))
    # Infinity less infinity would be NaN: a slice whose maximum is infinite is left as it is.
    shift = jnp.where(jnp.isfinite(maximum), maximum, 0)
    # As a product, for the reasons of `precision.row_sums`.
    ones = jnp.ones(x.shape[axis], wide.dtype)
    exps = jnp.exp(wide - shift)
    total = jnp.expand_dims(jnp.tensordot(exps, ones, ((axis,), (0,)), precision=jax.lax.Precision.HIGHEST), axis)
    y = jnp.log(total) + shift
    return y.squeeze(axis).astype(x.dtype), (x, shift, total)


def logsumexp_bwd(axis: int, residuals: Residuals, dy: Float[Array, "..."]) -> tuple[Float[Array, "*shape"]]:
    """Cotangent of `x`."""
    x, shift, total = residuals
    # The sum of no exponentials is 0, and so are they all.
    scale = jnp.expand_dims(widen(dy), axis) / jnp.where(total == 0, 1, total)
    return ((jnp.exp(widen(x) - shift) * scale).astype(x.dtype),)


logsumexp.defvjp(logsumexp_fwd, logsumexp_bwd)
