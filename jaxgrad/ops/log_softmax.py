"""Logarithm of the softmax."""

import functools
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgrad.ops.precision import widen


class Statistics(NamedTuple):
    """Of each slice of logits: its maximum, and the sum of its exponentials less that maximum."""

    maximum: Float[Array, "..."]
    total: Float[Array, "..."]


Residuals: TypeAlias = tuple[Float[Array, "*shape"], Statistics]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def log_softmax(x: Float[Array, "*shape"], axis: int = -1) -> Float[Array, "*shape"]:
    r"""`x - log(sum(exp(x)))` along an axis.

    With $y_i = x_i - \log\sum_k e^{x_k}$, $\partial y_i/\partial x_j = [i = j] - e^{y_j}$, so
    $$dx_j = dy_j - e^{y_j} \sum_i dy_i .$$
    The exponentials are those of the forward: $e^{y_j} = e^{x_j - m} / q$ with the maximum $m$ and their sum $q$.

    Computed in float32 at least; `axis` is static. Residuals: `x` and two numbers a slice.
    Source: the notebook's log-probabilities; derivation ours.
    """
    return log_softmax_fwd(x, axis)[0]


def log_softmax_fwd(x: Float[Array, "*shape"], axis: int = -1) -> tuple[Float[Array, "*shape"], Residuals]:
    """The output and the residuals: `x`, with `m` and `q`."""
    of_x = statistics(x, axis)
    return (widen(x) - of_x.maximum - jnp.log(of_x.total)).astype(x.dtype), (x, of_x)


def log_softmax_bwd(axis: int, residuals: Residuals, dy: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"]]:
    """Cotangent of `x`."""
    x, (maximum, total) = residuals
    wide = widen(dy)
    return ((wide - jnp.exp(widen(x) - maximum) * (wide.sum(axis, keepdims=True) / total)).astype(x.dtype),)


def statistics(x: Float[Array, "*shape"], axis: int = -1) -> Statistics:
    """The maximum of each slice and the sum of its exponentials less that, in float32 at least."""
    wide = widen(x)
    # A shift that cancels: it has no derivative, of any order.
    maximum = jax.lax.stop_gradient(wide.max(axis, keepdims=True))
    return Statistics(maximum, jnp.exp(wide - maximum).sum(axis, keepdims=True))


def distribution(x: Float[Array, "*shape"], of_x: Statistics) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """The softmax and its logarithm, of logits with their statistics."""
    shifted = widen(x) - of_x.maximum
    return jnp.exp(shifted) / of_x.total, shifted - jnp.log(of_x.total)


log_softmax.defvjp(log_softmax_fwd, log_softmax_bwd)
