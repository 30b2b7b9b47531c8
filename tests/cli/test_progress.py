"""A bar is on stderr, on a terminal, for what takes long; Ctrl-C leaves what was found."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from jaxgrad import cli
from jaxgrad.bench import check_cost
from jaxgrad.cli.progress import stoppable
from jaxgrad.progress import found_by, kept
from jaxgrad.pytest_plugin import _Shown

BARS = """
import sys, time
from jaxgrad.cli import progress
with progress.bar(3, "quick ones") as update:
    update(1, "one")
progress.SECONDS = 0.05
with progress.bar(3, "things") as update:
    update(1, "the first")
    print("found")
    time.sleep(0.3)
    update(2, "the second")
    time.sleep(0.8)
with progress.counting_bar("steps") as update:
    update(2, 5, "the third")
    time.sleep(0.6)
with progress.bar(3, "hidden", shown=False) as update:
    time.sleep(0.2)
"""

# What a shell starts in the background ignores Ctrl-C, and so does all that it starts, such as this process's children.
# It is undone in the child: JAX warns of a fork, which Popen's `preexec_fn` would need.
HEEDS_CTRL_C = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("jaxgrad", run_name="__main__", alter_sys=True)
"""

SUBJECT = """
import pathlib, time
import jax, jax.numpy as jnp

@jax.custom_vjp
def f(x):
    return x * x
f.defvjp(lambda x: (x * x, x), lambda x, dy: (2 * x * dy,))

calls = []

def check(fn):
    calls.append(fn)
    if len(calls) == 5:
        pathlib.Path("third").touch()
        time.sleep(60)
    got = jax.vjp(fn, jnp.arange(1.0, 4.0))[1](jnp.ones(3))[0]
    assert jnp.allclose(got, 2 * jnp.arange(1.0, 4.0))

def subject():
    return f, check, (jnp.arange(1.0, 4.0),)
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm", "COLUMNS": "120"}


def test_bars_are_on_a_terminals_stderr_for_what_takes_long():
    ours, theirs = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, "-c", BARS], stdout=subprocess.PIPE, stderr=theirs, env=environment(), text=True
    )
    os.close(theirs)
    seen = b""
    # The end of a terminal's other side is an error.
    with contextlib.suppress(OSError):
        while block := os.read(ours, 4096):
            seen += block
    os.close(ours)
    assert done.communicate()[0] == "found\n" and done.returncode == 0
    shown = seen.decode()
    assert "things" in shown and "2/3" in shown and "the second" in shown and "0:00:0" in shown
    assert "steps" in shown and "2/5" in shown and "the third" in shown
    assert "quick ones" not in shown and "hidden" not in shown and "found" not in shown


def test_nothing_is_shown_where_nobody_looks():
    code = BARS.replace("0.6", "0.1").replace("0.8", "0.1")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False, timeout=60
    )
    assert (done.stdout, done.stderr) == ("found\n", "")


def test_ctrl_c_leaves_the_mutants_that_were_tried(tmp_path: Path):
    (tmp_path / "mine.py").write_text(SUBJECT)
    process = subprocess.Popen(
        [sys.executable, "-c", HEEDS_CTRL_C, "mutate", "mine.py:subject", "--json", "out.json"],
        cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until = time.monotonic() + 120
    while not (tmp_path / "third").exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors == "jaxgrad: stopped by Ctrl-C; what was found until then follows\n"
    assert "2 killed, 0 survived, 0 equivalent" in out and "not tried" in out
    data = json.loads((tmp_path / "out.json").read_text())
    score = data["scores"]["mine.py:subject"]
    assert data["complete"] is False and score["killed"] == 2 and score["untried"] > 0


def test_what_was_stopped_before_it_found_anything_ends_with_130(capsys):
    with stoppable() as stop:
        raise KeyboardInterrupt
    assert stop.came and stop.found is None
    with pytest.raises(SystemExit) as caught:
        stop.exit(1)
    assert caught.value.code == 130
    with stoppable() as stop, kept(lambda: ["one"], lambda: "one of two"):
        raise KeyboardInterrupt
    assert stop.found == ["one"]


def run(monkeypatch, *args: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["jaxgrad", "--no-compile-cache", *map(str, args)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code


def stop(*args: object) -> None:
    raise KeyboardInterrupt


def test_a_command_that_keeps_nothing_ends_with_130(monkeypatch, capsys):
    monkeypatch.setattr("jaxgrad.corpus.load", stop)
    assert run(monkeypatch, "corpus", "show") == 130
    assert capsys.readouterr().err == "jaxgrad: stopped by Ctrl-C\n"


def test_parity_writes_the_batches_that_it_compared(monkeypatch, capsys, tmp_path: Path):
    monkeypatch.setattr("jaxgrad.parity.verdict.judge", stop)
    assert run(monkeypatch, "parity", "--seed-case", "--json", tmp_path / "out.json") == 130
    assert "0 of 1 batches were compared" in capsys.readouterr().out
    data = json.loads((tmp_path / "out.json").read_text())
    assert (data["complete"], data["cases"]) == (False, [])


def test_measurements_that_were_made_are_kept(monkeypatch):
    made = iter([check_cost.Cost("op", "script", 1.0, 2.0, 300.0)])

    def measured(case: str, who: str) -> check_cost.Cost:
        return next(made, None) or stop()

    monkeypatch.setattr(check_cost, "measured", measured)
    with pytest.raises(KeyboardInterrupt) as caught:
        check_cost.run(("op",))
    assert [row["who"] for row in check_cost.rows(found_by(caught.value))] == ["script"]
    assert caught.value.__notes__ == ["1 of 3 measurements were made"]


def test_a_verbose_session_on_a_terminal_shows_the_time_that_is_left(monkeypatch):
    written: list[str] = []

    def shown(terminal: bool, verbosity: int) -> _Shown:
        plugins = {
            "terminalreporter": SimpleNamespace(isatty=terminal),
            "capturemanager": SimpleNamespace(global_and_fixture_disabled=contextlib.nullcontext),
        }
        return _Shown(
            SimpleNamespace(
                pluginmanager=SimpleNamespace(get_plugin=plugins.get),
                get_verbosity=lambda: verbosity,
                get_terminal_writer=lambda: SimpleNamespace(write=lambda text, flush: written.append(text)),
            )
        )

    for terminal, verbosity, seconds in ((False, 1, 0.0), (True, 0, 0.0), (True, 1, 60.0)):
        monkeypatch.setattr(_Shown, "SECONDS", seconds)
        quiet = shown(terminal, verbosity)
        quiet(1, 3, "float32/jit/0")
        quiet.clear()
    assert not written
    monkeypatch.setattr(_Shown, "SECONDS", 0.0)
    loud = shown(True, 1)
    loud.began -= 10
    loud(1, 3, "float32/jit/0")
    loud.clear()
    assert written == ["\x1b71/3 float32/jit/0, 20 s left\x1b[K\x1b8", "\x1b[K"]
