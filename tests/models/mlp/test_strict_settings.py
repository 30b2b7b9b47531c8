"""The model works under other people's JAX settings, and computes the same: strict types and ranks, x64 on or off."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.models.mlp import backward, forward, fused


def all_of_it(dtype: str) -> Any:
    """What every function of the model returns for one small batch."""
    params = forward.init(jax.random.key(0), 6, n=2, emb_size=3, h_size=7, dtype=dtype)
    batch = forward.Batch(jnp.arange(10).reshape(5, 2) % 6, jnp.arange(5))
    nodes = forward.forward(params, batch)
    cotangents = jax.grad(lambda taps: forward.forward(params, batch, taps).loss)(forward.zero_taps(params, batch))
    logits = forward.predict(params, forward.Statistics(params.bn_bias, params.bn_gain**2), batch.X)
    return nodes, cotangents, logits, backward.by_node(params, batch, nodes), fused.fused(params, batch)


@pytest.mark.parametrize("x64", [False, True], ids=["x64 off", "x64 on"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_model_computes_the_same_under_strict_types_and_ranks(dtype: str, x64: bool):
    with jax.enable_x64(x64):
        expected = jax.jit(all_of_it, static_argnums=0)(dtype)
        with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
            actual = jax.jit(all_of_it, static_argnums=0)(dtype)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for e, a in zip(jax.tree.leaves(expected), jax.tree.leaves(actual), strict=True):
        assert a.dtype == e.dtype and np.asarray(a).tobytes() == np.asarray(e).tobytes()
