"""Functions of jax and optax that have no oracle but the definition of the derivative."""

import jax
import jax.numpy as jnp
import optax
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


def causal_attention(q, k, v):
    return jax.nn.dot_product_attention(q, k, v, is_causal=True)


def hinge(scores):
    return optax.hinge_loss(scores, jnp.where(jnp.arange(8) < 4, -1, 1).astype(scores.dtype))


def ctc(logits):
    labels, padded = jnp.array([[1, 2, 2, 3], [2, 1, 0, 0]]), jnp.array([[0, 0, 0, 0], [0, 0, 1, 1]])
    return optax.ctc_loss(logits, jnp.zeros(logits.shape[:2], logits.dtype), labels, padded.astype(logits.dtype))


def bessel(z):
    return jax.scipy.special.bessel_jn(z, v=3, n_iter=30)


def spectrum(x):
    values, vectors = jnp.linalg.eigh(x + x.T)
    return values, vectors @ jnp.diag(values**2) @ vectors.T


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
    "attention": (causal_attention, 3 * (struct(1, 6, 2, 8),), "swapped", "q"),
    "hinge": (hinge, (struct(8),), "scaled", "scores"),
    "ctc": (ctc, (struct(2, 7, 5),), "shifted", "logits"),
    # Its recurrence overflows in float32 where z is small beside the number of steps.
    "bessel": (bessel, (jnp.array([8.0, 9.5, 11.0, 14.0]),), "scaled", "z"),
    "expm": (jax.scipy.linalg.expm, (struct(3, 3),), "shifted", "A"),
    "eigh": (spectrum, (struct(4, 4),), "negated", "x"),
}
# Where more would only take time: a Pade approximation of each order in every program, or a loop over the alphabet.
FEWER = {name: {"dtypes": ("float64", "float32"), "transforms": ("jit",), "seeds": (0,)} for name in ("expm", "ctc")}


@pytest.mark.parametrize("name", CASES)
def test_it_is_right_as_it_is(quiet, name):
    fn, args, _, _ = CASES[name]
    report = quiet(fn, *args, **FEWER.get(name, {}))
    assert not [f for f in report.not_judged if f.setting.dtype != "bfloat16"]


@pytest.mark.parametrize("name", CASES)
def test_a_planted_mistake_is_caught(caught, plant, name):
    fn, args, mistake, at = CASES[name]
    caught(plant.planted(fn, getattr(plant, mistake)), *args, at=at)
