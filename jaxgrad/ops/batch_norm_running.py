"""Batch normalisation that keeps running statistics."""

import functools
import math
from typing import TypeAlias

import jax
from jax.lax import broadcast_to_rank
from jaxtyping import Array, Float

from jaxgrad.errors import JaxgradError
from jaxgrad.ops._shards import summed
from jaxgrad.ops.precision import widen

Outputs: TypeAlias = tuple[Float[Array, "*batch d"], Float[Array, " d"], Float[Array, " d"]]
Residuals: TypeAlias = tuple[Array, Array, Array, Array, Array, Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def batch_norm_running(
    x: Float[Array, "*batch d"],
    gain: Float[Array, " d"],
    bias: Float[Array, " d"],
    running_mean: Float[Array, " d"],
    running_var: Float[Array, " d"],
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Outputs:
    r"""`gain * (x - mean) / sqrt(var + eps) + bias`, and the running statistics after this batch.

    With $\mu = \frac1n\sum_i x_i$, $V = \frac1n\sum_i (x_i-\mu)^2$, $r = (V+\varepsilon)^{-1/2}$,
    $\hat x = r\,(x-\mu)$ and momentum $m$, the statistics become $M' = (1-m) M + m\,\mu$ and
    $W' = (1-m) W + m\,\frac{n}{n-1} V$. With sums over the batch, and because $\partial\mu/\partial x_i = \frac1n$ and
    $\partial V/\partial x_i = \frac2n (x_i-\mu)$,
    $$dx_i = g\,r\,\Bigl(dy_i - \tfrac1n \sum dy - \hat x_i\,\tfrac1n \sum dy\,\hat x\Bigr)
      + \tfrac mn\,dM' + \tfrac{2m}{n-1}\,(x_i - \mu)\,dW',$$
    $$dg = \sum dy\,\hat x, \qquad db = \sum dy, \qquad dM = (1-m)\,dM', \qquad dW = (1-m)\,dW' .$$

    The batch is divided by its own n, the running variance has Bessel's correction, as in PyTorch. With running
    statistics that nothing differentiates, the last terms are zeros that the compiler removes. To evaluate, apply
    the map `gain * (x - running_mean) / sqrt(running_var + eps) + bias`, which needs no rule of its own.
    Sums are in float32 at least; `momentum` and `eps` are static. Residuals: `x`, the gain and statistics.
    Raises `JaxgradError` for a batch of one row. Source: Ioffe & Szegedy 2015, arXiv:1502.03167; derivation ours.
    """
    return batch_norm_running_fwd(x, gain, bias, running_mean, running_var, momentum, eps)[0]


def batch_norm_running_fwd(
    x: Float[Array, "*batch d"],
    gain: Float[Array, " d"],
    bias: Float[Array, " d"],
    running_mean: Float[Array, " d"],
    running_var: Float[Array, " d"],
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Outputs, Residuals]:
    """The output with the new statistics, and the residuals."""
    axes, n = tuple(range(x.ndim - 1)), math.prod(x.shape[:-1])
    if n < 2:
        raise JaxgradError(f"batch norm over {n} row(s): the running variance divides by n - 1; give at least 2 rows")
    wide = widen(x)
    mean = wide.mean(axes)
    diff = wide - broadcast_to_rank(mean, x.ndim)
    var = (diff * diff).mean(axes)
    std_inv = jax.lax.rsqrt(var + eps)
    scale = broadcast_to_rank(widen(gain) * std_inv, x.ndim)
    y = (scale * diff + broadcast_to_rank(widen(bias), x.ndim)).astype(x.dtype)
    new_mean = (1 - momentum) * widen(running_mean) + momentum * mean
    new_var = (1 - momentum) * widen(running_var) + momentum * n / (n - 1) * var
    statistics = new_mean.astype(running_mean.dtype), new_var.astype(running_var.dtype)
    return (y, *statistics), (x, gain, mean, std_inv, running_mean[:0], running_var[:0])


def batch_norm_running_bwd(
    momentum: float, eps: float, residuals: Residuals, cotangents: Outputs
) -> tuple[Array, Array, Array, Array, Array]:
    """Cotangents of `x`, `gain`, `bias` and the running statistics before."""
    x, gain, mean, std_inv, like_mean, like_var = residuals
    dy, dmean, dvar = map(widen, cotangents)
    axes, n = tuple(range(x.ndim - 1)), math.prod(x.shape[:-1])
    diff = widen(x) - broadcast_to_rank(mean, x.ndim)
    x_hat = diff * broadcast_to_rank(std_inv, x.ndim)
    dgain, dbias = (dy * x_hat).sum(axes), dy.sum(axes)
    by_feature = widen(gain) * std_inv, dbias / n, dgain / n, momentum / n * dmean, 2 * momentum / (n - 1) * dvar
    scale, by_mean, by_var, of_mean, of_var = (broadcast_to_rank(v, x.ndim) for v in by_feature)
    dx = scale * (dy - by_mean - x_hat * by_var) + of_mean + diff * of_var
    return (
        summed(dx, x),
        summed(dgain, gain),
        summed(dbias, gain),
        ((1 - momentum) * dmean).astype(like_mean.dtype),
        ((1 - momentum) * dvar).astype(like_var.dtype),
    )


batch_norm_running.defvjp(batch_norm_running_fwd, batch_norm_running_bwd)
