"""Weights that all shards of a batch share: an op and its cotangents are what they are without shards."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from jaxgrad import ops

IDS = jnp.array([3, 0, 2, 2], jnp.int32)
# An array of the same shape from one.
WITHOUT_WEIGHTS = (
    ops.softmax, ops.log_softmax, ops.l2_normalize, ops.gelu, ops.silu, ops.relu, ops.relu_squared, ops.tanh,
    lambda x: ops.dropout(x, jax.random.key(0), 0.0),
)  # fmt: skip
# The op, the shapes of its float arguments, and along which axis each is split, None where all shards share it.
USES = {
    "linear": (ops.linear, ((4, 3), (3, 5), (5,)), (0, None, None)),
    "layer_norm": (ops.layer_norm, ((4, 3), (3,), (3,)), (0, None, None)),
    "rms_norm": (ops.rms_norm, ((4, 3), (3,)), (0, None)),
    "group_norm": (lambda x, g, b: ops.group_norm(x, g, b, 2), ((4, 3, 4), (4,), (4,)), (0, None, None)),
    "batch_norm": (ops.batch_norm, ((5, 4), (4,), (4,)), (1, 0, 0)),
    "batch_norm, gain of one": (lambda x, g, b: ops.batch_norm(x, g[0], b), ((5, 4), (1, 4), (4,)), (1, 1, 0)),
    "batch_norm_running": (
        lambda *args: ops.batch_norm_running(*args)[0], ((5, 4), (4,), (4,), (4,), (4,)), (1, 0, 0, 0, 0),
    ),
    "conv": (ops.conv, ((4, 5, 3), (2, 3, 4), (4,)), (0, None, None)),
    "rope": (ops.rope, ((4, 3, 2, 4), (3, 2), (3, 2)), (0, None, None)),
    "swiglu": (ops.swiglu, ((4, 3), (4, 3)), (0, 0)),
    "geglu, a gate that all share": (
        lambda gate, up: ops.geglu(jnp.broadcast_to(gate, up.shape), up), ((1, 3), (4, 3)), (None, 0),
    ),
    "kl_div": (ops.kl_div, ((4, 3), (4, 3)), (0, 0)),
    "embedding": (lambda table, ids: ops.embedding(table, ids.astype(jnp.int32)), ((5, 3), (4,)), (None, 0)),
    "gru": (
        lambda x, h, *w: ops.gru(x, h, ops.GruWeights(*w)),
        ((3, 4, 3), (4, 2), (3, 6), (2, 6), (6,), (6,)), (1, 0, None, None, None, None),
    ),
    "lstm": (
        lambda x, h, c, *w: ops.lstm(x, h, c, ops.LstmWeights(*w))[0],
        ((3, 4, 3), (4, 2), (4, 2), (3, 8), (2, 8), (8,)), (1, 0, 0, None, None, None),
    ),
    "attention, a bias that all share": (
        functools.partial(ops.attention, causal=True, block=2),
        ((4, 3, 2, 2), (4, 3, 1, 2), (4, 3, 1, 2), (1, 2, 3, 3)), (0, 0, 0, None),
    ),
    "attention, by kernels": (
        functools.partial(ops.attention, causal=True, implementation="interpret"), ((4, 3, 2, 2),) * 3, (0, 0, 0),
    ),
    "cross_entropy": (
        lambda x, weights: ops.cross_entropy(x, jnp.ones(x.shape[0], int), weights, reduction="none"),
        ((4, 3), (4,)), (0, 0),
    ),
    "what has no weights": (
        lambda x: sum(op(x) for op in WITHOUT_WEIGHTS) + ops.logsumexp(x)[:, None] + ops.jsd(x, x[:, ::-1])[:, None],
        ((4, 6),), (0,),
    ),
}  # fmt: skip


@pytest.mark.parametrize("use", USES)
def test_sharded_it_is_the_same(use):
    op, shapes, axes = USES[use]
    args = [jax.random.normal(jax.random.key(n), shape) for n, shape in enumerate(shapes)]
    if use == "embedding":
        args[1] = IDS.astype(jnp.float32)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    specs = tuple(PartitionSpec() if axis is None else PartitionSpec(*(None,) * axis, "data") for axis in axes)

    def loss(*args):
        return (op(*args) ** 2).sum()

    split = jax.shard_map(
        lambda *args: jax.lax.psum(loss(*args), "data"), mesh=mesh, in_specs=specs, out_specs=PartitionSpec()
    )
    expected, actual = (
        jax.jit(jax.value_and_grad(fn, tuple(range(len(args)))))(*args) for fn in (functools.partial(loss), split)
    )
    for e, a in zip(jax.tree.leaves(expected), jax.tree.leaves(actual), strict=True):
        assert np.allclose(e, a, rtol=1e-5, atol=1e-5)
