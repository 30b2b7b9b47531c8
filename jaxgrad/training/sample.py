"""New words, a character at a time."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxgrad import memory
from jaxgrad.errors import JaxgradError
from jaxgrad.models.mlp.forward import Params, Statistics, predict

LONGEST = 64


def sample(
    params: Params,
    statistics: Statistics,
    vocabulary: tuple[str, ...],
    key: PRNGKeyArray,
    n_words: int,
    temperature: float = 1.0,
) -> list[str]:
    """`n_words` words drawn from the model, each until its boundary or `LONGEST` characters.

    Logits are divided by `temperature`: below 1 likelier words, above 1 wilder ones. The same key gives the same
    words. Raises `JaxgradError` for a temperature that is not above 0 or for fewer than one word.
    """
    if not (0 < temperature < float("inf")):
        raise JaxgradError(f"temperature is {temperature}; it must be a finite number above 0")
    if n_words < 1:
        raise JaxgradError(f"asked for {n_words} words; ask for at least 1")
    memory.check(4 * LONGEST * n_words, f"{n_words} words of up to {LONGEST} characters")
    drawn = _draw(params, statistics, key, jnp.asarray(temperature, params.W2.dtype), n_words)
    return ["".join(vocabulary[symbol] for symbol in row if symbol) for row in drawn.tolist()]


@functools.partial(jax.jit, static_argnames=("n_words",))
def _draw(
    params: Params, statistics: Statistics, key: PRNGKeyArray, temperature: Float[Array, ""], n_words: int
) -> Int[Array, "n_words longest"]:
    n = params.W1.shape[0] // params.C.shape[1]

    def one_more(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        at, context, words = carry
        logits = predict(params, statistics, context)
        drawn = jax.random.categorical(jax.random.fold_in(key, at), logits / temperature).astype(jnp.int32)
        # Once a word has met its boundary it draws nothing but boundaries, which spell nothing.
        ended = (at > 0) & (words[:, at - 1] == 0)
        symbol = jnp.where(ended, 0, drawn)
        return at + 1, jnp.concatenate([context[:, 1:], symbol[:, None]], 1), words.at[:, at].set(symbol)

    def unfinished(carry: tuple[Array, Array, Array]) -> Array:
        at, _, words = carry
        return (at < LONGEST) & ((at == 0) | jnp.any(words[:, at - 1] != 0))

    start = (jnp.int32(0), jnp.zeros((n_words, n), jnp.int32), jnp.zeros((n_words, LONGEST), jnp.int32))
    return jax.lax.while_loop(unfinished, one_more, start)[2]
