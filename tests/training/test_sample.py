"""Words are drawn reproducibly, from the vocabulary alone, and end."""

import functools

import jax
import jax.numpy as jnp
import pytest

from jaxgrad.errors import JaxgradError
from jaxgrad.models.mlp.forward import Params, Statistics, init, predict
from jaxgrad.models.mlp.record import MODEL
from jaxgrad.training.sample import LONGEST, sample

VOCABULARY = (".", "a", "b", "ß")


# Not at import: every worker imports this file, and one runs it.
@functools.cache
def fresh() -> Params:
    return init(jax.random.key(0), 4, h_size=8)


@functools.cache
def statistics() -> Statistics:
    return Statistics(jnp.zeros((1, 8)), jnp.ones((1, 8)))


def draw(seed: int = 0, n: int = 50, temperature: float = 1.0, params: Params | None = None) -> list[str]:
    params, key = params or fresh(), jax.random.key(seed)
    return sample(MODEL, MODEL.sizes(hidden=8), params, statistics(), VOCABULARY, key, n, temperature)


def test_the_same_key_draws_the_same_words_and_another_key_others():
    assert draw(0) == draw(0)
    assert draw(0) != draw(1)


def test_words_are_spelled_with_the_vocabulary_and_without_the_boundary():
    words = draw(n=200)
    assert len(words) == 200 and set("".join(words)) == set("abß")


def test_a_word_that_never_ends_is_cut():
    never = fresh()._replace(W2=jnp.zeros_like(fresh().W2), b2=jnp.array([-1e9, 0.0, 0.0, 0.0]))
    assert {len(word) for word in draw(params=never)} == {LONGEST}


def likeliest_word(params: Params) -> str:
    """The word of the largest logit at every character, by hand."""
    word, context = "", [0, 0, 0]
    while len(word) < LONGEST:
        symbol = int(predict(params, statistics(), jnp.array([context])).argmax())
        if symbol == 0:
            break
        word, context = word + VOCABULARY[symbol], [*context[1:], symbol]
    return word


def test_a_low_temperature_draws_the_likeliest_word_only():
    # A boundary that is unlikely at first makes a word of several characters, so that contexts matter.
    params = fresh()._replace(b2=fresh().b2.at[0].add(-0.5))
    word = likeliest_word(params)
    assert len(word) > 1
    assert set(draw(temperature=1e-6, params=params)) == {word} and len(set(draw(params=params))) > 1


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_a_temperature_must_be_above_zero(temperature: float):
    with pytest.raises(JaxgradError, match=r"temperature is .*; it must be a finite number above 0"):
        draw(temperature=temperature)


def test_no_words_cannot_be_asked_for():
    with pytest.raises(JaxgradError, match="asked for 0 words"):
        draw(n=0)
