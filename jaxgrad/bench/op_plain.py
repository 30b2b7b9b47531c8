"""Operations as they are written without a rule of one's own: in `jax.numpy`, for `jax.grad`."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgrad.ops import GruWeights, LstmWeights


def linear(x: Float[Array, "n d"], w: Float[Array, "d m"], b: Float[Array, " m"]) -> Float[Array, "n m"]:
    return x @ w + b


def cross_entropy(logits: Float[Array, "n v"], targets: Int[Array, " n"]) -> Float[Array, ""]:
    picked = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    return (logsumexp(logits) - picked).mean()


def linear_cross_entropy(x: Float[Array, "n d"], w: Float[Array, "d v"], targets: Int[Array, " n"]) -> Float[Array, ""]:
    return cross_entropy(x @ w, targets)


def attention(q: Float[Array, "b s h d"], k: Float[Array, "b s h d"], v: Float[Array, "b s h d"]) -> Array:
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    return jnp.einsum("bhqk,bkhd->bqhd", softmax(jnp.where(seen, scores, -jnp.inf)), v)


def layer_norm(x: Float[Array, "n d"], gain: Float[Array, " d"], bias: Float[Array, " d"]) -> Float[Array, "n d"]:
    return gain * (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5) + bias


def rms_norm(x: Float[Array, "n d"], gain: Float[Array, " d"]) -> Float[Array, "n d"]:
    return gain * x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def group_norm(
    x: Float[Array, "b *places c"], gain: Float[Array, " c"], bias: Float[Array, " c"], groups: int = 32
) -> Float[Array, "b *places c"]:
    split = x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    mean, var = split.mean((1, 3), keepdims=True), split.var((1, 3), keepdims=True)
    return gain * ((split - mean) / jnp.sqrt(var + 1e-5)).reshape(x.shape) + bias


def batch_norm(x: Float[Array, "n d"], gain: Float[Array, " d"], bias: Float[Array, " d"]) -> Float[Array, "n d"]:
    return gain * (x - x.mean(0)) / jnp.sqrt(x.var(0, ddof=1) + 1e-5) + bias


def tanh(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return jnp.tanh(x)


def batch_norm_running(
    x: Float[Array, "n d"], gain: Float[Array, " d"], bias: Float[Array, " d"], *running: Float[Array, " d"]
) -> tuple[Array, Array, Array]:
    mean, var = running
    y = gain * (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5) + bias
    return y, 0.9 * mean + 0.1 * x.mean(0), 0.9 * var + 0.1 * x.var(0, ddof=1)


def softmax(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    exps = jnp.exp(x - jax.lax.stop_gradient(x.max(-1, keepdims=True)))
    return exps / exps.sum(-1, keepdims=True)


def log_softmax(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return x - logsumexp(x)[..., None]


def logsumexp(x: Float[Array, "*shape d"]) -> Float[Array, "*shape"]:
    largest = jax.lax.stop_gradient(x.max(-1))
    return largest + jnp.log(jnp.exp(x - largest[..., None]).sum(-1))


def rope(x: Float[Array, "b s h d"], cos: Float[Array, "s n"], sin: Float[Array, "s n"]) -> Float[Array, "b s h d"]:
    a, b = jnp.split(x, 2, -1)
    c, s = cos[:, None], sin[:, None]
    return jnp.concatenate((a * c - b * s, b * c + a * s), -1)


def swiglu(gate: Float[Array, "*shape"], up: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return silu(gate) * up


def geglu(gate: Float[Array, "*shape"], up: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return gelu(gate) * up


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """With `erfc`, as `jax.nn` has it: 1 + erf has no digits left far below zero."""
    return 0.5 * x * jax.lax.erfc(-x / math.sqrt(2))


def silu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return x / (1 + jnp.exp(-x))


def relu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return jnp.maximum(x, 0)


def relu_squared(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return jnp.maximum(x, 0) ** 2


def dropout(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return jnp.where(jax.random.bernoulli(jax.random.key(0), 0.75, x.shape), x / 0.75, 0)


def embedding(table: Float[Array, "rows d"], ids: Int[Array, " n"]) -> Float[Array, "n d"]:
    return table[ids]


def kl_div(a: Float[Array, "n v"], b: Float[Array, "n v"]) -> Float[Array, " n"]:
    return (softmax(a) * (log_softmax(a) - log_softmax(b))).sum(-1)


def jsd(a: Float[Array, "n v"], b: Float[Array, "n v"]) -> Float[Array, " n"]:
    p, q = softmax(a), softmax(b)
    log_m = jnp.log(0.5 * (p + q))
    return 0.5 * (p * (log_softmax(a) - log_m) + q * (log_softmax(b) - log_m)).sum(-1)


def l2_normalize(x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    return x / jnp.maximum(jnp.sqrt((x * x).sum(-1, keepdims=True)), 1e-12)


def conv(x: Float[Array, "b h w c"], w: Float[Array, "i j c o"], bias: Float[Array, " o"]) -> Float[Array, "b h w o"]:
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + bias


def gru(x: Float[Array, "t b d"], h: Float[Array, "b n"], *arrays: Array) -> Float[Array, "t b n"]:
    weights = GruWeights(*arrays)

    def step(h: Array, x: Array) -> tuple[Array, Array]:
        u_r, u_z, u_c = jnp.split(x @ weights.of_x + weights.bias_x, 3, -1)
        v_r, v_z, v_c = jnp.split(h @ weights.of_h + weights.bias_h, 3, -1)
        r, z = jax.nn.sigmoid(u_r + v_r), jax.nn.sigmoid(u_z + v_z)
        new = (1 - z) * jnp.tanh(u_c + r * v_c) + z * h
        return new, new

    return jax.lax.scan(step, h, x)[1]


def lstm(x: Float[Array, "t b d"], h: Float[Array, "b n"], c: Float[Array, "b n"], *arrays: Array) -> Any:
    weights = LstmWeights(*arrays)

    def step(carried: tuple[Array, Array], x: Array) -> tuple[tuple[Array, Array], Array]:
        h, c = carried
        i, f, g, o = jnp.split(x @ weights.of_x + h @ weights.of_h + weights.bias, 4, -1)
        new = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        state = jax.nn.sigmoid(o) * jnp.tanh(new)
        return (state, new), state

    return jax.lax.scan(step, (h, c), x)[1]
