"""What the Pallas kernels of operations share."""

from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgrad.errors import JaxgradError
from jaxgrad.ops.precision import accumulation_dtype

Implementation: TypeAlias = Literal["xla", "pallas", "interpret"]
INTERPRET = "interpret"
# The least that a matrix unit multiplies; sizes of blocks are powers of two of at least this.
LEAST = 16


def platform_of(implementation: Implementation, op: str) -> str | None:
    """The platform that the kernels of the operation `op` are for, None for XLA's form.

    Raises `JaxgradError` for an implementation that there is not, here or anywhere.
    """
    if implementation == "xla":
        return None
    if implementation not in ("pallas", INTERPRET):
        raise JaxgradError(f"implementation is {implementation!r}; choose 'xla', 'pallas' or 'interpret'")
    if implementation == INTERPRET:
        return implementation
    platform = jax.default_backend()
    if platform not in ("gpu", "tpu"):
        raise JaxgradError(
            f"the kernels of {op} compile for gpu and tpu, and this is {platform}; use implementation='xla'"
            " ('interpret' runs them anywhere, slowly, to check them)"
        )
    return platform


def power_of_two(most: int) -> int:
    """The largest power of two of at most this, and at least `LEAST`."""
    return max(LEAST, 1 << (most.bit_length() - 1))


def dot(a: Float[Array, "n k"], b: Float[Array, "k m"]) -> Float[Array, "n m"]:
    """`a @ b`, accumulated in float32 at least."""
    # The default precision of a matrix unit would take float32 for less.
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.dot(a, b, precision=precision, preferred_element_type=accumulation_dtype(a, b))


def compiler_params(platform: str) -> Any:
    """How to compile for a GPU, None elsewhere."""
    if platform != "gpu":
        return None
    # Imported only where a GPU is meant, because not every build of JAX has Triton. Mosaic GPU would stage all keys of
    # a head in shared memory, which has no room for them.
    from jax.experimental.pallas import triton

    return triton.CompilerParams(num_warps=4, num_stages=2)
