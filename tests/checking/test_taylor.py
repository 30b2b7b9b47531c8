"""Taylor's remainder falls with the second power of the step where a gradient is right, with the first where not."""

import jax
import jax.numpy as jnp
import pytest

from jaxgrad.checking.taylor import random_direction, remainder_orders


def f(x):
    return jnp.sum(jnp.sin(x["a"]) * x["b"] ** 3)


def remainder_order(f, x, gradient, direction) -> float:
    return remainder_orders(f, x, {"g": gradient}, [direction])["g"][0]


@pytest.fixture
def point():
    with jax.enable_x64(True):
        x = random_direction(jax.random.key(0), {"a": jnp.zeros(50), "b": jnp.zeros(50)})
        yield x, jax.grad(f)(x), random_direction(jax.random.key(1), x)


def test_a_right_gradient_has_order_two(point):
    x, g, v = point
    assert 1.9 < remainder_order(f, x, g, v) < 2.1


@pytest.mark.parametrize("mistake", [2.0, 1.01, 1 + 1e-4, 1 + 1e-6])
def test_a_wrong_gradient_has_order_one_even_if_it_is_only_a_little_wrong(point, mistake: float):
    x, g, v = point
    # Between the two orders the middle decides: close to the rounding of f no slope is a whole number.
    assert remainder_order(f, x, {**g, "a": mistake * g["a"]}, v) < 1.5


def test_a_linear_function_leaves_no_remainder(point):
    x, _, v = point
    assert remainder_order(lambda x: x["a"].sum(), x, {"a": jnp.ones(50), "b": jnp.zeros(50)}, v) == float("inf")


def test_float32_is_refused():
    with pytest.raises(ValueError, match="needs float64"):
        remainder_order(jnp.sum, jnp.ones(2), jnp.ones(2), jnp.ones(2))
