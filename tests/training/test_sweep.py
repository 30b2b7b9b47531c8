"""A sweep: each of its runs is the run trained alone, whatever runs beside it."""

import csv
import dataclasses
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import corpus
from jaxgrad.errors import JaxgradError
from jaxgrad.models.mlp.forward import Batch
from jaxgrad.models.mlp.record import MODEL
from jaxgrad.training import checkpoints, run, sweep, sweep_folder
from jaxgrad.training import folder as folders
from jaxgrad.training.config import Config, config_of, optimizer
from jaxgrad.training.run import Stopped
from jaxgrad.training.step import run_steps, start

GIB = 2**30


@pytest.fixture(scope="module")
def data() -> corpus.Corpus:
    return corpus.load()


def alone(config: Config, data: corpus.Corpus) -> np.ndarray:
    """The mean loss of every `log_every` steps of a run that `run_steps` trains by itself."""
    init_key, key = jax.random.split(jax.random.key(config.seed))
    state = start(run.initial_params(config, init_key), optimizer(config))
    _, losses = run_steps(
        state, key, Batch(jnp.asarray(data.train.X), jnp.asarray(data.train.Y)),
        model=MODEL, sizes=config.sizes, gradients=config.gradients, optimizer=optimizer(config), dtype=config.dtype,
        batch_size=config.batch_size, n_steps=config.steps,
    )  # fmt: skip
    return np.asarray(losses, np.float64).reshape(-1, config.log_every).mean(1)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_each_run_is_the_run_trained_alone(data, name: str):
    base = config_of(steps=1000, dtype="float64", optimizer=name, chunk=300, vocabulary=data.vocabulary)
    rate = 0.1 if name == "sgd" else 0.003
    configs = sweep.grid(base, [0, 5], [rate, rate / 3], {"hidden": [16, 9]})
    swept, _ = sweep.sweep(configs, data, GIB, jax.devices())
    assert {(s.config.seed, s.config.learning_rate, s.config.sizes.hidden) for s in swept} == {
        (c.seed, c.learning_rate, c.sizes.hidden) for c in configs
    }
    with jax.enable_x64(True):
        for one in swept:
            # Stacked products sum in another order, about 1e-15 a step; 1e-9 after a thousand steps is the promise
            # that all engines make for a whole run (tests/training/test_step.py).
            np.testing.assert_allclose(one.curve, alone(one.config, data), rtol=1e-9)


def test_float32_runs_start_as_they_do_alone(data):
    base = config_of(steps=50, hidden=16, log_every=1, vocabulary=data.vocabulary)
    swept, _ = sweep.sweep(sweep.grid(base, [0, 1, 2], [0.1], {"hidden": [16]}), data, GIB, jax.devices())
    for one in swept:
        # A step's losses differ by some 8 roundings of 2^-24, and each of up to 50 steps before may add as much.
        np.testing.assert_allclose(one.curve, alone(one.config, data), rtol=8 * 50 * 2.0**-24)


def test_models_in_the_kernel_are_those_of_the_scan(data):
    # One launch has a program for each model; three models on eight devices leave five with copies.
    base = config_of(steps=30, hidden=7, log_every=1, vocabulary=data.vocabulary)
    grids = (
        sweep.grid(dataclasses.replace(base, gradients=name), [0, 1, 2], [0.1], {"hidden": [7]})
        for name in ("fused", "kernel-interpreted")
    )
    scanned, in_kernel = (sweep.sweep(configs, data, GIB, jax.devices())[0] for configs in grids)
    for a, b in zip(scanned, in_kernel, strict=True):
        assert a.config.seed == b.config.seed
        np.testing.assert_allclose(a.curve, b.curve, rtol=8 * 30 * 2.0**-24)


def test_the_best_on_dev_comes_first(data):
    base = config_of(steps=300, hidden=8, vocabulary=data.vocabulary)
    swept, rates = sweep.sweep(sweep.grid(base, [0], [0.001, 0.1, 0.01], {"hidden": [8]}), data, GIB, jax.devices())
    assert [one.config.learning_rate for one in swept] == [0.1, 0.01, 0.001]
    assert rates.together > 0 and rates.alone > 0


def test_a_run_that_diverges_ranks_last_and_harms_no_other(data):
    base = config_of(steps=40, hidden=8, log_every=10, vocabulary=data.vocabulary)
    (honest,), _ = sweep.sweep(sweep.grid(base, [0], [0.1], {"hidden": [8]}), data, GIB, jax.devices())
    (first, last), _ = sweep.sweep(sweep.grid(base, [0], [1e30, 0.1], {"hidden": [8]}), data, GIB, jax.devices())
    assert last.losses == sweep.DIVERGED and last.config.learning_rate == 1e30
    np.testing.assert_allclose(first.curve, honest.curve, rtol=8 * 40 * 2.0**-24)


def test_little_memory_means_more_groups_and_the_same_runs(data):
    base = config_of(steps=100, hidden=32, log_every=10, dtype="float64", vocabulary=data.vocabulary)
    configs = sweep.grid(base, list(range(5)), [0.1], {"hidden": [32]})
    told: list[sweep.Progress] = []
    whole, _ = sweep.sweep(configs, data, GIB, jax.devices()[:1], told.append)
    launches = len(told)
    parts, _ = sweep.sweep(configs, data, 1_000_000, jax.devices()[:1], told.append)
    assert launches == 1 < len(told) - launches
    assert told[-1].model_steps == told[-1].of == 500
    for a, b in zip(whole, parts, strict=True):
        assert a.config == b.config
        np.testing.assert_allclose(a.curve, b.curve, rtol=1e-12)


def test_a_model_that_does_not_fit_is_refused_with_the_figures(data):
    configs = sweep.grid(config_of(steps=10, vocabulary=data.vocabulary), [0], [0.1], {"hidden": [200]})
    with pytest.raises(
        JaxgradError, match=r"one model with hidden 200 .* takes \S+ MiB with its data, and .* has 0\.1"
    ):
        sweep.sweep(configs, data, 100_000, jax.devices())


def test_a_size_that_does_not_fit_is_refused_before_another_is_trained(data):
    base = config_of(steps=10, vocabulary=data.vocabulary)
    configs = sweep.grid(base, [0], [0.1], {"hidden": [8, 20_000]})
    told: list[sweep.Progress] = []
    with pytest.raises(JaxgradError, match="one model with hidden 20000 "):
        sweep.sweep(configs, data, 4_000_000, jax.devices()[:1], told.append)
    assert not told


def test_the_folder_has_table_curves_and_picture(data, tmp_path: Path):
    base = config_of(steps=25, hidden=8, log_every=10, vocabulary=data.vocabulary)
    swept, rates = sweep.sweep(sweep.grid(base, [0, 1], [0.1, 1e30], {"hidden": [8]}), data, GIB, jax.devices())
    sweep_folder.write(tmp_path, swept, rates)
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4"]
    assert [float(row["dev"]) for row in rows] == [one.losses.dev for one in swept]
    with (tmp_path / "curves.csv").open() as file:
        header, *lines = csv.reader(file)
    assert header[:2] == ["step", f"seed {swept[0].config.seed} · lr 0.1 · hidden 8"]
    assert [line[0] for line in lines] == ["10", "20", "25"]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    kept = json.loads((tmp_path / "sweep.json").read_text())
    assert kept["schema"] == "jaxgrad.sweep/1" and kept["runs"][-1]["dev"] is None and "seed" not in kept["config"]


def test_models_have_nothing_to_say_to_each_other(data):
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("models",))
    configs = sweep.grid(
        config_of(steps=10, hidden=8, vocabulary=data.vocabulary), list(range(8)), [0.1], {"hidden": [8]}
    )
    examples = Batch(jnp.asarray(data.train.X), jnp.asarray(data.train.Y))
    program = sweep._compiled(configs, examples, mesh, 10).as_text()
    assert not re.findall(r"all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute", program)


def test_a_sweep_that_is_stopped_after_every_launch_ends_with_the_same_bits(data, tmp_path: Path):
    base = config_of(steps=40, hidden=8, log_every=10, chunk=20, vocabulary=data.vocabulary)
    # Two sizes are two groups, and one of the rates diverges: what JSON has no number for is kept too.
    configs = sweep.grid(base, [0, 1], [0.1, 1e30], {"hidden": [8, 5]})
    whole, _ = sweep.sweep(configs, data, GIB, jax.devices()[:2])
    launches = 0
    while True:
        with folders.locked(tmp_path) as held:
            kept = sweep.Kept(held, "plan", seconds=1e9, stop=lambda: True)
            try:
                parts, _ = sweep.sweep(configs, data, GIB, jax.devices()[:2], kept=kept)
                break
            except Stopped as stopped:
                launches += 1
                assert (
                    stopped.checkpoint == tmp_path / "checkpoints" / str(stopped.step) and stopped.checkpoint.is_dir()
                )
    assert launches == 2 * 2 - 1 and len(checkpoints.saved(tmp_path)) == 2
    for a, b in zip(whole, parts, strict=True):
        assert a.config == b.config and a.losses == b.losses and a.curve.tobytes() == b.curve.tobytes()
    # The newest is cut: the one before it is gone on from, to the same end.
    newest = checkpoints.saved(tmp_path)[-1]
    (newest / "notes.json").write_text("{")
    with folders.locked(tmp_path) as held:
        again, _ = sweep.sweep(configs, data, GIB, jax.devices()[:2], kept=sweep.Kept(held, "plan"))
        assert [one.curve.tobytes() for one in again] == [one.curve.tobytes() for one in whole]
        with pytest.raises(JaxgradError, match="its plan is not the one that it was begun with"):
            sweep.sweep(configs, data, GIB, jax.devices()[:2], kept=sweep.Kept(held, "another"))


def test_a_plan_is_read_back_as_it_was(data, tmp_path: Path):
    plan = sweep_folder.Plan(
        config_of(steps=25, vocabulary=data.vocabulary), (0, 7), (0.1 + 0.2, 1e-300), {"hidden": (8,)}, 2**33, 3
    )
    digest = sweep_folder.save_plan(tmp_path, plan)
    assert sweep_folder.load_plan(tmp_path) == (plan, digest)
    (tmp_path / "plan.json").write_text((tmp_path / "plan.json").read_text().replace('"devices": 3', '"devices": "3"'))
    with pytest.raises(JaxgradError, match=r"plan.json: is not a plan that jaxgrad wrote \(Expected `int`, got `str`"):
        sweep_folder.load_plan(tmp_path)
