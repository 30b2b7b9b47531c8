"""New words, a character at a time."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxgrad.models.mlp.forward import Params, Statistics, predict
from jaxgrad.models.mlp.sizes import Sizes
from jaxgrad.models.sequence_sampling import draw


@functools.partial(jax.jit, static_argnames=("sizes", "n_words", "longest", "top_k", "prompt"))
def sample(
    params: Params,
    statistics: Statistics,
    sizes: Sizes,
    key: PRNGKeyArray,
    n_words: int,
    longest: int,
    temperature: Float[Array, ""],
    top_k: int | None = None,
    prompt: tuple[int, ...] = (),
) -> Int[Array, "n_words longest"]:
    """Symbols of words drawn from the model, each until its boundary; symbol 0 from there on.

    Args:
        params: the model's.
        statistics: with which its logits depend on no batch.
        sizes: the model's.
        key: draws; the same key gives the same words.
        n_words: how many.
        longest: characters of a word at most, its prompt's counted too.
        temperature: logits are divided by it.
        top_k: draw from so many of the likeliest symbols only.
        prompt: symbols that every word begins with.
    """

    def one_more(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        at, context, words = carry
        logits = predict(params, statistics, context)
        drawn = draw(jax.random.fold_in(key, at), logits, temperature, top_k)
        # Once a word has met its boundary it draws nothing but boundaries, which spell nothing.
        ended = (at > 0) & (words[:, at - 1] == 0)
        symbol = jnp.where(ended, 0, drawn)
        return at + 1, jnp.concatenate([context[:, 1:], symbol[:, None]], 1), words.at[:, at].set(symbol)

    def unfinished(carry: tuple[Array, Array, Array]) -> Array:
        at, _, words = carry
        return (at < longest) & ((at == 0) | jnp.any(words[:, at - 1] != 0))

    first = jnp.asarray((0,) * sizes.context + prompt, jnp.int32)[-sizes.context :]
    words = jnp.zeros((n_words, longest), jnp.int32).at[:, : len(prompt)].set(jnp.asarray(prompt, jnp.int32))
    start = (jnp.int32(len(prompt)), jnp.broadcast_to(first, (n_words, sizes.context)), words)
    return jax.lax.while_loop(unfinished, one_more, start)[2]
