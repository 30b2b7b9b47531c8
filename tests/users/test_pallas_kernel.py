"""A Pallas kernel pair, forward and backward, for `scale * swish(x)`, in interpret mode."""

import functools

import jax
import jax.numpy as jnp
import pytest
import torch
from jax.experimental import pallas as pl

BLOCK = 8


def forward_kernel(x_ref, scale_ref, y_ref):
    x = x_ref[...]
    y_ref[...] = scale_ref[...] * x * jax.nn.sigmoid(x)


def backward_kernel(x_ref, scale_ref, dy_ref, dx_ref, dscale_ref, *, mistake: str = ""):
    x, dy = x_ref[...], dy_ref[...]
    s = jax.nn.sigmoid(x)
    slope = s * (1 + x * (1 - s)) if mistake != "slope of the sigmoid" else s * (1 - s)
    dx_ref[...] = (dy if mistake == "scale forgotten" else scale_ref[...] * dy) * slope

    @pl.when(pl.program_id(0) == 0)
    def start():
        dscale_ref[...] = jnp.zeros_like(dscale_ref)

    # Blocks run one after the other and add up in the same place.
    total = (dy * x * s).sum(0, keepdims=True)
    dscale_ref[...] = total if mistake == "last block only" else dscale_ref[...] + total


def swish(mistake: str = ""):
    rows = pl.BlockSpec((BLOCK, 4), lambda i: (i, 0))
    whole = pl.BlockSpec((1, 4), lambda i: (0, 0))

    def run(kernel, ins, outs, like, args):
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in like]
        call = pl.pallas_call(
            kernel, grid=(args[0].shape[0] // BLOCK,), in_specs=ins, out_specs=outs, out_shape=shapes, interpret=True
        )
        return call(*args)

    @jax.custom_vjp
    def fn(x, scale):
        return run(forward_kernel, [rows, whole], [rows], [x], (x, scale))[0]

    def backward(residuals, dy):
        kernel = functools.partial(backward_kernel, mistake=mistake)
        return tuple(run(kernel, [rows, whole, rows], [rows, whole], residuals, (*residuals, dy)))

    fn.defvjp(lambda x, scale: (fn(x, scale), (x, scale)), backward)
    return fn


def plain(x, scale):
    return scale * jax.nn.swish(x)


def twin(x, scale):
    return scale * torch.nn.functional.silu(x)


ARGS = (jax.ShapeDtypeStruct((3 * BLOCK, 4), jnp.float32), jax.ShapeDtypeStruct((1, 4), jnp.float32))
ORACLES = {"reference": plain, "torch_reference": twin}


def test_the_right_kernel_passes(three_way):
    # A Pallas call cannot be differentiated itself, so there is no second order.
    three_way(swish(), *ARGS, transforms=("jit", "vmap", "scan", "remat"), **ORACLES)


@pytest.mark.parametrize(
    ("mistake", "at"),
    [
        ("slope of the sigmoid", "the cotangent of input x"),
        ("scale forgotten", "the cotangent of input x"),
        ("last block only", "the cotangent of input scale"),
    ],
)
def test_a_wrong_kernel_fails_at_the_input_that_it_spoils(fails, mistake: str, at: str):
    fails(swish(mistake), *ARGS, at=at, **ORACLES)
