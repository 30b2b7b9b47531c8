"""The corpus is the notebook's, bad files are named with their lines, and a download replaces nothing by halves."""

import http.server
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxgrad import corpus
from jaxgrad.corpus import CorpusError


def notebooks_dataset(words: list[str], vocabulary: tuple[str, ...], n: int) -> tuple[np.ndarray, np.ndarray]:
    """The notebook's own loop, a character at a time."""
    index = {symbol: i for i, symbol in enumerate(vocabulary)}
    X, Y = [], []
    for word in words:
        context = [0] * n
        for c in word + corpus.BOUNDARY:
            X.append(context)
            Y.append(index[c])
            context = [*context[1:], index[c]]
    return np.array(X), np.array(Y)


def test_the_notebooks_corpus_has_the_notebooks_numbers(notebook_corpus):
    words = corpus.read_words(notebook_corpus)
    assert words[:4] == ["emma", "olivia", "ava", "isabella"] and len(words) == 32_033
    assert corpus.sha256(notebook_corpus) == corpus.SEED_CORPUS_SHA256
    data = corpus.load(notebook_corpus)
    assert data.vocabulary == (".", *"abcdefghijklmnopqrstuvwxyz")
    assert [split.X.shape for split in data[1:]] == [(182625, 3), (22655, 3), (22866, 3)]
    assert [split.Y.shape for split in data[1:]] == [(182625,), (22655,), (22866,)]
    assert {array.dtype for split in data[1:] for array in split} == {np.dtype(np.uint8)}


def test_the_notebooks_splits_are_the_notebooks_to_the_last_symbol(notebook_corpus):
    words = corpus.read_words(notebook_corpus)
    data = corpus.load(notebook_corpus)
    random.seed(42)
    random.shuffle(words)
    dev, test = int(len(words) * 0.8), int(len(words) * 0.9)
    for part, split in zip((words[:dev], words[dev:test], words[test:]), data[1:], strict=True):
        X, Y = notebooks_dataset(part, data.vocabulary, 3)
        assert np.array_equal(split.X, X) and np.array_equal(split.Y, Y)


# Marks and punctuation too: an apostrophe or a hyphen comes before the boundary in code-point order.
WORDS = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters=".", categories=("L", "M", "N", "P", "S")), min_size=1),
    min_size=1,
)


@given(words=WORDS, n=st.integers(1, 12))
def test_any_words_and_context_length_give_what_the_notebooks_loop_gives(words: list[str], n: int):
    vocabulary = corpus.build_vocabulary(words)
    split = corpus.build_dataset(words, vocabulary, n)
    X, Y = notebooks_dataset(words, vocabulary, n)
    assert np.array_equal(split.X, X) and np.array_equal(split.Y, Y)


def test_the_shuffle_and_the_cuts_are_the_notebooks_on_the_corpus_that_ships():
    words = corpus.read_words(corpus.shipped("names.txt"))
    parts = corpus.shuffle_and_split(words)
    random.seed(42)
    random.shuffle(words)
    dev, test = int(len(words) * 0.8), int(len(words) * 0.9)
    assert parts == (words[:dev], words[dev:test], words[test:])


def test_symbols_are_stored_in_the_smallest_type_that_holds_them():
    for count, dtype in ((255, np.uint8), (256, np.uint16)):
        words = [chr(0x4E00 + i) for i in range(count)]
        assert corpus.build_dataset(words, corpus.build_vocabulary(words)).X.dtype == dtype


def test_the_shuffle_leaves_its_argument_and_pythons_own_generator_alone():
    words = list("abcdefghijklmnop")
    random.seed(7)
    expected = random.random()
    random.seed(7)
    parts = corpus.shuffle_and_split(words)
    assert random.random() == expected and words == list("abcdefghijklmnop")
    assert sorted(word for part in parts for word in part) == words


def test_the_corpus_that_ships_is_the_one_that_was_built():
    path = corpus.shipped("names.txt")
    assert corpus.sha256(path) == "a311634f5113663f131a60cd0c76afb8420199991dbd9045773b8a2949ada835"
    words = corpus.read_words(path)
    assert len(words) == 32_178 and all(word.isascii() and word.islower() for word in words)
    assert len(corpus.load().vocabulary) == 27


@pytest.mark.parametrize(
    "data",
    [
        b"ann\nbob\ncy\n",
        b"ann\r\nbob\r\ncy\r\n",
        b"ann\n\n  \nbob\n\ncy",
        b"\xef\xbb\xbfann\nbob\ncy",
        b"  ann\t\nbob \ncy\n",
    ],
    ids=["plain", "CRLF", "blank lines and no last newline", "byte-order mark", "white space around"],
)
def test_these_are_all_the_same_three_words(tmp_path: Path, data: bytes):
    (tmp_path / "words.txt").write_bytes(data)
    assert corpus.read_words(tmp_path / "words.txt") == ["ann", "bob", "cy"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "contains no words"),
        (b"\n \r\n\n", "contains no words"),
        (b"ann\nbob\ncy\xff\n", r"line 3: not valid UTF-8 \(byte 0xff\)"),
        (b"ann\nbo.b\n", "line 2: 'bo.b' contains '.'"),
        (b"ann\n\nb ob\n", "line 3: 'b ob' contains white space"),
        ("ann\nb\u2003ob".encode(), "line 2: .* contains white space"),
        (b"ann\nb\x00ob\n", "line 2: .* control character"),
    ],
)
def test_bad_files_are_named_with_the_line(tmp_path: Path, data: bytes, message: str):
    path = tmp_path / "words.txt"
    path.write_bytes(data)
    with pytest.raises(CorpusError, match=message) as caught:
        corpus.read_words(path)
    assert str(caught.value).startswith(str(path))


def test_joiners_that_are_letters_of_some_scripts_are_accepted(tmp_path: Path):
    path = tmp_path / "words.txt"
    path.write_text("\u0646\u06cc\u200c\u0644\u0648\n", encoding="utf-8")
    assert len(corpus.read_words(path)) == 1


def test_missing_files_and_folders_are_named(tmp_path: Path):
    with pytest.raises(CorpusError, match=r"nowhere\.txt: no such file"):
        corpus.read_words(tmp_path / "nowhere.txt")
    with pytest.raises(CorpusError, match="cannot be read"):
        corpus.read_words(tmp_path)


def test_what_cannot_be_read_again_is_refused_without_waiting_for_it(tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        with pytest.raises(CorpusError, match="is a pipe or a device; give a file, which can be read again"):
            corpus.load(path)


def test_a_path_that_no_file_can_have_is_named():
    with pytest.raises(CorpusError, match=r"'a\\x00b' is not the name of a file \(embedded null byte\)"):
        corpus.load("a\0b")


def test_a_large_binary_file_is_refused_by_its_first_bad_byte(tmp_path: Path):
    path = tmp_path / "binary"
    path.write_bytes(b"ann\n\xff\xfe" + bytes(200_000_000))
    with pytest.raises(CorpusError, match=r"binary, line 2: not valid UTF-8 \(byte 0xff\)"):
        corpus.load(path)


def test_a_corpus_too_small_to_split_says_so(tmp_path: Path):
    path = tmp_path / "words.txt"
    path.write_text("ann\nbob\ncy\n")
    with pytest.raises(CorpusError, match=r"words\.txt: too small to split: 3 words split into 2, 0, 1"):
        corpus.load(path)


def test_six_words_are_enough_and_five_are_told_so(tmp_path: Path):
    path = tmp_path / "words.txt"
    path.write_text("\n".join("abcde"))
    with pytest.raises(CorpusError, match="5 words split into 4, 0, 1 for train, dev and test; give at least 6 words"):
        corpus.load(path)
    for n in range(6, 200):
        assert all(corpus.shuffle_and_split(["a"] * n)), n


def test_the_sentence_about_a_pipe_is_one(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CorpusError) as caught:
        corpus.load(tmp_path / "pipe")
    assert str(caught.value).count(f"{tmp_path / 'pipe'}") == 1 and "is not the name" not in str(caught.value)


def test_a_context_needs_a_character():
    with pytest.raises(ValueError, match="context length is 0; it must be at least 1"):
        corpus.load(n=0)
    with pytest.raises(ValueError, match="context length is -1"):
        corpus.build_dataset(["a"], (".", "a"), -1)


def test_a_character_outside_the_vocabulary_is_named():
    with pytest.raises(ValueError, match="character 'z' is not in the vocabulary"):
        corpus.build_dataset(["az"], (".", "a"))


GOOD = b"ann\nbob\n"


class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        # The connection is closed before the rest of what this promises is sent.
        self.send_header("Content-Length", str(len(GOOD) + (100 if self.path == "/cut" else 0)))
        self.end_headers()
        self.wfile.write(GOOD if self.path != "/altered" else b"ann\nbab\n")

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def test_a_whole_download_of_the_right_hash_replaces_the_file(tmp_path: Path, server: str):
    source, target = tmp_path / "source", tmp_path / "names.txt"
    source.write_bytes(GOOD)
    target.write_text("old")
    corpus.fetch(target, f"{server}/good", corpus.sha256(source))
    assert target.read_bytes() == GOOD


@pytest.mark.parametrize(("path", "message"), [("altered", "sha256 is"), ("cut", "cannot be fetched")])
def test_a_bad_download_leaves_the_old_file_and_nothing_else(tmp_path: Path, server: str, path: str, message: str):
    source = tmp_path / "source"
    source.write_bytes(GOOD)
    target = tmp_path / "kept" / "names.txt"
    target.parent.mkdir()
    target.write_text("old")
    with pytest.raises(CorpusError, match=message):
        corpus.fetch(target, f"{server}/{path}", corpus.sha256(source))
    assert [p.name for p in target.parent.iterdir()] == ["names.txt"] and target.read_text() == "old"


def test_an_address_that_is_none_is_named(tmp_path: Path):
    with pytest.raises(CorpusError, match="foo: cannot be fetched"):
        corpus.fetch(tmp_path / "names.txt", "foo")


def test_a_server_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(CorpusError, match=r"http://127\.0\.0\.1:9/x: cannot be fetched"):
        corpus.fetch(tmp_path / "names.txt", "http://127.0.0.1:9/x")
