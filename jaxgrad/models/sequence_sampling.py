"""How a symbol is drawn from logits."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxgrad.errors import JaxgradError
from jaxgrad.ops.precision import widen


def checked_draw(
    prompts: Int[Array, "b n"], count: int, temperature: float | Float[Array, ""], top_k: int | None
) -> None:
    """Raise `JaxgradError` for an empty prompt, no count, a temperature below 0, or a `top_k` below 1."""
    if prompts.shape[1] < 1 or count < 1:
        raise JaxgradError(f"{prompts.shape[1]} symbols of prompt and {count} to draw; give at least one of each")
    cold = isinstance(temperature, int | float) and temperature < 0
    if cold or (top_k is not None and top_k < 1):
        raise JaxgradError(f"temperature is {temperature} and top_k {top_k}; give at least 0 and 1")


def draw(
    key: PRNGKeyArray,
    logits: Float[Array, "b vocab"],
    temperature: float | Float[Array, ""] = 1.0,
    top_k: int | None = None,
) -> Int[Array, " b"]:
    """A symbol for each row of logits; temperature 0 takes the likeliest, `top_k` leaves so many."""
    if top_k is not None and top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    if isinstance(temperature, int | float) and temperature == 0:
        return logits.argmax(-1).astype(jnp.int32)
    wide = widen(logits)
    return jax.random.categorical(key, wide / jnp.asarray(temperature, wide.dtype)).astype(jnp.int32)


def from_prompt(
    draw_more: Callable[[Int[Array, "b n"], int], Int[Array, "b count"]],
    n_words: int,
    longest: int,
    prompt: tuple[int, ...],
) -> Int[Array, "n_words longest"]:
    """Symbols of words that all begin with `prompt`, 0 after the end of each.

    `draw_more(prompts, count)` draws what follows the boundary and the prompt.
    """
    before = jnp.broadcast_to(jnp.asarray((0, *prompt), jnp.int32), (n_words, len(prompt) + 1))
    count = longest - len(prompt)
    words = before[:, 1:] if count < 1 else jnp.concatenate((before[:, 1:], draw_more(before, count)), 1)
    # Until a word's first boundary no symbol is 0.
    inside = jnp.cumprod(words[:, :longest] != 0, axis=1)
    return words[:, :longest] * inside.astype(jnp.int32)


def words_by(sample: Callable[..., Int[Array, "b count"]]) -> Callable[..., Int[Array, "n_words longest"]]:
    """What the record of a model of sequences has for `sample`, compiled: words that begin with a prompt.

    `sample(params, key, prompts, count, sizes, temperature, top_k)` draws `count` symbols after each prompt.
    """

    @functools.partial(jax.jit, static_argnames=("sizes", "n_words", "longest", "top_k", "prompt"))
    def words(
        params: Any,
        extra: tuple[()],
        sizes: Any,
        key: PRNGKeyArray,
        n_words: int,
        longest: int,
        temperature: Float[Array, ""],
        top_k: int | None = None,
        prompt: tuple[int, ...] = (),
    ) -> Int[Array, "n_words longest"]:
        def draw_more(prompts: Int[Array, "b n"], count: int) -> Int[Array, "b count"]:
            return sample(params, key, prompts, count, sizes, temperature, top_k)

        return from_prompt(draw_more, n_words, longest, prompt)

    return words
