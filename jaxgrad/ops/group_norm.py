"""Group normalisation: statistics of each example over its places and over groups of channels."""

import functools
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.lax import broadcast_to_rank
from jaxtyping import Array, Float

from jaxgrad.errors import JaxgradError
from jaxgrad.ops._shards import summed
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
    as in layer norm, of which this is the form with one group and no places. Places are summed first, for each channel:
    the same sums, times $g$, give those over groups.

    Channels are last. Sums are in float32 at least; `groups` and `eps` are static.
    Residuals: `x`, `gain`, and two numbers a channel of each example.
    Raises `JaxgradError` where groups do not divide the channels.
    Source: Wu & He 2018, arXiv:1803.08494; derivation ours.
    """
    return group_norm_fwd(x, gain, bias, groups, eps)[0]


def group_norm_fwd(
    x: Float[Array, "b *places c"], gain: Float[Array, " c"], bias: Float[Array, " c"], groups: int, eps: float = 1e-5
) -> tuple[Float[Array, "b *places c"], Residuals]:
    """The output and the residuals `(x, mean, r, gain)`."""
    if x.shape[-1] % groups:
        raise JaxgradError(f"{groups} groups do not divide {x.shape[-1]} channels; choose a divisor")
    rows = widen(x).reshape(x.shape[0], -1, x.shape[-1])
    mean = _of_groups(rows.sum(1), rows, groups)
    diff = rows - mean
    std_inv = jax.lax.rsqrt(_of_groups((diff * diff).sum(1), rows, groups) + eps)
    y = broadcast_to_rank(widen(gain), 3) * (diff * std_inv) + broadcast_to_rank(widen(bias), 3)
    return y.reshape(x.shape).astype(x.dtype), (x, mean, std_inv, gain)


def group_norm_bwd(
    groups: int, eps: float, residuals: Residuals, dy: Float[Array, "b *places c"]
) -> tuple[Float[Array, "b *places c"], Float[Array, " c"], Float[Array, " c"]]:
    """Cotangents of `x`, `gain` and `bias`."""
    x, mean, std_inv, gain = residuals
    rows, wide = (widen(array).reshape(x.shape[0], -1, x.shape[-1]) for array in (x, dy))
    x_hat, factor = (rows - mean) * std_inv, widen(gain)
    dgains, dbiases = (wide * x_hat).sum(1), wide.sum(1)
    along_x_hat, along_ones = (_of_groups(sums * factor[None], rows, groups) for sums in (dgains, dbiases))
    dx = std_inv * (wide * broadcast_to_rank(factor, 3) - along_ones - x_hat * along_x_hat)
    return summed(dx.reshape(x.shape), x), summed(dgains.sum(0), gain), summed(dbiases.sum(0), gain)


def _of_groups(sums: Float[Array, "b c"], rows: Float[Array, "b p c"], groups: int) -> Float[Array, "b 1 c"]:
    """The mean over each group, at each of its channels, from the sums over the places of a channel."""
    b, p, c = rows.shape
    means = sums.reshape(b, groups, -1).sum(-1, keepdims=True) / (p * c // groups)
    return jnp.repeat(means, c // groups, 2).reshape(b, 1, c)


group_norm.defvjp(group_norm_fwd, group_norm_bwd)
