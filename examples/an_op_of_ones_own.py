"""Write an operation with its derivative, prove it, ask if a mistake would have been noticed, and train with it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgrad import check, mutation_score
from jaxgrad.ops import cross_entropy, linear


@jax.custom_vjp
def swish(x: Float[Array, "n d"], beta: Float[Array, " d"]) -> Float[Array, "n d"]:
    r"""`x sigmoid(beta x)`.

    With $s = \sigma(\beta x)$ and $s' = s(1-s)$: $dx = dy\,(s + \beta x s')$ because `x` is used twice, and
    $d\beta_j = \sum_i dy_{ij}\,x_{ij}^2\,s'_{ij}$ because $\beta$ is copied over the rows.
    """
    return swish_fwd(x, beta)[0]


def swish_fwd(x, beta):
    s = jax.nn.sigmoid(beta * x)
    return x * s, (x, beta, s)


def swish_bwd(residuals, dy):
    x, beta, s = residuals
    slope = s * (1 - s)
    return dy * (s + beta * x * slope), (dy * x * x * slope).sum(0)


swish.defvjp(swish_fwd, swish_bwd)


def plain(x, beta):
    return x * jax.nn.sigmoid(beta * x)


def agrees_with_jax(fn: Callable[..., Any]) -> None:
    """Raise where a cotangent is not that of `plain`, on one batch."""
    x, beta, dy = jax.random.normal(jax.random.key(1), (3, 6, 4))
    expected, actual = (jax.vjp(f, x, beta[0])[1](dy) for f in (plain, fn))
    assert all(jnp.allclose(a, e, rtol=1e-5) for e, a in zip(expected, actual, strict=True))


def loss(params: dict[str, Array], x: Float[Array, "n d"], targets: Int[Array, " n"]) -> Float[Array, ""]:
    h = swish(linear(x, params["w1"]), params["beta"])
    return cross_entropy(linear(h, params["w2"]), targets)


@jax.jit
def step(params, x, targets):
    value, gradients = jax.value_and_grad(loss)(params, x, targets)
    return jax.tree.map(lambda p, g: p - 0.3 * g, params, gradients), value


if __name__ == "__main__":
    args = (jax.ShapeDtypeStruct((6, 4), jnp.float32), jax.ShapeDtypeStruct((4,), jnp.float32))
    print(f"swish: right in {len(check(swish, *args, reference=plain).findings)} settings")

    # One mistake at a time in the backward pass: would a test of yours, whatever it is, have noticed?
    score = mutation_score(swish, agrees_with_jax, *args)
    print(f"mistakes: {len(score.killed)} noticed, {len(score.survived)} not")

    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (64, 4))
    targets = (x.sum(-1) > 0).astype(jnp.int32)
    params = {
        "w1": jax.random.normal(keys[1], (4, 16)),
        "beta": jnp.ones(16),
        "w2": 0.1 * jax.random.normal(keys[2], (16, 2)),
    }
    for _ in range(100):
        params, value = step(params, x, targets)
    print(f"loss after 100 steps: {value:.2f}, from {jnp.log(2.0):.2f}")
