"""The hand-written backward passes, without any other engine: what must hold of their cotangents by themselves."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.models.mlp.backward import by_node
from jaxgrad.models.mlp.forward import Nodes, forward
from jaxgrad.models.mlp.fused import fused


@pytest.fixture(params=["seed", "random"])
def run(request, seeded_case):
    case = seeded_case() if request.param == "seed" else seeded_case(batch_size=7, h_size=20)
    with jax.enable_x64(True):
        params, batch = jax.tree.map(jnp.asarray, (case.params, case.batch))
        nodes = forward(params, batch)
        yield params, batch, nodes, by_node(params, batch, nodes)


def test_every_node_and_parameter_has_a_cotangent_of_its_own_shape_and_type(run):
    params, _, nodes, gradients = run
    for primal, cotangent in zip((*params, *nodes), (*gradients.params, *gradients.nodes), strict=True):
        assert (cotangent.shape, cotangent.dtype) == (primal.shape, primal.dtype)


def test_cotangents_of_a_row_of_logits_sum_to_zero(run):
    gradients = run[3]
    # Each is at most 1/n, and 27 of them are summed: 27 roundings of float64 are all that may be left.
    assert np.abs(gradients.nodes.logits.sum(1)).max() < 27 * 2.0**-53


def test_batch_norm_lets_no_shift_through(run):
    gradients = run[3]
    # A shift of a whole column moves its mean with it, so the column's cotangents cancel: up to the roundings of
    # a sum of n terms of the column's size, after some hundred roundings on the way.
    dh_prenorm = gradients.nodes.h_prenorm
    assert (np.abs(dh_prenorm.sum(0)) <= 200 * 2.0**-53 * np.abs(dh_prenorm).sum(0)).all()


def test_fused_keeps_only_the_nodes_between_operations(run):
    params, batch, _, _ = run
    kept = {name for name in Nodes._fields if getattr(fused(params, batch).nodes, name) is not None}
    assert kept == {"loss", "logits", "h", "h_norm", "h_prenorm", "embcat", "emb"}


def test_rows_of_the_embedding_that_the_batch_does_not_use_have_no_cotangent(run):
    params, batch, _, gradients = run
    unused = sorted(set(range(len(params.C))) - set(np.unique(batch.X).tolist()))
    assert unused
    assert not np.asarray(gradients.params.C)[unused].any()


def test_fused_holds_less_memory_than_by_node(seeded_case, optimised):
    case = seeded_case(batch_size=256, h_size=256)
    params, batch = jax.tree.map(jnp.asarray, (case.params, case.batch))
    params = jax.tree.map(lambda p: p.astype(jnp.float32), params)

    def temporary_bytes(fn) -> int:
        return jax.jit(fn).lower(params, batch).compile(optimised).memory_analysis().temp_size_in_bytes

    by_nodes = temporary_bytes(lambda p, b: by_node(p, b, forward(p, b)).params)
    assert temporary_bytes(lambda p, b: fused(p, b).params) <= by_nodes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_backward_passes_lower_for_gpu_and_tpu(seeded_case, dtype: str):
    case = seeded_case(batch_size=32, h_size=200)
    params, batch = jax.tree.map(jnp.asarray, (case.params, case.batch))
    params = jax.tree.map(lambda p: p.astype(dtype), params)
    for backward in (lambda p, b: by_node(p, b, forward(p, b)), fused):
        exported = jax.export.export(jax.jit(backward), platforms=["cuda", "tpu"])(params, batch)
        assert exported.platforms == ("cuda", "tpu")
