"""Embedding."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.ops import embedding


def test_embedding(passes, in_model):
    def take(table, ids):
        return table[ids]

    passes(embedding, in_model.params.C, in_model.batch.X, reference=take, torch_reference=take)


def test_rows_named_often_sum_their_cotangents_in_float32_even_in_bfloat16():
    # 300 ones summed in bfloat16 one by one stop at 256, where adding 1 no longer changes the sum.
    table, ids = jnp.zeros((2, 1), jnp.bfloat16), jnp.zeros(300, jnp.int32)
    dtable = jax.grad(lambda t: embedding(t, ids).sum().astype(jnp.float32))(table)
    assert dtable.dtype == jnp.bfloat16
    assert dtable[0, 0] == jnp.bfloat16(300)
    assert dtable[1, 0] == 0


def test_an_id_out_of_range_gives_nan_and_no_row_a_cotangent():
    table, ids = jnp.ones((2, 3)), jnp.array([0, 2, -1])
    assert np.isnan(embedding(table, ids)[1:]).all()
    dtable = jax.grad(lambda t: embedding(t, ids)[:1].sum())(table)
    assert np.array_equal(dtable, [[1, 1, 1], [0, 0, 0]])
