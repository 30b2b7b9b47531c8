"""What a sweep leaves: sweep.json, results.csv, curves.csv and curves.png."""

import csv
import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np

from jaxgrad import files
from jaxgrad.plots import save, sweep_curves
from jaxgrad.training.sweep import Rates, Swept

SCHEMA = "jaxgrad.sweep/1"
AXES = ("seed", "learning_rate", "hidden")


def write(folder: Path, swept: list[Swept], rates: Rates) -> None:
    """Write a sweep's files; raises `JaxgradError` where they cannot be.

    results.csv has a line a run, the best first: rank, seed, learning_rate, hidden, train, dev, test (inf where the
    run diverged). curves.csv has a line for each `log_every` steps and a column a run, in that order. sweep.json
    has the schema `jaxgrad.sweep/1`, the config that all runs share, the rates and the results.
    """
    rows = results(swept)
    shared = {k: v for k, v in dataclasses.asdict(swept[0].config).items() if k not in AXES}
    files.write_json(
        folder / "sweep.json",
        {"schema": SCHEMA, "config": shared, "model_steps_per_second": rates._asdict(), "runs": as_json(rows)},
    )
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
