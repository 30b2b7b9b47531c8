"""Group normalisation: statistics of each example over its places and over groups of channels."""

import functools
from typing import TypeAlias

import jax
from jax.lax import broadcast_to_rank
from jaxtyping import Array, Float

from jaxgrad.errors import JaxgradError
from jaxgrad.ops.precision import widen

Residuals: TypeAlias = tuple[Float[Array, "b *places c"], Array, Array, Float[Array, " c"]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def group_norm(
    x: Float[Array, "b *places c"], gain: Float[Array, " c"], bias: Float[Array, " c"], groups: int, eps: float = 1e-5
) -> Float[Array, "b *places c"]:
    r"""`gain * (x - mean) / sqrt(var + eps) + bias`, with statistics of each example and group of channels.

    With $m$ numbers in a group, $\mu = \frac1m\sum x$, $r = (\frac1m\sum (x-\mu)^2 + \varepsilon)^{-1/2}$,
    $\hat x = r\,(x-\mu)$ and $d\hat x = dy \odot g$, sums being over the group,
    $$dx = r\,\Bigl(d\hat x - \tfrac1m\sum d\hat x - \hat x\,\tfrac1m\sum d\hat x\,\hat x\Bigr), \qquad
      dg = \sum dy \odot \hat x, \qquad db = \sum dy,$$
    as in layer norm, of which this is the form with one group and no places.

    Channels are last. Sums are in float32 at least; `groups` and `eps` are static.
    Residuals: `x`, `gain`, and two numbers a group. Raises `JaxgradError` where groups do not divide the channels.
    Source: Wu & He 2018, arXiv:1803.08494; derivation ours.
    """
    return group_norm_fwd(x, gain, bias, groups, eps)[0]


def group_norm_fwd(
    x: Float[Array, "b *places c"], gain: Float[Array, " c"], bias: Float[Array, " c"], groups: int, eps: float = 1e-5
) -> tuple[Float[Array, "b *places c"], Residuals]:
    """The output and the residuals `(x, mean, r, gain)`."""
    if x.shape[-1] % groups:
        raise JaxgradError(f"{groups} groups do not divide {x.shape[-1]} channels; choose a divisor")
    split = _split(widen(x), groups)
    mean = split.mean((1, 3), keepdims=True)
    diff = split - mean
    std_inv = jax.lax.rsqrt((diff * diff).mean((1, 3), keepdims=True) + eps)
    x_hat = (diff * std_inv).reshape(x.shape)
    y = broadcast_to_rank(widen(gain), x.ndim) * x_hat + broadcast_to_rank(widen(bias), x.ndim)
    return y.astype(x.dtype), (x, mean, std_inv, gain)


def group_norm_bwd(
    groups: int, eps: float, residuals: Residuals, dy: Float[Array, "b *places c"]
) -> tuple[Float[Array, "b *places c"], Float[Array, " c"], Float[Array, " c"]]:
    """Cotangents of `x`, `gain` and `bias`."""
    x, mean, std_inv, gain = residuals
    x_hat = (_split(widen(x), groups) - mean) * std_inv
    wide, batch = widen(dy), tuple(range(dy.ndim - 1))
    dgain, dbias = (wide * x_hat.reshape(dy.shape)).sum(batch), wide.sum(batch)
    dx_hat = _split(wide * broadcast_to_rank(widen(gain), dy.ndim), groups)
    along_ones = dx_hat.mean((1, 3), keepdims=True)
    along_x_hat = (dx_hat * x_hat).mean((1, 3), keepdims=True)
    dx = std_inv * (dx_hat - along_ones - x_hat * along_x_hat)
    return dx.reshape(x.shape).astype(x.dtype), dgain.astype(gain.dtype), dbias.astype(gain.dtype)


def _split(x: Float[Array, "b *places c"], groups: int) -> Float[Array, "b p g n"]:
    return x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)


group_norm.defvjp(group_norm_fwd, group_norm_bwd)
