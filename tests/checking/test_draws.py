"""Several draws in one call give what each gives alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.checking.draws import evaluated
from jaxgrad.jaxprs.noise import EXACT, Draw, noisy, rounding

DRAWS = [Draw(EXACT, 0), *(Draw(rounding("float32", by), seed) for seed in range(3) for by in (1.0, 16.0))]


def norm(x, key):
    return {"y": x / jnp.sqrt(jnp.sum(x * x)), "key": jax.random.fold_in(key, 1)}


@pytest.mark.parametrize("count", [1, 4, 7])
def test_each_draw_is_as_it_is_alone_however_many_are_asked(count):
    with jax.enable_x64(True):
        x, key = np.linspace(0.1, 2.0, 6), jax.random.key(3)
        found = list(evaluated(norm, (), DRAWS[:count], x, key))
        once = noisy(jax.make_jaxpr(norm)(x, key))
        alone = [jax.jit(once)(np.uint32(seed), amounts, x, key) for amounts, seed in DRAWS[:count]]
    assert len(found) == count
    for one, (of_key, y) in zip(found, alone, strict=True):
        np.testing.assert_allclose(one["y"], y, rtol=1e-15)
        np.testing.assert_array_equal(one["key"], jax.random.key_data(of_key))


def test_of_large_answers_one_is_held_at_a_time(monkeypatch):
    monkeypatch.setattr("jaxgrad.checking.draws._MOST_TOGETHER", 1)
    x = np.linspace(0.1, 2.0, 6)
    with jax.enable_x64(True):
        shapes = [y.shape for y in evaluated(jnp.sin, (), DRAWS, x)]
    assert shapes == [(6,)] * len(DRAWS)


def test_what_numpy_would_not_take_for_0_is_compiled():
    """1e-320 is 0 to XLA, so that its quotient is no number, and is what a function under test gives too."""
    x = np.full(3, 1e-160)
    with jax.enable_x64(True):
        (found,) = evaluated(lambda x: x / jnp.sqrt(jnp.sum(x * x)), (), DRAWS[:1], x)
        expected = jax.jit(lambda x: x / jnp.sqrt(jnp.sum(x * x)))(x)
    np.testing.assert_array_equal(found, expected)


def test_what_is_asked_again_is_the_same_to_the_last_digit():
    with jax.enable_x64(True):
        found = [np.stack(list(evaluated(jnp.tanh, (), DRAWS, np.ones(3)))) for _ in range(60)]
    assert all(np.array_equal(found[0], again) for again in found)
