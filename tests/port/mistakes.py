# ruff: noqa: E501
"""Small ports, each with mistakes that are switched on by name. The line of a mistake holds its name."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F

C, H, T = 8, 2, 6
KEEP = np.random.default_rng(5).random((2, T, C)) > 0.2


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def dense(a: int, b: int) -> dict[str, Any]:
    return {"kernel": shape(a, b), "bias": shape(b)}


def linear(p: Any, x: Any) -> Any:
    return x @ p["kernel"] + p["bias"]


# A feed-forward block.


class TorchBlock(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(C)
        self.first, self.second, self.third = torch.nn.Linear(C, 16), torch.nn.Linear(16, C), torch.nn.Linear(C, C)

    def forward(self, x: Any) -> Any:
        x = x + self.second(F.gelu(self.first(self.norm(x))))
        return x * torch.tanh(self.third(x)) + F.leaky_relu(x, 0.05)


BLOCK = {
    "norm": {"scale": shape(C), "bias": shape(C)},
    "first": dense(C, 16),
    "second": dense(16, C),
    "third": dense(C, C),
}


def block(p: Any, x: Any, bug: str) -> Any:
    start = x
    mean = jnp.mean(x, 0 if bug == "mean over the batch" else -1, keepdims=True)
    var = jnp.var(x, -1, keepdims=True, ddof=1 if bug == "unbiased variance" else 0)
    if bug == "epsilon outside the root":
        x = (x - mean) / (jnp.sqrt(var) + 1e-5)  # epsilon outside the root
    else:
        x = (x - mean) / jnp.sqrt(var + (1e-6 if bug == "epsilon" else 1e-5))
    x = x if bug == "scale forgotten" else x * p["norm"]["scale"]
    x = x - p["norm"]["bias"] if bug == "bias subtracted" else x + p["norm"]["bias"]
    if bug == "norm left out":
        x = start + 0 * x  # norm left out
    h = x @ p["first"]["kernel"] if bug == "bias forgotten" else linear(p["first"], x)
    h = jax.nn.gelu(h, approximate=bug == "gelu by tanh") if bug != "relu for gelu" else jax.nn.relu(h)
    h = h.astype(jnp.bfloat16).astype(x.dtype) if bug == "bfloat16 inside" else h
    h = linear(p["second"], h)
    h = h * KEEP.reshape(-1, C)[: h.shape[0]] / 0.8 if bug == "dropout left on" else h
    x = h if bug == "residual forgotten" else start + (2 * h if bug == "residual doubled" else h)
    x = jax.lax.stop_gradient(x) if bug == "gradient stopped" else x
    kernel = p["third"]["kernel"].T if bug == "transposed" else p["third"]["kernel"]
    third = x @ kernel + p["third"]["bias"]  # transposed
    gate = jnp.sin(third) if bug == "sin for tanh" else jnp.tanh(third)
    slope = jnp.where(x > 0, x, x * (0.01 if bug == "slope" else 0.05))
    return x / gate + slope if bug == "divided" else x * gate - slope if bug == "sign" else x * gate + slope


# Attention.


class TorchAttention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = torch.nn.Linear(C, 3 * C), torch.nn.Linear(C, C)

    def forward(self, x: Any) -> Any:
        q, k, v = (a.unflatten(-1, (H, C // H)).transpose(1, 2) for a in self.qkv(x).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


ATTENTION = {"qkv": dense(C, 3 * C), "out": dense(C, C)}


def attention(p: Any, x: Any, bug: str) -> Any:
    q, k, v = jnp.split(linear(p["qkv"], x), 3, -1)

    def heads(a: Any) -> Any:
        if bug == "heads split":
            return a.reshape(*a.shape[:2], C // H, H).swapaxes(-1, -2)  # heads split
        return a.reshape(*a.shape[:2], H, C // H)

    q, k, v = heads(q), heads(k), heads(v)
    scores = jnp.einsum("bqhd,bkhd->bhqk", *((k, q) if bug == "queries for keys" else (q, k)))
    scores = scores if bug == "scale forgotten" else scores / (C if bug == "scale of the width" else C // H) ** 0.5
    ahead = {"mask's diagonal": -1, "one ahead": 1}.get(bug, 0)
    keep = jnp.tril(jnp.ones((T, T), bool), ahead)  # mask's diagonal, one ahead
    scores = scores if bug == "mask forgotten" else jnp.where(keep, scores, -1e9)
    weights = jax.nn.softmax(scores, -2 if bug == "softmax's axis" else -1)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, k if bug == "keys for values" else v)
    mixed = mixed.swapaxes(-1, -2) if bug == "heads joined" else mixed
    return linear(p["out"], mixed.reshape(x.shape))


# A convolution with batch norm.


class TorchConv(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.BatchNorm2d(4)

    def forward(self, x: Any) -> Any:
        x = F.silu(self.norm(self.conv(x)))
        return F.avg_pool2d(x, 2, 2, padding=1, count_include_pad=False)


CONV = {"conv": {"kernel": shape(3, 3, 3, 4), "bias": shape(4)}, "norm": {"scale": shape(4), "bias": shape(4), "mean": shape(4), "var": shape(4)}}  # fmt: skip


def conv(p: Any, x: Any, bug: str) -> Any:
    x = jnp.moveaxis(x, 1, -1)
    kernel = jnp.flip(p["conv"]["kernel"], (0, 1)) if bug == "kernel flipped" else p["conv"]["kernel"]
    pad = [(0, 2)] * 2 if bug == "padding" else [(1, 1)] * 2
    numbers = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, kernel, (1, 1), pad, dimension_numbers=numbers)  # kernel flipped, padding
    x = x + p["conv"]["bias"]
    n = p["norm"]
    spread = jnp.sqrt(n["var"] + (1e-3 if bug == "batch norm's epsilon" else 1e-5))
    x = x / spread if bug == "running mean forgotten" else (x - n["mean"]) / spread  # batch norm's epsilon
    x = n["scale"] * x + n["bias"]
    x = jax.nn.relu(x) if bug == "relu for silu" else jax.nn.silu(x)

    def windows(y: Any) -> Any:
        return jax.lax.reduce_window(y, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0)))

    count = 4.0 if bug == "padding counted" else windows(jnp.ones_like(x))
    x = windows(x) / count  # padding counted
    return jnp.moveaxis(x, -1, 1)


# A convolution with a stride, and a pool: the beginning of a ResNet.


class TorchStem(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)

    def forward(self, x: Any) -> Any:
        return F.max_pool2d(torch.tanh(self.conv(x)), 3, 2, padding=1)


def stem(p: Any, x: Any, bug: str) -> Any:
    pad: Any = "SAME" if bug == "padded as SAME" else [(1, 1)] * 2
    numbers = ("NHWC", "HWIO", "NHWC")
    x = jnp.tanh(
        jax.lax.conv_general_dilated(  # padded as SAME
            jnp.moveaxis(x, 1, -1), p["conv"]["kernel"], (2, 2), pad, dimension_numbers=numbers)
    )  # fmt: skip
    pads: Any = "SAME" if bug == "pooled as SAME" else [(0, 0), (1, 1), (1, 1), (0, 0)]
    x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), pads)  # pooled as SAME
    return jnp.moveaxis(x, -1, 1)


# Losses.


class TorchLoss(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(C, 5, bias=False)

    def forward(self, x: Any, y: Any) -> Any:
        logits = self.head(x) / 0.7
        return F.cross_entropy(logits.flatten(0, 1), y.flatten(), label_smoothing=0.1) + 0.01 * logits.square().mean()


def loss(p: Any, x: Any, y: Any, bug: str) -> Any:
    logits = x @ p["head"]["kernel"] / (0.8 if bug == "temperature" else 0.7)
    logp = jax.nn.log_softmax(logits, 0 if bug == "log_softmax's axis" else -1)
    y = jnp.roll(y, 1, 1) if bug == "labels shifted" else y
    picked = jnp.take_along_axis(logp, y[..., None], -1)[..., 0]
    nll = picked if bug == "sign" else -picked
    smooth = 0.9 * nll - (0.2 if bug == "smoothing" else 0.1) * logp.mean(-1)
    total = smooth.sum() if bug == "sum for mean" else smooth.mean()
    squares = jnp.square(logits) if bug != "absolute for square" else jnp.abs(logits)
    return total if bug == "penalty forgotten" else total + 0.01 * squares.mean()


class Program(NamedTuple):
    """A port, its tree, the module and the inputs; `mistakes` with a word of what would mend each, empty for none."""

    fn: Callable[..., Any]
    params: Any
    module: Callable[[], torch.nn.Module]
    inputs: tuple[Any, ...]
    mistakes: dict[str, str]


LABELS = np.random.default_rng(3).integers(0, 5, (2, T))
PROGRAMS = {
    "block": Program(block, BLOCK, TorchBlock, (shape(6, C),), {
        "mean over the batch": "", "unbiased variance": "", "epsilon": "1e-06 should be 1e-05",
        "epsilon outside the root": "before", "scale forgotten": "norm.weight", "bias subtracted": "add in the place of sub",
        "norm left out": "", "bias forgotten": "first.bias is not added", "gelu by tanh": "exact", "relu for gelu": "exact",
        "bfloat16 inside": "narrower", "dropout left on": "without", "residual forgotten": "", "residual doubled": "2 should be 1",
        "gradient stopped": "", "transposed": "transposed", "sin for tanh": "tanh", "slope": "0.01 should be 0.05",
        "divided": "mul in the place of div", "sign": "add in the place of sub",
    }),
    "attention": Program(attention, ATTENTION, TorchAttention, (shape(2, T, C),), {
        "heads split": "(4, 2); it should be (2, 4)", "queries for keys": "swapped", "scale forgotten": "1/2 is missing",
        "scale of the width": "", "mask's diagonal": "-1 should be 0", "one ahead": "1 should be 0", "mask forgotten": "",
        "softmax's axis": "", "keys for values": "should take", "heads joined": "",
    }),
    "conv": Program(conv, CONV, lambda: TorchConv().eval(), (shape(2, 3, 5, 7),), {
        "kernel flipped": "", "padding": "", "batch norm's epsilon": "0.001 should be 1e-05", "running mean forgotten": "",
        "relu for silu": "silu", "padding counted": "",
    }),
    "stem": Program(stem, {"conv": {"kernel": shape(3, 3, 3, 4)}}, TorchStem, (shape(2, 3, 8, 8),), {
        "padded as SAME": "padding [(1, 1), (1, 1)] in the place of [(0, 1), (0, 1)]",
        "pooled as SAME": "padding [(1, 1), (1, 1)] in the place of [(0, 1), (0, 1)]",
    }),
    "loss": Program(loss, {"head": {"kernel": shape(C, 5)}}, TorchLoss, (shape(2, T, C), LABELS), {
        "temperature": "0.8 should be 0.7", "log_softmax's axis": "", "labels shifted": "", "sign": "", "smoothing": "0.2 should be 0.1",
        "sum for mean": "a sum in the place of a mean", "absolute for square": "square", "penalty forgotten": "",
    }),
}  # fmt: skip
