"""Batches are a pure function of key and step."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.batches import indices

KEY = jax.random.key(3)


def test_rows_are_int32_in_range_and_the_same_wherever_they_are_drawn():
    eager = indices(KEY, 5, 1000, 77)
    assert eager.dtype == jnp.int32 and eager.shape == (1000,)
    assert eager.min() == 0 and eager.max() == 76
    assert np.array_equal(jax.jit(indices, static_argnums=2)(KEY, 5, 1000, 77), eager)
    with jax.enable_x64(True):
        assert np.array_equal(indices(KEY, 5, 1000, 77), eager)


def test_many_steps_at_once_are_the_single_steps():
    many = jax.vmap(lambda step: indices(KEY, step, 8, 100))(jnp.arange(4))
    for step in range(4):
        assert np.array_equal(many[step], indices(KEY, step, 8, 100))
    assert len(np.unique(many, axis=0)) == 4
