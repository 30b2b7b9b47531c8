"""Gradients by hand in PyTorch are autograd's, and so are steps on them."""

import pytest
import torch

from torchref import by_hand, notebook, seed_case, steps


def drawn(dtype: torch.dtype):
    params = seed_case.parameters(2147483647, 27, 3, 10, 16)
    g = torch.Generator().manual_seed(0)
    X, Y = torch.randint(0, 27, (5, 8, 3), generator=g), torch.randint(0, 27, (5, 8), generator=g)
    return {name: p.to(dtype) for name, p in params.items()}, X, Y


def test_gradients_by_hand_are_those_of_autograd():
    params, X, Y = drawn(torch.float64)
    loss, grads = by_hand.gradients(params, X[0], Y[0])
    expected_loss, expected, _ = notebook.gradients(params, X[0], Y[0])
    # Gradients below 1 of some 80 roundings each, counted on such a case by jaxgrad.parity, times four.
    torch.testing.assert_close(loss, expected_loss, rtol=0, atol=4 * 80 * 2.0**-52)
    torch.testing.assert_close(grads, expected, rtol=0, atol=4 * 80 * 2.0**-52)


@pytest.mark.parametrize("way", [steps.autograd, steps.by_hand])
def test_steps_are_the_notebooks(way):
    from torchref.training import train

    params, X, Y = drawn(torch.float64)
    before = {name: p.clone() for name, p in params.items()}
    _, expected = train(params, X.reshape(-1, 3), Y.reshape(-1), torch.arange(40).reshape(5, 8), [0.1] * 5)
    training = way(params, 0.1)
    losses = torch.stack([training.step(x, y) for x, y in zip(X, Y, strict=True)])
    # Five losses near 3.4, each of a few roundings.
    torch.testing.assert_close(losses, expected, rtol=0, atol=4 * 8 * 3.4 * 2.0**-52)
    assert all(torch.equal(p, before[name]) for name, p in params.items()), "the given parameters are left alone"
