"""Several real processes, on this machine's loopback, are one run: same parameters, and no hang when one dies."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.training import distributed_child

# A process that hangs fails its test by this, and not the whole suite by its own limit.
SECONDS = 300


def address() -> str:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


@contextlib.contextmanager
def processes(commands: list[list[str]]) -> Iterator[list[subprocess.Popen]]:
    """Commands that run side by side, each on one device; none outlives the test."""
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
    with contextlib.ExitStack() as open_processes:
        started = [
            open_processes.enter_context(
                subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            )
            for command in commands
        ]
        try:
            yield started
        finally:
            for process in started:
                process.kill()


def train(folder: Path, n: int, *args: str) -> list[list[str]]:
    """The commands of a run of n processes."""
    at = address()
    return [
        [
            sys.executable, "-m", "jaxgrad", "train", *args, "--distributed",
            "--coordinator", at, "--processes", str(n), "--process-id", str(k),
        ]
        for k in range(n)
    ]  # fmt: skip


def ended(started: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each."""
    spoken = [process.communicate(timeout=SECONDS) for process in started]
    return [(process.returncode, *texts) for process, texts in zip(started, spoken, strict=True)]


@pytest.mark.parametrize(("n", "axes"), [(2, "data=2"), (4, "data=4"), (4, "data=2,model=2")])
def test_every_process_ends_with_the_parameters_of_one(tmp_path: Path, n: int, axes: str):
    at = address()
    child = [sys.executable, distributed_child.__file__]
    with processes([[*child, at, str(n), str(k), axes, str(tmp_path / f"{k}.npz")] for k in range(n)]) as started:
        for code, _, errors in ended(started):
            assert code == 0, errors
    alone = distributed_child.train(None)
    for k in range(n):
        with np.load(tmp_path / f"{k}.npz") as arrays:
            for a, b in zip(alone, arrays.values(), strict=True):
                # A hundred steps in float64, each some 1e-16 apart: sums over the batch in other parts.
                assert np.linalg.norm(a - b) <= 1e-12 * np.linalg.norm(a), f"process {k}"


# Steps enough for a kill at the hundredth to come long before the end.
SMALL = ("--hidden", "8", "--steps", "360", "--chunk", "20", "--save-every", "40", "--log-every", "20")


def lines(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    with processes(train(folder, 2, *SMALL, "--out", str(folder))) as started:
        (code, out, errors), (other_code, other_out, other_errors) = ended(started)
    assert (code, other_code) == (0, 0), errors + other_errors
    # The library for collectives speaks of its connections, to stdout.
    said = [[line for line in text.splitlines() if not line.startswith("[Gloo]")] for text in (out, other_out)]
    assert said[0][0].startswith("train 2.") and not said[1], "process 0 speaks for all"
    return folder


@pytest.mark.parametrize("killed", [0, 1])
def test_when_one_is_killed_the_others_say_so_and_the_run_goes_on_to_the_same_end(
    tmp_path: Path, undisturbed: Path, killed: int
):
    folder = tmp_path / "run"
    with processes(train(folder, 2, *SMALL, "--out", str(folder))) as started:
        until = time.monotonic() + SECONDS
        while lines(folder) < 5:
            assert time.monotonic() < until and started[0].poll() is None, started[0].communicate()
            time.sleep(0.01)
        started[killed].send_signal(signal.SIGKILL)
        code, _, errors = ended([started[1 - killed]])[0]
    assert code == 2
    assert f"jaxgrad: process {1 - killed}: another process of this run is gone" in errors
    assert "start all of them again with --resume" in errors
    assert not (folder / "losses.json").exists(), "it was killed too late to show anything"
    with processes(train(folder, 2, "--resume", str(folder))) as started:
        for code, _, errors in ended(started):
            assert code == 0, errors
    for name in ("metrics.jsonl", "losses.json"):
        assert (folder / name).read_bytes() == (undisturbed / name).read_bytes()


def test_what_stops_the_first_stops_all(tmp_path: Path):
    taken = tmp_path / "run"
    taken.mkdir()
    (taken / "notes.txt").touch()
    with processes(train(taken, 2, *SMALL, "--out", str(taken))) as started:
        (code, _, errors), (other_code, _, other_errors) = ended(started)
    assert (code, other_code) == (2, 2)
    assert "exists and is not empty" in errors and "process 0 could not go on" in other_errors


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (("--lr", "0.5"), "differ in learning_rate: learning_rate is 0.1 in process 0, 0.5 in process 1"),
        (("--hidden", "16", "--steps", "700"), "differ in steps, hidden: steps is 360 in process 0, 700 in process 1;"),
        (("--optimizer-arg", "nonsense"), "'nonsense' is not an argument"),
    ],
)
def test_processes_that_were_not_told_the_same_are_refused_by_what_differs(
    tmp_path: Path, other: tuple[str, ...], told: str
):
    folder = tmp_path / "run"
    one, two = train(folder, 2, *SMALL, "--out", str(folder))
    with processes([one, [*two, *other]]) as started:
        ends = ended(started)
    for code, _, errors in ends:
        assert code == 2 and told in errors and "Traceback" not in errors, errors
    assert not folder.exists()


def test_a_signal_to_one_stops_and_saves_for_all(tmp_path: Path):
    folder = tmp_path / "run"
    with processes(train(folder, 2, *SMALL, "--out", str(folder), "--steps", "1000000")) as started:
        until = time.monotonic() + SECONDS
        while lines(folder) < 2:
            assert time.monotonic() < until and started[0].poll() is None, started[0].communicate()
            time.sleep(0.01)
        started[1].terminate()
        codes = [code for code, _, _ in ended(started)]
    assert codes == [143, 143]
    step = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert (folder / "checkpoints" / str(step)).is_dir()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--coordinator", "localhost:1"), "are for several processes; add --distributed"),
        (("--distributed",), "did not come together"),
        (("--mesh", "data=3"), "the mesh has 3 devices and JAX 1"),
    ],
)
def test_errors_are_one_sentence(tmp_path: Path, args: tuple[str, ...], message: str):
    with processes([[sys.executable, "-m", "jaxgrad", "train", "--out", str(tmp_path / "run"), *args]]) as started:
        ((code, _, errors),) = ended(started)
    assert code == 2 and message in errors and len(errors.splitlines()) == 1
