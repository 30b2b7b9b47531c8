"""Text file -> words -> vocabulary -> contexts X and targets Y -> train, dev and test splits. NumPy, on the host."""

import hashlib
import http.client
import os
import random
import re
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt

from jaxgrad import files, memory
from jaxgrad.errors import JaxgradError

BOUNDARY = "."
# What a stream of text begins with, as symbol 0; no text has it.
START = "\0"

# Format characters such as the zero-width joiner are letters of some scripts; control characters are of none.
_NOT_IN_A_WORD = re.compile(r"[\s\x00-\x1f\x7f-\x9f]")

SEED_CORPUS_URL = "https://raw.githubusercontent.com/karpathy/makemore/master/names.txt"
SEED_CORPUS_SHA256 = "0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d"


# Examples are counted in 31 bits. As text, words and symbols a character takes about so many bytes at once.
LARGEST = 2**31
BYTES_PER_CHARACTER = 16


class CorpusError(JaxgradError):
    """A corpus that cannot be used; the message names the file, the line and what to do."""


class Split(NamedTuple):
    """Examples of one split: `X[i]` is the context that precedes the symbol `Y[i]`."""

    X: UInt[np.ndarray, "examples n"]
    Y: UInt[np.ndarray, " examples"]


class Corpus(NamedTuple):
    """The three splits of a corpus and its vocabulary; `vocabulary[i]` is the character of symbol `i`.

    A split has examples in rows: the arrays X and Y of a `Split`, or those that a model makes of its words.
    """

    vocabulary: tuple[str, ...]
    train: Any
    dev: Any
    test: Any


def shipped(name: str) -> Path:
    """Path of a file that comes with the project: inside the installed package, or in a checkout's `data/`.

    Raises `FileNotFoundError` where neither has it.
    """
    package = Path(__file__).parent
    for folder in (package / "data", package.parent / "data"):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{name} is missing from the jaxgrad installation ({package}): install jaxgrad again")


def read_words(path: str | os.PathLike[str]) -> list[str]:
    """The words of a UTF-8 file of one word a line, in file order.

    Blank lines, CRLF line ends, a byte-order mark, white space around a word and a missing last newline are
    accepted. Raises `CorpusError` for a file that is missing, unreadable or empty, for invalid UTF-8, and for a
    word that contains the boundary `.`, white space or a control character.
    """
    text = _decoded(path)
    lines = [line.strip() for line in text.split("\n")]
    words = [line for line in lines if line]
    joined = "".join(words)
    if BOUNDARY in joined or _NOT_IN_A_WORD.search(joined):
        raise _bad_word(path, lines)
    if not words:
        raise CorpusError(f"{path}: contains no words; give a text file of one word a line")
    return words


def read_text(path: str | os.PathLike[str]) -> str:
    """A UTF-8 file as one stream of characters, each line ended by a line feed, without a byte-order mark.

    Raises `CorpusError` for a file that is missing, unreadable or empty, for invalid UTF-8, and for a NUL character.
    """
    text = _decoded(path).replace("\r\n", "\n")
    if not text:
        raise CorpusError(f"{path}: is empty; give a text file")
    if START in text:
        raise CorpusError(f"{path}: has a NUL character, so it is no text; give a text file")
    return text


def _decoded(path: str | os.PathLike[str]) -> str:
    data = _bytes(Path(path))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise CorpusError(
            f"{path}, line {line}: not valid UTF-8 (byte 0x{data[error.start]:02x}); save the file as UTF-8"
        ) from None


def _bytes(path: Path) -> bytes:
    try:
        return files.read_bytes(path, min(LARGEST, memory.total() // BYTES_PER_CHARACTER))
    except FileNotFoundError:
        raise CorpusError(f"{path}: no such file; give a text file of one word a line") from None
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror}); give a text file of one word a line") from None
    # A subclass of the next error, with a sentence of its own.
    except JaxgradError as error:
        raise CorpusError(str(error)) from None
    except ValueError as error:
        raise CorpusError(f"{str(path)!r} is not the name of a file ({error}); give a text file") from None


def _bad_word(path: str | os.PathLike[str], lines: list[str]) -> CorpusError:
    """The error that names the first line whose word is none."""
    for number, word in enumerate(lines, start=1):
        if BOUNDARY in word:
            return CorpusError(
                f"{path}, line {number}: {word[:40]!r} contains {BOUNDARY!r}, which marks the ends of words; remove it"
            )
        if _NOT_IN_A_WORD.search(word):
            break
    return CorpusError(
        f"{path}, line {number}: {word[:40]!r} contains white space or a control character; put one word on a line"
    )


def build_vocabulary(words: list[str]) -> tuple[str, ...]:
    """The boundary, as symbol 0, then the characters of `words` in code-point order."""
    return (BOUNDARY, *sorted(set("".join(words))))


def build_dataset(words: list[str], vocabulary: tuple[str, ...], n: int = 3) -> Split:
    """Every position of every word, and of the boundary after it, with the `n` symbols before it.

    A context that reaches back over the start of its word is filled with the boundary. Words are encoded with
    the smallest unsigned integer type that holds the vocabulary. Raises `ValueError` if `n < 1` or if a
    character is not in `vocabulary`, and `JaxgradError` if the contexts would not fit in memory.
    """
    if n < 1:
        raise ValueError(f"context length is {n}; it must be at least 1")
    text = "".join(word + BOUNDARY for word in words)
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    # The boundary comes first whatever its code point, so only the characters after it are in sorted order.
    alphabet = np.frombuffer("".join(vocabulary[1:]).encode("utf-32-le"), dtype=np.uint32)
    symbols = np.searchsorted(alphabet, codes) + 1
    is_boundary = codes == ord(BOUNDARY)
    symbols[is_boundary] = 0
    known = np.append(alphabet, 0)[symbols - 1] == codes
    unknown = ~(known | is_boundary)
    if unknown.any():
        raise ValueError(f"character {text[int(unknown.argmax())]!r} is not in the vocabulary {''.join(vocabulary)!r}")
    Y = symbols.astype(np.min_scalar_type(len(vocabulary) - 1))

    memory.check(len(Y) * n * Y.itemsize, f"a context of {n} characters for each of {len(Y)} examples")
    X = np.zeros((len(Y), n), dtype=Y.dtype)
    # Whether the symbols between, and so the context that far back, are of the same word.
    inside = np.ones(len(Y), dtype=bool)
    for back in range(1, min(n, len(Y) - 1) + 1):
        inside[back:] &= ~is_boundary[:-back]
        inside[:back] = False
        X[back:, n - back] = np.where(inside[back:], Y[:-back], 0)
    return Split(X, Y)


def shuffle_and_split(words: list[str], seed: int = 42) -> tuple[list[str], list[str], list[str]]:
    """Words shuffled as `random.seed(seed); random.shuffle(words)` does, cut at 80 % and 90 %.

    Raises `ValueError` if one of the three parts would be empty, as they are for fewer than 6 words.
    """
    shuffled = list(words)
    random.Random(seed).shuffle(shuffled)
    dev, test = int(len(words) * 0.8), int(len(words) * 0.9)
    parts = shuffled[:dev], shuffled[dev:test], shuffled[test:]
    if not all(parts):
        sizes = ", ".join(str(len(part)) for part in parts)
        raise ValueError(f"{len(words)} words split into {sizes} for train, dev and test; give at least 6 words")
    return parts


def load(path: str | os.PathLike[str] | None = None, n: int = 3, seed: int = 42) -> Corpus:
    """Read a corpus and split it as the notebook does; without a path, the corpus that comes with jaxgrad.

    Raises `CorpusError`, which names the file, for everything `read_words` and `shuffle_and_split` reject, and
    `ValueError` for a context length `n < 1`.
    """
    if n < 1:
        raise ValueError(f"context length is {n}; it must be at least 1")
    return load_as(lambda words, vocabulary: build_dataset(words, vocabulary, n), path, seed)


def load_as(
    examples: Callable[[list[str], tuple[str, ...]], Any],
    path: str | os.PathLike[str] | None = None,
    seed: int = 42,
) -> Corpus:
    """Read a corpus as `load` does, with other examples: `examples(words, vocabulary)` are those of a split's words.

    Raises `CorpusError` as `load` does, and what `examples` raises.
    """
    path = shipped("names.txt") if path is None else path
    words = read_words(path)
    vocabulary = build_vocabulary(words)
    try:
        parts = shuffle_and_split(words, seed)
    except ValueError as error:
        raise CorpusError(f"{path}: too small to split: {error}") from None
    return Corpus(vocabulary, *(examples(part, vocabulary) for part in parts))


def load_text(examples: Callable[[str, tuple[str, ...]], Any], path: str | os.PathLike[str]) -> Corpus:
    """A text as one stream: its first 80 % to train on, then 10 % each for dev and test; symbol 0 is `START`.

    `examples(text, vocabulary)` are those of a split. Raises `CorpusError` as `read_text` does and for a text of fewer
    than 20 characters, of which a part would have nothing to predict, and what `examples` raises.
    """
    text = read_text(path)
    if len(text) < 20:
        raise CorpusError(f"{path}: a text of {len(text)} characters is too small to split; give at least 20")
    vocabulary = (START, *sorted(set(text)))
    dev, test = int(len(text) * 0.8), int(len(text) * 0.9)
    return Corpus(vocabulary, *(examples(part, vocabulary) for part in (text[:dev], text[dev:test], text[test:])))


def sha256(path: str | os.PathLike[str]) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    return files.sha256(Path(path))


def fetch(target: Path, url: str = SEED_CORPUS_URL, expected_sha256: str = SEED_CORPUS_SHA256) -> None:
    """Download the notebook's exact corpus to `target`, which is replaced only by a whole file of the right hash.

    Raises `CorpusError` if the download fails or its sha256 differs; an old file at `target` is then untouched.
    """
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            data = response.read()
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise CorpusError(f"{url}: cannot be fetched ({error}); download it by hand and give it as --corpus") from None
    found = hashlib.sha256(data).hexdigest()
    if found != expected_sha256:
        raise CorpusError(f"{url}: sha256 is {found}, expected {expected_sha256}; {target} was left as it was")
    files.write_bytes(target, data)
