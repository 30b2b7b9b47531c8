"""Padding is undone exactly, and what it adds is zero and a power of two."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.models.mlp.forward import Batch, init
from jaxgrad.models.mlp.kernel.padding import NOBODY, cut_params, pad_batches, pad_params, padded, sizes

BLOCKS = [16, 32, 128]


@pytest.mark.parametrize(("size", "room"), [(1, 16), (15, 16), (16, 16), (17, 32), (27, 32), (64, 64), (65, 128)])
def test_a_side_has_room_in_the_next_power_of_two(size: int, room: int):
    assert padded(size) == room


@pytest.mark.parametrize("block", BLOCKS)
def test_what_is_padded_is_cut_off_again(block: int):
    params = jax.vmap(lambda key: init(key, 27, 3, 10, 50))(jax.random.split(jax.random.key(0), 2))
    size = sizes(params, 32, block)
    again = cut_params(pad_params(params, size), size)
    assert all(map(np.array_equal, again, params))


@pytest.mark.parametrize("block", BLOCKS)
def test_all_that_is_added_to_parameters_is_zero(block: int):
    params = init(jax.random.key(0), 27, 3, 10, 50)
    size = sizes(params, 32, block)
    room = pad_params(jax.tree.map(lambda p: p[None], params), size)
    assert [int(jnp.count_nonzero(p)) for p in room] == [p.size for p in params]
    assert room.W1.shape == (1, -(-50 // block), 3, 16, block)


def test_rows_that_fill_a_batch_up_have_no_symbol():
    batch = Batch(jnp.arange(2 * 3 * 5 * 2).reshape(2, 3, 5, 2), jnp.zeros((2, 3, 5), jnp.int32))
    symbols = pad_batches(batch)
    assert symbols.shape == (2, 3, 3, 16)
    assert np.array_equal(symbols[1, 1, 2, :5], batch.X[1, 2, :, 1])
    assert np.array_equal(symbols[:, 2, :, :5], batch.Y)
    assert (symbols[..., 5:] == NOBODY).all()
