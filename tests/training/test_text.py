"""A text as one stream: trained on, evaluated, gone on with and sampled from by the commands."""

import json

import pytest
from typer.testing import CliRunner

from jaxgrad import corpus
from jaxgrad.cli import app
from jaxgrad.corpus import START, CorpusError
from jaxgrad.errors import JaxgradError

TEXT = "the cat sat on the mat.\nthe dog sat on the log.\n" * 40
TINY = "--layers 1 --heads 2 --width 8 --block 16 --batch-size 4 --chunk 20 --log-every 10".split()


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "cats.txt"
    path.write_bytes(TEXT.replace("\n", "\r\n").encode())
    return path


def jaxgrad(*args):
    done = CliRunner().invoke(app, [*map(str, args)])
    if isinstance(done.exception, JaxgradError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_run_on_a_text_is_trained_continued_evaluated_and_sampled(text, tmp_path):
    run = tmp_path / "run"
    jaxgrad("train", "--model", "gpt", "--text", text, "--steps", 20, "--out", run, *TINY)
    config = json.loads((run / "config.json").read_text())
    assert config["text"] and config["vocabulary"] == [START, *sorted(set(TEXT))]
    jaxgrad("train", "--resume", run, "--steps", 40)
    assert "dev" in jaxgrad("eval", run)
    said = jaxgrad("sample", run, "-n", 2, "--prompt", "the ", "--longest", 30)
    first, second = said.rstrip("\n").split("\n---\n")
    assert first.startswith("the ") and second.startswith("the ") and len(first) <= 30


def test_splits_are_stretches_of_the_text_and_are_not_shuffled(text):
    read = corpus.load_text(lambda stream, vocabulary: stream, text)
    assert read.train + read.dev + read.test == TEXT
    assert 0.79 < len(read.train) / len(TEXT) < 0.81


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "is empty"), (b"a\0b", "has a NUL"), (b"\xff", "line 1"), (b"short", "too small")]
)
def test_what_is_no_text_is_refused(tmp_path, content, said):
    path = tmp_path / "text"
    path.write_bytes(content)
    with pytest.raises(CorpusError, match=said):
        corpus.load_text(lambda stream, vocabulary: stream, path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--text",), "reads words, not a stream of text"),
        (("--model", "gpt", "--corpus", "names.txt", "--text"), "are two corpora"),
    ],
)
def test_what_a_stream_does_not_go_with_is_refused(text, tmp_path, options, said):
    with pytest.raises(JaxgradError, match=said):
        jaxgrad("train", "--out", tmp_path / "run", "--steps", 1, *options, text)
