"""Functions written in two or more ways that are equal mathematically and round differently.

A row maps `x` of shape (m, n) and its own parameters to an array of the shape of `x`, so that rows can be composed.
`plain` is the textbook form; `others` are the same function in other orders of operations, or with a backward pass of
its own. n is a multiple of 4. Parameters are drawn with variance 1, so every form divides its product by `sqrt(n)`.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

Form = Callable[..., Array]
EPS = 1e-5


class Row(NamedTuple):
    """One function: the shapes of its parameters for `x` of (m, n), its plain form, and other right forms by name."""

    parameters: Callable[[int, int], tuple[tuple[int, ...], ...]]
    plain: Form
    others: Mapping[str, Form]


def _none(m: int, n: int) -> tuple[tuple[int, ...], ...]:
    return ()


def _square(m: int, n: int) -> tuple[tuple[int, ...], ...]:
    return ((n, n),)


def _row(m: int, n: int) -> tuple[tuple[int, ...], ...]:
    return ((n,),)


def _two_rows(m: int, n: int) -> tuple[tuple[int, ...], ...]:
    return ((n,), (n,))


def _root(x: Array) -> float:
    return 1 / math.sqrt(x.shape[1])


def _with_backward(fn: Form, backward: Callable[..., tuple[Array, ...]]) -> Form:
    """`fn` with a backward pass `(output, dy, *inputs) -> cotangents` of its own."""
    made = jax.custom_vjp(fn)
    made.defvjp(lambda *args: ((y := fn(*args)), (y, args)), lambda kept, dy: backward(kept[0], dy, *kept[1]))
    return made


# Products.


def _product(x: Array, w: Array) -> Array:
    return x @ w * _root(x)


def _chunked_product(x: Array, w: Array) -> Array:
    parts = zip(jnp.split(x, 4, 1), jnp.split(w, 4, 0), strict=True)
    return functools.reduce(jnp.add, [a @ b for a, b in parts]) * _root(x)


def _padded_product(x: Array, w: Array) -> Array:
    return jnp.pad(x, ((0, 3), (0, 5))) @ jnp.pad(w, ((0, 5), (0, 0))) * _root(x)


_PRODUCTS: dict[str, Form] = {
    "einsum": lambda x, w: jnp.einsum("ij,jk->ik", x * _root(x), w),
    "chunked": _chunked_product,
    "padded": lambda x, w: _padded_product(x, w)[: len(x)],
    "transposed": lambda x, w: (w.T @ x.T).T * _root(x),
    "broadcast": lambda x, w: jnp.sum(x[:, :, None] * w[None], 1) * _root(x),
    "backward": _with_backward(_product, lambda y, dy, x, w: (dy * _root(x) @ w.T, x.T @ dy * _root(x))),
}


def _online_attention(x: Array, k: Array, v: Array) -> Array:
    """Attention over n keys in chunks of 4, with a running maximum and sum."""
    keys, values = k.reshape(-1, 4, x.shape[1]), v.reshape(-1, 4, x.shape[1])

    def step(
        carried: tuple[Array, Array, Array], chunk: tuple[Array, Array]
    ) -> tuple[tuple[Array, Array, Array], None]:
        largest, total, out = carried
        scores = x @ chunk[0].T * _root(x)
        new = lax.stop_gradient(jnp.maximum(largest, scores.max(1, keepdims=True)))
        shrink, weights = jnp.exp(largest - new), jnp.exp(scores - new)
        return (new, total * shrink + weights.sum(1, keepdims=True), out * shrink + weights @ chunk[1]), None

    start = (jnp.full((len(x), 1), -30.0, x.dtype), jnp.zeros((len(x), 1), x.dtype), jnp.zeros_like(x))
    (_, total, out), _ = lax.scan(step, start, (keys, values))
    return out / total


# Sums along a row.


def _scanned_sum(x: Array) -> Array:
    total, _ = lax.scan(lambda t, column: (t + column, None), jnp.zeros(len(x), x.dtype), x.T)
    return total[:, None]


def _halved_sum(x: Array) -> Array:
    while x.shape[1] % 2 == 0:
        x = x[:, : x.shape[1] // 2] + x[:, x.shape[1] // 2 :]
    return x.sum(1, keepdims=True)


def _weighted(total: Callable[[Array], Array]) -> Form:
    """`x` times the weighted sum of its row."""
    return lambda x, g: x * total(x * g) * _root(x)


def _scanned_cumsum(x: Array) -> Array:
    def step(total: Array, column: Array) -> tuple[Array, Array]:
        return total + column, total + column

    return lax.scan(step, jnp.zeros(len(x), x.dtype), x.T)[1].T * _root(x)


# Normalisations.


def _centred(x: Array, axis: int) -> Array:
    return x - x.mean(axis, keepdims=True)


def _two_pass(axis: int) -> Form:
    def normed(x: Array, gain: Array, shift: Array) -> Array:
        c = _centred(x, axis)
        return gain * c / jnp.sqrt(jnp.mean(c * c, axis, keepdims=True) + EPS) + shift

    return normed


def _moments(axis: int) -> Form:
    def normed(x: Array, gain: Array, shift: Array) -> Array:
        m = x.mean(axis, keepdims=True)
        return gain * (x - m) * lax.rsqrt(jnp.mean(x * x, axis, keepdims=True) - m * m + EPS) + shift

    return normed


def _affine(axis: int) -> Form:
    def normed(x: Array, gain: Array, shift: Array) -> Array:
        scale = gain * lax.rsqrt(x.var(axis, keepdims=True) + EPS)
        return x * scale + (shift - x.mean(axis, keepdims=True) * scale)

    return normed


def _norm_backward(axis: int) -> Form:
    def backward(y: Array, dy: Array, x: Array, gain: Array, shift: Array) -> tuple[Array, ...]:
        c = _centred(x, axis)
        inverse = lax.rsqrt(jnp.mean(c * c, axis, keepdims=True) + EPS)
        x_hat = c * inverse
        d = dy * gain
        dx = inverse * (_centred(d, axis) - x_hat * jnp.mean(d * x_hat, axis, keepdims=True))
        return dx, jnp.sum(dy * x_hat, 0), jnp.sum(dy, 0)

    return _with_backward(_two_pass(axis), backward)


def _norms(axis: int) -> dict[str, Form]:
    return {"moments": _moments(axis), "affine": _affine(axis), "backward": _norm_backward(axis)}


def _rms(x: Array, gain: Array) -> Array:
    return gain * x / jnp.sqrt(jnp.mean(x * x, 1, keepdims=True) + EPS)


def _rms_backward(y: Array, dy: Array, x: Array, gain: Array) -> tuple[Array, ...]:
    inverse = lax.rsqrt(jnp.mean(x * x, 1, keepdims=True) + EPS)
    d, x_hat = dy * gain, x * inverse
    return inverse * (d - x_hat * jnp.mean(d * x_hat, 1, keepdims=True)), jnp.sum(dy * x_hat, 0)


# Choices and places.


def _places(x: Array) -> np.ndarray:
    """Columns to look up, some of them twice."""
    return (np.arange(x.shape[1]) * 3 // 2) % x.shape[1]


def _chosen_by_one_hot(x: Array) -> Array:
    return x @ jax.nn.one_hot(_places(x), x.shape[1], dtype=x.dtype).T


def _chosen_one_by_one(x: Array) -> Array:
    return jnp.stack([x[:, int(place)] for place in _places(x)], 1)


def _chosen_backward(y: Array, dy: Array, x: Array) -> tuple[Array, ...]:
    return (jnp.zeros_like(x).at[:, _places(x)].add(dy),)


def _pooled(x: Array) -> Array:
    return x - x.reshape(len(x), -1, 4).max(2).repeat(4, 1)


def _pooled_by_pairs(x: Array) -> Array:
    a, b, c, d = (x[:, i::4] for i in range(4))
    return x - jnp.repeat(jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d)), 4, axis=1)


def _convolved(x: Array, w: Array) -> Array:
    return lax.conv_general_dilated(x[:, None], w[None, None], (1,), "SAME")[:, 0]


def _shifted_products(x: Array, w: Array) -> Array:
    wide, n = jnp.pad(x, ((0, 0), (1, 1))), x.shape[1]
    return wide[:, :n] * w[0] + wide[:, 1 : n + 1] * w[1] + wide[:, 2:] * w[2]


def _unfolded(x: Array, w: Array) -> Array:
    wide, n = jnp.pad(x, ((0, 0), (1, 1))), x.shape[1]
    return jnp.stack([wide[:, i : n + i] for i in range(3)], 2) @ w


# Steep and bent functions.


def _by_horner(x: Array, w: Array) -> Array:
    return w[0] + x * (w[1] + x * (w[2] + x * w[3])) / 4


def _by_powers(x: Array, w: Array) -> Array:
    return w[0] + w[1] * x / 4 + w[2] * x**2 / 4 + w[3] * x**3 / 4


def _recurrent(x: Array, w: Array) -> Array:
    """A state that goes along the columns: h' = tanh(w0 h + w1 x)."""

    def step(h: Array, column: Array) -> tuple[Array, Array]:
        new = jnp.tanh(w[0] * h / 2 + w[1] * column)
        return new, new

    return lax.scan(step, jnp.zeros(len(x), x.dtype), x.T)[1].T


def _unrolled(x: Array, w: Array) -> Array:
    h, found = jnp.zeros(len(x), x.dtype), []
    for column in x.T:
        h = jnp.tanh(w[1] * column + h * (w[0] / 2))
        found.append(h)
    return jnp.stack(found, 1)


def _relu_net(relu: Form) -> Form:
    return lambda x, v, w: relu(x @ v * _root(x)) @ w * _root(x)


def _steep(sine: Callable[[Array], Array]) -> Form:
    return lambda x, w: sine(x @ w * _root(x))


ROWS: dict[str, Row] = {
    "product": Row(_square, _product, _PRODUCTS),
    "gram": Row(_none, lambda x: x @ x.T @ x / (x.size**0.5), {"right first": lambda x: x @ (x.T @ x) / x.size**0.5}),
    "attention": Row(
        lambda m, n: ((n, n), (n, n)),
        lambda x, k, v: jax.nn.softmax(x @ k.T * _root(x), 1) @ v,
        {
            "online": _online_attention,
            "divided last": lambda x, k, v: (
                ((e := jnp.exp(jnp.einsum("id,jd->ij", x * _root(x), k))) @ v) / e.sum(1, keepdims=True)
            ),
        },
    ),
    "sum": Row(
        _row,
        _weighted(lambda x: x.sum(1, keepdims=True)),
        {
            "reversed": _weighted(lambda x: x[:, ::-1].sum(1, keepdims=True)),
            "scanned": _weighted(_scanned_sum),
            "halved": _weighted(_halved_sum),
            "product": lambda x, g: x * (x @ g)[:, None] * _root(x),
        },
    ),
    "cumsum": Row(
        _none,
        lambda x: jnp.cumsum(x, 1) * _root(x),
        {
            "scanned": _scanned_cumsum,
            "product": lambda x: x @ jnp.triu(jnp.ones((x.shape[1],) * 2, x.dtype)) * _root(x),
            "associative": lambda x: lax.associative_scan(jnp.add, x * _root(x), axis=1),
        },
    ),
    "cumprod": Row(
        _none,
        lambda x: jnp.cumprod(1 + jnp.tanh(x) / 4, 1),
        {
            "logs": lambda x: jnp.exp(jnp.cumsum(jnp.log1p(jnp.tanh(x) / 4), 1)),
            "associative": lambda x: lax.associative_scan(jnp.multiply, 1 + jnp.tanh(x) / 4, axis=1),
        },
    ),
    "recurrence": Row(lambda m, n: ((2,),), _recurrent, {"unrolled": _unrolled}),
    "softmax": Row(
        _none,
        lambda x: jax.nn.softmax(x, 1),
        {
            "unshifted": lambda x: (e := jnp.exp(x)) / e.sum(1, keepdims=True),
            "logs": lambda x: jnp.exp(x - jax.nn.logsumexp(x, 1, keepdims=True)),
            "backward": _with_backward(
                lambda x: jax.nn.softmax(x, 1), lambda y, dy, x: (y * (dy - jnp.sum(dy * y, 1, keepdims=True)),)
            ),
        },
    ),
    "logsumexp": Row(
        _none,
        lambda x: x - jax.nn.logsumexp(x, 1, keepdims=True),
        {
            "unshifted": lambda x: x - jnp.log(jnp.exp(x).sum(1, keepdims=True)),
            "pairs": lambda x: x - functools.reduce(jnp.logaddexp, list(x.T))[:, None],
            "backward": _with_backward(
                lambda x: jax.nn.log_softmax(x, 1),
                lambda y, dy, x: (dy - jnp.exp(y) * dy.sum(1, keepdims=True),),
            ),
        },
    ),
    "layer norm": Row(_two_rows, _two_pass(1), _norms(1)),
    "batch norm": Row(_two_rows, _two_pass(0), _norms(0)),
    "rms norm": Row(
        _row,
        _rms,
        {
            "reciprocal root": lambda x, g: x * lax.rsqrt(jnp.sum(x * x, 1, keepdims=True) / x.shape[1] + EPS) * g,
            "backward": _with_backward(_rms, _rms_backward),
        },
    ),
    "gather": Row(
        _none,
        lambda x: x[:, _places(x)],
        {
            "one-hot": _chosen_by_one_hot,
            "one by one": _chosen_one_by_one,
            "backward": _with_backward(lambda x: x[:, _places(x)], _chosen_backward),
        },
    ),
    "sort": Row(
        _none,
        lambda x: jnp.sort(x, 1),
        {
            "negated": lambda x: -jnp.sort(-x, 1)[:, ::-1],
            "places": lambda x: jnp.take_along_axis(x, jnp.argsort(x, 1), 1),
            "largest first": lambda x: lax.top_k(x, x.shape[1])[0][:, ::-1],
        },
    ),
    "pool": Row(_none, _pooled, {"pairs": _pooled_by_pairs}),
    "convolution": Row(
        lambda m, n: ((3,),), _convolved, {"shifted products": _shifted_products, "unfolded": _unfolded}
    ),
    "sine": Row(
        _square,
        _steep(lambda a: jnp.sin(5 * a)),
        {
            "five first": lambda x, w: jnp.sin((5 * x) @ w * _root(x)),
            "half angles": _steep(lambda a: 2 * jnp.sin(2.5 * a) * jnp.cos(2.5 * a)),
            "backward": _steep(
                _with_backward(lambda a: jnp.sin(5 * a), lambda y, dy, a: (5 * dy * jnp.cos(5 * a),)),
            ),
        },
    ),
    "tanh": Row(
        _none,
        lambda x: jnp.tanh(3 * x),
        {
            "sigmoid": lambda x: 2 * jax.nn.sigmoid(6 * x) - 1,
            "exponentials": lambda x: (jnp.exp(3 * x) - jnp.exp(-3 * x)) / (jnp.exp(3 * x) + jnp.exp(-3 * x)),
            "backward": _with_backward(lambda x: jnp.tanh(3 * x), lambda y, dy, x: (3 * dy * (1 - y * y),)),
        },
    ),
    "exp": Row(
        _none,
        lambda x: jnp.exp(x / 2),
        {
            "squared": lambda x: jnp.square(jnp.exp(x / 4)),
            "powers of 2": lambda x: jnp.exp2(x * (0.5 / math.log(2))),
            "backward": _with_backward(lambda x: jnp.exp(x / 2), lambda y, dy, x: (dy * y / 2,)),
        },
    ),
    "relu net": Row(
        lambda m, n: ((n, n), (n, n)),
        _relu_net(jax.nn.relu),
        {
            "where": _relu_net(lambda a: jnp.where(a > 0, a, 0)),
            "mask": _relu_net(lambda a: a * (a > 0)),
            "absolute": _relu_net(lambda a: (a + jnp.abs(a)) / 2),
        },
    ),
    "silu": Row(
        _none,
        lambda x: x * jax.nn.sigmoid(x),
        {
            "quotient": lambda x: x / (1 + jnp.exp(-x)),
            "tanh": lambda x: x / 2 * (1 + jnp.tanh(x / 2)),
            "backward": _with_backward(
                jax.nn.silu, lambda y, dy, x: (dy * ((s := jax.nn.sigmoid(x)) + x * s * (1 - s)),)
            ),
        },
    ),
    "softplus": Row(
        _none, lambda x: jnp.logaddexp(x, 0), {"unshifted": lambda x: jnp.log(1 + jnp.exp(x)), "log1p": jax.nn.softplus}
    ),
    "polynomial": Row(lambda m, n: ((4,),), _by_horner, {"powers": _by_powers}),
    "quotient": Row(
        _none, lambda x: x / (1 + x * x), {"reciprocal": lambda x: x * lax.reciprocal(1 + lax.square(x))}
    ),
}  # fmt: skip
