"""Cross-entropy."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jaxgrad.ops import cross_entropy


def plain(logits, targets):
    log_probs = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    return -jnp.take_along_axis(log_probs, targets[..., None], -1).mean()


def twin(logits, targets):
    return torch.nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten().long())


def test_cross_entropy(passes, in_model):
    passes(cross_entropy, in_model.nodes.logits, in_model.batch.Y, reference=plain, torch_reference=twin)


def test_cross_entropy_over_two_batch_axes(passes, in_model):
    logits, Y = in_model.nodes.logits, in_model.batch.Y
    folded = logits.reshape(2, -1, logits.shape[1])
    passes(cross_entropy, folded, Y.reshape(2, -1), reference=plain, torch_reference=twin)


def test_huge_logits_stay_finite_and_their_cotangents_sum_to_zero_in_each_row():
    logits = jnp.array([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0]])
    loss, dlogits = jax.value_and_grad(cross_entropy)(logits, jnp.array([1, 2]))
    assert np.isclose(loss, (2e4 + np.log(3)) / 2, rtol=1e-6)
    # Each row sums numbers of at most 1/2 in float32: a few units of 2^-24 are all that may be left.
    assert np.abs(dlogits.sum(1)).max() <= 4 * 2.0**-24


def test_a_target_out_of_range_makes_the_loss_nan_rather_than_wrong():
    assert np.isnan(cross_entropy(jnp.zeros((1, 3)), jnp.array([3])))
