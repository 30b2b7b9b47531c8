"""A run leaves a whole folder, which can be read back bit for bit, and refuses to overwrite one."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxgrad import corpus
from jaxgrad.corpus import Split
from jaxgrad.errors import JaxgradError
from jaxgrad.models.mlp.forward import Batch
from jaxgrad.models.mlp.record import MODEL
from jaxgrad.training import checkpoints, evaluate, run
from jaxgrad.training.config import Config, config_of, optimizer
from jaxgrad.training.step import run_steps, start


@pytest.fixture(scope="module")
def data() -> corpus.Corpus:
    return corpus.load()


@pytest.fixture(scope="module")
def config(data) -> Config:
    return config_of(steps=250, hidden=8, log_every=100, chunk=70, vocabulary=data.vocabulary, corpus_sha256="0")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data, config) -> tuple[Path, run.Losses, list[run.Progress]]:
    folder = tmp_path_factory.mktemp("runs") / "one"
    reports: list[run.Progress] = []
    losses = run.train(config, data, folder, reports.append)
    return folder, losses, reports


def test_the_folder_has_all_that_is_promised(finished):
    folder, losses, _ = finished
    assert {p.name for p in folder.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "loss.png",
        "checkpoints",
        ".lock",
        "losses.json",
    }
    assert json.loads((folder / "losses.json").read_text()) == losses._asdict()
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_metrics_have_a_line_for_each_window_and_one_for_the_rest(finished):
    lines = [json.loads(line) for line in (finished[0] / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [100, 200, 250]
    # The rate falls to a tenth after half of the steps, and is shown in optax's float32.
    assert [round(line["learning_rate"], 6) for line in lines] == [0.1, 0.01, 0.01]
    assert all(2 < line["loss"] < 4 for line in lines)


def test_a_metrics_line_is_the_mean_loss_of_its_window_across_chunks(finished, data, config):
    init_key, batch_key = jax.random.split(jax.random.key(config.seed))
    state = start(run.initial_params(config, init_key), optimizer(config))
    examples = Batch(jax.numpy.asarray(data.train.X), jax.numpy.asarray(data.train.Y))
    _, losses = run_steps(
        state, batch_key, examples,
        model=MODEL, sizes=config.sizes, gradients=config.gradients, optimizer=optimizer(config), dtype=config.dtype,
        batch_size=config.batch_size, n_steps=config.steps,
    )  # fmt: skip
    # Windows of 100 steps and chunks of 70 meet nowhere but at 0: a window's losses come from two chunks or three.
    # Chunks do not change a loss by a bit, and both means are float64 sums of the same numbers in the same order.
    losses = np.asarray(losses, np.float64)
    lines = [json.loads(line) for line in (finished[0] / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == [losses[a:b].mean() for a, b in ((0, 100), (100, 200), (200, 250))]


def test_progress_is_told_after_every_chunk(finished):
    assert [progress.step for progress in finished[2]] == [70, 140, 210, 250]
    assert all(progress.steps_per_second > 0 for progress in finished[2])


def test_chunks_do_not_change_the_run(finished, tmp_path, data, config):
    other = run.train(dataclasses.replace(config, chunk=250), data, tmp_path / "other")
    assert other == finished[1]
    same = [(folder / "metrics.jsonl").read_text() for folder in (finished[0], tmp_path / "other")]
    assert same[0] == same[1]


def test_a_run_is_read_back_bit_for_bit(finished, data, config):
    folder, losses, _ = finished
    read, params, statistics = run.load(folder)
    assert read == config
    assert run.split_losses(read, params, statistics, data) == losses


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_other_types_and_optimizers_are_read_back_too(tmp_path, data, config, dtype: str):
    other = dataclasses.replace(config, steps=20, dtype=dtype, optimizer="adam", optimizer_args=(("b1", 0.8),))
    losses = run.train(other, data, tmp_path / "run")
    read, params, statistics = run.load(tmp_path / "run")
    assert read == other
    assert params.C.dtype == (np.float64 if dtype == "float64" else np.float32)
    with run.precision(read):
        assert run.split_losses(read, params, statistics, data) == losses
    assert jax.numpy.ones(()).dtype == np.float32


def test_a_folder_that_is_taken_is_left_alone(tmp_path, data, config):
    (tmp_path / "precious").write_text("mine")
    with pytest.raises(JaxgradError, match="exists and is not empty"):
        run.train(config, data, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["precious"]


def test_a_folder_that_is_a_file_is_named(tmp_path, data, config):
    (tmp_path / "file").touch()
    with pytest.raises(JaxgradError, match="file: cannot be a run folder"):
        run.train(config, data, tmp_path / "file")


def damaged(finished, tmp_path: Path) -> Path:
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run"


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(JaxgradError, match=r"config\.json: cannot be read .*give the folder of a run"):
        run.load(tmp_path)


@pytest.mark.parametrize("text", ["", "[1, 2]", "{}", '{"steps": 3}', '{"steps": 250, "surprise": 1}'])
def test_a_config_that_was_altered_is_named(finished, tmp_path, text: str):
    folder = damaged(finished, tmp_path)
    (folder / "config.json").write_text(text)
    with pytest.raises(JaxgradError, match=r"config\.json: is not a config that jaxgrad wrote"):
        run.load(folder)


def test_a_config_of_another_shape_does_not_read_the_checkpoint(finished, tmp_path):
    folder = damaged(finished, tmp_path)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "hidden": 9}))
    with pytest.raises(
        JaxgradError, match=r"config\.json: is not what the run was trained with: hidden is 9 and was 8; put it back"
    ):
        run.load(folder)


def test_a_checkpoint_that_is_missing_or_damaged_is_named(finished, tmp_path):
    folder = damaged(finished, tmp_path)
    for path in (folder / "checkpoints").rglob("*"):
        if path.is_file() and path.stat().st_size > 100:
            path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(JaxgradError, match="all checkpoints are damaged: steps 250"):
        run.load(folder)
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(JaxgradError, match="there is no checkpoint; was the run stopped"):
        run.load(folder)


def test_a_loss_that_the_last_update_spoils_is_named_and_nothing_is_kept(tmp_path, data, config):
    with pytest.raises(JaxgradError, match="the trained loss is not finite; lower the learning rate"):
        run.train(dataclasses.replace(config, steps=1, learning_rate=1e38), data, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.fixture(scope="module")
def saved_often(tmp_path_factory, data, config) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "saved often"
    # The rate grows until it makes the model worse, so that the best is not the last.
    wild = dataclasses.replace(
        config, steps=400, chunk=30, save_every=50, keep=2, schedule="linear", schedule_args=(("end_value", 100.0),)
    )
    run.train(wild, data, folder)
    return folder


def test_the_last_checkpoints_and_the_best_are_kept(saved_often):
    saved = checkpoints.saved(saved_often)
    # A chunk of 30 is the first to end after 350 steps at 360; the end of a run is always saved.
    assert [path.name for path in saved[-2:]] == ["360", "400"] and len(saved) == 3
    assert checkpoints.best(saved) == saved[0], "a case in which the best is no other than one of the last"


def test_the_best_checkpoint_can_be_loaded_and_has_the_dev_loss_that_it_was_chosen_for(saved_often, data):
    read, params, statistics = run.load(saved_often, best=True)
    best = checkpoints.best(checkpoints.saved(saved_often))
    assert evaluate.mean_loss(MODEL, read.sizes, params, statistics, data.dev) == checkpoints.metadata(best).dev_loss


def a_split(n: int, context: int = 3, symbol: int = 0) -> Split:
    return Split(np.full((n, context), symbol), np.zeros(n, int))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocabulary": (".", "a")}, "the corpus has another vocabulary than the config"),
        ({"train": a_split(1)}, "the train split has 1 examples; it must have at least 2"),
        ({"dev": a_split(0)}, "the dev split has 0 examples; it must have at least 1"),
        ({"test": a_split(0)}, "the test split has 0 examples"),
        ({"train": a_split(5, context=2)}, r"train\.X has the shape \(5, 2\); the config needs \(5, 3\)"),
        ({"train": a_split(5, symbol=27)}, r"train\.X has symbols from 27 to 27; they must lie in 0\.\.26"),
        ({"dev": a_split(5)._replace(Y=np.array([0, 1, -1, 2, 3]))}, r"dev\.Y has symbols from -1 to 3"),
        ({"test": Split(*(np.broadcast_to(a, (2**31, *a.shape[1:])) for a in a_split(1)))}, "2147483648 examples"),
    ],
)
def test_examples_that_a_run_cannot_take_are_refused_before_anything_is_made(tmp_path, data, config, change, message):
    with pytest.raises(JaxgradError, match=message):
        run.train(config, data._replace(**change), tmp_path / "run")
    assert not list(tmp_path.iterdir())
