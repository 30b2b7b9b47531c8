"""Sequences in chunks of steps, so that what is worked out for many steps at once is small."""

import jax
from jaxtyping import Array

# A product of so many steps at once is as fast as one of all of them.
LEAST, MOST = 8, 32


def in_chunks(array: Array) -> Array:
    """`(t, ...)` as `(chunks, steps, ...)`: steps are the largest divisor of t in range, else all of them."""
    t = array.shape[0]
    steps = next((n for n in range(MOST, LEAST - 1, -1) if t % n == 0), max(t, 1))
    return array.reshape(t // steps, steps, *array.shape[1:])


def whole(chunks: Array) -> Array:
    """`(chunks, steps, ...)` as `(t, ...)`."""
    return jax.lax.collapse(chunks, 0, 2)
