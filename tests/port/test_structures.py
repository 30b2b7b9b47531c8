"""Mistakes in how values are put together: each a port, its module, the mistake's line and the words that mend it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest
import torch
import torch.nn.functional as F

from jaxgrad import port

from .mistakes import dense, linear, shape

C = 4


class Case(NamedTuple):
    """A port with its tree, module and inputs; of each mistake, whose name is on its line, the words."""

    fn: Callable[..., Any]
    params: Any
    module: Callable[[], Any]
    inputs: tuple[Any, ...]
    mistakes: dict[str, str]


class TorchScaled(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma, self.fc = torch.nn.Parameter(torch.randn(C)), torch.nn.Linear(C, C)

    def forward(self, x: Any) -> Any:
        return torch.tanh(x + self.gamma * self.fc(torch.sin(x)))


def scaled(p: Any, x: Any, bug: str) -> Any:
    h = linear(p["fc"], jnp.sin(x))
    if bug == "scale of the sum":
        x = p["gamma"] * (x + h)  # scale of the sum
    else:
        x = p["gamma"] * x + h if bug == "scale of the skip" else x + p["gamma"] * h  # scale of the skip
    return jnp.tanh(x)


class TorchNormed(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(C)

    def forward(self, x: Any) -> Any:
        return torch.tanh(self.norm(x)) ** 2


def normed(p: Any, x: Any, bug: str) -> Any:
    over = (0, 2) if bug == "over the batch" else 2
    x = (x - x.mean(over, keepdims=True)) / jnp.sqrt(x.var(over, keepdims=True) + 1e-5)  # over the batch
    return jnp.tanh(x * p["scale"] + p["bias"]) ** 2


class TorchRolled(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return torch.tanh(torch.roll(torch.sin(x), (-1, -1), (1, 2))).exp()


def rolled(p: Any, x: Any, bug: str) -> Any:
    by = {"rolled back": 1, "rolled too far": -2}.get(bug, -1)
    x = jnp.roll(jnp.sin(x), (by, by), (1, 2))  # rolled back, rolled too far
    return jnp.exp(jnp.tanh(x))


class TorchDilated(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv1d(3, C, 3, padding=2, dilation=2)

    def forward(self, x: Any) -> Any:
        return torch.tanh(self.conv(x)).exp()


def dilated(p: Any, x: Any, bug: str) -> Any:
    by = 1 if bug == "dilation" else 2
    numbers = ("NWC", "WIO", "NWC")
    y = jax.lax.conv_general_dilated(x.swapaxes(1, 2), p["k"], (1,), [(by, by)], None, (by,), numbers)  # dilation
    return jnp.exp(jnp.tanh(y + p["b"])).swapaxes(1, 2)


class TorchTempered(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.fc = torch.nn.Parameter(torch.randn(C)), torch.nn.Linear(C, C)

    def forward(self, x: Any) -> Any:
        return torch.tanh(self.fc(x) * self.scale.exp()) + x


def tempered(p: Any, x: Any, bug: str) -> Any:
    h = linear(p["fc"], x)
    scale = jnp.exp(p["scale"])
    scale = p["scale"] if bug == "exp forgotten" else 1 + scale if bug == "one more" else scale
    return jnp.tanh(h * scale) + x  # exp forgotten, one more


class TorchWeightNorm(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(C, C))

    def forward(self, x: Any) -> Any:
        return torch.tanh(self.fc(x)) + x


def weight_norm(p: Any, x: Any, bug: str) -> Any:
    axis = 0 if bug == "along the columns" else 1
    size = jnp.sqrt(jnp.sum(p["v"] ** 2, axis, keepdims=True))  # along the columns
    w = p["g"] * p["v"] / size
    return jnp.tanh(x @ (p["v"] if bug == "norm forgotten" else w).T + p["b"]) + x  # norm forgotten


class TorchStart(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.h0 = torch.nn.Parameter(torch.randn(C))

    def forward(self, x: Any) -> Any:
        h = self.h0.expand(len(x), -1)
        for t in range(x.shape[1]):
            h = torch.tanh(h + x[:, t])
        return h.exp()


def start(p: Any, x: Any, bug: str) -> Any:
    h0 = jnp.broadcast_to(jnp.zeros(C) if bug == "begins with zeros" else p["h0"], x[:, 0].shape)  # begins with zeros
    return jnp.exp(jax.lax.scan(lambda h, y: (jnp.tanh(h + y), None), h0, x.swapaxes(0, 1))[0])


class TorchRouted(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        w, _ = x.softmax(-1).topk(2, -1)
        return torch.tanh(w * 3).exp(), torch.sin(x)


def routed(p: Any, x: Any, bug: str) -> Any:
    if bug == "softmax behind":
        w = jax.nn.softmax(jax.lax.top_k(x, 2)[0], -1)  # softmax behind
    else:
        w, _ = jax.lax.top_k(jax.nn.softmax(x, -1), 2)
        w = w / w.sum(-1, keepdims=True) if bug == "sum to one" else w  # sum to one
    return jnp.exp(jnp.tanh(w * 3)), jnp.sin(x)


class TorchPatches(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = torch.nn.Conv2d(3, C, 2, stride=2), torch.nn.Linear(C, C)

    def forward(self, x: Any) -> Any:
        x = self.conv(x).flatten(2).transpose(1, 2)
        return torch.tanh(self.fc(torch.cat([x[:, :1] * 2, x], 1)))


def patches(p: Any, x: Any, bug: str) -> Any:
    b, c, h, w = x.shape
    x = x.reshape(b, c, h // 2, 2, w // 2, 2)
    x = x.transpose(0, 4, 2, 3, 5, 1) if bug == "by columns" else x.transpose(0, 2, 4, 3, 5, 1)  # by columns
    x = x.reshape(b, -1, 4 * c) @ p["conv"]["kernel"].reshape(4 * c, C) + p["conv"]["bias"]
    return jnp.tanh(linear(p["fc"], jnp.concatenate([x[:, :1] * 2, x], 1)))


class TorchGates(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.other = torch.nn.Linear(C, 2 * C), torch.nn.Linear(C, 2 * C)

    def forward(self, x: Any) -> Any:
        start = x
        for _ in range(2):
            (a, b), (c, d) = self.fc(x).chunk(2, -1), self.other(start).chunk(2, -1)
            a, b = a + c, b + d
            r, z = torch.sigmoid(a), torch.sigmoid(b)
            x = (1 - z) * torch.tanh(r * x) + z * x
        return x


def gates(p: Any, x: Any, bug: str) -> Any:
    start = x
    for _ in range(2):
        h, c = linear(p["fc"], x), linear(p["other"], start)
        a, b = (h[..., ::2], h[..., 1::2]) if bug == "interleaved" else (h[..., :C], h[..., C:])  # interleaved
        a, b = a + c[..., :C], b + c[..., C:]
        r = jax.nn.sigmoid(a)  # exchanged
        z = jax.nn.sigmoid(b)
        r, z = (z, r) if bug == "exchanged" else (r, z)
        x = (1 - z) * jnp.tanh(r * x) + z * x
    return x


class TorchAdded(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(C, C), torch.nn.Linear(C, C)

    def forward(self, x: Any) -> Any:
        x = torch.sin(self.first(x)) * 3
        return torch.tanh(self.second(x / x.norm(dim=-1, keepdim=True)))


def normalised(x: Any, bug: str) -> Any:
    square = jnp.sum(x * x, -1, keepdims=True)
    return x / (square if bug == "root" else jnp.sqrt(square))  # root


def handed(p: Any, x: Any, bug: str) -> Any:
    x = jnp.sin(linear(p["first"], x))
    x = x if bug == "factor" else x * 3
    x = normalised(x + 1 if bug == "one" else x, bug)
    return jnp.tanh(linear(p["second"], x))


class TorchPooled(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return torch.tanh(F.avg_pool1d(torch.sin(x), 2)).exp() + F.avg_pool1d(x, 2)


def pool(x: Any, bug: str) -> Any:
    sums = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 1, 2), (1, 1, 2), "VALID")
    return sums / (3 if bug == "divisor" else 2)  # divisor


def pooled(p: Any, x: Any, bug: str) -> Any:
    return jnp.exp(jnp.tanh(pool(jnp.sin(x), bug))) + pool(x, bug)


CASES = [
    Case(scaled, {"gamma": shape(C), "fc": dense(C, C)}, TorchScaled, (shape(5, C),), {
        "scale of the sum": "is of one term, add", "scale of the skip": "is of the other term, add",
    }),
    Case(normed, {"scale": shape(C), "bias": shape(C)}, TorchNormed, (shape(2, 3, C),), {
        "over the batch": "over the axes (2,) in the place of (0, 2)",
    }),
    Case(rolled, {}, TorchRolled, (shape(2, 5, 6),), {
        "rolled back": "rolled by -1 in the place of 1", "rolled too far": "rolled by -1 in the place of -2",
    }),
    Case(dilated, {"k": shape(3, 3, C), "b": shape(C)}, TorchDilated, (shape(2, 3, 7),), {
        "dilation": "a dilation of 2 in the place of 1",
    }),
    Case(tempered, {"scale": shape(C), "fc": dense(C, C)}, TorchTempered, (shape(5, C),), {
        "exp forgotten": "exp of what mul takes is missing", "one more": "1 should be 0",
    }),
    Case(weight_norm, {"g": shape(C, 1), "v": shape(C, C), "b": shape(C)}, TorchWeightNorm, (shape(5, C),), {
        "along the columns": "over the axes (1,) in the place of (0,)", "norm forgotten": "computes of its weights",
    }),
    Case(start, {"h0": shape(C)}, TorchStart, (shape(2, 3, C),), {"begins with zeros": "['h0'] is not used"}),
    Case(routed, {}, TorchRouted, (shape(5, 7),), {
        "softmax behind": "softmax of all, and of it the largest", "sum to one": "without",
    }),
    Case(patches, {"conv": {"kernel": shape(2, 2, 3, C), "bias": shape(C)}, "fc": dense(C, C)}, TorchPatches,
         (shape(2, 3, 4, 6),), {"by columns": "the axes in the order (0, 2, 4, 3, 5, 1)"}),
    Case(gates, {"fc": dense(C, 2 * C), "other": dense(C, 2 * C)}, TorchGates, (shape(5, C),), {
        "interleaved": "each part should be a stretch", "exchanged": "exchanged",
    }),
    Case(handed, {"first": dense(C, C), "second": dense(C, C)}, TorchAdded, (shape(5, C),), {"root": "sqrt"}),
    Case(pooled, {}, TorchPooled, (shape(2, 3, 6),), {"divisor": "3 should be 2"}),
]  # fmt: skip
WRONG = [(case, bug) for case in CASES for bug in case.mistakes]


@pytest.mark.parametrize("case", CASES, ids=[case.fn.__name__ for case in CASES])
def test_a_right_port_is_left(case):
    verdict = port.compare(lambda *args: case.fn(*args, ""), case.params, *case.inputs, torch=case.module())
    assert verdict.agrees and not verdict.mends, str(verdict)


@pytest.mark.parametrize(("case", "bug"), WRONG, ids=[bug for _, bug in WRONG])
def test_a_mistake_is_told_at_its_line_with_what_mends_it(case, bug):
    verdict = port.compare(lambda *args: case.fn(*args, bug), case.params, *case.inputs, torch=case.module())
    assert bug in verdict.jax.line.text, str(verdict)
    assert case.mistakes[bug] in verdict.mends[0].words, str(verdict)


class Handed(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        y = torch.sin(x) * 3
        y = y / (1 + y**2).sqrt()
        return torch.tanh(y) + x / (1 + x**2).sqrt()


@pytest.mark.parametrize("twice", [True, False])
def test_what_is_not_done_to_a_value_is_missing_where_a_helper_is_called_that_others_call_too(twice):
    def squashed(x):
        return x / jnp.sqrt(1 + x**2)  # the helper

    def also(x):
        return squashed(x) if twice else x / jnp.sqrt(1 + x**2)

    def fn(p, x):
        y = jnp.sin(x)
        y = squashed(y)  # the call
        return jnp.tanh(y) + also(x)

    verdict = port.compare(fn, {}, shape(5, C), torch=Handed())
    assert "a factor 3 is missing" in verdict.mends[0].words, str(verdict)
    assert ("# the call" if twice else "# the helper") in verdict.jax.line.text, str(verdict)


def test_what_is_shifted_is_wrong_although_most_of_its_parts_are_somebodys():
    class Module(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            x, h = F.pad(torch.sin(x), (0, 0, 2, 0))[:, :-2], 0.0
            for t in range(x.shape[1]):
                h = torch.tanh(x[:, t] + h)
            return h

    def fn(p, x):
        x = jnp.pad(jnp.sin(x), ((0, 0), (0, 2), (0, 0)))[:, 2:]  # padded behind
        step = lambda h, y: (jnp.tanh(y + h), None)  # noqa: E731
        return jax.lax.scan(step, jnp.zeros((2, 3)), x.swapaxes(0, 1))[0]

    verdict = port.compare(fn, {}, shape(2, 6, 3), torch=Module())
    assert not verdict.agrees and "# padded behind" in verdict.jax.line.text, str(verdict)
