"""Linear, with and without a bias, and over more than one batch axis."""

import torch

from jaxgrad.ops import linear
from tests.ops.suite import Op


def plain(x, w, b=None):
    return x @ w if b is None else x @ w + b


def twin(x, w, b=None):
    return torch.nn.functional.linear(x, w.T, b)


def test_linear_without_bias(passed_by):
    passed_by(Op(linear, plain, twin, lambda params, batch, nodes: (nodes.embcat, params.W1)))


def test_linear_with_bias(passed_by):
    passed_by(Op(linear, plain, twin, lambda params, batch, nodes: (nodes.h, params.W2, params.b2)))


def test_linear_over_two_batch_axes(passed_by):
    passed_by(
        Op(linear, plain, twin, lambda params, batch, nodes: (nodes.h.reshape(2, -1, nodes.h.shape[1]), params.W2))
    )
