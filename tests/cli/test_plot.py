"""`jaxgrad plot`: where pictures go, and that an error is a sentence."""

import json
import sys
from pathlib import Path

import pytest

from jaxgrad import cli, corpus
from jaxgrad.training import run
from jaxgrad.training.config import config_of


@pytest.fixture
def plot(monkeypatch, capsys):
    """A command that runs here: its exit code, its output and its errors."""
    monkeypatch.delenv("JAXGRAD_CORPUS", raising=False)

    def call(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["jaxgrad", "plot", *map(str, args)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out = capsys.readouterr()
        return int(caught.value.code or 0), out.out, out.err

    return call


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    data = corpus.load()
    path = corpus.shipped("names.txt")
    config = config_of(steps=60, hidden=8, log_every=20, vocabulary=data.vocabulary, corpus_sha256=corpus.sha256(path))
    where = tmp_path_factory.mktemp("runs") / "one"
    run.train(config, data, where)
    return where


@pytest.mark.parametrize("picture", ["loss", "logits", "saturation", "embedding"])
def test_a_runs_picture_is_put_into_its_folder(plot, folder: Path, picture: str):
    assert plot(picture, folder, "--dark") == (0, f"written: {folder / picture}-dark.png\n", "")
    assert (folder / f"{picture}-dark.png").read_bytes().startswith(b"\x89PNG")


def test_or_where_it_is_told(plot, folder: Path, tmp_path: Path):
    out = tmp_path / "new" / "a.svg"
    assert plot("loss", folder, "--out", out) == (0, f"written: {out}\n", "")
    assert b"</svg>" in out.read_bytes()


def test_light_and_dark_are_two_pictures(plot, folder: Path, tmp_path: Path):
    light, dark = tmp_path / "light.png", tmp_path / "dark.png"
    plot("loss", folder, "--out", light)
    plot("loss", folder, "--out", dark, "--dark")
    assert light.read_bytes() != dark.read_bytes()


def test_a_step_of_a_run_can_be_chosen(plot, folder: Path, tmp_path: Path):
    pictures = [tmp_path / f"{step}.png" for step in (0, 59)]
    for step, out in zip((0, 59), pictures, strict=True):
        assert plot("logits", folder, "--step", step, "--out", out)[0] == 0
    assert plot("logits", folder)[0] == 0
    # Without a step it is the last of the run's 60.
    assert pictures[0].read_bytes() != pictures[1].read_bytes() == (folder / "logits.png").read_bytes()


@pytest.mark.parametrize("picture", ["logits", "errors", "graph"])
def test_pictures_of_the_notebooks_batch_need_no_run(plot, monkeypatch, tmp_path: Path, picture: str):
    monkeypatch.chdir(tmp_path)
    assert plot(picture) == (0, f"written: {picture}.png\n", "")
    assert (tmp_path / f"{picture}.png").stat().st_size > 10_000


def test_a_message_can_be_drawn_from_a_file(plot, tmp_path: Path):
    (tmp_path / "said.txt").write_text("norm: wrong\n\n  who       hand\n")
    assert plot("message", tmp_path / "said.txt") == (0, f"written: {tmp_path / 'said.png'}\n", "")


def test_where_a_port_parts_is_drawn(plot, tmp_path: Path):
    pair = Path(__file__).parents[2] / "docs/pictures/port"
    out = tmp_path / "port.png"
    assert plot("port", f"{pair}/model.py:case", "--torch", f"{pair}/reference.py:Classifier", "--out", out)[0] == 0
    assert out.stat().st_size > 10_000


def test_a_sweep_can_be_drawn_again(plot, tmp_path: Path):
    (tmp_path / "curves.csv").write_text("step,seed 0,seed 1\n100,3.5,4\n200,3.25,nan\n")
    assert plot("sweep", tmp_path) == (0, f"written: {tmp_path / 'curves.png'}\n", "")


def test_a_benchmark_can_be_drawn_again(plot, tmp_path: Path):
    seconds = {"low": 1e-5, "median": 2e-5, "high": 3e-5}
    peers = [{"name": "fused", "library": "jax", "reason": None, "seconds_per_step": seconds}]
    environment = {"jax_device_kind": "cpu", "cpu": "some CPU", "cores": 2}
    size = {"name": "seed", "batch": 32, "hidden": 200, "peers": peers}
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"schema": "jaxgrad.bench/1", "environment": environment, "sizes": [size]}))
    assert plot("bench", file) == (0, f"written: {tmp_path / 'a.png'}\n", "")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("loss", "nowhere"), "nowhere/config.json: cannot be read"),
        (("saturation", "nowhere"), "nowhere/config.json: cannot be read"),
        (("embedding", "nowhere"), "nowhere/config.json: cannot be read"),
        (("logits", "nowhere"), "nowhere/config.json: cannot be read"),
        (("logits", "--step", 3), "--step and --corpus are of a run; give its folder too, or leave them out"),
        (("logits", "{run}", "--step", 60), "has no step 60; its steps are 0 to 59"),
        (("saturation", "{run}", "--corpus", __file__), "contains"),
        (("sweep", "{run}"), "curves.csv: cannot be read"),
        (("bench", "{run}/config.json"), "has the schema None"),
        (("bench", "{run}/metrics.jsonl"), "is not a benchmark that jaxgrad wrote"),
        (("loss", "{run}", "--out", "a.gif"), "a.gif: ends in '.gif'; give a picture a name that ends in .png"),
        (("loss", "{run}", "--out", "{run}/config.json/a.png"), "cannot be written"),
        (("errors", "--out", "errors"), "errors: ends in ''"),
        (("message", "nowhere.txt"), "nowhere.txt: cannot be read"),
        (("port", "nowhere.py:case", "--torch", "nowhere.py:Model"), "nowhere.py"),
    ],
)
def test_an_error_is_one_sentence_and_exit_code_2(plot, folder: Path, args: tuple, message: str):
    code, _, err = plot(*(str(arg).format(run=folder) for arg in args))
    assert code == 2 and err.startswith("jaxgrad: ") and message in err and err.count("\n") == 1
