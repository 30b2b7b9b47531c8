"""Batch norm with Bessel's correction."""

import jax.numpy as jnp
import pytest

from jaxgrad.ops import batch_norm


def plain(x, gain, bias):
    axes = tuple(range(x.ndim - 1))
    return gain * (x - x.mean(axes)) * (x.var(axes, ddof=1) + 1e-5) ** -0.5 + bias


def twin(x, gain, bias):
    axes = tuple(range(x.ndim - 1))
    return gain * (x - x.mean(axes)) * (x.var(axes, correction=1) + 1e-5) ** -0.5 + bias


def test_batch_norm(passes, in_model):
    params = in_model.params
    passes(batch_norm, in_model.nodes.h_prenorm, params.bn_gain, params.bn_bias, reference=plain, torch_reference=twin)


def test_batch_norm_over_two_batch_axes(passes, in_model):
    x, params = in_model.nodes.h_prenorm, in_model.params
    folded = x.reshape(2, -1, x.shape[1])
    passes(batch_norm, folded, params.bn_gain[0], params.bn_bias[0], reference=plain, torch_reference=twin)


def test_one_row_is_refused_because_its_variance_divides_by_zero():
    with pytest.raises(ValueError, match=r"1 row.*at least 2"):
        batch_norm(jnp.ones((1, 3)), jnp.ones(3), jnp.zeros(3))
