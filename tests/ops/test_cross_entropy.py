"""Cross-entropy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxgrad.errors import JaxgradError
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


@pytest.mark.parametrize("target", [3, -1, -3, -4])
def test_a_target_out_of_range_makes_the_loss_nan_rather_than_wrong(target):
    assert np.isnan(cross_entropy(jnp.zeros((1, 3)), jnp.array([target])))


# What language models add, in two mixtures that have every option; -100 is an ignored target.
OPTIONS = {
    "mean": {"label_smoothing": 0.1, "soft_cap": 3.0, "ignore_index": -100},
    "sum": {"z_loss": 1e-2, "reduction": "sum", "ignore_index": -100},
    "none": {"z_loss": 1e-2, "label_smoothing": 0.2, "reduction": "none"},
}
TARGETS = np.array([3, -100, 0, 10, 7], np.int8)
WEIGHTS = np.array([0.5, 2.0, 1.0, 0.25, 1.5], np.float32)


def plain_with(options, logits, targets, weights):
    """What the options say, as jnp has it."""
    if "soft_cap" in options:
        logits = options["soft_cap"] * jnp.tanh(logits / options["soft_cap"])
    counted = targets != options.get("ignore_index")
    smoothing, log_probs = options.get("label_smoothing", 0), jax.nn.log_softmax(logits)
    at_target = jnp.take_along_axis(log_probs, jnp.where(counted, targets, 0)[..., None], -1)[..., 0]
    losses = -(1 - smoothing) * at_target - smoothing * log_probs.mean(-1)
    losses = losses + options.get("z_loss", 0) * jax.nn.logsumexp(logits, -1) ** 2
    losses = jnp.where(counted, losses * weights, 0)
    if "reduction" in options:
        return losses if options["reduction"] == "none" else losses.sum()
    return losses.sum() / jnp.where(counted, weights, 0).sum()


def twin_with(options, logits, targets, weights):
    """The same as PyTorch's users write it."""
    if "soft_cap" in options:
        logits = options["soft_cap"] * torch.tanh(logits / options["soft_cap"])
    targets = targets.long()
    losses = torch.nn.functional.cross_entropy(
        logits,
        targets,
        ignore_index=options.get("ignore_index", -1),
        label_smoothing=options.get("label_smoothing", 0.0),
        reduction="none",
    )
    counted = targets != options.get("ignore_index", -1)
    losses = (losses + options.get("z_loss", 0) * torch.logsumexp(logits, -1) ** 2) * weights * counted
    if "reduction" in options:
        return losses if options["reduction"] == "none" else losses.sum()
    return losses.sum() / (weights * counted).sum()


def targets_for(options):
    return TARGETS if "ignore_index" in options else np.abs(TARGETS) % 11


@pytest.mark.parametrize("name", OPTIONS)
def test_options(three_way, name):
    options, logits = OPTIONS[name], jax.ShapeDtypeStruct((5, 11), jnp.float32)
    three_way(
        functools.partial(cross_entropy, **options),
        logits,
        targets_for(options),
        WEIGHTS,
        reference=functools.partial(plain_with, options),
        torch_reference=functools.partial(twin_with, options),
        dtypes=("float64", "float32", "bfloat16", "float16"),
        transforms=("jit", "vmap", "grad_of_grad") if name == "mean" else ("jit",),
        seeds=(0,),
    )


def test_rows_that_are_ignored_have_no_part_and_without_others_the_mean_is_zero():
    logits = jax.random.normal(jax.random.key(0), (2, 3))

    def loss(logits, targets):
        return cross_entropy(logits, targets, ignore_index=-1)

    value, dlogits = jax.value_and_grad(loss)(logits, jnp.array([-1, -1]))
    assert value == 0 and not dlogits.any()
    assert jax.grad(loss)(logits, jnp.array([1, -1]))[1].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"reduction": "max"}, "choose 'mean'"), ({"label_smoothing": 2}, "from 0 to 1"), ({"soft_cap": 0}, "above 0")],
)
def test_options_out_of_range_are_refused(wrong, told):
    with pytest.raises(JaxgradError, match=told):
        cross_entropy(jnp.zeros((1, 3)), jnp.array([0]), **wrong)


def test_every_mistake_in_the_backward_of_the_options_is_noticed(killed):
    options = {**OPTIONS["mean"], "z_loss": 1e-2}
    fn = functools.partial(cross_entropy, **options)
    score = killed(lambda x, w: fn(x, TARGETS, w), lambda x, w: plain_with(options, x, TARGETS, w), (5, 11), (5,))
    assert len(score.killed) > 40
    assert (score.survived, score.equivalent) == ((), ())
