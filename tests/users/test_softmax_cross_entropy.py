"""A fused softmax-cross-entropy per row, with label smoothing, as someone writes it to save memory."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest
import torch

SMOOTHING = 0.1


def smoothed(labels, size):
    return jax.nn.one_hot(labels, size) * (1 - SMOOTHING) + SMOOTHING / size


def plain(logits, labels):
    return -(smoothed(labels, logits.shape[-1]).astype(logits.dtype) * jax.nn.log_softmax(logits)).sum(-1)


def twin(logits, labels):
    return torch.nn.functional.cross_entropy(logits, labels, label_smoothing=SMOOTHING, reduction="none")


def fused(dlogits: Callable):
    @jax.custom_vjp
    def loss(logits, labels):
        return plain(logits, labels)

    loss.defvjp(
        lambda logits, labels: (plain(logits, labels), (logits, labels)),
        lambda residuals, dy: (dlogits(jax.nn.softmax(residuals[0]), residuals[1], dy).astype(dy.dtype), None),
    )
    return loss


LOGITS, LABELS = jax.ShapeDtypeStruct((6, 9), jnp.float32), jnp.array([0, 8, 3, 3, 1, 7])


def right(p, labels, dy):
    return dy[:, None] * (p - smoothed(labels, p.shape[-1]).astype(p.dtype))


def test_the_right_gradient_passes(three_way):
    report = three_way(fused(right), LOGITS, LABELS, reference=plain, torch_reference=twin)
    assert report.passed and len(report.findings) == 21 and not report.not_judged


@pytest.mark.parametrize(
    "wrong",
    [
        lambda p, labels, dy: dy[:, None] * (p - jax.nn.one_hot(labels, p.shape[-1], dtype=p.dtype)),
        lambda p, labels, dy: dy.mean() * (p - smoothed(labels, p.shape[-1])),
        lambda p, labels, dy: -right(p, labels, dy),
    ],
    ids=["forgets the smoothing", "mixes up the rows' cotangents", "has the wrong sign"],
)
def test_a_wrong_gradient_fails_at_the_logits(fails, wrong):
    message = fails(
        fused(wrong), LOGITS, LABELS, reference=plain, torch_reference=twin, at="the cotangent of input logits"
    )
    assert "hand differs from both oracles: jax.grad and torch agree" in message
