"""New words, a character at a time."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from jaxgrad import memory
from jaxgrad.errors import JaxgradError
from jaxgrad.models.model import Model
from jaxgrad.training.initial import vocabulary_size

LONGEST = 64


def sample(
    model: Model,
    sizes: Any,
    params: Any,
    statistics: Any,
    vocabulary: tuple[str, ...],
    key: PRNGKeyArray,
    n_words: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    prompt: str = "",
    longest: int = LONGEST,
) -> list[str]:
    """`n_words` words drawn from a model, each until its boundary or `longest` characters, its prompt's counted too.

    The same key gives the same words. Raises `JaxgradError` for a temperature that is not above 0, for fewer than one
    word, and for a prompt that is too long or has a character that the vocabulary has not.

    Args:
        model: the record of the model.
        sizes: the model's sizes.
        params: its parameters.
        statistics: what its predictions take beside them, as the model's `finish` gives it.
        vocabulary: the character of each symbol; the first is the boundary.
        key: draws.
        n_words: how many.
        temperature: logits are divided by it: below 1 likelier words, above 1 wilder ones.
        top_k: draw from so many of the likeliest characters only.
        prompt: what every word begins with.
        longest: characters of a word at most.

    Example:
        ```python
        import jax

        from jaxgrad import models
        from jaxgrad.training.sample import sample

        model = models.record("mlp")
        sizes = model.sizes(hidden=4)
        params = model.init(jax.random.key(0), sizes, 3)
        words = sample(model, sizes, params, model.extra(params, sizes), (".", "a", "b"), jax.random.key(1), 2)
        assert len(words) == 2
        ```
    """
    _check_draw(n_words, temperature, top_k, longest, len(vocabulary))
    drawn = model.sample(
        params, statistics, sizes, key, n_words, longest, jnp.asarray(temperature, jax.tree.leaves(params)[0].dtype),
        top_k, _symbols(prompt, vocabulary, longest),
    )  # fmt: skip
    return ["".join(vocabulary[symbol] for symbol in row if symbol) for row in drawn.tolist()]


def sample_symbols(
    model: Model,
    sizes: Any,
    params: Any,
    key: PRNGKeyArray,
    prompt: list[int],
    n_samples: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    longest: int = LONGEST,
) -> list[list[int]]:
    """`n_samples` sequences of `longest` symbols that begin with `prompt`, of a model whose symbols have no characters.

    Nothing ends a sequence. Raises `JaxgradError` as `sample` does, for an empty prompt, and for a symbol that the
    parameters have no embedding of.
    """
    symbols = vocabulary_size(model, params)
    _check_draw(n_samples, temperature, top_k, longest, symbols)
    if not prompt or len(prompt) >= longest:
        raise JaxgradError(f"the prompt has {len(prompt)} symbols; give at least one, and fewer than {longest}")
    for symbol in prompt:
        if not 0 <= symbol < symbols:
            raise JaxgradError(f"the prompt has the symbol {symbol}; the checkpoint has 0 to {symbols - 1:,}")
    assert model.checkpoints is not None  # they were read from one
    prompts = jnp.tile(jnp.asarray(prompt, jnp.int32), (n_samples, 1))
    wide = jnp.asarray(temperature, jax.tree.leaves(params)[0].dtype)
    drawn = model.checkpoints.draw(params, key, prompts, longest - len(prompt), sizes, wide, top_k)
    return [[*prompt, *row] for row in drawn.tolist()]


def _check_draw(n_samples: int, temperature: float, top_k: int | None, longest: int, symbols: int) -> None:
    if not (0 < temperature < float("inf")):
        raise JaxgradError(f"temperature is {temperature}; it must be a finite number above 0")
    if n_samples < 1:
        raise JaxgradError(f"asked for {n_samples} words; ask for at least 1")
    if top_k is not None and not 1 <= top_k <= symbols:
        raise JaxgradError(f"top-k is {top_k}; it must be from 1 to {symbols}, the vocabulary")
    if longest < 1:
        raise JaxgradError(f"asked for words of {longest} characters; ask for at least 1")
    memory.check(4 * longest * n_samples, f"{n_samples} words of up to {longest} characters")


def _symbols(prompt: str, vocabulary: tuple[str, ...], longest: int) -> tuple[int, ...]:
    if len(prompt) >= longest:
        raise JaxgradError(f"the prompt has {len(prompt)} characters; a word has at most {longest}")
    for character in prompt:
        if character not in vocabulary[1:]:
            raise JaxgradError(f"the prompt has {character!r}, which is no character of the run's corpus")
    return tuple(map(vocabulary.index, prompt))
