"""What is printed reaches any terminal whole, commands nothing, and loses no training when it cannot be printed."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxgrad.cli import app, terminal
from jaxgrad.cli.sweep import _seeds
from jaxgrad.errors import JaxgradError
from jaxgrad.mutation import score
from jaxgrad.text import visible

SMALL = ("--steps", "20", "--hidden", "8", "--batch-size", "4")


def jaxgrad(*args: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jaxgrad", *map(str, args)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True, text=True, check=False, timeout=120, cwd=cwd,
    )  # fmt: skip


def assert_one_sentence(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("jaxgrad: ") and done.stderr.count("\n") == 1, done.stderr
    for part in parts:
        assert part in done.stderr


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("zoë · 李\n", "zoë · 李\n"),
        ("\u0646\u06cc\u200c\u0644\u0648", "\u0646\u06cc\u200c\u0644\u0648"),
        ("a\u202eb\u2066", "a\\u202eb\\u2066"),
        ("\x1b[31mred\x07\x9b", "\\x1b[31mred\\x07\\x9b"),
        ("run\udcff", "run\\udcff"),
    ],
)
def test_what_would_command_a_terminal_is_an_escape_and_words_stay(text: str, shown: str):
    assert visible(text) == shown


def test_words_of_a_corpus_that_change_direction_are_shown_as_escapes(tmp_path: Path):
    (tmp_path / "words.txt").write_text("\n".join(["a\u202eb", *"cdefgh"]), encoding="utf-8")
    done = jaxgrad("corpus", "show", "--corpus", tmp_path / "words.txt")
    assert "\\u202e" in done.stdout and "\u202e" not in done.stdout


def test_a_stdout_of_ascii_loses_no_training_and_a_full_one_says_so(tmp_path: Path):
    done = jaxgrad("train", "--out", tmp_path / "run", *SMALL, PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and " | dev " in done.stdout
    with Path("/dev/full").open("w") as full:
        for unbuffered in ("", "1"):
            done = subprocess.run(
                [sys.executable, "-m", "jaxgrad", "eval", str(tmp_path / "run")],
                env={**os.environ, "PYTHONUNBUFFERED": unbuffered, "PYTHONPATH": os.pathsep.join(sys.path)},
                stdout=full, stderr=subprocess.PIPE, text=True, check=False,
            )  # fmt: skip
            assert_one_sentence(done, "stdout takes no more (No space left on device)")


def test_a_reader_that_has_seen_enough_is_no_error():
    code = "import sys; sys.argv = ['jaxgrad', 'corpus', 'show']; from jaxgrad.cli import main; main()"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert done.stderr == b""


def test_a_platform_that_is_not_there_is_one_sentence(tmp_path: Path):
    done = jaxgrad("train", "--out", tmp_path / "run", *SMALL, JAX_PLATFORMS="nonsense")
    assert_one_sentence(done, "Unable to initialize backend 'nonsense'", "set JAX_PLATFORMS to a platform")
    assert not (tmp_path / "run").exists()


def test_a_compile_cache_that_was_cut_is_one_warning_and_is_mended(tmp_path: Path):
    # By its place it is our own, and so one to be mended.
    cache = tmp_path / "jaxgrad" / "compiled"

    def train(name: str) -> subprocess.CompletedProcess[str]:
        return jaxgrad("train", "--out", tmp_path / name, *SMALL, JAX_COMPILATION_CACHE_DIR=str(cache))

    assert train("first").stderr == ""
    programs = list(cache.glob("*-cache"))
    for path in programs:
        path.write_bytes(path.read_bytes()[:20])
    done = train("second")
    assert done.returncode == 0 and done.stderr.count("\n") == 1 and len(programs) > 1
    assert "compiled programs cannot be used" in done.stderr
    assert train("third").stderr == ""
    same = {(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("first", "second", "third")}
    assert len(same) == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("train", "--hidden", "2147483647"), "training with hidden 2147483647"),
        (("train", "--embedding", "2147483647"), "embedding 2147483647"),
        (("train", "--batch-size", "2147483647"), "batches of 2147483647"),
        (("train", "--context", "2147483647"), "a context of 2147483647 characters"),
        (("parity", "--batches", "1", "--hidden", "2147483647"), "one pass with hidden 2147483647"),
    ],
)
def test_sizes_beyond_memory_are_counted_before_anything_is_made(tmp_path, monkeypatch, args, message: str):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(JaxgradError, match=rf"{message}.* GiB, and this machine has .*; make it smaller"):
        app(["--no-compile-cache", *args], standalone_mode=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--mesh", "data=" + "9" * 5000), "give data=N, model=N or both"),
        (("--optimizer-arg", "b1=" + "-" * 5000 + "1"), "write NAME=VALUE"),
        (("--schedule-arg", "b1=" + "[" * 5000), "write NAME=VALUE"),
    ],
)
def test_arguments_of_thousands_of_signs_are_one_short_sentence(tmp_path, monkeypatch, args, message: str):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(JaxgradError, match=message) as caught:
        app(["--no-compile-cache", "train", *args], standalone_mode=False)
    assert len(str(caught.value)) < 300 and not list(tmp_path.iterdir())


def test_seeds_without_number_are_not_listed():
    with pytest.raises(JaxgradError, match="which are more than 10,000; sweep them in parts"):
        _seeds("0:99999999999999")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\nraise OSError('boom')", "line 2, raises OSError: boom"),
        ("import sys\nsys.exit(3)", "line 2, raises SystemExit: 3"),
        ("x = (", "line 1, raises SyntaxError"),
        ("subject = 3", "must have a function subject without arguments"),
        ("def subject(): return 1 / 0", "line 1, raises ZeroDivisionError"),
        ("def subject(): return len, len, 3", "the args of subject are 3; give a tuple"),
    ],
)
def test_a_module_that_cannot_give_a_subject_is_named_with_its_line(tmp_path: Path, text: str, message: str):
    (tmp_path / "m.py").write_text(text)
    with pytest.raises(JaxgradError, match=message):
        score.load(f"{tmp_path}/m.py:subject")


def test_a_library_that_an_extra_brings_is_one_sentence_and_any_other_is_not(capsys):
    def lacking(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    assert terminal.guarded(lambda: lacking("orbax.checkpoint")) == 2
    assert "orbax is not installed: pip install 'jaxgrad[train]'" in capsys.readouterr().err
    with pytest.raises(ModuleNotFoundError):
        terminal.guarded(lambda: lacking("somebody_elses"))


def test_a_sentence_is_one_write_so_that_no_other_thread_writes_into_it(monkeypatch):
    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            writes.append(text)
            return len(text)

    writes: list[str] = []
    monkeypatch.setattr(sys, "stderr", Stream())
    terminal.complain("another process\nis gone")
    assert writes == ["jaxgrad: another process is gone\n"]
