"""tanh."""

import jax
import jax.numpy as jnp
import torch

from jaxgrad.ops import tanh


def test_tanh(passes, in_model):
    passes(tanh, in_model.nodes.h_norm, reference=jnp.tanh, torch_reference=torch.tanh)


def test_a_saturated_neuron_passes_no_cotangent():
    assert jax.grad(lambda x: tanh(x).sum())(jnp.array([-40.0, 40.0])).tolist() == [0.0, 0.0]
