"""JAX's settings while gradients are compared, whatever the caller's own are."""

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def compared_in(dtype: str) -> Iterator[None]:
    """JAX's settings for a comparison in a type: 64-bit types in float64 alone, products at full precision.

    What people set to find a mistake is off: programs are traced and compiled, what is not finite is judged and not
    raised at once, and numbers go to a device and back as they must.
    """
    with (
        jax.enable_x64(dtype == "float64"),
        jax.default_matmul_precision("highest"),
        jax.disable_jit(False),
        jax.debug_nans(False),
        jax.debug_infs(False),
        jax.transfer_guard("allow"),
    ):
        yield
