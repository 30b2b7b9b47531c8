"""Compiled programs are kept in the user's cache folder, and change no result."""

import os
import subprocess
import sys
from pathlib import Path


def start(folder: Path, cache: Path, *options: str) -> subprocess.Popen[str]:
    """Begin to train a little in a process of its own."""
    flags = ("train", "--out", str(folder), "--steps", "20", "--hidden", "8", "--batch-size", "4")
    own = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    return subprocess.Popen(
        [sys.executable, "-m", "jaxgrad", *options, *flags],
        env={**own, "XDG_CACHE_HOME": str(cache), "MPLCONFIGDIR": str(folder.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> str:
    """The stderr of a process, which must succeed."""
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return errors


def train(folder: Path, cache: Path, *options: str) -> str:
    """Train a little in a process of its own; its stderr."""
    return ended(start(folder, cache, *options))


def programs(cache: Path) -> set[str]:
    return {path.name for path in cache.rglob("*-cache")}


def test_a_second_start_compiles_nothing_and_trains_the_same(tmp_path: Path):
    cache = tmp_path / "cache"
    train(tmp_path / "first", cache)
    kept = programs(cache)
    assert any("jit_steps" in name for name in kept)
    train(tmp_path / "second", cache)
    assert programs(cache) == kept
    first, second = ((tmp_path / run / "metrics.jsonl").read_bytes() for run in ("first", "second"))
    assert first == second


def test_two_processes_that_share_a_cache_train_the_same_and_leave_it_in_order(tmp_path: Path):
    cache = tmp_path / "cache"
    # JAX writes an entry where the other may read it half-way: that one is compiled again, with a word or none.
    for process in [start(tmp_path / run, cache) for run in ("one", "other")]:
        said = ended(process).splitlines()
        assert len(said) <= 1 and all("compiled programs cannot be used" in line for line in said), said
    assert train(tmp_path / "later", cache) == ""
    one, other, later = ((tmp_path / run / "metrics.jsonl").read_bytes() for run in ("one", "other", "later"))
    assert one == other == later


def test_the_flag_turns_it_off(tmp_path: Path):
    cache = tmp_path / "cache"
    train(tmp_path / "run", cache, "--no-compile-cache")
    assert not programs(cache)


def test_where_nothing_can_be_kept_training_goes_on_without_a_word(tmp_path: Path):
    file = tmp_path / "file"
    file.touch()
    assert train(tmp_path / "run", file / "cache") == ""
