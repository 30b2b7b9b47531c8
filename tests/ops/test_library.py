"""Operations in one table: each with the same function in plain JAX and in PyTorch, and the shapes that it is given."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from jaxgrad import mutation_score, ops
from jaxgrad.errors import JaxgradError
from jaxgrad.ops import GruWeights, LstmWeights, _sequences, rope_tables


class Row(NamedTuple):
    """An op and its two oracles as functions of float arrays; `mutants` is how many must be killed at least."""

    op: Callable[..., Any]
    plain: Callable[..., Any]
    twin: Callable[..., Any] | None
    shapes: tuple[tuple[int, ...], ...]
    mutants: int


def group_norm(x, gain, bias):
    split = x.reshape(x.shape[0], -1, 2, x.shape[-1] // 2)
    mean, var = split.mean((1, 3), keepdims=True), split.var((1, 3), keepdims=True)
    return gain * ((split - mean) / jnp.sqrt(var + 1e-5)).reshape(x.shape) + bias


def batch_norm(x, gain, bias, mean, var):
    y = gain * (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5) + bias
    return y, 0.9 * mean + 0.1 * x.mean(0), 0.9 * var + 0.1 * x.var(0, ddof=1)


def rope(interleaved, x, cos, sin):
    turned, rest = x[..., :4], x[..., 4:]
    pairs = turned.reshape(*x.shape[:-1], 2, 2)
    a, b = (pairs[..., 0], pairs[..., 1]) if interleaved else (pairs[..., 0, :], pairs[..., 1, :])
    c, s = cos[:, None], sin[:, None]
    both = jnp.stack((a * c - b * s, a * s + b * c), -1 if interleaved else -2)
    return jnp.concatenate((both.reshape(turned.shape), rest), -1)


def kl(a, b):
    p, q = jax.nn.softmax(a), jax.nn.softmax(b)
    return (p * jnp.log(p / q)).sum(-1)


def jsd(a, b):
    p, q = jax.nn.softmax(a), jax.nn.softmax(b)
    m = 0.3 * p + 0.7 * q
    return (0.3 * p * jnp.log(p / m) + 0.7 * q * jnp.log(q / m)).sum(-1)


def jsd_twin(a, b):
    p, q = a.softmax(-1), b.softmax(-1)
    m = 0.3 * p + 0.7 * q
    return (0.3 * p * (p / m).log() + 0.7 * q * (q / m).log()).sum(-1)


def rope_twin(interleaved, x, cos, sin):
    turned, rest = x[..., :4], x[..., 4:]
    a, b = (turned[..., ::2], turned[..., 1::2]) if interleaved else (turned[..., :2], turned[..., 2:])
    c, s = cos[:, None], sin[:, None]
    both = (a * c - b * s, a * s + b * c)
    return torch.cat((torch.stack(both, -1).flatten(-2) if interleaved else torch.cat(both, -1), rest), -1)


def batch_norm_twin(x, gain, bias, mean, var):
    y = gain * (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt() + bias
    return y, 0.9 * mean + 0.1 * x.mean(0), 0.9 * var + 0.1 * x.var(0)


def l2_normalize(x):
    return x / jnp.sqrt((x * x).sum(-1, keepdims=True))


def conv_1d(x, w, bias):
    return bias + jax.lax.conv_general_dilated(
        x, w, (2,), [(2, 1)], rhs_dilation=(3,), dimension_numbers=("NWC", "WIO", "NWC")
    )


def conv_1d_twin(x, w, bias):
    padded = functional.pad(x.transpose(1, 2), (2, 1))
    return functional.conv1d(padded, w.permute(2, 1, 0), bias, stride=2, dilation=3).transpose(1, 2)


def conv_2d(x, w):
    return jax.lax.conv_general_dilated(
        x, w, (2, 1), [(1, 1), (0, 1)], feature_group_count=2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def conv_2d_twin(x, w):
    padded = functional.pad(x.permute(0, 3, 1, 2), (0, 1, 1, 1))
    return functional.conv2d(padded, w.permute(3, 2, 0, 1), stride=(2, 1), groups=2).permute(0, 2, 3, 1)


def gru(x, h, *weights):
    of_x, of_h, bias_x, bias_h = weights

    def step(h, x):
        (u_r, u_z, u_c), (v_r, v_z, v_c) = jnp.split(x @ of_x + bias_x, 3, -1), jnp.split(h @ of_h + bias_h, 3, -1)
        r, z = jax.nn.sigmoid(u_r + v_r), jax.nn.sigmoid(u_z + v_z)
        new = (1 - z) * jnp.tanh(u_c + r * v_c) + z * h
        return new, new

    return jax.lax.scan(step, h, x)[1]


def gru_twin(x, h, of_x, of_h, bias_x, bias_h):
    return torch._VF.gru(x, h[None], (of_x.T, of_h.T, bias_x, bias_h), True, 1, 0.0, True, False, False)[0]


def lstm(x, h, c, *weights):
    of_x, of_h, bias = weights

    def step(carried, x):
        h, c = carried
        i, f, g, o = jnp.split(x @ of_x + h @ of_h + bias, 4, -1)
        new = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        state = jax.nn.sigmoid(o) * jnp.tanh(new)
        return (state, new), state

    (_, last), states = jax.lax.scan(step, (h, c), x)
    return states, last


def lstm_twin(x, h, c, of_x, of_h, bias):
    weights = (of_x.T, of_h.T, bias, torch.zeros_like(bias))
    states, _, last = torch._VF.lstm(x, (h[None], c[None]), weights, True, 1, 0.0, True, False, False)
    return states, last[0]


def own_gru(x, h, *weights):
    return ops.gru(x, h, GruWeights(*weights))


def own_lstm(x, h, c, *weights):
    return ops.lstm(x, h, c, LstmWeights(*weights))


IDS = np.array([[0, 1], [1, 2], [2, 2]], np.int32)
ROWS = {
    "rms_norm": Row(
        functools.partial(ops.rms_norm, offset=1.0),
        lambda x, g: (1 + g) * x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-6),
        lambda x, g: functional.rms_norm(x, x.shape[-1:], 1 + g, 1e-6),
        ((4, 4), (4,)), 15,
    ),
    "group_norm": Row(
        lambda x, g, b: ops.group_norm(x, g, b, 2),
        group_norm,
        lambda x, g, b: functional.group_norm(x.movedim(-1, 1), 2, g, b).movedim(1, -1),
        ((2, 3, 4), (4,), (4,)), 20,
    ),
    "batch_norm_running": Row(
        ops.batch_norm_running, batch_norm, batch_norm_twin, ((5, 5), (5,), (5,), (5,), (5,)), 30
    ),
    "softmax": Row(
        functools.partial(ops.softmax, axis=0), lambda x: jax.nn.softmax(x, 0), lambda x: x.softmax(0), ((4, 4),), 5
    ),
    "log_softmax": Row(ops.log_softmax, jax.nn.log_softmax, lambda x: x.log_softmax(-1), ((4, 4),), 4),
    "logsumexp": Row(
        functools.partial(ops.logsumexp, axis=0),
        lambda x: jax.nn.logsumexp(x, 0), lambda x: x.logsumexp(0), ((4, 4),), 3,
    ),
    "rope": Row(
        ops.rope, functools.partial(rope, False), functools.partial(rope_twin, False),
        ((2, 3, 2, 5), (3, 2), (3, 2)), 20,
    ),
    "rope, interleaved": Row(
        functools.partial(ops.rope, interleaved=True), functools.partial(rope, True),
        functools.partial(rope_twin, True), ((2, 3, 2, 5), (3, 2), (3, 2)), 20,
    ),
    "swiglu": Row(
        ops.swiglu, lambda a, u: jax.nn.silu(a) * u, lambda a, u: functional.silu(a) * u, ((4, 5), (4, 5)), 10
    ),
    "geglu": Row(
        ops.geglu,
        lambda a, u: jax.nn.gelu(a, approximate=False) * u, lambda a, u: functional.gelu(a) * u, ((4, 5), (4, 5)), 10,
    ),
    "silu": Row(ops.silu, jax.nn.silu, functional.silu, ((4, 5),), 8),
    "relu": Row(ops.relu, jax.nn.relu, torch.relu, ((4, 5),), 2),
    "relu_squared": Row(
        ops.relu_squared, lambda x: jax.nn.relu(x) ** 2, lambda x: torch.relu(x) ** 2, ((4, 5),), 3
    ),
    "kl_div": Row(
        ops.kl_div, kl,
        lambda a, b: functional.kl_div(b.log_softmax(-1), a.log_softmax(-1), reduction="none", log_target=True).sum(-1),
        ((4, 5), (4, 5)), 10,
    ),
    "jsd": Row(functools.partial(ops.jsd, beta=0.3), jsd, jsd_twin, ((4, 5), (4, 5)), 10),
    "dropout": Row(
        lambda x: ops.dropout(x, jax.random.key(0), 0.25),
        lambda x: jnp.where(jax.random.bernoulli(jax.random.key(0), 0.75, x.shape), x / 0.75, 0), None, ((4, 5),), 1,
    ),
    "embedding with a padding row": Row(
        lambda table: ops.embedding(table, IDS, 1),
        lambda table: jnp.where(jnp.arange(3)[:, None] == 1, jax.lax.stop_gradient(table), table)[IDS],
        lambda table: functional.embedding(torch.tensor(IDS), table, padding_idx=1), ((3, 4),), 1,
    ),
    "l2_normalize": Row(ops.l2_normalize, l2_normalize, functional.normalize, ((4, 4),), 8),
    "conv, 1-D": Row(
        functools.partial(ops.conv, stride=2, dilation=3, padding=[(2, 1)]), conv_1d, conv_1d_twin,
        ((2, 9, 3), (3, 3, 4), (4,)), 10,
    ),
    "conv, 2-D with groups": Row(
        functools.partial(ops.conv, stride=(2, 1), groups=2, padding=[(1, 1), (0, 1)]), conv_2d, conv_2d_twin,
        ((2, 5, 4, 4), (3, 2, 2, 6)), 4,
    ),
    "gru": Row(own_gru, gru, gru_twin, ((4, 2, 3), (2, 3), (3, 9), (3, 9), (9,), (9,)), 120),
    "lstm": Row(own_lstm, lstm, lstm_twin, ((4, 2, 3), (2, 3), (2, 3), (3, 12), (3, 12), (12,)), 120),
}  # fmt: skip


def structs(row):
    return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in row.shapes]


@pytest.mark.parametrize("name", ROWS)
def test_it_is_right_and_so_are_its_second_derivatives(three_way, name):
    row = ROWS[name]
    three_way(
        row.op, *structs(row), reference=row.plain, torch_reference=row.twin,
        dtypes=("float64",), transforms=("jit", "grad_of_grad"), seeds=(0,), name=name,
    )  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_it_is_right_in(three_way, name, dtype):
    row = ROWS[name]
    three_way(
        row.op, *structs(row), reference=row.plain, torch_reference=row.twin if dtype == "float32" else None,
        dtypes=(dtype,), transforms=("jit",), seeds=(0,), name=name,
    )  # fmt: skip


SEQUENCES = "gru", "lstm"


# In float64, in which noise is measured, dropout draws another mask.
@pytest.mark.parametrize("name", [name for name in ROWS if name not in (*SEQUENCES, "dropout")])
def test_every_mistake_in_its_backward_is_noticed(killed, name):
    row = ROWS[name]
    score = killed(row.op, row.plain, *row.shapes)
    assert len(score.killed) >= row.mutants
    assert score.survived == ()


@pytest.mark.parametrize("name", SEQUENCES)
def test_every_mistake_in_the_backward_of_two_chunks_is_noticed(killed, name, monkeypatch):
    # In a single chunk the sums over chunks have one term, and the mutants that drop the others are equivalent.
    monkeypatch.setattr(_sequences, "ROWS", 4)
    row = ROWS[name]
    # The forward pass, which all mutants share, is compiled once; and not the one of another test's chunks.
    score = killed(jax.jit(lambda *args: row.op(*args)), row.plain, *row.shapes)
    assert len(score.killed) >= row.mutants
    assert (score.survived, score.equivalent) == ((), ())


def test_dropout_draws_the_same_mask_in_both_passes():
    x, key = jax.random.normal(jax.random.key(0), (1000,)), jax.random.key(1)
    y, pullback = jax.vjp(lambda x: ops.dropout(x, key, 0.25), x)
    kept = y != 0
    assert 0.7 < kept.mean() < 0.8
    assert np.allclose(y, jnp.where(kept, x / 0.75, 0))
    assert np.array_equal(pullback(jnp.ones_like(x))[0], jnp.where(kept, jnp.float32(1 / 0.75), 0))


def test_every_mistake_in_the_backward_of_dropout_is_noticed():
    x, dy = jax.random.normal(jax.random.key(2), (2, 4, 5))
    op = ROWS["dropout"].op
    expected = jnp.where(op(jnp.ones_like(x)) != 0, dy / 0.75, 0)
    score = mutation_score(op, lambda wrong: np.testing.assert_allclose(jax.vjp(wrong, x)[1](dy)[0], expected), x)
    assert score.killed and score.survived == ()


def test_dropout_keeps_no_mask():
    kept = jax.eval_shape(lambda x, key: ops.dropout_fwd(x, key, 0.5)[1], jnp.ones(1000), jax.random.key(0))
    assert kept.shape == ()
    with pytest.raises(JaxgradError, match="below 1"):
        ops.dropout(jnp.ones(3), jax.random.key(0), 1.0)


def test_the_approximate_geglu_is_the_approximate_gelu_of_its_gate():
    gate, up = jax.random.normal(jax.random.key(0), (2, 4, 5))

    def pull(fn):
        y, pullback = jax.vjp(fn, gate, up)
        return y, *pullback(jnp.ones_like(y))

    expected = pull(lambda gate, up: jax.nn.gelu(gate) * up)
    for e, a in zip(expected, pull(lambda gate, up: ops.geglu(gate, up, True)), strict=True):
        assert np.allclose(e, a, atol=1e-6)


def test_a_padding_row_has_no_cotangent():
    table, ids = jnp.ones((3, 2)), jnp.array([0, 1, 1, 2])
    dtable = jax.grad(lambda table: ops.embedding(table, ids, 1).sum())(table)
    assert dtable.tolist() == [[1, 1], [0, 0], [1, 1]]


def test_rows_of_zeros_have_finite_cotangents():
    zeros = jnp.zeros((2, 3))
    for op in (lambda x: ops.rms_norm(x, jnp.ones(3)), lambda x: ops.l2_normalize(x, 1e-3)):
        y, pullback = jax.vjp(op, zeros)
        assert not y.any() and np.isfinite(pullback(jnp.ones_like(y))[0]).all()


def test_logsumexp_of_nothing_is_minus_infinity_and_passes_no_cotangent():
    x = jnp.array([[-jnp.inf, -jnp.inf], [0.0, -jnp.inf]])
    y, pullback = jax.vjp(ops.logsumexp, x)
    assert y.tolist() == [-jnp.inf, 0.0]
    assert pullback(jnp.ones(2))[0].tolist() == [[0, 0], [1, 0]]


def test_tables_of_rope_turn_by_position_and_a_product_of_two_sees_their_distance():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 8))
    products = []
    for start in (0, 100):
        cos, sin = rope_tables(jnp.array([start, start + 5]), 8)
        turned = [ops.rope(x[None], cos[at : at + 1], sin[at : at + 1]) for x, at in ((q, 0), (k, 1))]
        products.append(float((turned[0] * turned[1]).sum()))
    assert np.isclose(*products, rtol=1e-4)


@pytest.mark.parametrize(("stride", "size"), [(1, 7), (2, 4), (3, 3)])
def test_same_padding_has_as_many_places_as_the_stride_leaves(stride, size):
    assert ops.conv(jnp.ones((1, 7, 1)), jnp.ones((4, 1, 1)), stride=stride).shape == (1, size, 1)


@pytest.mark.parametrize(
    "call",
    [
        lambda: ops.conv(jnp.ones((1, 7, 3)), jnp.ones((4, 2, 1))),
        lambda: ops.conv(jnp.ones((1, 7, 1)), jnp.ones((4, 1, 1)), stride=(1, 2)),
        lambda: ops.group_norm(jnp.ones((1, 3)), jnp.ones(3), jnp.ones(3), 2),
        lambda: ops.rope(jnp.ones((1, 2, 1, 2)), jnp.ones((2, 2)), jnp.ones((2, 2))),
        lambda: ops.jsd(jnp.ones((1, 3)), jnp.ones((1, 3)), 1.0),
        lambda: ops.batch_norm_running(*map(jnp.ones, ((1, 2), (2,), (2,), (2,), (2,)))),
    ],
)
def test_what_does_not_fit_is_refused(call):
    with pytest.raises(JaxgradError):
        call()


@pytest.mark.parametrize("name", ROWS)
def test_mapped_scanned_and_computed_again_it_is_the_same(name):
    op, shapes = ROWS[name].op, ROWS[name].shapes
    x, *rest = (jax.random.normal(jax.random.key(n), shape) for n, shape in enumerate(shapes))
    xs = jnp.stack((x, x + 1))

    def pull(op, x):
        y, pullback = jax.vjp(op, x, *rest)
        return y, pullback(jax.tree.map(jnp.ones_like, y))

    # One program, because most of the time is that of compiling.
    @jax.jit
    def all_ways(xs):
        own, again = functools.partial(pull, op), functools.partial(pull, jax.checkpoint(op))
        one_by_one = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(own, xs))
        return one_by_one, jax.vmap(own)(xs), jax.lax.scan(lambda _, x: (None, again(x)), None, xs)[1]

    expected, *others = all_ways(xs)
    for other in others:
        for e, a in zip(*map(jax.tree.leaves, (expected, other)), strict=True):
            # Compiled otherwise, sums are in another order.
            assert np.allclose(e, a, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [11, 64])
def test_sequences_in_chunks_are_the_sequence(steps, monkeypatch):
    # Chunks of one step, and of eight.
    monkeypatch.setattr(_sequences, "ROWS", 16)
    shapes = ((steps, 2, 3), (2, 4), (3, 12), (4, 12), (12,), (12,))
    args = [jax.random.normal(jax.random.key(n), shape) for n, shape in enumerate(shapes)]

    def cotangents(fn):
        return jax.jit(jax.grad(lambda *args: (fn(*args) ** 2).sum(), tuple(range(6))))(*args)

    for expected, actual in zip(cotangents(gru), cotangents(own_gru), strict=True):
        assert np.allclose(expected, actual, rtol=1e-4, atol=1e-4)
