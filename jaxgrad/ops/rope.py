"""Rotary position embedding, in both conventions."""

import functools
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgrad.errors import JaxgradError
from jaxgrad.ops._shards import together
from jaxgrad.ops.precision import widen

Residuals: TypeAlias = tuple[Float[Array, "*b s h d"], Float[Array, "*#b s n"], Float[Array, "*#b s n"]]


def rope_tables(
    positions: Int[Array, "*b s"], dims: int, base: float = 10_000.0
) -> tuple[Float[Array, "*b s n"], Float[Array, "*b s n"]]:
    r"""Cosines and sines of `position * base ** (-2 i / dims)` for $i < n$, `n = dims // 2`, in float32."""
    frequencies = base ** (-jnp.arange(0, dims, 2, dtype=jnp.float32) / dims)
    angles = positions[..., None].astype(jnp.float32) * jax.lax.broadcast_to_rank(frequencies, positions.ndim + 1)
    return jnp.cos(angles), jnp.sin(angles)


def rope(
    x: Float[Array, "*b s h d"], cos: Float[Array, "*#b s n"], sin: Float[Array, "*#b s n"], interleaved: bool = False
) -> Float[Array, "*b s h d"]:
    r"""The first `2 n` numbers of each head rotated in pairs, by the angles of its place; the others as they are.

    A pair $(a, b)$ becomes $(a \cos - b \sin,\ b \cos + a \sin)$. A rotation's transpose is the rotation back:
    $$da = da' \cos + db' \sin, \qquad db = db' \cos - da' \sin,$$
    $$d\cos = \sum_h (a\,da' + b\,db'), \qquad d\sin = \sum_h (a\,db' - b\,da').$$

    Pairs are `(i, n + i)`, as in GPT-NeoX and Llama's port, or `(2 i, 2 i + 1)` with `interleaved`, as in GPT-J and the
    paper. Tables are `rope_tables(positions, dims)` or one's own, without batch axes or with those of `x`.
    Computed in float32 at least. Residuals: the tables; `x` only where a table has a cotangent.
    Raises `JaxgradError` for tables wider than half a head. Source: Su et al. 2021, arXiv:2104.09864; derivation ours.
    """
    if 2 * cos.shape[-1] > x.shape[-1] or cos.shape != sin.shape:
        raise JaxgradError(
            f"cos and sin have shapes {cos.shape} and {sin.shape}; (..., s, n) with 2 n <= {x.shape[-1]}"
        )
    rotated, *tables = together(x, cos, sin)
    return _rope(rotated, *tables, interleaved)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _rope(
    x: Float[Array, "*b s h d"], cos: Float[Array, "*#b s n"], sin: Float[Array, "*#b s n"], interleaved: bool
) -> Float[Array, "*b s h d"]:
    return rope_fwd(x, cos, sin, interleaved)[0]


def rope_fwd(
    x: Float[Array, "*b s h d"], cos: Float[Array, "*#b s n"], sin: Float[Array, "*#b s n"], interleaved: bool
) -> tuple[Float[Array, "*b s h d"], Residuals]:
    """The output and the residuals `(x, cos, sin)`, of which a compiler drops `x` where no table is differentiated."""
    a, b, rest = _pairs(x, cos.shape[-1], interleaved)
    c, s = _of_heads(cos, x), _of_heads(sin, x)
    return _joined(a * c - b * s, b * c + a * s, rest, interleaved), (x, cos, sin)


def rope_bwd(
    interleaved: bool, residuals: Residuals, dy: Float[Array, "*b s h d"]
) -> tuple[Float[Array, "*b s h d"], Float[Array, "*#b s n"], Float[Array, "*#b s n"]]:
    """Cotangents of `x` and the tables."""
    x, cos, sin = residuals
    a, b, _ = _pairs(x, cos.shape[-1], interleaved)
    da, db, rest = _pairs(dy, cos.shape[-1], interleaved)
    c, s = _of_heads(cos, x), _of_heads(sin, x)
    dx = _joined(da * c + db * s, db * c - da * s, rest, interleaved)
    return dx, _summed(a * da + b * db, cos), _summed(a * db - b * da, sin)


def _pairs(x: Float[Array, "*b s h d"], n: int, interleaved: bool) -> tuple[Array, Array, Array]:
    """The first and the second of each pair in the wide type, and what is not rotated."""
    turned, rest = widen(x[..., : 2 * n]), x[..., 2 * n :]
    return (turned[..., ::2], turned[..., 1::2], rest) if interleaved else (turned[..., :n], turned[..., n:], rest)


def _joined(a: Array, b: Array, rest: Array, interleaved: bool) -> Array:
    turned = jnp.stack((a, b), -1).reshape(*a.shape[:-1], -1) if interleaved else jnp.concatenate((a, b), -1)
    return jnp.concatenate((turned.astype(rest.dtype), rest), -1)


def _of_heads(table: Float[Array, "*#b s n"], x: Float[Array, "*b s h d"]) -> Array:
    return jax.lax.broadcast_to_rank(widen(table)[..., None, :], x.ndim)


def _summed(dtable: Float[Array, "*b s h n"], table: Float[Array, "*#b s n"]) -> Float[Array, "*#b s n"]:
    """Summed over the heads, and over the batch that a table was spread along."""
    by_place = dtable.sum(-2)
    extra = tuple(range(by_place.ndim - table.ndim))
    spread = tuple(axis for axis, size in enumerate(table.shape) if size == 1 and by_place.shape[len(extra) + axis] > 1)
    return by_place.sum(extra).sum(spread, keepdims=True).astype(table.dtype)


_rope.defvjp(rope_fwd, rope_bwd)
