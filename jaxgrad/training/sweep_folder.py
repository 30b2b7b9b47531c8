"""What a sweep leaves: plan.json at its begin; results.csv, curves.csv, curves.png and sweep.json at its end."""

import csv
import dataclasses
import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxgrad import files
from jaxgrad.plots import save, sweep_curves
from jaxgrad.training.config import Config, checked
from jaxgrad.training.sweep import Rates, Swept

SCHEMA = "jaxgrad.sweep/1"
AXES = ("seed", "learning_rate", "hidden")


class Plan(NamedTuple):
    """All that decides a sweep's results to the last bit: the config that its runs share, and what they differ in.

    How many devices there are, and the bytes of each, decide which models are stacked.
    """

    config: Config
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    hidden: tuple[int, ...]
    memory: int
    devices: int


def save_plan(folder: Path, plan: Plan) -> str:
    """Write a sweep's plan.json; its hash."""
    files.write_json(folder / "plan.json", {**plan._asdict(), "config": dataclasses.asdict(plan.config)})
    return files.sha256(folder / "plan.json")


def load_plan(folder: Path) -> tuple[Plan, str]:
    """The plan of a sweep's folder and its hash; raises `JaxgradError` where it is missing or not as it was written."""
    path = folder / "plan.json"
    plan = files.read_json(path, Plan, "a plan", "give the folder of a sweep")
    return plan._replace(config=checked(plan.config)), files.sha256(path)


def write(folder: Path, swept: list[Swept], rates: Rates) -> None:
    """Write a sweep's files, sweep.json the last; raises `JaxgradError` where they cannot be.

    results.csv has a line a run, the best first: rank, seed, learning_rate, hidden, train, dev, test (inf where the
    run diverged). curves.csv has a line for each `log_every` steps and a column a run, in that order. sweep.json
    has the schema `jaxgrad.sweep/1`, the config that all runs share, the rates and the results.
    """
    rows = results(swept)
    _write_csv(folder / "results.csv", list(rows[0]), [list(row.values()) for row in rows])
    steps = ends(swept[0])
    labels = [label(run) for run in swept]
    columns = np.stack([run.curve for run in swept], axis=1)
    _write_csv(
        folder / "curves.csv",
        ["step", *labels],
        [[step, *line] for step, line in zip(steps.tolist(), columns.tolist(), strict=True)],
    )
    save(sweep_curves(steps, [run.curve for run in swept], labels), folder / "curves.png")
    shared = {k: v for k, v in dataclasses.asdict(swept[0].config).items() if k not in AXES}
    files.write_json(
        folder / "sweep.json",
        {"schema": SCHEMA, "config": shared, "model_steps_per_second": rates._asdict(), "runs": as_json(rows)},
    )


def results(swept: list[Swept]) -> list[dict[str, Any]]:
    """A row for each run: rank, what it was given, its losses in nats."""
    return [
        {"rank": rank, **{axis: getattr(run.config, axis) for axis in AXES}, **run.losses._asdict()}
        for rank, run in enumerate(swept, 1)
    ]


def as_json(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`rows` with None for the losses of a run that diverged: JSON has no infinity."""
    return [{k: v if not isinstance(v, float) or np.isfinite(v) else None for k, v in row.items()} for row in rows]


def label(run: Swept) -> str:
    """A run's name in plots and columns."""
    return f"seed {run.config.seed} · lr {run.config.learning_rate:g} · hidden {run.config.hidden}"


def ends(run: Swept) -> np.ndarray:
    """The step at which each window of a curve ends."""
    return np.minimum(np.arange(1, len(run.curve) + 1) * run.config.log_every, run.config.steps)


def _write_csv(path: Path, header: list[str], lines: list[list[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *lines])
    files.write_bytes(path, text.getvalue().encode())
