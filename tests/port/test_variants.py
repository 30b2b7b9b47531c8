"""Known variants of what people write are told, each in a small port, and a right port is left alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from jaxgrad import port

from .mistakes import dense, linear, shape


def angles(places: int, width: int) -> Any:
    return np.outer(np.arange(places), 3.0 ** -np.arange(0, width, 2))


class Halves(torch.nn.Module):
    def forward(self, q: Any, k: Any) -> Any:
        cos, sin = (torch.tensor(f(np.tile(angles(5, 6), 2))) for f in (np.cos, np.sin))

        def turn(x: Any) -> Any:
            a, b = x.chunk(2, -1)
            return x * cos + torch.cat([-b, a], -1) * sin

        return (turn(q) @ turn(k).transpose(-1, -2)).softmax(-1)


class Neighbours(torch.nn.Module):
    def forward(self, q: Any, k: Any) -> Any:
        turns = torch.polar(torch.ones(5, 3, dtype=torch.float64), torch.tensor(angles(5, 6)))

        def turn(x: Any) -> Any:
            pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
            return torch.view_as_real(pairs * turns).flatten(-2)

        return (turn(q) @ turn(k).transpose(-1, -2)).softmax(-1)


def rope(p: Any, q: Any, k: Any, bug: str) -> Any:
    cos, sin = jnp.cos(angles(5, 6)), jnp.sin(angles(5, 6))

    def turn(x: Any) -> Any:
        if bug == "neighbours":
            a, b = x[..., ::2], x[..., 1::2]  # neighbours
            return jnp.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(x.shape)
        a, b = jnp.split(x, 2, -1)  # halves
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    return jax.nn.softmax(turn(q) @ turn(k).swapaxes(-1, -2), -1)


def rope_of_halves(p: Any, q: Any, k: Any, bug: str) -> Any:
    return rope(p, q, k, bug or "halves")


def rope_of_neighbours(p: Any, q: Any, k: Any, bug: str) -> Any:
    return rope(p, q, k, bug or "neighbours")


class Shuffled(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return torch.tanh(F.pixel_shuffle(torch.sin(x), 2))


def shuffled(p: Any, x: Any, bug: str) -> Any:
    x = jnp.moveaxis(jnp.sin(x), 1, -1)
    if bug == "order of the shuffle":
        x = x.reshape(2, 3, 4, 2, 2, 3).transpose(0, 1, 3, 2, 4, 5)  # order of the shuffle
    else:
        x = x.reshape(2, 3, 4, 3, 2, 2).transpose(0, 1, 4, 2, 5, 3)
    return jnp.tanh(jnp.moveaxis(x.reshape(2, 6, 8, 3), -1, 1))


class Resized(torch.nn.Module):
    def __init__(self, corners: bool) -> None:
        super().__init__()
        self.corners = corners

    def forward(self, x: Any) -> Any:
        return torch.tanh(F.interpolate(torch.sin(x), size=(6, 8), mode="bilinear", align_corners=self.corners))


def resized(p: Any, x: Any, bug: str) -> Any:
    x = jnp.sin(x)
    if bug == "corners":
        for axis, size in ((2, 6), (3, 8)):
            at = jnp.linspace(0, x.shape[axis] - 1, size)
            low = jnp.minimum(at.astype(int), x.shape[axis] - 2)
            part = (at - low).reshape([-1 if k == axis else 1 for k in range(4)])
            x = x.take(low, axis) * (1 - part) + x.take(low + 1, axis) * part  # corners
        return jnp.tanh(x)
    return jnp.tanh(jax.image.resize(x, (2, 3, 6, 8), "nearest" if bug == "nearest" else "linear"))


class Pooled(torch.nn.Module):
    def __init__(self, pool: Any) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Any) -> Any:
        return torch.tanh(self.pool(torch.sin(x)))


def pooled(p: Any, x: Any, bug: str) -> Any:
    x, windows, pads = jnp.sin(x), (1, 1, 3, 3), ((0, 0), (0, 0), (1, 1), (1, 1))
    if bug == "maximum":
        y = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, windows, (1, 1, 2, 2), pads)  # maximum
    else:
        y = jax.lax.reduce_window(x, 0.0, jax.lax.add, windows, (1, 1, 2, 2), pads) / 9.0  # mean
    return jnp.tanh(y)


def pooled_largest(p: Any, x: Any, bug: str) -> Any:
    return pooled(p, x, bug or "maximum")


class Huber(torch.nn.Module):
    def forward(self, x: Any, y: Any) -> Any:
        return F.huber_loss(torch.sin(x), y, delta=0.5)


def huber(p: Any, x: Any, y: Any, bug: str) -> Any:
    r, d = jnp.sin(x) - y, 1.0 if bug == "delta" else 0.5
    return jnp.where(abs(r) < d, 0.5 * r * r, d * (abs(r) - 0.5 * d)).mean()  # delta


class Padded(torch.nn.Module):
    def __init__(self, mode: str) -> None:
        super().__init__()
        self.conv = torch.nn.Conv1d(3, 4, 3, padding=1, padding_mode=mode, bias=False)

    def forward(self, x: Any) -> Any:
        return torch.tanh(self.conv(torch.sin(x)))


def padded(p: Any, x: Any, bug: str) -> Any:
    x, numbers = jnp.sin(x), ("NCW", "OIW", "NCW")
    mode, pad = "constant" if bug == "zeros" else "edge", [(1, 1)] if bug == "zeros in the convolution" else "VALID"
    wide = x if pad != "VALID" else jnp.pad(x, ((0, 0), (0, 0), (1, 1)), mode=mode)  # zeros
    y = jax.lax.conv_general_dilated(wide, p["k"], (1,), pad, dimension_numbers=numbers)  # zeros in the convolution
    return jnp.tanh(y)


class Parts(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = torch.nn.Linear(6, 24)

    def forward(self, x: Any) -> Any:
        q, k, v = self.qkv(x).view(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
        return (q @ k.transpose(-1, -2)).softmax(-1) @ v


def parts(p: Any, x: Any, bug: str) -> Any:
    h = linear(p, x)
    if bug == "heads before parts":
        h = h.reshape(2, 5, 2, 3, 4).transpose(3, 0, 2, 1, 4)  # heads before parts
    else:
        h = h.reshape(2, 5, 3, 2, 4).transpose(2, 0, 3, 1, 4)
    k, q, v = (h[n] for n in ((0, 1, 2) if bug == "keys first" else (1, 0, 2)))  # keys first
    return jax.nn.softmax(q @ k.swapaxes(-1, -2), -1) @ v


class Normed(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = torch.nn.LayerNorm(4), torch.nn.Linear(4, 4)

    def forward(self, x: Any) -> Any:
        return x + torch.tanh(self.fc(self.norm(x)))


def normed(p: Any, x: Any, bug: str) -> Any:
    def norm(y: Any) -> Any:
        y = (y - y.mean(-1, keepdims=True)) / jnp.sqrt(y.var(-1, keepdims=True) + 1e-5)
        return y * p["norm"]["scale"] + p["norm"]["bias"]

    if bug == "normed behind":
        y = x + jnp.tanh(linear(p["fc"], x))  # normed behind
        return norm(y)
    return x + jnp.tanh(linear(p["fc"], norm(x)))


class Offset(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(4))

    def forward(self, x: Any) -> Any:
        return torch.tanh(x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1 + self.weight))


def offset(p: Any, x: Any, bug: str) -> Any:
    r = jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)
    return jnp.tanh(x * r * ((0.0 if bug == "offset" else 1.0) + p["weight"]))


class Token(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return torch.tanh(torch.sin(x)[:, 0])


def token(p: Any, x: Any, bug: str) -> Any:
    y = jnp.sin(x)
    return jnp.tanh(y.mean(1) if bug == "mean of places" else y[:, 0])


class Gated(torch.nn.Module):
    def forward(self, x: Any, y: Any) -> Any:
        z = torch.sigmoid(x)
        return F.relu(z * torch.sin(y) + (1 - z) * torch.tanh(y) + x).cumsum(1) ** 2


def gated(p: Any, x: Any, y: Any, bug: str) -> Any:
    z = jax.nn.sigmoid(x)
    z = 1 - z if bug == "the other gate" else z
    mixed = z * jnp.sin(y) + (1 - z) * jnp.tanh(y)  # the other gate
    h = jnp.maximum(mixed, 0) + x if bug == "relu before the sum" else jnp.maximum(mixed + x, 0)
    return jnp.cumsum(h, 0 if bug == "axis of the sum" else 1) ** 2


class Beside(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return x + torch.tanh(x) + torch.exp(x * torch.sin(x))


def beside(p: Any, x: Any, bug: str) -> Any:
    h = x + jnp.tanh(x)
    y = h if bug == "behind" else x
    return h + jnp.exp(y * jnp.sin(y))  # behind


class Twice(torch.nn.Module):
    def forward(self, x: Any, y: Any) -> Any:
        def mixed(x: Any) -> Any:
            return torch.tanh(x) + torch.sin(x)

        return torch.exp(mixed(x) * mixed(y))


def twice(p: Any, x: Any, y: Any, bug: str) -> Any:
    def mixed(x: Any) -> Any:
        return jnp.tanh(x) - jnp.sin(x) if bug == "sign in a helper" else jnp.tanh(x) + jnp.sin(x)

    return jnp.exp(mixed(x) * mixed(y))


class Shared(torch.nn.Module):
    def forward(self, q: Any, v: Any) -> Any:
        weights = (q @ q.transpose(-1, -2)).softmax(-1)
        return torch.tanh(weights.repeat_interleave(2, 1) @ v.transpose(1, 2).repeat_interleave(2, 1))


def shared(p: Any, q: Any, v: Any, bug: str) -> Any:
    v = v.swapaxes(1, 2)
    v = jnp.tile(v, (1, 2, 1, 1)) if bug == "tiled" else jnp.repeat(v, 2, 1)
    return jnp.tanh(jnp.repeat(jax.nn.softmax(q @ q.swapaxes(-1, -2), -1), 2, 1) @ v)


KEPT = np.array([1, -100, 0, 4, -100, 2])


class Ignoring(torch.nn.Module):
    def forward(self, x: Any, y: Any) -> Any:
        return F.cross_entropy(torch.sin(x), y)


def ignoring(p: Any, x: Any, y: Any, bug: str) -> Any:
    keep = y != -100
    logp = jax.nn.log_softmax(jnp.sin(x))
    losses = -jnp.take_along_axis(logp, jnp.where(keep, y, 0)[:, None], 1)[:, 0] * keep
    return losses.sum() if bug == "summed" else losses.sum() / keep.sum()


class Similar(torch.nn.Module):
    def forward(self, x: Any, y: Any) -> Any:
        return -4 * F.cosine_similarity(torch.sin(x), y).mean()


def similar(p: Any, x: Any, y: Any, bug: str) -> Any:
    x = jnp.sin(x)
    cosines = (x * y).sum(-1) / (jnp.linalg.norm(x, axis=-1) * jnp.linalg.norm(y, axis=-1))
    total = cosines.mean() * (4 if bug == "sign" else 1 if bug == "factor" else -4)  # sign, factor
    return -total if bug == "factor" else total


class SiluGated(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        a, b = torch.sin(x).chunk(2, -1)
        return torch.tanh(F.silu(a) * b)


def silu_gated(p: Any, x: Any, bug: str) -> Any:
    a, b = jnp.split(jnp.sin(x), 2, -1)
    return jnp.tanh(a * jax.nn.silu(b) if bug == "halves swapped" else jax.nn.silu(a) * b)


class Lengths(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(4, 3))

    def forward(self, x: Any) -> Any:
        return torch.tanh(x @ (self.weight / self.weight.square().sum(1, keepdim=True).sqrt()).T)


def lengths(p: Any, x: Any, bug: str) -> Any:
    length = jnp.sqrt(jnp.square(p["weight"]).sum(1, keepdims=True)) + (1e-3 if bug == "epsilon" else 0.0)
    return jnp.tanh(x @ (p["weight"] / length).T)


PICTURE, PLACES = shape(2, 3, 5, 6), shape(2, 5, 6)
NORMED = {"norm": {"scale": shape(4), "bias": shape(4)}, "fc": dense(4, 4)}
VARIANTS = [
    (rope_of_halves, {}, Halves, (PLACES, PLACES), {"neighbours": "half an axis apart should be turned together"}),
    (rope_of_neighbours, {}, Neighbours, (PLACES, PLACES), {"halves": "neighbours should be turned together"}),
    (shuffled, {}, Shuffled, (shape(2, 12, 3, 4),), {"order of the shuffle": "it should be (3, 2, 2)"}),
    (resized, {}, lambda: Resized(False), (shape(2, 3, 3, 4),), {
        "corners": "corners not aligned in the place of linear interpolation with corners aligned",
        "nearest": "corners not aligned in the place of the nearest",
    }),
    (pooled, {}, lambda: Pooled(torch.nn.AvgPool2d(3, 2, 1)), (PICTURE,), {"maximum": "a mean over windows in"}),
    (pooled_largest, {}, lambda: Pooled(torch.nn.MaxPool2d(3, 2, 1)), (PICTURE,), {"mean": "a maximum over windows"}),
    (huber, {}, Huber, (shape(4, 5), shape(4, 5)), {"delta": "delta 0.5 in the place of Huber's loss with delta 1"}),
    (padded, {"k": shape(4, 3, 3)}, lambda: Padded("replicate"), (shape(2, 3, 5),), {
        "zeros": "the edge's numbers around it in the place of zeros",
        "zeros in the convolution": "the edge's numbers around it in the place of zeros",
    }),
    (parts, dense(6, 24), Parts, (PLACES,), {
        "heads before parts": "it should be (3, 2, 4)", "keys first": "cut out in the order 2, 1",
    }),
    (normed, NORMED, Normed, (shape(3, 4),), {"normed behind": "pre-norm in the place of post-norm"}),
    (offset, {"weight": shape(4)}, Offset, (shape(3, 4),), {"offset": "0 should be 1"}),
    (token, {}, Token, (shape(2, 3, 4),), {"mean of places": "the first along axis 1 in the place of the mean"}),
    (gated, {}, Gated, (shape(3, 3), shape(3, 3)), {
        "the other gate": "1 minus it",
        "relu before the sum": "add before max",
        "axis of the sum": "cumsum along axis 1",
    }),
    (twice, {}, Twice, (shape(3, 4), shape(3, 4)), {"sign in a helper": "add in the place of sub"}),
    (shared, {}, Shared, (shape(2, 2, 5, 3), shape(2, 5, 2, 3)), {"tiled": "should be repeated one by one"}),
    (ignoring, {}, Ignoring, (shape(6, 5), KEPT), {"summed": "a sum in the place of a mean"}),
    (similar, {}, Similar, (shape(3, 5), shape(3, 5)), {"sign": "4 should be -4", "factor": "a factor 4 is missing"}),
    (silu_gated, {}, SiluGated, (shape(3, 8),), {"halves swapped": "sigmoid of what split"}),
    (lengths, {"weight": shape(4, 3)}, Lengths, (shape(2, 3),), {"epsilon": "0.001 should be 0"}),
    (beside, {}, Beside, (shape(3, 4),), {"behind": "the value of input"}),
]  # fmt: skip
CASES = [(*each[:4], bug, words) for each in VARIANTS for bug, words in each[4].items()]


@pytest.mark.parametrize("case", VARIANTS, ids=[each[0].__name__ for each in VARIANTS])
def test_a_right_port_is_left(case):
    fn, params, module, inputs, _ = case
    right = port.compare(lambda *args: fn(*args, ""), params, *inputs, torch=module())
    assert right.agrees and not right.mends, str(right)


@pytest.mark.parametrize("case", CASES, ids=[each[4] for each in CASES])
def test_a_variant_is_named_at_its_line(case):
    fn, params, module, inputs, bug, words = case
    wrong = port.compare(lambda *args: fn(*args, bug), params, *inputs, torch=module())
    assert bug in wrong.jax.line.text, str(wrong)
    assert wrong.mends and words in wrong.mends[0].words, str(wrong)
    assert bug != "factor" or "mean" not in wrong.mends[0].words, "4 is not how many numbers there are"


class Rotated(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qk = torch.nn.Linear(8, 16)
        self.first, self.second = torch.nn.RMSNorm(4, eps=1e-6), torch.nn.RMSNorm(4, eps=1e-6)

    def forward(self, x: Any) -> Any:
        cos, sin = (torch.tensor(f(np.tile(angles(5, 4), 2))) for f in (np.cos, np.sin))

        def turn(x: Any) -> Any:
            a, b = x.chunk(2, -1)
            return x * cos + torch.cat([-b, a], -1) * sin

        q, k = (y.view(2, 5, 2, 4).transpose(1, 2) for y in self.qk(x).chunk(2, -1))
        return (turn(self.first(q)) @ turn(self.second(k)).transpose(-1, -2)).softmax(-1)


ROTATED = {"qk": dense(8, 16), "first": {"scale": shape(4)}, "second": {"scale": shape(4)}}


def rotated(p: Any, x: Any, bug: str) -> Any:
    cos, sin = jnp.cos(angles(5, 4)), jnp.sin(angles(5, 4))

    def norm(y: Any, scale: Any, axes: Any = -1) -> Any:
        return y * jax.lax.rsqrt(jnp.mean(y * y, axes, keepdims=True) + 1e-6) * scale

    def turn(x: Any) -> Any:
        a, b = jnp.split(x, 2, -1)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    q, k = (y.reshape(2, 5, 2, 4).swapaxes(1, 2) for y in jnp.split(linear(p["qk"], x), 2, -1))
    first, second = p["first"]["scale"], p["second"]["scale"]
    if bug == "normed behind":
        q, k = norm(turn(q), first), norm(turn(k), second)
    else:
        q, k = turn(norm(q, first, (1, 3) if bug == "over the heads" else -1)), turn(norm(k, second))
    return jax.nn.softmax(q @ k.swapaxes(-1, -2), -1)


@pytest.mark.parametrize("bug", ["", "normed behind", "over the heads"])
def test_that_some_values_are_the_others_by_chance_explains_nothing(bug):
    """With queries for keys, or with what the other program has already turned, some of the next values agree."""
    verdict = port.compare(lambda *args: rotated(*args, bug), ROTATED, shape(2, 5, 8), torch=Rotated())
    told = [mend.words for mend in verdict.mends]
    right = ["reduce_sum over the axes (3,) in the place of (1, 3)"] if bug == "over the heads" else []
    assert verdict.agrees == (not bug) and told == right, str(verdict)


class Layers(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(5))

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return x


@pytest.mark.parametrize("bug", ["", "reverse"])
def test_layers_in_another_order_are_not_told_as_left_out(bug):
    """With the first of them left out, what the second makes is a value of the other program."""

    def scanned(p: Any, x: Any) -> Any:
        layer = lambda x, p: (x + jnp.tanh(x @ p["weight"].T + p["bias"]), None)  # noqa: E731
        return jax.lax.scan(layer, x, p["layers"], reverse=bug == "reverse")[0]

    params = {"layers": {"weight": shape(5, 4, 4), "bias": shape(5, 4)}}
    verdict = port.compare(scanned, params, shape(3, 4), torch=Layers())
    assert verdict.agrees == (not bug), str(verdict)
    assert not any("without" in mend.words for mend in verdict.mends), str(verdict)
