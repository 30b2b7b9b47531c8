"""Solvers that differentiate what they solve implicitly: lineax and optimistix."""

import jax
import jax.numpy as jnp
import pytest

lineax = pytest.importorskip("lineax", reason="lineax is not installed: pip install 'jaxgrad[third-party]'")
optimistix = pytest.importorskip("optimistix", reason="optimistix is not installed: pip install 'jaxgrad[third-party]'")

ONCE = {"dtypes": ("float64",), "transforms": ("jit", "vmap"), "seeds": (0,)}


def struct(*shape: int):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def solved(a, b):
    return lineax.linear_solve(lineax.MatrixLinearOperator(a + 3 * jnp.eye(4, dtype=a.dtype)), b).value


def plainly_solved(a, b):
    return jnp.linalg.solve(a + 3 * jnp.eye(4, dtype=a.dtype), b)


def root(a):
    """Where tanh(a y) + y is 1, by Newton's method."""
    newton = optimistix.Newton(rtol=1e-10, atol=1e-10)
    return optimistix.root_find(lambda y, a: jnp.tanh(a * y) + y - 1, newton, jnp.zeros_like(a), args=a).value


def test_a_linear_solve_is_right_and_a_planted_mistake_is_caught(quiet, caught, plant):
    args = struct(4, 4), struct(4)
    quiet(solved, *args, reference=plainly_solved, **ONCE)
    caught(plant.planted(solved, plant.negated), *args, reference=plainly_solved, at="a")


def test_a_root_is_right_without_an_oracle_and_a_planted_mistake_is_caught(quiet, caught, plant):
    quiet(root, struct(3), **ONCE)
    caught(plant.planted(root, plant.scaled), struct(3), at="a")


def test_a_solver_that_fails_for_inputs_of_unusual_size_is_not_called_wrong(quiet):
    """Newton's method does not converge from 0 where a is large, and then optimistix raises."""
    report = quiet(root, struct(3), dtypes=("float64",), seeds=(0,))
    assert "reach" not in {f.setting.transform for f in report.findings if f.outcome == "agrees"}
