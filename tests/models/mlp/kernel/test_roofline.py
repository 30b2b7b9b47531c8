"""Counts of operations against XLA's, of bytes against the arrays themselves."""

import jax
import jax.numpy as jnp
import pytest

from jaxgrad.models.mlp.forward import Batch, Params, init
from jaxgrad.models.mlp.fused import fused
from jaxgrad.models.mlp.kernel.padding import Sizes
from jaxgrad.models.mlp.kernel.roofline import counts

SIZES = [
    Sizes(32, 3, 27, 10, 200, 32),
    Sizes(7, 2, 11, 5, 13, 32),
    Sizes(64, 8, 60, 12, 130, 32),
    Sizes(4096, 3, 27, 10, 200, 32),
]


def fused_step(params: Params, batch: Batch) -> tuple[Params, jax.Array]:
    gradients = fused(params, batch)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients.params), gradients.loss


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_operations_are_those_that_xla_counts_in_a_fused_step(size: Sizes):
    params = init(jax.random.key(0), size.vocab, size.n, size.emb_size, size.h_size)
    batch = Batch(jnp.zeros((size.batch, size.n), jnp.int32), jnp.zeros(size.batch, jnp.int32))
    by_xla = jax.jit(fused_step).lower(params, batch).compile().cost_analysis()["flops"]
    # Products of matrices are the same on both sides. XLA computes some of the rest again in each fusion that needs
    # it, rather than store it, and leaves out what it can: it may do from none to twice of what is counted here.
    products = 6 * size.batch * size.h_size * (size.n * size.emb_size + size.vocab)
    counted = counts(size, 1).flops
    assert products < by_xla
    assert abs(by_xla - counted) <= counted - products


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_bytes_are_those_of_what_a_launch_takes_and_gives(size: Sizes, dtype):
    params = init(jax.random.key(0), size.vocab, size.n, size.emb_size, size.h_size, dtype)
    batch = Batch(jnp.zeros((9, size.batch, size.n), jnp.int32), jnp.zeros((9, size.batch), jnp.int32))
    rates, losses = jnp.zeros(9, dtype), jnp.zeros(9, dtype)
    moved = jax.tree.leaves((params, params, batch, rates, losses))
    assert counts(size, 9, jnp.dtype(dtype).itemsize).bytes_per_launch == sum(a.nbytes for a in moved)
