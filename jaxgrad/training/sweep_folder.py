"""What a sweep leaves: plan.json at its begin; results.csv, curves.csv, curves.png and sweep.json at its end."""

import csv
import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxgrad import files
from jaxgrad.plots import save, sweep_curves
from jaxgrad.training.config import Config, flat, flat_sizes, record
from jaxgrad.training.folder import from_json
from jaxgrad.training.sweep import Rates, Swept

SCHEMA = "jaxgrad.sweep/1"


class Plan(NamedTuple):
    """All that decides a sweep's results to the last bit: the config that its runs share, and what they differ in.

    `sizes` are the values of each size that varies, and of the one that the model's sweeps always tell of.
    How many devices there are, and the bytes of each, decide which models are stacked.
    """

    config: Config
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    sizes: dict[str, tuple[Any, ...]]
    memory: int
    devices: int


def save_plan(folder: Path, plan: Plan) -> str:
    """Write a sweep's plan.json; its hash."""
    values = {**plan._asdict(), "config": flat(plan.config), **plan.sizes}
    files.write_json(folder / "plan.json", {name: value for name, value in values.items() if name != "sizes"})
    return files.sha256(folder / "plan.json")


def load_plan(folder: Path) -> tuple[Plan, str]:
    """The plan of a sweep's folder and its hash; raises `JaxgradError` where it is missing or not as it was written."""
    path = folder / "plan.json"
    what, advice = "a plan", "give the folder of a sweep"
    given, sha256 = files.read_json_and_sha256(path, dict[str, Any], what, advice)
    config = from_json(files.converted(given.pop("config", None), dict[str, Any], path, what, advice), path, advice)
    kinds = {name: type(value) for name, value in flat_sizes(config).items()}
    sizes = {
        name: files.converted(given.pop(name), _tuple_of(kinds[name]), path, what, advice)
        for name in kinds.keys() & given.keys()
    }
    rest = files.converted(given, _Rest, path, what, advice)
    return Plan(config, *rest[:2], sizes, *rest[2:]), sha256


def _tuple_of(kind: Any) -> Any:
    return tuple[kind, ...]


class _Rest(NamedTuple):
    """What plans of all models have."""

    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    memory: int
    devices: int


def write(folder: Path, swept: list[Swept], rates: Rates) -> None:
    """Write a sweep's files, sweep.json the last; raises `JaxgradError` where they cannot be.

    results.csv has a line a run, the best first: rank, seed, learning_rate, sizes, train, dev, test (inf where the
    run diverged). curves.csv has a line for each `log_every` steps and a column a run, in that order. sweep.json
    has the schema `jaxgrad.sweep/1`, the config that all runs share, the rates and the results.
    """
    rows = results(swept)
    _write_csv(folder / "results.csv", list(rows[0]), [list(row.values()) for row in rows])
    steps = ends(swept[0])
    labels = [label(run, axes(swept)) for run in swept]
    columns = np.stack([run.curve for run in swept], axis=1)
    _write_csv(
        folder / "curves.csv",
        ["step", *labels],
        [[step, *line] for step, line in zip(steps.tolist(), columns.tolist(), strict=True)],
    )
    save(sweep_curves(steps, [run.curve for run in swept], labels), folder / "curves.png")
    files.write_json(folder / "sweep.json", to_json(swept, rates))


def to_json(swept: list[Swept], rates: Rates) -> dict[str, Any]:
    """A sweep as JSON of the schema `jaxgrad.sweep/1`, as `write` says; a run that diverged has no losses."""
    shared = {k: v for k, v in flat(swept[0].config).items() if k not in axes(swept)}
    runs = as_json(results(swept))
    return {"schema": SCHEMA, "config": shared, "model_steps_per_second": rates._asdict(), "runs": runs}


def results(swept: list[Swept]) -> list[dict[str, Any]]:
    """A row for each run: rank, what it was given, its losses in nats."""
    return [
        {"rank": rank, **{axis: flat(run.config)[axis] for axis in axes(swept)}, **run.losses._asdict()}
        for rank, run in enumerate(swept, 1)
    ]


def axes(swept: list[Swept]) -> tuple[str, ...]:
    """What runs of a sweep differ in: seed, rate, the size that the model's sweeps always tell of, and what varies."""
    first, *_ = swept
    varying = {name for run in swept for name, size in flat_sizes(run.config).items() if size != _size(first, name)}
    told = [name for name in flat_sizes(first.config) if name in {*varying, record(first.config).swept}]
    return ("seed", "learning_rate", *told)


def _size(run: Swept, name: str) -> Any:
    return flat_sizes(run.config)[name]


def as_json(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`rows` with None for the losses of a run that diverged: JSON has no infinity."""
    return [{k: v if not isinstance(v, float) or np.isfinite(v) else None for k, v in row.items()} for row in rows]


def label(run: Swept, told: tuple[str, ...]) -> str:
    """A run's name in plots and columns, which tells of these axes."""
    sizes = (f" · {name} {size}" for name, size in flat_sizes(run.config).items() if name in told)
    return f"seed {run.config.seed} · lr {run.config.learning_rate:g}{''.join(sizes)}"


def ends(run: Swept) -> np.ndarray:
    """The step at which each window of a curve ends."""
    return np.minimum(np.arange(1, len(run.curve) + 1) * run.config.log_every, run.config.steps)


def _write_csv(path: Path, header: list[str], lines: list[list[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *lines])
    files.write_bytes(path, text.getvalue().encode())
