"""Functions of jax.nn, jax.numpy, jax.lax and jax.image that have no oracle but the definition of the derivative."""

import jax
import jax.numpy as jnp
import pytest


def struct(*shape: int, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def power_spectrum(x):
    return jnp.abs(jnp.fft.fft(x)) ** 2


def bicubic(x):
    return jax.image.resize(x, (5, 7), "bicubic")


def linear_recurrence(a, x):
    """The scan behind state space models: h[t] = a[t] h[t-1] + x[t]."""

    def after(left, right):
        return left[0] * right[0], right[0] * left[1] + right[1]

    return jax.lax.associative_scan(after, (a, x))[1]


# The function, its arguments, and the mistake planted in it with the input where it is seen.
CASES = {
    "hard_tanh": (jax.nn.hard_tanh, (struct(4, 7),), "scaled", "x"),
    "sort": (jnp.sort, (struct(4, 7),), "shifted", "a"),
    "norm": (jnp.linalg.norm, (struct(3, 4),), "scaled", "x"),
    "rfft": (jnp.fft.rfft, (struct(8),), "shifted", "a"),
    "irfft": (jnp.fft.irfft, (struct(5, dtype=jnp.complex64),), "scaled", "a"),
    "power spectrum": (power_spectrum, (struct(8),), "negated", "x"),
    "resize": (bicubic, (struct(3, 4),), "shifted", "x"),
    "associative_scan": (linear_recurrence, (struct(6, 2), struct(6, 2)), "dropped", "a"),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_right_as_it_is(quiet, name):
    fn, args, _, _ = CASES[name]
    report = quiet(fn, *args)
    assert not [f for f in report.not_judged if f.setting.dtype != "bfloat16"]


@pytest.mark.parametrize("name", CASES)
def test_a_planted_mistake_is_caught(caught, plant, name):
    fn, args, mistake, at = CASES[name]
    caught(plant.planted(fn, getattr(plant, mistake)), *args, at=at)
