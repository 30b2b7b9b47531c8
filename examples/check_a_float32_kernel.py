"""Check a Pallas kernel that takes float32 only: it is held to its reference in float64."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from jaxgrad import check


def square_kernel(x_ref, y_ref):
    """The kernel of `y = x²`."""
    y_ref[...] = x_ref[...] * x_ref[...]


def slope_kernel(x_ref, dy_ref, dx_ref):
    """The kernel of `dx = 2 x dy`."""
    dx_ref[...] = 2 * x_ref[...] * dy_ref[...]


def call(kernel, *args: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """Run a kernel whose output is like its first argument; interpreted, so that it runs on a CPU too."""
    if args[0].dtype != jnp.float32:
        raise TypeError(f"the kernel takes float32, not {args[0].dtype}")
    shape = jax.ShapeDtypeStruct(args[0].shape, args[0].dtype)
    return pl.pallas_call(kernel, out_shape=shape, interpret=True)(*args)


@jax.custom_vjp
def square(x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """`x²`, forward and backward in Pallas."""
    return call(square_kernel, x)


square.defvjp(lambda x: (square(x), x), lambda x, dy: (call(slope_kernel, x, dy),))


if __name__ == "__main__":
    # A Pallas call has no derivative of its own, so there is no second order.
    report = check(
        square,
        jax.ShapeDtypeStruct((6, 4), jnp.float32),
        reference=jnp.square,
        transforms=("jit", "vmap", "scan", "remat"),
    )
    judged = {finding.setting.dtype for finding in report.findings} - {f.setting.dtype for f in report.not_judged}
    print(f"square: right in {', '.join(sorted(judged))}")
    for finding in report.not_judged[:1]:
        print(f"not judged in {finding.setting.dtype}: {finding.why}")
