"""The type in which every operation of this room accumulates."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def accumulation_dtype(*arrays: Float[Array, "..."]) -> jnp.dtype:
    """float32 for bfloat16 and float16 arrays, their common type for wider ones.

    A sum of n terms kept in bfloat16 stops growing after some 2^8 equal terms; in float32 it does not.
    """
    # The question is which type is the widest, and strict promotion has no answer to it; no array is promoted here.
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(jnp.float32, *(x.dtype for x in arrays))


def widen(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x` in the type in which its sums accumulate: a wider copy of bfloat16 and float16, `x` itself otherwise."""
    return x.astype(accumulation_dtype(x))
