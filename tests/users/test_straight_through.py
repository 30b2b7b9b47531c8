"""A straight-through estimator: its gradient is meant not to be the derivative, and yet can be written wrongly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxgrad import GradientMismatch


def quantiser(backward):
    @jax.custom_vjp
    def quantise(x):
        return jnp.round(x)

    quantise.defvjp(lambda x: (jnp.round(x), x), lambda x, dy: (backward(x, dy),))
    return quantise


def surrogate(x):
    """What it should look like to autodiff: the identity."""
    return x + jax.lax.stop_gradient(jnp.round(x) - x)


def right(x, dy):
    return dy


X = np.linspace(-2.2, 2.1, 12)
NO_SECOND = {"transforms": ("jit", "vmap", "scan", "remat")}


def test_it_differs_from_both_oracles_as_it_should(three_way):
    report = three_way(
        quantiser(right), X, reference=jnp.round, torch_reference=torch.round, expected="differs", **NO_SECOND
    )
    assert {finding.alone for finding in report.findings} == {"hand"}


def test_without_being_told_the_check_says_that_hand_differs_from_both_oracles(fails):
    message = fails(
        quantiser(right), X, reference=jnp.round, torch_reference=torch.round, at="the cotangent of input x"
    )
    assert "hand differs from both oracles: jax.grad and torch agree" in message


def test_it_is_the_gradient_of_its_surrogate(three_way):
    three_way(quantiser(right), X, reference=surrogate)


@pytest.mark.parametrize(
    "wrong",
    [lambda x, dy: 2 * dy, lambda x, dy: dy * (jnp.abs(x) < 1), lambda x, dy: dy * (x - jnp.round(x))],
    ids=["twice too large", "clipped", "scaled by the rounding"],
)
def test_a_wrong_estimator_fails_against_its_surrogate(fails, wrong):
    fails(quantiser(wrong), X, reference=surrogate, at="the cotangent of input x")


def test_a_gradient_that_agrees_where_it_should_differ_fails(three_way):
    with pytest.raises(GradientMismatch, match="agrees with its oracles, but expected='differs'"):
        three_way(quantiser(lambda x, dy: jnp.zeros_like(dy)), X, reference=jnp.round, expected="differs", **NO_SECOND)


def test_an_output_that_differs_is_not_excused(three_way):
    with pytest.raises(GradientMismatch, match="output is wrong"):
        three_way(quantiser(right), X, reference=jnp.floor, expected="differs", **NO_SECOND)
