"""Sampling with the cache of keys and values is sampling without it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.errors import JaxgradError
from jaxgrad.models.gpt.forward import forward
from jaxgrad.models.gpt.params import nowhere_zero
from jaxgrad.models.gpt.sample import empty_cache, extend, predict, sample
from jaxgrad.models.gpt.sizes import Sizes
from jaxgrad.models.sequence_sampling import draw
from jaxgrad.models.sequences import Batch

DRAWN = jax.jit(nowhere_zero, static_argnums=(1, 2, 3))
SIZES = {
    "positions": Sizes(layers=2, heads=2, width=8, block=6),
    "rope": Sizes(layers=2, heads=2, width=8, block=6, rope=True),
}
VOCAB = 7
jitted = jax.jit(sample, static_argnames=("count", "sizes", "temperature", "top_k"))


@pytest.fixture(params=list(SIZES))
def given(request):
    sizes = SIZES[request.param]
    with jax.enable_x64(True):
        params = DRAWN(jax.random.key(0), sizes, VOCAB, jnp.float64)
        yield sizes, params, jax.random.randint(jax.random.key(1), (3, 6), 0, VOCAB)


def test_logits_with_a_cache_are_those_without(given):
    sizes, params, X = given
    expected = forward(params, Batch(X, X), sizes)["logits"]
    np.testing.assert_allclose(predict(params, X, sizes), expected, rtol=0, atol=1e-13)
    cache, found = empty_cache(params, 3, sizes), []
    for part in (X[:, :3], X[:, 3:4], X[:, 4:5], X[:, 5:]):
        logits, cache = extend(params, cache, part, sizes)
        found.append(logits)
    np.testing.assert_allclose(jnp.concatenate(found, 1), expected, rtol=0, atol=1e-13)
    assert int(cache.length) == 6


def test_without_temperature_every_symbol_is_the_likeliest_after_those_before_it_in_its_block(given):
    sizes, params, X = given
    new = jitted(params, jax.random.key(0), X[:, :2], count=9, sizes=sizes, temperature=0.0)
    whole = jnp.concatenate((X[:, :2], new), 1)
    # 5 symbols fill the block and take one more; then a half block of 3 is the context of the next 4.
    starts = [0] * 5 + [4] * 4
    for place, start in zip(range(2, 11), starts, strict=True):
        logits = predict(params, whole[:, start:place], sizes)[:, -1]
        assert logits.argmax(-1).tolist() == whole[:, place].tolist(), place


def test_top_k_draws_the_likeliest_only_and_temperature_sharpens():
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))
    rows = jnp.repeat(logits, 4000, 0)
    plain, two, cold = (
        np.asarray(draw(jax.random.key(0), rows, t, k)) for t, k in ((1.0, None), (1.0, 2), (0.5, None))
    )
    # Shares of 4,000 draws have a deviation of at most 0.008: five of them.
    assert np.allclose(np.bincount(plain, minlength=4) / 4000, [0.5, 0.3, 0.15, 0.05], atol=0.04)
    assert np.allclose(np.bincount(two, minlength=4) / 4000, [0.625, 0.375, 0, 0], atol=0.04)
    squares = np.array([0.25, 0.09, 0.0225, 0.0025])
    assert np.allclose(np.bincount(cold, minlength=4) / 4000, squares / squares.sum(), atol=0.04)
    assert set(np.asarray(draw(jax.random.key(0), rows, 1.0, 9))) == {0, 1, 2, 3}, "more than there are symbols"


def test_a_prompt_longer_than_the_block_goes_on_from_its_end(given):
    sizes, params, X = given
    long = jnp.concatenate((X, X), 1)
    from_long, from_end = (
        jitted(params, jax.random.key(3), prompts, count=2, sizes=sizes) for prompts in (long, long[:, -3:])
    )
    assert from_long.tolist() == from_end.tolist()


def test_what_cannot_be_drawn_is_refused(given):
    sizes, params, X = given
    for arguments, words in (
        ((X[:, :0], 3), "at least one of each"),
        ((X, 0), "at least one of each"),
        ((X, 1, -1.0), "at least 0 and 1"),
        ((X, 1, 1.0, 0), "at least 0 and 1"),
    ):
        prompts, count, *options = arguments
        with pytest.raises(JaxgradError, match=words):
            sample(params, jax.random.key(0), prompts, count, sizes, *options)
