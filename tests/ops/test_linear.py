"""Linear, with and without a bias, and over more than one batch axis."""

import torch

from jaxgrad.ops import linear


def plain(x, w, b=None):
    return x @ w if b is None else x @ w + b


def twin(x, w, b=None):
    return torch.nn.functional.linear(x, w.T, b)


def test_linear_without_bias(passes, in_model):
    passes(linear, in_model.nodes.embcat, in_model.params.W1, None, reference=plain, torch_reference=twin)


def test_linear_with_bias(passes, in_model):
    params = in_model.params
    passes(linear, in_model.nodes.h, params.W2, params.b2, reference=plain, torch_reference=twin)


def test_linear_over_two_batch_axes(passes, in_model):
    h = in_model.nodes.h
    passes(linear, h.reshape(2, -1, h.shape[1]), in_model.params.W2, reference=plain, torch_reference=twin)
