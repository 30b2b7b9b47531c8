"""Cross-entropy."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jaxgrad.ops import cross_entropy
from tests.ops.suite import Op


def plain(logits, targets):
    log_probs = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    return -jnp.take_along_axis(log_probs, targets[..., None], -1).mean()


def twin(logits, targets):
    return torch.nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten().long())


def test_cross_entropy(passed_by):
    passed_by(Op(cross_entropy, plain, twin, lambda params, batch, nodes: (nodes.logits, batch.Y)))


def test_cross_entropy_over_two_batch_axes(passed_by):
    passed_by(
        Op(
            cross_entropy,
            plain,
            twin,
            lambda params, batch, nodes: (nodes.logits.reshape(2, -1, nodes.logits.shape[1]), batch.Y.reshape(2, -1)),
        )
    )


def test_huge_logits_stay_finite_and_their_cotangents_sum_to_zero_in_each_row():
    logits = jnp.array([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0]])
    loss, dlogits = jax.value_and_grad(cross_entropy)(logits, jnp.array([1, 2]))
    assert np.isclose(loss, (2e4 + np.log(3)) / 2, rtol=1e-6)
    # Each row sums numbers of at most 1/2 in float32: a few units of 2^-24 are all that may be left.
    assert np.abs(dlogits.sum(1)).max() <= 4 * 2.0**-24


def test_a_target_out_of_range_makes_the_loss_nan_rather_than_wrong():
    assert np.isnan(cross_entropy(jnp.zeros((1, 3)), jnp.array([3])))
