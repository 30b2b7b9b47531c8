"""Operations inside `jax.shard_map`, where the type of an array says over which axes of the mesh it varies."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgrad.jax_seam import vary, varying_axes


def together(*arrays: Array | None) -> tuple[Array | None, ...]:
    """The arrays, each marked as varying over every axis over which one of them does; None stays None.

    A hand-written rule must return cotangents of its arguments' own types, but the cotangent of weights that all
    shards share varies between shards until it is added up. JAX adds it up behind this mark, which has that as its
    transpose. Outside of `shard_map` nothing happens.
    """
    axes = frozenset[str]().union(*(varying_axes(array) for array in arrays if array is not None))
    return tuple(array if array is None else _varying(array, axes) for array in arrays)


def summed(cotangent: Float[Array, "*shape"], like: Array) -> Float[Array, "*shape"]:
    """A cotangent added up over the shards that share the argument `like`, in that one's type."""
    axes = varying_axes(cotangent) - varying_axes(like)
    total = jax.lax.psum(cotangent, tuple(sorted(axes))) if axes else cotangent
    return total.astype(like.dtype)


def zeros(shape: tuple[int, ...], dtype: jnp.dtype, like: Array) -> Float[Array, "..."]:
    """Zeros that a loop may add to what varies as `like` does."""
    return _varying(jnp.zeros(shape, dtype), varying_axes(like))


def struct(shape: tuple[int, ...], dtype: jnp.dtype, like: Array) -> Any:
    """The shape and type of a kernel's output, which varies as `like` does."""
    return jax.eval_shape(lambda: zeros(shape, dtype, like))


def _varying(array: Array, axes: frozenset[str]) -> Array:
    missing = axes - varying_axes(array)
    return vary(array, tuple(sorted(missing))) if missing else array
