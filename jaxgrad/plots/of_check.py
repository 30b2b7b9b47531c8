"""What the picture of a failed check shows: an RMS norm with a sum in its backward pass where a mean should be."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def plain_norm(x: Float[Array, "m n"], gain: Float[Array, " n"]) -> Float[Array, "m n"]:
    """`gain * x` over the root of the mean square of x."""
    return gain * x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True))


@jax.custom_vjp
def my_norm(x: Float[Array, "m n"], gain: Float[Array, " n"]) -> Float[Array, "m n"]:
    """`plain_norm` with a backward pass of its own, which is wrong."""
    return plain_norm(x, gain)


def _forward(x: Array, gain: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    r = jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True))
    return gain * x * r, (x * r, r, gain)


def _backward(residuals: tuple[Array, Array, Array], dy: Array) -> tuple[Array, Array]:
    x_hat, r, gain = residuals
    dx_hat = gain * dy
    dx = r * (dx_hat - x_hat * (dx_hat * x_hat).sum(-1, keepdims=True))  # the mistake: it should be the mean
    return dx, (dy * x_hat).sum(0)


my_norm.defvjp(_forward, _backward)


def message() -> str:
    """What `jaxgrad.check` says of `my_norm`, by JAX and by PyTorch, as a test of that name would show it."""
    import torch

    from jaxgrad import GradientMismatch, check

    def torch_norm(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.rms_norm(x, x.shape[-1:], gain, eps=0.0)

    x, gain = jax.ShapeDtypeStruct((8, 5), jnp.float32), jax.ShapeDtypeStruct((5,), jnp.float32)
    try:
        check(my_norm, x, gain, reference=plain_norm, torch_reference=torch_norm, name="test_my_norm")
    except GradientMismatch as error:
        *lines, _ = str(error).splitlines()  # the last names the command that runs this setting again
        return "\n".join(lines)
    raise AssertionError("the mistake was not noticed")
