"""The type in which every operation of this room accumulates, and sums that are products."""

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


def row_sums(x: Float[Array, "*batch d"], factors: Float[Array, " d"] | None = None) -> Float[Array, "*batch 1"]:
    """Sums over the last axis, each term times its factor where there are some, as a product with a vector.

    XLA on a CPU adds up a last axis one number after another, and stores the terms first where several sums share
    them. It does neither for a product. The product is at the highest precision on every platform.
    """
    vector = jnp.ones(x.shape[-1], x.dtype) if factors is None else factors
    return jnp.matmul(x, vector[:, None], precision=jax.lax.Precision.HIGHEST)
