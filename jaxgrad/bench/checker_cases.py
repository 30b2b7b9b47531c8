"""Forty functions with a backward pass by hand, and the same forty with one mistake each: what checkers are tried on.

Each case is a plain function, its right backward pass and a faulty one, as functions of the arguments and `dy`. The
mistakes are those that people make; `what` says in a line what is wrong, and `where` whose cotangent it spoils.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxgrad.checking.domains import Domain

Backward = Callable[..., tuple[Any, ...]]


class Case(NamedTuple):
    """A function, its two backward passes, and the shapes of its arguments.

    `where` is the argument whose cotangent the mistake spoils. `domains` are `check`'s, by argument; an argument drawn
    from integers is one of integers. `build` makes of the plain function and a backward pass the function under test.
    `order` is how often that function can be differentiated, once or twice.
    """

    name: str
    what: str
    where: str
    shapes: Mapping[str, tuple[int, ...]]
    plain: Callable[..., Array]
    right: Backward
    faulty: Backward
    domains: Mapping[str, Domain] = {}
    build: Callable[[Callable[..., Array], Backward], Callable[..., Array]] | None = None
    order: int = 2

    def args(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The shapes and types of the arguments."""
        return tuple(
            jax.ShapeDtypeStruct(shape, np.int32 if str(self.domains.get(name, "")).startswith("int") else np.float32)
            for name, shape in self.shapes.items()
        )

    def function(self, faulty: bool) -> Callable[..., Array]:
        """The function under test: the plain one with one of the two backward passes."""
        return (self.build or by_hand)(self.plain, self.faulty if faulty else self.right)


def by_hand(plain: Callable[..., Array], backward: Backward) -> Callable[..., Array]:
    """`plain` with `backward(*args, dy)` as its derivative; the residuals are the arguments."""
    fn = jax.custom_vjp(plain)
    fn.defvjp(lambda *args: (plain(*args), args), lambda args, dy: backward(*args, dy))
    return fn


def by_tangents(plain: Callable[..., Array], tangent: Backward) -> Callable[..., Array]:
    """`plain` with `tangent(x, dx)` as its derivative in forward mode."""
    fn = jax.custom_jvp(plain)
    fn.defjvp(lambda primals, tangents: (plain(*primals), *tangent(*primals, *tangents)))
    return fn


# Linear algebra.


def _linear(x: Array, w: Array) -> Array:
    return x @ w


def _residual(x: Array, w: Array) -> Array:
    return x + jnp.tanh(x @ w)


def _residual_backward(x: Array, w: Array, dy: Array) -> tuple[Array, Array]:
    da = dy * (1 - jnp.tanh(x @ w) ** 2)
    return dy + da @ w.T, x.T @ da


def _residual_faulty(x: Array, w: Array, dy: Array) -> tuple[Array, Array]:
    da = dy * (1 - jnp.tanh(x @ w) ** 2)
    return da @ w.T, x.T @ da


def _narrow_sum(x: Array, w: Array, dy: Array) -> tuple[Array, Array]:
    return dy @ w.T, (x.T.astype(jnp.bfloat16) @ dy.astype(jnp.bfloat16)).astype(x.dtype)


def _batched(x: Array, w: Array) -> Array:
    return jnp.einsum("bij,jk->bik", x, w)


def _conv(x: Array, k: Array) -> Array:
    return jnp.convolve(x, k, mode="valid")


def _solve(a: Array, b: Array) -> Array:
    return jnp.linalg.solve(a, b)


def _solve_backward(a: Array, b: Array, dy: Array) -> tuple[Array, Array]:
    db = jnp.linalg.solve(a.T, dy)
    return -db @ jnp.linalg.solve(a, b).T, db


def _solve_faulty(a: Array, b: Array, dy: Array) -> tuple[Array, Array]:
    db = jnp.linalg.solve(a.T, dy)
    return -jnp.linalg.solve(a, b) @ db.T, db


def _rotate(x: Array, angle: Array) -> Array:
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * jnp.cos(angle) - b * jnp.sin(angle), a * jnp.sin(angle) + b * jnp.cos(angle)], -1)


def _rotate_right(x: Array, angle: Array, dy: Array) -> tuple[Array, Array]:
    y, half = _rotate(x, angle), x.shape[-1] // 2
    return _rotate(dy, -angle), jnp.sum(dy[..., half:] * y[..., :half] - dy[..., :half] * y[..., half:], 0)


def _rotate_faulty(x: Array, angle: Array, dy: Array) -> tuple[Array, Array]:
    return _rotate(dy, angle), _rotate_right(x, angle, dy)[1]


# Normalisation and statistics.

EPS = 1e-5


def _variance(x: Array) -> Array:
    return jnp.var(x, 0, ddof=1)


def _rms_norm(x: Array, g: Array) -> Array:
    return g * x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + EPS)


def _rms_norm_backward(x: Array, g: Array, dy: Array, eps: float = EPS, mean: bool = True) -> tuple[Array, Array]:
    r = jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps)
    d, x_hat = g * dy, x * r
    total = jnp.mean if mean else jnp.sum
    return r * (d - x_hat * total(d * x_hat, -1, keepdims=True)), (dy * x_hat).sum(0)


def _layer_norm(x: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt(jnp.mean(centred**2, -1, keepdims=True) + EPS)


def _layer_norm_backward(x: Array, dy: Array, centred: bool = True) -> tuple[Array]:
    inverse = jax.lax.rsqrt(jnp.var(x, -1, keepdims=True) + EPS)
    x_hat = (x - x.mean(-1, keepdims=True)) * inverse
    d = dy - dy.mean(-1, keepdims=True) if centred else dy
    return (inverse * (d - x_hat * jnp.mean(dy * x_hat, -1, keepdims=True)),)


def _unit_vector(x: Array) -> Array:
    return x / jnp.sqrt(jnp.sum(x * x, -1, keepdims=True))


def _unit_backward(x: Array, dy: Array, power: int = 1) -> tuple[Array]:
    size = jnp.sqrt(jnp.sum(x * x, -1, keepdims=True))
    y = x / size
    return ((dy - y * jnp.sum(dy * y, -1, keepdims=True)) / size**power,)


# Softmax and losses.


def _softmax(x: Array) -> Array:
    return jax.nn.softmax(x)


def _softmax_backward(x: Array, dy: Array) -> tuple[Array]:
    p = jax.nn.softmax(x)
    return (p * (dy - jnp.sum(dy * p, -1, keepdims=True)),)


def _log_softmax(x: Array) -> Array:
    return jax.nn.log_softmax(x)


def _cross_entropy(x: Array, target: Array) -> Array:
    return -jnp.take_along_axis(jax.nn.log_softmax(x), target[:, None], 1).mean()


def _cross_entropy_backward(x: Array, target: Array, dy: Array) -> tuple[Array, None]:
    return dy * (jax.nn.softmax(x) - jax.nn.one_hot(target, x.shape[1], dtype=x.dtype)) / len(x), None


def _cross_entropy_faulty(x: Array, target: Array, dy: Array) -> tuple[Array, None]:
    return dy * (jax.nn.softmax(x) - jax.nn.one_hot(target, x.shape[1], dtype=x.dtype)) / x.size, None


def _masked_attention(q: Array, k: Array) -> Array:
    scores = q @ k.T / q.shape[-1] ** 0.5
    return jax.nn.softmax(jnp.where(jnp.tri(len(q), len(k), dtype=bool), scores, -jnp.inf))


def _attention_backward(q: Array, k: Array, dy: Array, scale: bool = True, masked: bool = True) -> tuple[Array, Array]:
    scores = q @ k.T / q.shape[-1] ** 0.5
    p = _masked_attention(q, k) if masked else jax.nn.softmax(scores)
    ds = p * (dy - jnp.sum(dy * p, -1, keepdims=True))
    ds = ds / q.shape[-1] ** 0.5 if scale else ds
    return ds @ k, ds.T @ q


def _smoothed(x: Array, y: Array) -> Array:
    return jnp.mean(jnp.logaddexp(0.0, x) - x * (0.9 * y + 0.05))


def _kl(p: Array, q: Array) -> Array:
    return jnp.sum(p * (jnp.log(p) - jnp.log(q)))


def _huber(x: Array) -> Array:
    return jnp.where(jnp.abs(x) < 1, 0.5 * x * x, jnp.abs(x) - 0.5)


# Activations and other functions of one element.

_ROOT = float(np.sqrt(2 / np.pi))


def _gelu(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=False)


def _gelu_by_erf(x: Array, dy: Array) -> tuple[Array]:
    return (dy * (jax.scipy.stats.norm.cdf(x) + x * jnp.exp(-x * x / 2) / np.sqrt(2 * np.pi).item()),)


def _gelu_by_tanh(x: Array, dy: Array, root: float = _ROOT) -> tuple[Array]:
    t = jnp.tanh(root * (x + 0.044715 * x**3))
    return (dy * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * root * (1 + 3 * 0.044715 * x * x)),)


def _tanh_gelu(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=True)


def _softplus(x: Array) -> Array:
    return jnp.logaddexp(x, 0.0)


def _safe_root(x: Array) -> Array:
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0)


def _cubed(x: Array) -> Array:
    return x * x * x


# Moving, sorting, choosing.


def _rows(table: Array, at: Array) -> Array:
    return table[at]


def _pooled(x: Array) -> Array:
    return x.reshape(x.shape[0], -1, 2).max(-1)


def _pool_backward(x: Array, dy: Array) -> tuple[Array]:
    pairs = x.reshape(x.shape[0], -1, 2)
    first = pairs[..., 0] >= pairs[..., 1]
    return (jnp.stack([jnp.where(first, dy, 0), jnp.where(first, 0, dy)], -1).reshape(x.shape),)


def _pool_faulty(x: Array, dy: Array) -> tuple[Array]:
    return (jnp.repeat(dy, 2, -1) / 2,)


def _blocks(x: Array) -> Array:
    return jnp.sum(x * x, 0)


def _blocks_faulty(x: Array, dy: Array) -> tuple[Array]:
    whole = len(x) // 4 * 4
    return (jnp.concatenate([2 * x[:whole], jnp.zeros_like(x[whole:])]) * dy,)


def _scaled_rows(x: Array, s: Array) -> Array:
    return x * s


def _by_batches(rule_sums: bool) -> Backward:
    """The backward pass of `x * s` by a function with a rule of its own for `vmap`."""

    @jax.custom_batching.custom_vmap
    def times(dy: Array, s: Array) -> Array:
        return dy * s

    @times.def_vmap
    def rule(size: int, batched: list[bool], dy: Array, s: Array) -> tuple[Array, bool]:
        if rule_sums and not batched[1]:
            # As if the factor, which the examples share, had the cotangent of all of them.
            return jnp.broadcast_to(dy.sum(0) * s, dy.shape), True
        return dy * s, True

    return lambda x, s, dy: (times(dy, s), dy * x)


CASES = (
    Case("bias", "the sum over the batch is a mean", "b", {"x": (6, 4), "b": (4,)},
         lambda x, b: x + b, lambda x, b, dy: (dy, dy.sum(0)), lambda x, b, dy: (dy, dy.mean(0))),
    Case("gain", "the input is left out of the gain's cotangent", "g", {"x": (6, 4), "g": (4,)},
         lambda x, g: x * g, lambda x, g, dy: (dy * g, (dy * x).sum(0)), lambda x, g, dy: (dy * g, dy.sum(0))),
    Case("linear", "a transposed operand", "w", {"x": (5, 5), "w": (5, 5)},
         _linear, lambda x, w, dy: (dy @ w.T, x.T @ dy), lambda x, w, dy: (dy @ w.T, dy.T @ x)),
    Case("product", "the weight is not transposed", "x", {"x": (5, 5), "w": (5, 5)},
         _linear, lambda x, w, dy: (dy @ w.T, x.T @ dy), lambda x, w, dy: (dy @ w, x.T @ dy)),
    Case("narrow sum", "products are accumulated in bfloat16", "w", {"x": (64, 4), "w": (4, 3)},
         _linear, lambda x, w, dy: (dy @ w.T, x.T @ dy), _narrow_sum),
    Case("batched product", "only the first example of the batch counts", "w", {"x": (3, 4, 5), "w": (5, 2)},
         _batched, lambda x, w, dy: (dy @ w.T, jnp.einsum("bij,bik->jk", x, dy)),
         lambda x, w, dy: (dy @ w.T, x[0].T @ dy[0])),
    Case("residual path", "the identity's term is missing", "x", {"x": (5, 4), "w": (4, 4)},
         _residual, _residual_backward, _residual_faulty),
    Case("triangle", "the mask is not applied", "a", {"a": (5, 5)},
         lambda a: jnp.tril(a) @ a[0], lambda a, dy: (jnp.tril(jnp.outer(dy, a[0])).at[0].add(jnp.tril(a).T @ dy),),
         lambda a, dy: (jnp.outer(dy, a[0]).at[0].add(jnp.tril(a).T @ dy),)),
    Case("convolution", "the kernel is not flipped", "x", {"x": (9,), "k": (3,)},
         _conv, lambda x, k, dy: (jnp.correlate(dy, k, "full"), jnp.correlate(x, dy, "valid")[::-1]),
         lambda x, k, dy: (jnp.convolve(dy, k, "full"), jnp.correlate(x, dy, "valid")[::-1])),
    Case("inverse", "the transposes are left out", "a", {"a": (4, 4)},
         jnp.linalg.inv, lambda a, dy: (-jnp.linalg.inv(a).T @ dy @ jnp.linalg.inv(a).T,),
         lambda a, dy: (-jnp.linalg.inv(a) @ dy @ jnp.linalg.inv(a),)),
    Case("solve", "the matrix has its cotangent transposed", "a", {"a": (4, 4), "b": (4, 2)},
         _solve, _solve_backward, _solve_faulty),
    Case("rotation", "rotated back by the angle itself", "x", {"x": (5, 6), "angle": (3,)},
         _rotate, _rotate_right, _rotate_faulty),
    Case("variance", "n where n - 1 should be", "x", {"x": (64, 3)},
         _variance, lambda x, dy: (2 * (x - x.mean(0)) / (len(x) - 1) * dy,),
         lambda x, dy: (2 * (x - x.mean(0)) / len(x) * dy,)),
    Case("rms norm", "a sum where a mean should be", "x", {"x": (6, 5), "g": (5,)},
         _rms_norm, _rms_norm_backward, lambda x, g, dy: _rms_norm_backward(x, g, dy, mean=False)),
    Case("epsilon", "the epsilon is forgotten in the backward pass", "x", {"x": (6, 8), "g": (8,)},
         _rms_norm, _rms_norm_backward, lambda x, g, dy: _rms_norm_backward(x, g, dy, eps=0.0)),
    Case("layer norm", "the mean's term is missing", "x", {"x": (6, 8)},
         _layer_norm, _layer_norm_backward, lambda x, dy: _layer_norm_backward(x, dy, centred=False)),
    Case("unit vector", "divided by the square of the norm", "x", {"x": (6, 5)},
         _unit_vector, _unit_backward, lambda x, dy: _unit_backward(x, dy, power=2)),
    Case("mean square", "divided by the rows and not by all elements", "x", {"x": (6, 5)},
         lambda x: jnp.mean(x * x), lambda x, dy: (2 * x * dy / x.size,), lambda x, dy: (2 * x * dy / len(x),)),
    Case("softmax", "the sum over the row is missing", "x", {"x": (6, 5)},
         _softmax, _softmax_backward, lambda x, dy: (jax.nn.softmax(x) * dy,)),
    Case("log softmax", "right only for a cotangent of sum 1", "x", {"x": (6, 5)},
         _log_softmax, lambda x, dy: (dy - jax.nn.softmax(x) * dy.sum(-1, keepdims=True),),
         lambda x, dy: (dy - jax.nn.softmax(x),)),
    Case("log sum exp", "the largest element gets everything", "x", {"x": (6, 5)},
         lambda x: jax.nn.logsumexp(x, -1), lambda x, dy: (jax.nn.softmax(x) * dy[:, None],),
         lambda x, dy: (jax.nn.one_hot(x.argmax(-1), x.shape[-1], dtype=x.dtype) * dy[:, None],)),
    Case("cross entropy", "divided by all logits and not by the rows", "x", {"x": (6, 5), "target": (6,)},
         _cross_entropy, _cross_entropy_backward, _cross_entropy_faulty, {"target": "integers(0, 5)"}),
    Case("attention scale", "1/sqrt(d) is forgotten in the backward pass", "q", {"q": (5, 4), "k": (5, 4)},
         _masked_attention, _attention_backward, lambda q, k, dy: _attention_backward(q, k, dy, scale=False)),
    Case("attention mask", "the weights are made again without the mask", "q", {"q": (5, 4), "k": (5, 4)},
         _masked_attention, _attention_backward, lambda q, k, dy: _attention_backward(q, k, dy, masked=False)),
    Case("label smoothing", "the smoothing is forgotten in the backward pass", "x", {"x": (6, 5), "y": (6, 5)},
         _smoothed, lambda x, y, dy: (dy * (jax.nn.sigmoid(x) - 0.9 * y - 0.05) / x.size, -dy * 0.9 * x / x.size),
         lambda x, y, dy: (dy * (jax.nn.sigmoid(x) - y) / x.size, -dy * 0.9 * x / x.size), {"y": "unit"}),
    Case("divergence", "the derivative of p log p lacks its 1", "p", {"p": (4, 5), "q": (4, 5)},
         _kl, lambda p, q, dy: (dy * (jnp.log(p / q) + 1), -dy * p / q),
         lambda p, q, dy: (dy * jnp.log(p / q), -dy * p / q), {"p": "probabilities", "q": "probabilities"}),
    Case("huber", "not clipped beyond the threshold", "x", {"x": (6, 5)},
         _huber, lambda x, dy: (dy * jnp.clip(x, -1, 1),), lambda x, dy: (dy * x,)),
    Case("relu", "a slope of 0.01 below 0", "x", {"x": (6, 5)},
         jax.nn.relu, lambda x, dy: (jnp.where(x > 0, dy, 0),), lambda x, dy: (jnp.where(x > 0, dy, 0.01 * dy),)),
    Case("gelu", "the other form's derivative: by tanh, where the forward pass is by erf", "x", {"x": (6, 5)},
         _gelu, _gelu_by_erf, _gelu_by_tanh),
    Case("gelu's constant", "sqrt(2/pi) cut to 0.79788", "x", {"x": (6, 5)},
         _tanh_gelu, _gelu_by_tanh, lambda x, dy: _gelu_by_tanh(x, dy, 0.79788)),
    Case("tanh", "the output is not squared", "x", {"x": (6, 5)},
         jnp.tanh, lambda x, dy: (dy * (1 - jnp.tanh(x) ** 2),), lambda x, dy: (dy * (1 - jnp.tanh(x)),)),
    Case("softplus", "overflows for large inputs: inf / inf", "x", {"x": (6, 5)},
         _softplus, lambda x, dy: (dy * jax.nn.sigmoid(x),), lambda x, dy: (dy * jnp.exp(x) / (1 + jnp.exp(x)),)),
    Case("safe root", "a NaN where the branch that is not taken has no derivative", "x", {"x": (6, 5)},
         _safe_root, lambda x, dy: (jnp.where(x > 0, dy * 0.5 / jnp.sqrt(jnp.where(x > 0, x, 1)), 0),),
         lambda x, dy: ((x > 0) * dy * 0.5 / jnp.sqrt(x),)),
    Case("second order", "the residual is hidden from a second derivative", "x", {"x": (6, 5)},
         _cubed, lambda x, dy: (dy * 3 * x * x,), lambda x, dy: (dy * 3 * jax.lax.stop_gradient(x * x),)),
    Case("forward rule", "a term of the rule of forward mode lacks the tangent", "x", {"x": (6, 5)},
         lambda x: x * jnp.sin(x), lambda x, dx: (jnp.sin(x) * dx + x * jnp.cos(x) * dx,),
         lambda x, dx: (jnp.sin(x) * dx + x * jnp.cos(x),), build=by_tangents),
    Case("lookup", "rows that occur twice are set and not added", "table", {"table": (4, 3), "at": (6,)},
         _rows, lambda table, at, dy: (jnp.zeros_like(table).at[at].add(dy), None),
         lambda table, at, dy: (jnp.zeros_like(table).at[at].set(dy), None), {"at": "integers(0, 4)"}),
    Case("max pool", "the cotangent is spread over the window", "x", {"x": (5, 6)},
         _pooled, _pool_backward, _pool_faulty),
    Case("sort", "permuted by the order and not by its inverse", "x", {"x": (7,)},
         lambda x: jnp.sort(x), lambda x, dy: (dy[jnp.argsort(jnp.argsort(x))],),
         lambda x, dy: (dy[jnp.argsort(x)],)),
    Case("blocks of four", "the last, shorter block is left out", "x", {"x": (10, 3)},
         _blocks, lambda x, dy: (2 * x * dy,), _blocks_faulty),
    Case("batching rule", "wrong only under vmap with one argument shared", "x", {"x": (5,), "s": (5,)},
         _scaled_rows, _by_batches(False), _by_batches(True), order=1),
)  # fmt: skip
