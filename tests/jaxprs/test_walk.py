"""Programs that are walked give what they give when JAX runs them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.jaxprs.walk import widened

# The same number in every type.
PART = 0.375


def scanned(x):
    return jax.lax.scan(lambda h, _: (jnp.tanh(h + PART),) * 2, x, length=3)[1].sum(0)


def halved(x):
    return jax.lax.while_loop(lambda c: jnp.abs(c).max() > PART, lambda c: c * (1 - PART), x)


def chosen(x):
    return jax.lax.cond(x.sum() > PART, lambda x: x * PART, lambda x: x / PART, x)


def multiplied(x):
    return jax.lax.dot(x, x, preferred_element_type=jnp.bfloat16) + jnp.arange(3, dtype=jnp.bfloat16)


@pytest.mark.parametrize("fn", [scanned, halved, chosen, multiplied, jax.nn.softmax, jnp.fft.fft])
def test_a_program_in_bfloat16_widened_is_the_one_in_float64(fn):
    x = np.random.default_rng(0).standard_normal((3, 3))
    with jax.enable_x64(True):
        narrow = jax.make_jaxpr(lambda x: fn(x.astype(jnp.float32 if fn is jnp.fft.fft else jnp.bfloat16)))(x)
        (found,) = widened(narrow, [x])
        expected = x @ x + np.arange(3) if fn is multiplied else fn(x)
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-15)
    assert found.dtype in (np.float64, np.complex128)
