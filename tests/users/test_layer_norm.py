"""A layer norm whose backward was written by hand, in a small network with its nodes tapped."""

import jax
import jax.numpy as jnp
import pytest
import torch

from jaxgrad import tap

EPS = 1e-5


def plain_norm(x, gain, bias):
    x_hat = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + EPS)
    return gain * x_hat + bias


def norm_with(backward):
    @jax.custom_vjp
    def norm(x, gain, bias):
        return plain_norm(x, gain, bias)

    def forward(x, gain, bias):
        r = jax.lax.rsqrt(x.var(-1, keepdims=True) + EPS)
        return plain_norm(x, gain, bias), ((x - x.mean(-1, keepdims=True)) * r, r, gain)

    norm.defvjp(forward, lambda residuals, dy: backward(*residuals, dy))
    return norm


def network(norm):
    """Two layers around the norm, `h` before it and `z` after it."""

    def fn(params, x):
        h = tap("h", x @ params["w"])
        z = tap("z", norm(h, params["gain"], params["bias"]))
        return jnp.tanh(z).sum(-1)

    return fn


def twin(params, x):
    h = tap("h", x @ params["w"])
    z = tap("z", torch.nn.functional.layer_norm(h, (5,), params["gain"], params["bias"], EPS))
    return torch.tanh(z).sum(-1)


def right(x_hat, r, gain, dy):
    dx_hat = gain * dy
    dx = r * (dx_hat - dx_hat.mean(-1, keepdims=True) - x_hat * (dx_hat * x_hat).mean(-1, keepdims=True))
    return dx, (dy * x_hat).sum(0), dy.sum(0)


def without_the_mean(x_hat, r, gain, dy):
    dx_hat = gain * dy
    return r * (dx_hat - x_hat * (dx_hat * x_hat).mean(-1, keepdims=True)), *right(x_hat, r, gain, dy)[1:]


def without_the_gain(x_hat, r, gain, dy):
    return right(x_hat, r, jnp.ones_like(gain), dy)


def gain_from_the_output(x_hat, r, gain, dy):
    dx, _, dbias = right(x_hat, r, gain, dy)
    return dx, (dy * gain * x_hat).sum(0), dbias


PARAMS = {
    "w": jax.ShapeDtypeStruct((4, 5), jnp.float32),
    "gain": jax.ShapeDtypeStruct((5,), jnp.float32),
    "bias": jax.ShapeDtypeStruct((5,), jnp.float32),
}
X = jax.ShapeDtypeStruct((7, 4), jnp.float32)
ORACLES = {"reference": network(plain_norm), "torch_reference": twin}


def test_the_right_gradient_passes(three_way):
    report = three_way(network(norm_with(right)), PARAMS, X, **ORACLES)
    nodes = [t.name for t in report.findings[0].tensors if t.kind == "node"]
    assert nodes == ["z", "h"]


@pytest.mark.parametrize(
    ("wrong", "at"),
    [
        (without_the_mean, "the cotangent of node h"),
        (without_the_gain, "the cotangent of node h"),
        (gain_from_the_output, "the cotangent of input params['gain']"),
    ],
)
def test_a_wrong_gradient_fails_at_the_first_node_that_it_spoils(fails, wrong, at: str):
    fails(network(norm_with(wrong)), PARAMS, X, at=at, **ORACLES)
