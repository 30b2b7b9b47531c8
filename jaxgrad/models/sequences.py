"""Words or a text -> sequences of symbols and the symbols that follow each. NumPy, on the host."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Int

from jaxgrad.errors import JaxgradError

# How models of sequences are trained by default: AdamW, gradients clipped, the rate warmed up over 1 in 40 steps from a
# hundredth of it and brought back there by a cosine.
RECIPE: Mapping[str, Any] = {
    "batch_size": 32,
    "learning_rate": 3e-3,
    "optimizer": "adamw",
    "optimizer_args": (("b2", 0.99), ("weight_decay", 0.1)),
    "schedule": "cosine_onecycle",
    "schedule_args": (("pct_start", 0.025), ("div_factor", 100.0), ("final_div_factor", 1.0)),
    "clip": 1.0,
}

# A target that counts neither in the loss nor in its mean.
IGNORED = -1


class Batch(NamedTuple):
    """`Y[i, j]` is the symbol after `X[i, : j + 1]`, or `IGNORED` where there is none."""

    X: Int[Array, "b t"]
    Y: Int[Array, "b t"]


def examples(words: Sequence[str] | str, vocabulary: Sequence[str], block: int) -> Batch:
    """Those of words, or of a text that is one stream, as `of_words` and `of_text` have them."""
    return of_text(words, vocabulary, block) if isinstance(words, str) else of_words(words, vocabulary, block)


def of_words(words: Sequence[str], vocabulary: Sequence[str], block: int) -> Batch:
    """A row for each word: the boundary and its symbols, with what follows each, the boundary after the last.

    Shorter rows are filled with the boundary, symbol 0, and ignored targets. A word of more than `block - 1` symbols
    goes on in further rows, each of which begins without what came before it.
    Raises `JaxgradError` for a character that is not in the vocabulary, and where there are no words.
    """
    symbol = {character: number for number, character in enumerate(vocabulary)}
    streams = ([0, *_symbols(word, symbol), 0] for word in words)
    return _rows((piece for stream in streams for piece in _pieces(stream, block)), block)


def of_text(text: str, vocabulary: Sequence[str], block: int) -> Batch:
    """Rows of `block` symbols, one after another, of one stream; only the last row may have ignored targets.

    Raises `JaxgradError` for a character that is not in the vocabulary, and for a text of fewer than two.
    """
    symbol = {character: number for number, character in enumerate(vocabulary)}
    return _rows(_pieces(_symbols(text, symbol), block), block)


def text_vocabulary(text: str) -> tuple[str, ...]:
    """The characters of a text in code-point order: those of a stream, which has no boundary."""
    return tuple(sorted(set(text)))


def _symbols(text: str, symbol: dict[str, int]) -> list[int]:
    try:
        return [symbol[character] for character in text]
    except KeyError as error:
        raise JaxgradError(
            f"character {error} is not in the vocabulary of {len(symbol)}; build it of all texts"
        ) from None


def _pieces(stream: Sequence[int], block: int) -> Iterable[Sequence[int]]:
    """At most `block + 1` symbols each; the last of a piece is the first of the next, as it is only a target here."""
    return (stream[first : first + block + 1] for first in range(0, len(stream) - 1, block))


def _rows(pieces: Iterable[Sequence[int]], block: int) -> Batch:
    rows = list(pieces)
    if not rows:
        raise JaxgradError("there is nothing to predict; give at least one word, or a text of two characters")
    X = np.zeros((len(rows), block), np.int32)
    Y = np.full((len(rows), block), IGNORED, np.int32)
    for number, row in enumerate(rows):
        X[number, : len(row) - 1], Y[number, : len(row) - 1] = row[:-1], row[1:]
    return Batch(X, Y)  # type: ignore[arg-type]  # on the host until they are used
