"""The type in which every operation of this room accumulates."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def accumulation_dtype(*arrays: Float[Array, "..."]) -> jnp.dtype:
    """float32 for bfloat16 and float16 arrays, their common type for wider ones.

    A sum of n terms kept in bfloat16 stops growing after some 2^8 equal terms; in float32 it does not.
    """
    return jnp.result_type(jnp.float32, *(x.dtype for x in arrays))
