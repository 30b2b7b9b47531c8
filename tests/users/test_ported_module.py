"""An Equinox module ported from a PyTorch one: names and layouts are aligned, and gradients compared, node by node."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
import torch

from jaxgrad import tap
from jaxgrad.errors import JaxgradError


class TorchBlock(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand = torch.nn.Linear(4, 8)
        self.norm = torch.nn.LayerNorm(8)
        self.shrink = torch.nn.Linear(8, 4)

    def forward(self, x):
        h = tap("h", self.expand(x))
        z = tap("z", self.norm(h))
        a = tap("a", torch.nn.functional.gelu(z))
        return tap("branch", self.shrink(a)) + x


class Block(eqx.Module):
    expand: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    shrink: eqx.nn.Linear

    def __init__(self, key) -> None:
        one, two = jax.random.split(key)
        self.expand = eqx.nn.Linear(4, 8, key=one)
        self.norm = eqx.nn.LayerNorm(8)
        self.shrink = eqx.nn.Linear(8, 4, key=two)


def exact_gelu(z):
    return jax.nn.gelu(z, approximate=False)


def ported(norm=lambda layer, h: jax.vmap(layer)(h), gelu=exact_gelu, join=lambda branch, x: branch + x):
    def fn(block, x):
        h = tap("h", jax.vmap(block.expand)(x))
        z = tap("z", norm(block.norm, h))
        a = tap("a", gelu(z))
        return join(tap("branch", jax.vmap(block.shrink)(a)), x)

    return fn


def norm_with_frozen_statistics(layer, h):
    mean, var = (jax.lax.stop_gradient(f(h, -1, keepdims=True)) for f in (jnp.mean, jnp.var))
    return layer.weight * (h - mean) / jnp.sqrt(var + layer.eps) + layer.bias


@jax.custom_jvp
def gelu_with_the_slope_of_its_approximation(z):
    return exact_gelu(z)


@gelu_with_the_slope_of_its_approximation.defjvp
def _(primals, tangents):
    return exact_gelu(*primals), jax.jvp(jax.nn.gelu, primals, tangents)[1]


def join_that_cuts_the_skip(branch, x):
    return branch + jax.lax.stop_gradient(x)


X = jax.ShapeDtypeStruct((3, 4), jnp.float32)


@pytest.fixture
def block():
    return Block(jax.random.key(0))


def test_the_port_passes_under_names_that_were_guessed(three_way, block):
    three_way(ported(), block, X, torch_reference=TorchBlock(), transforms=("jit", "vmap", "grad_of_grad"))


@pytest.mark.parametrize(
    ("wrong", "at"),
    [
        ({"norm": norm_with_frozen_statistics}, "the cotangent of node h"),
        ({"gelu": gelu_with_the_slope_of_its_approximation}, "the cotangent of node z"),
        ({"join": join_that_cuts_the_skip}, "the cotangent of input x"),
    ],
)
def test_a_port_with_the_same_outputs_and_another_gradient_fails_at_the_node(fails, block, wrong, at: str):
    fails(ported(**wrong), block, X, torch_reference=TorchBlock(), at=at)


def test_a_tensor_left_over_is_an_error_that_lists_it(three_way, block):
    torch_block = TorchBlock()
    torch_block.register_parameter("temperature", torch.nn.Parameter(torch.ones(1)))
    with pytest.raises(JaxgradError, match=r"parameters left over.*temperature \(1,\)"):
        three_way(ported(), block, X, torch_reference=torch_block)
