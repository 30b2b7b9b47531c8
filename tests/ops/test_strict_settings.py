"""Ops work under other people's JAX settings, and compute the same: strict types, strict ranks, x64 on or off."""

import types
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import ops

SETTINGS = {
    "strict types": lambda: jax.numpy_dtype_promotion("strict"),
    "strict ranks": lambda: jax.numpy_rank_promotion("raise"),
}


class Use(NamedTuple):
    """An op as a function of float arrays, and their shapes."""

    op: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]


IDS = np.array([[3, 0, 2], [0, 1, 3]], np.int32)

USES = {
    "linear": Use(ops.linear, ((5, 4), (4, 3), (3,))),
    "linear without bias": Use(ops.linear, ((5, 4), (4, 3))),
    "linear over two batch axes": Use(ops.linear, ((2, 5, 4), (4, 3), (3,))),
    "batch_norm_running": Use(lambda *args: ops.batch_norm_running(*args)[0], ((5, 4), (4,), (4,), (4,), (4,))),
    "conv": Use(ops.conv, ((2, 5, 3), (2, 3, 4), (4,))),
    "dropout": Use(lambda x: ops.dropout(x, jax.random.key(0), 0.5), ((5, 4),)),
    "geglu": Use(ops.geglu, ((5, 4), (5, 4))),
    "group_norm": Use(lambda *args: ops.group_norm(*args, 2), ((2, 3, 4), (4,), (4,))),
    "gru": Use(lambda x, h, *w: ops.gru(x, h, ops.GruWeights(*w)), ((3, 2, 3), (2, 2), (3, 6), (2, 6), (6,), (6,))),
    "jsd": Use(ops.jsd, ((3, 4), (3, 4))),
    "kl_div": Use(ops.kl_div, ((3, 4), (3, 4))),
    "l2_normalize": Use(ops.l2_normalize, ((5, 4),)),
    "log_softmax": Use(ops.log_softmax, ((5, 4),)),
    "logsumexp": Use(ops.logsumexp, ((5, 4),)),
    "lstm": Use(
        lambda x, h, c, *w: ops.lstm(x, h, c, ops.LstmWeights(*w))[0],
        ((3, 2, 3), (2, 2), (2, 2), (3, 8), (2, 8), (8,)),
    ),
    "relu": Use(ops.relu, ((5, 4),)),
    "relu_squared": Use(ops.relu_squared, ((5, 4),)),
    "rms_norm": Use(ops.rms_norm, ((2, 5, 4), (4,))),
    "rope": Use(ops.rope, ((2, 3, 2, 5), (3, 2), (3, 2))),
    "silu": Use(ops.silu, ((5, 4),)),
    "softmax": Use(ops.softmax, ((5, 4),)),
    "swiglu": Use(ops.swiglu, ((5, 4), (5, 4))),
    "attention": Use(
        lambda q, k, v, bias: ops.attention(q, k, v, bias, causal=True, soft_cap=2.0, block=2),
        ((1, 3, 4, 2), (1, 3, 2, 2), (1, 3, 2, 2), (1, 4, 1, 3)),
    ),
    "batch_norm": Use(ops.batch_norm, ((5, 4), (4,), (4,))),
    "batch_norm with the model's gain": Use(ops.batch_norm, ((5, 4), (1, 4), (1, 4))),
    "batch_norm over two batch axes": Use(ops.batch_norm, ((2, 5, 4), (4,), (4,))),
    "layer_norm": Use(ops.layer_norm, ((5, 4), (4,), (4,))),
    "layer_norm over two batch axes": Use(ops.layer_norm, ((2, 5, 4), (4,), (4,))),
    "layer_norm of one row": Use(ops.layer_norm, ((4,), (4,), (4,))),
    "tanh": Use(ops.tanh, ((5, 4),)),
    "gelu": Use(ops.gelu, ((5, 4),)),
    "gelu, approximate": Use(lambda x: ops.gelu(x, True), ((5, 4),)),
    "cross_entropy": Use(lambda logits: ops.cross_entropy(logits, jnp.asarray(IDS[0])), ((3, 4),)),
    "cross_entropy over two batch axes": Use(lambda logits: ops.cross_entropy(logits, jnp.asarray(IDS)), ((2, 3, 4),)),
    "cross_entropy of int8": Use(lambda logits: ops.cross_entropy(logits, jnp.asarray(IDS, "int8")), ((2, 3, 4),)),
    "cross_entropy with options": Use(
        lambda logits, weights: ops.cross_entropy(
            logits, jnp.asarray(IDS[0], "int8"), weights, ignore_index=0, label_smoothing=0.1, z_loss=0.1, soft_cap=2.0
        ),
        ((3, 4), (3,)),
    ),
    "linear_cross_entropy": Use(
        lambda x, w, bias, weights: ops.linear_cross_entropy(
            x, w, jnp.asarray(IDS[0]), bias, weights, ignore_index=0, label_smoothing=0.1, row_block=2, column_block=3
        ),
        ((3, 2), (2, 4), (4,), (3,)),
    ),
    "linear_cross_entropy, twice": Use(
        lambda x, w: ops.linear_cross_entropy(x, w, jnp.asarray(IDS[0]), column_block=3, kept_bytes=0),
        ((3, 2), (2, 4)),
    ),
    "embedding": Use(lambda table: ops.embedding(table, jnp.asarray(IDS)), ((4, 3),)),
    "embedding of int8": Use(lambda table: ops.embedding(table, jnp.asarray(IDS, "int8")), ((4, 3),)),
}


def forward_and_backward(use: Use, dtype: str) -> list[np.ndarray]:
    """The output and the cotangents of all arguments, for normal numbers."""
    rng = np.random.default_rng(0)
    args = [jnp.asarray(rng.normal(size=shape), dtype) for shape in use.shapes]
    dy = rng.normal(size=jax.eval_shape(use.op, *args).shape)

    # Compiled as one: most of the time of this file would go into compiling each primitive by itself.
    @jax.jit
    def both(*args: jax.Array) -> list[jax.Array]:
        y, pullback = jax.vjp(use.op, *args)
        return [y, *pullback(jnp.asarray(dy, y.dtype))]

    return [np.asarray(array) for array in both(*args)]


@pytest.mark.parametrize("x64", [False, True], ids=["x64 off", "x64 on"])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("use", USES)
def test_an_op_computes_the_same_under(use: str, dtype: str, setting: str, x64: bool):
    with jax.enable_x64(x64):
        expected = forward_and_backward(USES[use], dtype)
        with SETTINGS[setting]():
            actual = forward_and_backward(USES[use], dtype)
    assert [a.dtype for a in actual] == [e.dtype for e in expected]
    assert all(cotangent.dtype == dtype for cotangent in actual[1:])
    for e, a in zip(expected, actual, strict=True):
        # Bytes, because the settings may move no bit.
        assert a.tobytes() == e.tobytes()


def test_every_op_is_used_here():
    forwards = {name.removesuffix("_fwd") for name in ops.__all__ if name.endswith("_fwd")}
    assert {name.split()[0].rstrip(",") for name in USES} == forwards


@pytest.mark.parametrize("name", ops.__all__)
def test_the_package_gives_functions_and_not_the_files_of_the_same_names(name: str):
    given = getattr(ops, name)
    assert callable(given) and not isinstance(given, types.ModuleType)
    assert given.__name__ == name
