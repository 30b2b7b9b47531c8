"""The two ways that are timed compute the same."""

import jax
import numpy as np

from jaxgrad.bench.embedding import SIZES, one_hot_rows
from jaxgrad.ops.embedding import scatter_rows


def test_both_ways_give_the_same_gradient():
    n, d, rows = SIZES[0]
    ids = jax.random.randint(jax.random.key(0), (n,), 0, rows)
    dy = jax.random.normal(jax.random.key(1), (n, d))
    # Some four terms a row, summed in float32 in another order: a few roundings of numbers below 8.
    np.testing.assert_allclose(scatter_rows(ids, dy, rows), one_hot_rows(ids, dy, rows), rtol=0, atol=8 * 4 * 2.0**-24)
