"""`jaxgrad sweep`: many runs at once, and which was best."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from jaxgrad.cli.app import CorpusOption, DType, JsonOption
from jaxgrad.errors import JaxgradError

if TYPE_CHECKING:
    import jax
    from rich.table import Table

    from jaxgrad.training.config import Config
    from jaxgrad.training.sweep import Rates, Swept

Number = TypeVar("Number", int, float)

# A config is checked for each; more than so many take longer to count than most sweeps take.
MOST = 10_000


def sweep(
    out: Annotated[Path | None, typer.Option(help="Folder to make; sweeps/DATE-TIME if not given.")] = None,
    seeds: Annotated[str, typer.Option(help="FROM:TO, without TO, or a list: 0:16 or 1,5,7.")] = "0:4",
    lr: Annotated[str, typer.Option(help="Learning rates, separated by commas.")] = "0.1",
    hidden: Annotated[str, typer.Option(help="Hidden sizes, separated by commas.")] = "200",
    steps: Annotated[int, typer.Option(min=1)] = 200_000,
    batch_size: Annotated[int, typer.Option(min=2, help="Rows of a batch.")] = 32,
    gradients: Annotated[str, typer.Option(help="fused, by-node, jax-grad, or kernel on GPU and TPU.")] = "fused",
    optimizer: Annotated[str, typer.Option(help="Any of optax's: sgd, adam, lion, ...")] = "sgd",
    schedule: Annotated[str, typer.Option(help="seed, or optax's: cosine_decay, ...")] = "seed",
    dtype: Annotated[DType, typer.Option(help="Type of forward and backward.")] = DType.float32,
    memory: Annotated[float, typer.Option(min=0.001, help="GiB that the runs may take, all devices together.")] = 4.0,
    corpus: CorpusOption = None,
    json: JsonOption = None,
) -> None:
    """Train a model for every seed, rate and size, all at once; a table, two CSV files and a plot.

    Example: jaxgrad sweep --seeds 0:16 --lr 0.05,0.1,0.2 --hidden 200
    """
    import datetime

    # One model keeps one core busy: on a CPU each core is a device, and takes its share of the models.
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(os.cpu_count() or 1))

    import jax
    from rich.console import Console

    from jaxgrad import corpus as corpora
    from jaxgrad import files
    from jaxgrad.cli.progress import bar
    from jaxgrad.training import sweep as sweeps
    from jaxgrad.training import sweep_folder
    from jaxgrad.training.config import Config
    from jaxgrad.training.folder import claim

    path = corpora.shipped("names.txt") if corpus is None else corpus
    data = corpora.load(path)
    base = Config(
        steps=steps, batch_size=batch_size, optimizer=optimizer, schedule=schedule, gradients=gradients,
        dtype=dtype.value, corpus=None if corpus is None else str(corpus.absolute()),
        corpus_sha256=corpora.sha256(path), vocabulary=data.vocabulary,
    )  # fmt: skip
    configs = sweeps.grid(base, _seeds(seeds), _numbers("--lr", lr, float), _numbers("--hidden", hidden, int))
    folder = out or Path("sweeps") / f"{datetime.datetime.now():%Y-%m-%d-%H%M%S}"
    claim(folder)
    console, devices = Console(), jax.devices()
    each = int(memory * 2**30) // len(devices)
    with bar(console, len(configs) * steps, "model-steps") as update:
        swept, rates = sweeps.sweep(
            configs, data, each, devices, lambda p: update(p.model_steps, f"{p.per_second:,.0f} per second")
        )
    sweep_folder.write(folder, swept, rates)
    if json is not None:
        files.write_json(json, sweep_folder.as_json(sweep_folder.results(swept)))
    console.print(_table(swept))
    console.print(_summary(swept, rates, devices), highlight=False)
    console.print(f"sweep: {folder}", highlight=False)


def _table(swept: "list[Swept]") -> "Table":
    from rich.table import Table

    from jaxgrad.training.sweep_folder import results

    rows = results(swept)
    table = Table()
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        cells = (f"{v:.4f}" if name in ("train", "dev", "test") else f"{v:g}" for name, v in row.items())
        table.add_row(*("diverged" if cell == "inf" else cell for cell in cells))
    return table


def _summary(swept: "list[Swept]", rates: "Rates", devices: "list[jax.Device]") -> str:
    return (
        f"{rates.together:,.0f} model-steps per second on {len(devices)} device(s) of kind {devices[0].device_kind!r},"
        f" {rates.together / rates.alone:.1f} times one run after another ({rates.alone:,.0f})\n"
        f"the best, alone: {_alone(swept[0].config)}"
    )


def _alone(config: "Config") -> str:
    """The command that trains this run by itself."""
    from jaxgrad.training.config import Config

    names = {"seed": "--seed", "learning_rate": "--lr", "hidden": "--hidden", "steps": "--steps",
             "batch_size": "--batch-size", "gradients": "--gradients", "optimizer": "--optimizer",
             "schedule": "--schedule", "dtype": "--dtype", "corpus": "--corpus"}  # fmt: skip
    given = (
        (flag, getattr(config, name))
        for name, flag in names.items()
        if getattr(config, name) != getattr(Config(), name)
    )
    return shlex.join(["jaxgrad", "train", *(str(part) for pair in given for part in pair)])


def _seeds(text: str) -> list[int]:
    low, colon, high = text.partition(":")
    if not colon:
        return _numbers("--seeds", text, int)
    try:
        seeds = range(int(low or 0), int(high))
    except ValueError:
        seeds = range(0)
    if len(seeds[: MOST + 1]) > MOST:
        raise JaxgradError(f"--seeds is {text[:80]!r}, which are more than {MOST:,}; sweep them in parts")
    if not seeds:
        raise JaxgradError(f"--seeds is {text!r}; give FROM:TO with FROM below TO, such as 0:16, or a list: 1,5,7")
    return list(seeds)


def _numbers(flag: str, text: str, kind: type[Number]) -> list[Number]:
    try:
        return list(dict.fromkeys(kind(part) for part in text.split(",")))
    except ValueError:
        raise JaxgradError(f"{flag} is {text!r}; give numbers separated by commas, such as 0.05,0.1") from None
