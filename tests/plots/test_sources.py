"""Where pictures have their numbers from."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import corpus
from jaxgrad.errors import JaxgradError
from jaxgrad.models.mlp.forward import Batch, forward
from jaxgrad.parity import cases
from jaxgrad.plots import of_case, of_run, of_sweep
from jaxgrad.training import run
from jaxgrad.training.config import config_of


@pytest.fixture(scope="module")
def data() -> corpus.Corpus:
    return corpus.load()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, data) -> Path:
    config = config_of(steps=50, hidden=8, log_every=20, vocabulary=data.vocabulary, corpus_sha256="0", dtype="float64")
    where = tmp_path_factory.mktemp("runs") / "one"
    run.train(config, data, where)
    return where


def test_marks_are_even_on_a_log_axis():
    assert of_run.marks(50) == [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 50]
    assert of_run.marks(1) == [0, 1] and len(of_run.marks(200_000)) == 37


def test_columns_are_the_metrics_lines(folder: Path):
    steps, losses, rates = of_run.columns(folder)
    assert steps.tolist() == [20, 40, 50] and losses.shape == (3,)
    assert rates.tolist() == pytest.approx([0.1, 0.01, 0.01])


def test_a_run_watched_is_the_run_that_was(folder: Path, data):
    told: list[int] = []
    watched = of_run.watch(folder, data, told.append)
    assert watched.steps.tolist() == of_run.marks(50) and set(watched.steps[1:].tolist()) <= set(told)
    assert watched.saturated.shape == watched.mean.shape == watched.var.shape == (13, 8)
    _, params, _ = run.load(folder)
    rows = np.unique(np.linspace(0, len(data.train.Y) - 1, of_run.ROWS_WATCHED).astype(int))
    with jax.enable_x64(True):
        nodes = jax.jit(forward)(params, Batch(jnp.asarray(data.train.X[rows]), jnp.asarray(data.train.Y[rows])))
    # The same program over the same float64 numbers, in other chunks: sums of 2048 terms, each of a few roundings.
    close = {"rtol": 2048 * 2**-52, "atol": 2048 * 2**-52}
    np.testing.assert_allclose(watched.mean[-1], nodes.bnmean[0], **close)
    np.testing.assert_allclose(watched.var[-1], nodes.bn_var[0], **close)
    np.testing.assert_array_equal(watched.saturated[-1], (np.abs(nodes.h) > 0.97).mean(0))
    assert (np.diff(watched.h_norm, axis=1) >= 0).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("", "has no line yet; go on with the run: jaxgrad train --resume"),
        ("{}\n", "is not metrics that jaxgrad wrote"),
        ("nonsense\n", "is not metrics that jaxgrad wrote"),
        ("[1]\n", "is not metrics that jaxgrad wrote"),
    ],
)
def test_metrics_that_are_none_are_refused(folder: Path, tmp_path: Path, text: str | None, message: str):
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(JaxgradError, match=message):
        of_run.columns(tmp_path)


def test_rows_of_the_logits_gradient_sum_to_zero():
    case = cases.random_case(0, batch_size=8, hidden=5)
    dlogits = of_case.dlogits(case)
    assert dlogits.shape == (8, 27) and dlogits.dtype == np.float64
    assert (dlogits[np.arange(8), case.batch.Y] < 0).all(), "a target is pushed up, against the gradient"
    # Terms of at most 1/8, each of a few roundings.
    assert np.max(np.abs(dlogits.sum(1))) < 8 * 27 / 8 * 2**-52


def test_errors_are_within_their_tolerances_and_grow_with_roundoff():
    told: list[int] = []
    names, found = of_case.errors(cases.random_case(0, batch_size=8, hidden=5), told.append)
    assert told == [1, 2, 3] and [errors.dtype for errors in found] == ["float64", "float32", "bfloat16"]
    assert names[:2] == ("forward loss", "loss") and names[-1] == "C" and len(names) == 27
    for errors in found:
        assert errors.relative.shape == errors.tolerance.shape == (27,)
        assert (errors.relative <= errors.tolerance).all()
    wide, narrow, narrowest = (float(np.median(errors.relative)) for errors in found)
    # Roundoffs are 2^-53, 2^-24 and 2^-9, so medians lie far more than a thousand times apart.
    assert 0 < 1000 * wide < narrow < narrowest / 1000


def test_a_sweeps_curves_are_read_as_they_were_written(tmp_path: Path):
    (tmp_path / "curves.csv").write_text("step,a,b\n100,3.5,nan\n200,3.25,inf\n")
    steps, curves, labels = of_sweep.curves(tmp_path)
    assert steps.tolist() == [100, 200] and labels == ["a", "b"] and curves[0].tolist() == [3.5, 3.25]
    assert np.isnan(curves[1][0]) and np.isinf(curves[1][1])


@pytest.mark.parametrize("text", ["", "step\n1\n", "step,a\n", "step,a\n1,2\n3\n", "step,a\n1,x\n", "time,a\n1,2\n"])
def test_a_file_that_no_sweep_wrote_is_refused(tmp_path: Path, text: str):
    (tmp_path / "curves.csv").write_text(text)
    with pytest.raises(JaxgradError, match="is not as jaxgrad sweep wrote it"):
        of_sweep.curves(tmp_path)


def test_a_folder_that_is_no_sweep_is_refused(tmp_path: Path):
    with pytest.raises(JaxgradError, match=r"curves\.csv: cannot be read \(No such file or directory\)"):
        of_sweep.curves(tmp_path)
