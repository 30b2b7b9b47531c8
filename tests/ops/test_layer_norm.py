"""Layer norm."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jaxgrad import mutation_score
from jaxgrad.checking.compare import compare
from jaxgrad.checking.measure import measure, shaken
from jaxgrad.ops.layer_norm import layer_norm


def plain(x, gain, bias):
    return gain * (x - x.mean(-1, keepdims=True)) * (x.var(-1, keepdims=True) + 1e-5) ** -0.5 + bias


def twin(x, gain, bias):
    return torch.nn.functional.layer_norm(x, x.shape[-1:], gain, bias, 1e-5)


def test_layer_norm(passes, in_model):
    params = in_model.params
    gain, bias = params.bn_gain[0], params.bn_bias[0]
    passes(layer_norm, in_model.nodes.h_prenorm, gain, bias, reference=plain, torch_reference=twin)


def test_layer_norm_over_two_batch_axes(passes, in_model):
    x, params = in_model.nodes.h_prenorm, in_model.params
    folded = x.reshape(2, -1, x.shape[1])
    passes(layer_norm, folded, params.bn_gain[0], params.bn_bias[0], reference=plain, torch_reference=twin)


def test_a_row_without_spread_gives_the_bias_and_no_nan():
    x, gain, bias = jnp.full((1, 3), 7.0), jnp.ones(3), jnp.array([1.0, 2.0, 3.0])
    y, pullback = jax.vjp(layer_norm, x, gain, bias)
    assert y.tolist() == [[1.0, 2.0, 3.0]]
    assert np.isfinite(pullback(y)[0]).all()


def test_every_mistake_in_the_backward_pass_is_more_than_parity_forgives():
    # Square, so that a sum over the wrong axis has the right shape.
    x, gain, bias, dy = (jax.random.normal(jax.random.key(k), s) for k, s in enumerate([(5, 5), (5,), (5,), (5, 5)]))
    pulled = shaken(lambda x, gain, bias, dy: jax.vjp(plain, x, gain, bias)[1](dy))
    right, noises = measure(pulled, "float32", x, gain, bias, dy)

    def parity(fn):
        for got, expected, noise in zip(jax.vjp(fn, x, gain, bias)[1](dy), right, noises, strict=True):
            assert compare(expected, np.asarray(got), noise, "float32").agrees

    score = mutation_score(layer_norm, parity, x, gain, bias)
    assert len(score.killed) > 20
    assert (score.survived, score.equivalent) == ((), ())
