"""Attention in blocks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxgrad import jax_seam
from jaxgrad.errors import JaxgradError
from jaxgrad.ops import attention


def plain(q, k, v, bias=None, segments=None, key_segments=None, key_mask=None, *, causal=False, window=None, cap=None):
    """Attention over an array of all scores."""
    k, v = (jnp.repeat(array, q.shape[2] // k.shape[2], 2) for array in (k, v))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    scores = scores if cap is None else cap * jnp.tanh(scores / cap)
    scores = scores if bias is None else scores + bias
    ahead = np.arange(k.shape[1])[None] - np.arange(q.shape[1])[:, None]
    seen = jnp.ones((q.shape[0], 1, *ahead.shape), bool)
    seen = seen & (ahead <= 0) if causal else seen
    seen = seen if window is None else seen & (ahead >= -window[0]) & (ahead <= window[1])
    if segments is not None:
        seen = seen & (segments[:, None, :, None] == key_segments[:, None, None])
    seen = seen if key_mask is None else seen & key_mask[:, None, None]
    # A query without a key has weights of 0.
    scores = jnp.where(seen, scores, -jnp.inf)
    largest = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    exps = jnp.exp(scores - jnp.where(largest == -jnp.inf, 0, largest))
    total = exps.sum(-1, keepdims=True)
    return jnp.einsum("bhqk,bkhd->bqhd", exps / jnp.where(total == 0, 1, total), v)


def twin(q, k, v):
    heads_first = (array.transpose(1, 2) for array in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(*heads_first, is_causal=True, enable_gqa=True).transpose(
        1, 2
    )


def structs(b, s, t, h, g, d, *bias):
    shapes = [(b, s, h, d), (b, t, g, d), (b, t, g, d), *bias]
    return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]


def test_causal_with_shared_heads_in_every_type_and_use(three_way):
    fn, args = functools.partial(attention, causal=True, block=3), structs(1, 7, 7, 4, 2, 3)
    oracles = {"reference": functools.partial(plain, causal=True), "torch_reference": twin}
    three_way(fn, *args, **oracles, dtypes=("float64",), seeds=(0,))
    three_way(
        fn, *args, **oracles, dtypes=("float32", "bfloat16", "float16"), transforms=("jit",), seeds=(0,)
    )  # fmt: skip


SEGMENTS = np.array([[0, 0, 1, 1, 1, 2, 2], [3, 0, 0, 0, 1, 1, 1]], np.int32)
KEY_MASK = np.array([[1, 0, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0, 0]], bool)
# Of bias the shape, then segments, keys' segments and mask, and options. No block divides a length.
KINDS = {
    "bias and cap": ((2, 4, 7, 7), (None,) * 3, {"cap": 2.0}),
    "window, bias of a row": ((1, 1, 1, 7), (None,) * 3, {"window": (2, 1)}),
    "segments, bias of a column": ((1, 4, 7, 1), (SEGMENTS, SEGMENTS, None), {"causal": True}),
    "queries without a key": ((1, 1, 7, 7), (SEGMENTS, SEGMENTS, KEY_MASK), {"window": (2, 0), "cap": 2.0}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(three_way, kind):
    bias, (segments, key_segments, mask), options = KINDS[kind]
    own = {"soft_cap" if name == "cap" else name: value for name, value in options.items()}
    three_way(
        lambda q, k, v, bias: attention(q, k, v, bias, segments, key_segments, mask, **own, block=3),
        *structs(2, 7, 7, 4, 2, 3, bias),
        reference=lambda q, k, v, bias: plain(q, k, v, bias, segments, key_segments, mask, **options),
        dtypes=("float64",),
        transforms=("jit", "grad_of_grad") if kind == "queries without a key" else ("jit",),
        seeds=(0,),
    )


def test_a_query_without_a_key_gives_zero_and_passes_no_cotangent():
    q, k, v = (jax.random.normal(jax.random.key(n), (1, 4, 1, 2)) for n in range(3))
    mask = jnp.array([[False, True, True, True]])
    y, pullback = jax.vjp(lambda q: attention(q, k, v, key_mask=mask, causal=True, block=2), q)
    assert not y[0, 0].any() and y[0, 1:].all()
    assert not pullback(y + 1)[0][0, 0].any()


@pytest.mark.parametrize(("s", "t"), [(5, 11), (11, 5), (1, 9)])
def test_queries_and_keys_of_different_lengths(s, t):
    args = [jax.random.normal(jax.random.key(n), (1, length, 2, 3)) for n, length in enumerate((s, t, t))]
    assert np.allclose(attention(*args, causal=True, block=4), plain(*args, causal=True), atol=1e-6)


def largest(fn, *args):
    def inside(program):
        inner = (inside(held) for eqn in program.eqns for held in jax_seam.inner(eqn))
        return max([*inner, *(var.aval.size for eqn in program.eqns for var in eqn.outvars)])

    return inside(jax.make_jaxpr(jax.grad(lambda *args: fn(*args).sum(), argnums=(0, 1, 2)))(*args).jaxpr)


def test_no_array_has_the_size_of_the_scores():
    args = [jnp.ones((1, 512, 1, 4))] * 3
    assert largest(functools.partial(attention, causal=True, block=16), *args) <= 512 * 4
    assert largest(functools.partial(plain, causal=True), *args) == 512 * 512


def test_its_memory_grows_as_the_sequence_does():
    def temporary(length):
        args = [jax.ShapeDtypeStruct((1, length, 4, 64), jnp.float32)] * 4
        program = jax.jit(lambda dy, *args: jax.vjp(functools.partial(attention, causal=True), *args)[1](dy))
        return program.lower(*args).compile().memory_analysis().temp_size_in_bytes

    assert temporary(32_768) < 4.2 * temporary(8192)


def test_blocks_that_cannot_see_one_another_are_not_in_the_program():
    def steps(**options):
        args = [jnp.ones((1, 64, 1, 4))] * 3
        eqns = jax.make_jaxpr(functools.partial(attention, block=8, **options))(*args).jaxpr.eqns
        return sum(
            jax_seam.scan(e).length for p in map(jax_seam.called, eqns) if p for e in p.jaxpr.eqns if jax_seam.scan(e)
        )

    assert steps() == 64
    assert steps(causal=True) == 36
    assert steps(window=(8, 0)) == 8 + 7


@pytest.mark.parametrize(
    ("shapes", "options", "told"),
    [
        (((1, 2, 3, 4), (1, 2, 2, 4), (1, 2, 2, 4)), {}, "3 heads of queries cannot share 2"),
        (((1, 2, 2, 4), (1, 2, 2, 3), (1, 2, 2, 4)), {}, r"\(b, t, g, d\)"),
        (((1, 2, 2, 4), (1, 2, 2, 4), (1, 2, 2, 4), (1, 2, 3, 2)), {}, "bias has shape"),
        (((1, 2, 2, 4), (1, 2, 2, 4), (1, 2, 2, 4)), {"soft_cap": -1.0}, "above 0"),
        (((1, 2, 2, 4), (1, 2, 2, 4), (1, 2, 2, 4)), {"block": 0}, "at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(shapes, options, told):
    with pytest.raises(JaxgradError, match=told):
        attention(*map(jnp.zeros, shapes), **options)


def test_every_mistake_in_the_backward_is_noticed(killed):
    def fn(q, k, v, bias):
        return attention(q, k, v, bias, soft_cap=2.0, window=(3, 0))

    shape = (1, 3, 1, 3)
    score = killed(fn, functools.partial(plain, cap=2.0, window=(3, 0)), shape, shape, shape, (1, 1, 3, 3))
    assert len(score.killed) > 40
    assert score.survived == ()
