"""A run that was killed or stopped, however often, ends as if it never had been, bit for bit."""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxgrad import corpus
from jaxgrad.errors import JaxgradError
from jaxgrad.training import checkpoints, plot, run
from jaxgrad.training.config import Config, config_of, optimizer
from jaxgrad.training.folder import read_metrics
from jaxgrad.training.run import Stopped

KILLS = 20


@pytest.fixture(scope="module")
def data() -> corpus.Corpus:
    return corpus.load()


@pytest.fixture(scope="module")
def config(data) -> Config:
    # Chunks of 30, lines of 50 and checkpoints at 60, 120, ... meet nowhere, so losses wait for their line in each.
    return config_of(
        steps=240, hidden=8, log_every=50, chunk=30, save_every=60, optimizer="adam", vocabulary=data.vocabulary
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, data, config) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    run.train(config, data, folder)
    return folder


def after(calls: int) -> Callable[[], bool]:
    """A `stop` that is true the `calls`th time it is asked."""
    asked = iter(range(1, calls + 1))
    return lambda: next(asked) == calls


def same(folder: Path, other: Path) -> None:
    """Both runs ended with the same files and the same arrays."""
    for name in ("metrics.jsonl", "losses.json", "config.json", "loss.png"):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    last, other_last = (checkpoints.saved(path)[-1] for path in (folder, other))
    assert last.name == other_last.name
    config = run.load(folder)[0]
    with run.precision(config):
        like = run.shapes(config)
        ends = [jax.tree.leaves(checkpoints.restore(path, like)) for path in (last, other_last)]
    for ours, theirs in zip(*ends, strict=True):
        is_key = jax.numpy.issubdtype(ours.dtype, jax.dtypes.prng_key)
        data = [np.asarray(jax.random.key_data(leaf) if is_key else leaf) for leaf in (ours, theirs)]
        assert data[0].tobytes() == data[1].tobytes()


@pytest.mark.parametrize("calls", [1, 4, 7])
def test_a_run_that_is_stopped_after_any_chunk_is_resumed_to_the_same_end(tmp_path, data, config, undisturbed, calls):
    folder = tmp_path / "run"
    with pytest.raises(Stopped, match=f"stopped at step {30 * calls}, saved as .*checkpoints/{30 * calls}"):
        run.train(config, data, folder, stop=after(calls))
    assert not (folder / "losses.json").exists()
    run.resume(folder, data)
    same(folder, undisturbed)


def test_a_run_that_is_stopped_after_every_chunk_ends_the_same(tmp_path, data, config, undisturbed):
    begin: Callable[..., run.Losses] = functools.partial(run.train, config, data, tmp_path / "run")
    for step in range(30, 240, 30):
        with pytest.raises(Stopped, match=f"step {step},"):
            begin(stop=after(1))
        begin = functools.partial(run.resume, tmp_path / "run", data)
    begin(stop=lambda: True)
    same(tmp_path / "run", undisturbed)


@pytest.mark.parametrize(
    "change",
    [{"dtype": "float64"}, {"dtype": "bfloat16", "gradients": "by-node"}, {"optimizer": "noisy_sgd", "log_every": 999}],
    ids=["float64", "bfloat16", "noisy, one line"],
)
@pytest.mark.filterwarnings("ignore:Specifying a key will be required")
def test_so_is_a_run_of_another_kind(tmp_path, data, config, change):
    other = dataclasses.replace(config, **change)
    run.train(other, data, tmp_path / "undisturbed")
    with pytest.raises(Stopped):
        run.train(other, data, tmp_path / "run", stop=after(3))
    run.resume(tmp_path / "run", data)
    same(tmp_path / "run", tmp_path / "undisturbed")


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_anew_and_says_so(
    tmp_path, data, config, undisturbed, caplog
):
    folder = tmp_path / "run"
    with pytest.raises(Stopped):
        run.train(config, data, folder, stop=after(1))
    # As a kill leaves it that comes after a metrics line and in the middle of the first save.
    (folder / "checkpoints" / "30").rename(folder / "checkpoints" / ".30.unfinished")
    (folder / "metrics.jsonl").write_text('{"step": 50, "lo')
    run.resume(folder, data)
    assert "was stopped before its first checkpoint, so it starts anew" in caplog.text
    same(folder, undisturbed)


def test_a_run_that_is_finished_has_its_losses_returned_and_nothing_written(data, undisturbed):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.name != ".lock"}
    losses = run.resume(undisturbed, data)
    assert losses._asdict() == json.loads((undisturbed / "losses.json").read_text())
    assert before == {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.name != ".lock"}


def test_a_finished_run_is_continued_to_the_end_of_one_that_was_that_long(tmp_path, data, config, undisturbed):
    folder = shutil.copytree(undisturbed, tmp_path / "run")
    # Its schedule stays that of its first steps; its last line, of 40 steps, is filled.
    longer = dataclasses.replace(config, steps=330, schedule_steps=240)
    run.train(longer, data, tmp_path / "longer")
    with pytest.raises(JaxgradError, match=r"is a run of 240 steps; --steps counts them too, and 200 are fewer"):
        run.resume(folder, data, steps=200)
    with pytest.raises(Stopped):
        run.resume(folder, data, stop=after(2), steps=330)
    assert not (folder / "losses.json").exists() and run.load(folder)[0] == longer
    run.resume(folder, data, steps=330)
    same(folder, tmp_path / "longer")
    assert [line.step for line in read_metrics(folder)] == [50, 100, 150, 200, 250, 300, 330]
    before = contents(folder)
    assert run.resume(folder, data, steps=330) == run.resume(folder, data) and contents(folder) == before


class Snapshots:
    """Copies of a folder before each thing that Python does to its files: what a SIGKILL at that moment leaves.

    An audit hook cannot be taken away, so it does nothing once `folder` is None.
    """

    EVENTS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "open")

    def __init__(self, to: Path):
        self.to, self.folder, self.taken, self.busy = to, None, [], threading.Lock()
        self.numbers = itertools.count()
        sys.addaudithook(self.hook)

    def hook(self, event: str, args: tuple) -> None:
        if self.folder is None or event not in self.EVENTS or not self.concerns(event, args):
            return
        # Copying opens files too, in this thread.
        if not self.busy.acquire(blocking=False):
            return
        try:
            copy = self.to / str(next(self.numbers))
            with contextlib.suppress(shutil.Error, FileNotFoundError):
                shutil.copytree(self.folder, copy, symlinks=True)
                self.taken.append((f"{event} {[Path(str(a)).name for a in args[:2]]}", copy))
        finally:
            self.busy.release()

    def concerns(self, event: str, args: tuple) -> bool:
        text = str(args[0])
        inside = text.startswith((str(self.folder), "/proc/self/fd/"))
        # To read changes nothing.
        return inside and (event != "open" or (isinstance(args[1], str) and args[1][0] in "wxa"))


def test_a_kill_at_any_operation_on_a_file_is_resumed_to_the_same_end(tmp_path, data, monkeypatch):
    # One optimizer for all these runs: steps are compiled once for each. And one picture of the same lines: the
    # other tests draw it again for each run, and seventy more would show nothing.
    monkeypatch.setattr(run, "optimizer", functools.cache(optimizer))
    monkeypatch.setattr(plot, "drawn", functools.cache(plot.drawn))
    # Three checkpoints of which two stay, a damaged one that is set aside, and a run that is continued.
    config = config_of(steps=60, hidden=4, log_every=25, chunk=20, save_every=20, keep=2, vocabulary=data.vocabulary)
    snapshots = Snapshots(tmp_path / "snapshots")
    folder = tmp_path / "run"
    monkeypatch.setattr(snapshots, "folder", folder)
    run.train(config, data, folder)
    in_training = len(snapshots.taken)
    first_end = contents(folder, "metrics.jsonl", "losses.json", "loss.png")
    (checkpoints.saved(folder)[-1] / "notes.json").write_text("{")
    for name in ("losses.json", "loss.png"):
        (folder / name).unlink()
    begun_again = len(snapshots.taken)
    run.resume(folder, data)
    continued = len(snapshots.taken)
    run.resume(folder, data, steps=100)
    snapshots.folder = None
    last_end = contents(folder, "metrics.jsonl", "losses.json", "loss.png")
    done = [what for what, _ in snapshots.taken]
    for needed in ("losses.json", "loss.png", ".40.unfinished", ".removed", ".damaged", "config.json", "metrics.jsonl"):
        assert any(needed in what for what in done), f"no snapshot at {needed}: {done}"
    for number, (what, copy) in enumerate(snapshots.taken):
        if not (copy / "config.json").exists():
            # Killed before there was a run: another can begin here.
            run.train(config, data, copy)
            assert contents(copy, *first_end) == first_end, f"{number}: {what}"
            continue
        # Every rename, and of the other operations every fifth: all of them passed, and take minutes.
        if in_training <= number < begun_again or ("os.rename" not in what and number % 5):
            continue
        longer = number >= continued
        run.resume(copy, data, steps=100 if longer else None)
        assert contents(copy, *first_end) == (last_end if longer else first_end), f"{number}: {what}"


def contents(folder: Path, *names: str) -> dict[str, bytes]:
    paths = [folder / name for name in names] if names else [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_a_run_that_was_killed_while_it_was_evaluated_is_finished(tmp_path, data, config, undisturbed):
    folder = tmp_path / "run"
    run.train(config, data, folder)
    (folder / "losses.json").unlink()
    (folder / "loss.png").unlink()
    run.resume(folder, data)
    same(folder, undisturbed)


def command(*arguments: str | Path, cache: Path) -> subprocess.Popen:
    """`jaxgrad` in a process of its own, which finds what it compiled before in `cache`."""
    environment = {
        **{name: value for name, value in os.environ.items() if name != "JAXGRAD_CORPUS"},
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "jaxgrad", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def wait_for(process: subprocess.Popen, happened: Callable[[], bool]) -> bool:
    """Whether it happened before the process ended."""
    deadline = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < deadline, "the run takes minutes for its first steps"
        if process.poll() is not None:
            return False
        time.sleep(0.001)
    return True


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("compiled")


# Saves as often as can be, and steps enough for every process to be killed on its way: some 700 go to each.
LONG = (
    "--steps", "20000", "--hidden", "16", "--chunk", "100", "--save-every", "200", "--log-every", "70",
    "--optimizer", "adam", "--lr", "0.001", "--keep", "2",
)  # fmt: skip


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A corpus so small that evaluating it at every checkpoint takes no time."""
    path = tmp_path / "words.txt"
    path.write_text("\n".join(a + b + c for a in "abcde" for b in "aeiou" for c in "lmnop"))
    return path


def test_a_run_that_is_killed_twenty_times_ends_as_one_that_never_was(tmp_path: Path, words: Path, cache: Path):
    whole = command("train", *LONG, "--corpus", words, "--out", tmp_path / "whole", cache=cache)
    _, errors = whole.communicate()
    assert whole.returncode == 0, errors

    folder, chance = tmp_path / "killed", random.Random(0)
    metrics = folder / "metrics.jsonl"
    reached, in_a_save = [0], 0
    for kill in range(KILLS):
        begin = ("--resume", folder) if kill else (*LONG, "--corpus", words, "--out", folder)
        process = command("train", *begin, cache=cache)
        # A line has some 80 bytes. The moment is random to a line, and within the chunks and the save after it.
        goal = size(metrics) + 80 * chance.randint(2, 12)
        assert wait_for(process, lambda goal=goal: size(metrics) > goal), f"{kill}: {process.communicate()}"
        time.sleep(chance.uniform(0, 0.03))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the run was killed on its way"
        saved = checkpoints.saved(folder)
        reached.append(int(saved[-1].name) if saved else 0)
        in_a_save += any(folder.glob("checkpoints/.*"))
        lines = metrics.read_text().splitlines(keepends=True)
        assert [json.loads(line)["step"] for line in lines] == [70 * (n + 1) for n in range(len(lines))]
    assert reached == sorted(reached) and len(set(reached)) > KILLS / 2, f"most kills came after a save: {reached}"
    assert in_a_save, "no kill came in the middle of a save, so nothing is shown of those"

    last = command("train", "--resume", folder, cache=cache)
    _, errors = last.communicate()
    assert last.returncode == 0, errors
    same(folder, tmp_path / "whole")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_says_where_and_exits_with_its_code(tmp_path, words, cache, number: int, code: int):
    folder = tmp_path / "run"
    process = command("train", *LONG, "--save-every", "20000", "--corpus", words, "--out", folder, cache=cache)
    assert wait_for(process, lambda: size(folder / "metrics.jsonl") > 0)
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == code, err
    (saved,) = checkpoints.saved(folder)
    assert f"saved as {saved}; go on with: jaxgrad train --resume {folder}" in out
    assert "will stop and save after this chunk" in err and "Traceback" not in err
    assert size(folder / "metrics.jsonl") == checkpoints.metadata(saved).metrics_bytes


def test_a_second_signal_is_obeyed_at_once(tmp_path: Path, cache: Path):
    folder = tmp_path / "run"
    # One chunk of minutes, compiled only here: neither its end nor its checkpoint can come before the signals.
    process = command("train", "--steps", "4000000", "--chunk", "4000000", "--hidden", "64", "--batch-size", "2",
                      "--out", folder, cache=cache)  # fmt: skip
    assert wait_for(process, lambda: (folder / "config.json").exists())
    time.sleep(5)
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline().startswith("jaxgrad: SIGINT: will stop and save")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=5)
    assert process.returncode == 130 and not checkpoints.saved(folder)
