"""Accumulated roundings: the rules against what float32 really does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.jaxprs.rounding import accumulated

FUNCTIONS = {
    "sum": lambda x: x.sum(),
    "difference of sums": lambda x: x[:500].sum() - x[500:].sum(),
    "product of matrices": lambda x: x.reshape(20, 50) @ x.reshape(50, 20),
    "quotient": lambda x: x / (1 + x * x),
    "exp": lambda x: jnp.exp(3 * x),
    "log of a sum of exp": lambda x: jnp.log(jnp.exp(x).sum()),
    "tanh": lambda x: jnp.tanh(x + x * x),
    "powers": lambda x: (x * x + 1) ** -1.5 + (x * x + 1) ** 3 + jax.lax.rsqrt(x * x + 1),
    "scatter": lambda x: jnp.zeros(7).at[jnp.arange(1000) % 7].add(x * x),
    "logistic": lambda x: jax.nn.sigmoid(x) * jnp.sqrt(jnp.abs(x) + 1),
    "gradient": jax.grad(lambda x: (jnp.tanh(x) ** 2).sum() ** 0.5),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_error_of_float32_is_within_five_deviations_and_the_estimate_within_two_hundred(name: str):
    fn = FUNCTIONS[name]
    x = np.asarray(jax.random.normal(jax.random.key(0), (1000,)))
    with jax.enable_x64(True):
        value, variance = jax.tree.map(np.asarray, accumulated(fn, jnp.asarray(x, jnp.float64)))
    error = np.linalg.norm(np.asarray(jax.jit(fn)(jnp.asarray(x)), np.float64) - value)
    predicted = 2.0**-24 * np.sqrt(variance.sum())
    assert error <= 5 * predicted
    # A bound that nothing could break would be no bound: sums are estimated for the worst order of the terms, and
    # engines take better ones, so the estimate is some tens of times the error, and not thousands.
    assert predicted <= 200 * max(error, 2.0**-24 * np.linalg.norm(value))


def test_moving_data_rounds_nothing():
    with jax.enable_x64(True):
        _, variance = accumulated(lambda x: -x.reshape(2, 3).T[jnp.array([0, 2])], jnp.arange(6.0))
    assert not np.asarray(variance).any()


def test_cancellation_shows():
    with jax.enable_x64(True):
        value, variance = accumulated(lambda x: (x + 1e8) - 1e8, jnp.ones(()))
    assert float(jnp.sqrt(variance) / value) > 1e7


def test_wide_sums_round_less():
    with jax.enable_x64(True):
        narrow, wide = (accumulated(jnp.sum, jnp.ones(1000), wide_sums=w)[1] for w in (1.0, 2.0**-16))
    assert float(narrow) == pytest.approx(1000**3 / 3 + 1000**2 / 2 + 1000**2)
    assert float(wide) == pytest.approx(1000**2)


def test_trees_and_integers_pass_through():
    with jax.enable_x64(True):
        values, variances = accumulated(lambda t: {"a": t["x"] * 2.0, "i": t["i"] + 1}, {"x": jnp.ones(2), "i": 3})
    assert values["a"].tolist() == [2.0, 2.0] and int(values["i"]) == 4
    assert variances["a"].tolist() == [4.0, 4.0]
