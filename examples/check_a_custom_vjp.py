"""Check a gradient of your own against JAX and PyTorch, and see what a mistake in it looks like."""

import jax
import jax.numpy as jnp
import torch
from jaxtyping import Array, Float

from jaxgrad import GradientMismatch, check


def plain_norm(x: Float[Array, "n d"], gain: Float[Array, " d"]) -> Float[Array, "n d"]:
    """What `norm` should equal, without a rule of its own: JAX differentiates it."""
    return gain * x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True))


def torch_norm(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """The same in PyTorch."""
    return torch.nn.functional.rms_norm(x, x.shape[-1:], gain, eps=0.0)


@jax.custom_vjp
def norm(x: Float[Array, "n d"], gain: Float[Array, " d"]) -> Float[Array, "n d"]:
    """`gain * x / rms(x)` over the last axis, with a backward pass by hand."""
    return plain_norm(x, gain)


def norm_fwd(x, gain):
    rms_inv = jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True))
    x_hat = x * rms_inv
    return gain * x_hat, (x_hat, rms_inv, gain)


def norm_bwd(residuals, dy):
    x_hat, rms_inv, gain = residuals
    dx_hat = gain * dy
    dx = rms_inv * (dx_hat - x_hat * (dx_hat * x_hat).mean(-1, keepdims=True))
    return dx, (dy * x_hat).sum(0)


def wrong_bwd(residuals, dy):
    x_hat, rms_inv, gain = residuals
    dx_hat = gain * dy
    dx = rms_inv * (dx_hat - x_hat * (dx_hat * x_hat).sum(-1, keepdims=True))  # should be the mean
    return dx, (dy * x_hat).sum(0)


norm.defvjp(norm_fwd, norm_bwd)

wrong_norm = jax.custom_vjp(plain_norm)
wrong_norm.defvjp(norm_fwd, wrong_bwd)

if __name__ == "__main__":
    # Only shapes are needed: `check` draws the numbers, and cotangents for the output.
    args = (jax.ShapeDtypeStruct((8, 5), jnp.float32), jax.ShapeDtypeStruct((5,), jnp.float32))
    oracles = {"reference": plain_norm, "torch_reference": torch_norm}

    report = check(norm, *args, **oracles)
    print(f"norm: right in {len(report.findings)} settings, {len(report.not_judged)} not judged")

    try:
        check(wrong_norm, *args, **oracles, dtypes=("float64",), transforms=("jit",), seeds=(0,))
    except GradientMismatch as error:
        print(error)
