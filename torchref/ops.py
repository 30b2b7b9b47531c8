"""Operations as PyTorch has them, in the layouts of `jaxgrad.ops`."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def linear(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return functional.linear(x, w.T, b)


def linear_cross_entropy(x: Tensor, w: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(x @ w, targets)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (array.transpose(1, 2) for array in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    return functional.layer_norm(x, gain.shape, gain, bias, 1e-5)


def rms_norm(x: Tensor, gain: Tensor) -> Tensor:
    return functional.rms_norm(x, gain.shape, gain, 1e-6)


def group_norm(x: Tensor, gain: Tensor, bias: Tensor, groups: int = 32) -> Tensor:
    return functional.group_norm(x.movedim(-1, 1), groups, gain, bias).movedim(1, -1)


def batch_norm(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """By autograd: PyTorch's own divides by n, not n - 1."""
    return gain * (x - x.mean(0)) / torch.sqrt(x.var(0) + 1e-5) + bias


def batch_norm_running(x: Tensor, gain: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return functional.batch_norm(x, mean.clone(), var.clone(), gain, bias, training=True)


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    c, s = cos[:, None], sin[:, None]
    return torch.cat((a * c - b * s, b * c + a * s), -1)


def kl_div(a: Tensor, b: Tensor) -> Tensor:
    log_p, log_q = a.log_softmax(-1), b.log_softmax(-1)
    return functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def jsd(a: Tensor, b: Tensor) -> Tensor:
    log_p, log_q = a.log_softmax(-1), b.log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    log_m = torch.log(0.5 * (p + q))
    return 0.5 * (p * (log_p - log_m) + q * (log_q - log_m)).sum(-1)


def embedding(table: Tensor, ids: Tensor) -> Tensor:
    return functional.embedding(ids, table)


def conv(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
    return functional.conv2d(x.permute(0, 3, 1, 2), w.permute(3, 2, 0, 1), bias, padding="same").permute(0, 2, 3, 1)


def gru(x: Tensor, h: Tensor, of_x: Tensor, of_h: Tensor, bias_x: Tensor, bias_h: Tensor) -> Any:
    return torch._VF.gru(x, h[None], (of_x.T, of_h.T, bias_x, bias_h), True, 1, 0.0, True, False, False)[0]


def lstm(x: Tensor, h: Tensor, c: Tensor, of_x: Tensor, of_h: Tensor, bias: Tensor) -> Any:
    weights = (of_x.T, of_h.T, bias, torch.zeros_like(bias))
    return torch._VF.lstm(x, (h[None], c[None]), weights, True, 1, 0.0, True, False, False)[0]


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return functional.silu(gate) * up


def geglu(gate: Tensor, up: Tensor) -> Tensor:
    return functional.gelu(gate) * up


def relu_squared(x: Tensor) -> Tensor:
    return torch.relu(x) ** 2


def softmax(x: Tensor) -> Tensor:
    return x.softmax(-1)


def log_softmax(x: Tensor) -> Tensor:
    return x.log_softmax(-1)


def logsumexp(x: Tensor) -> Tensor:
    return x.logsumexp(-1)


cross_entropy, gelu, silu, l2_normalize = (
    functional.cross_entropy, functional.gelu, functional.silu, functional.normalize
)  # fmt: skip
relu, tanh = torch.relu, torch.tanh
