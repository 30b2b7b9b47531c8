"""tanh."""

import jax
import jax.numpy as jnp
import torch

from jaxgrad.ops import tanh
from tests.ops.suite import Op


def test_tanh(passed_by):
    passed_by(Op(tanh, jnp.tanh, torch.tanh, lambda params, batch, nodes: (nodes.h_norm,)))


def test_a_saturated_neuron_passes_no_cotangent():
    assert jax.grad(lambda x: tanh(x).sum())(jnp.array([-40.0, 40.0])).tolist() == [0.0, 0.0]
