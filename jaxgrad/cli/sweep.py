"""`jaxgrad sweep`: many runs at once, and which was best."""

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from jaxgrad import models
from jaxgrad.cli.app import CorpusOption, DType, JsonOption
from jaxgrad.cli.sized import ModelOption, all_sizes, given_options
from jaxgrad.cli.terminal import say
from jaxgrad.errors import JaxgradError

if TYPE_CHECKING:
    import jax
    from rich.console import Console
    from rich.table import Table

    from jaxgrad.corpus import Corpus
    from jaxgrad.training.config import Config
    from jaxgrad.training.folder import Held
    from jaxgrad.training.sweep import Rates, Swept

Number = TypeVar("Number", int, float)

# A config is checked for each; more than so many take longer to count than most sweeps take.
MOST = 10_000


def sweep(
    context_of_call: typer.Context,
    model: ModelOption = models.DEFAULT,
    out: Annotated[Path | None, typer.Option(help="Folder to make; sweeps/DATE-TIME if not given.")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="SWEEP", help="Go on with it, as its plan.json says.")] = None,
    seeds: Annotated[str, typer.Option(help="FROM:TO, without TO, or a list: 0:16 or 1,5,7.")] = "0:4",
    lr: Annotated[str, typer.Option(help="Learning rates, separated by commas.")] = "0.1",
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

    Ctrl-C or SIGTERM: the sweep is saved, and goes on with --resume, to the same results bit for bit.

    Example: jaxgrad sweep --seeds 0:16 --lr 0.05,0.1,0.2 --hidden 200
    """
    import datetime

    import jax
    from rich.console import Console

    from jaxgrad import corpus as corpora
    from jaxgrad import files
    from jaxgrad.cli.training import corpus_of
    from jaxgrad.models.model import load_corpus
    from jaxgrad.training import checkpoints, sweep_folder
    from jaxgrad.training import folder as folders
    from jaxgrad.training import sweep as sweeps
    from jaxgrad.training.config import changed, config_of, record
    from jaxgrad.training.run import check_memory

    if resume is None:
        path = corpora.shipped("names.txt") if corpus is None else corpus
        told = {
            "steps": steps, "batch_size": batch_size, "optimizer": optimizer, "schedule": schedule,
            "gradients": gradients,
        }  # fmt: skip
        given = given_options(context_of_call)
        axes = _axes(model, all_sizes(context_of_call), given)
        config = config_of(
            model, **{name: value for name, value in told.items() if name in given}, dtype=dtype.value,
            corpus=None if corpus is None else str(corpus.absolute()), corpus_sha256=corpora.sha256(path),
        )  # fmt: skip
        learning_rates = _numbers("--lr", lr, float) if "lr" in given else [config.learning_rate]
        # Sizes that shape the examples have one value each, or the grid is refused.
        first = changed(config, **{name: values[0] for name, values in axes.items()})
        data, devices = load_corpus(record(config), first.sizes, path), jax.devices()
        plan = sweep_folder.Plan(
            changed(config, vocabulary=data.vocabulary), tuple(_seeds(seeds)), tuple(learning_rates), axes,
            int(memory * 2**30) // len(devices), len(devices),
        )  # fmt: skip
        folder = out or Path("sweeps") / f"{datetime.datetime.now():%Y-%m-%d-%H%M%S}"
    else:
        if leave_out := sorted(given_options(context_of_call) - {"resume", "corpus", "json"}):
            flags = ", ".join("--" + name.replace("_", "-") for name in leave_out)
            raise JaxgradError(f"--resume takes everything from {resume}/plan.json; leave out {flags}")
        folder = resume
        plan, _ = sweep_folder.load_plan(folder)
        copy = corpus if "corpus" in given_options(context_of_call) else None
        first = changed(plan.config, **{name: values[0] for name, values in plan.sizes.items()})
        data, devices = corpus_of(first, copy), jax.devices()[: plan.devices]
        if len(devices) < plan.devices:
            raise JaxgradError(
                f"{folder}: was begun on {plan.devices} devices, on which its last bits depend, and JAX has"
                f" {len(devices)}; give it as many, on a CPU by JAX_NUM_CPU_DEVICES={plan.devices}"
            )
        if (folder / "sweep.json").exists():
            raise JaxgradError(f"{folder}: is finished; its results are in {folder / 'results.csv'}")
    configs = sweeps.grid(plan.config, plan.seeds, plan.learning_rates, plan.sizes)
    for config in configs:
        check_memory(config)
    console = Console()

    def begin(held: folders.Held) -> str:
        """The hash of the plan, which a new sweep writes."""
        if resume is not None:
            return sweep_folder.load_plan(held.at)[1]
        # Between the first look and the lock another process may have begun here.
        folders.claim(folder)
        return sweep_folder.save_plan(held.at, plan)

    if resume is None:
        folders.claim(folder)
    with folders.locked(folder) as held:
        try:
            swept, rates = _swept(console, configs, data, plan.memory, devices, held, begin(held))
        except JaxgradError:
            if resume is None and not checkpoints.saved(held.at):
                folders.take_back(held, "plan.json")
            raise
        folders.check_held(held)
        sweep_folder.write(held.at, swept, rates)
    if json is not None:
        files.write_json(json, sweep_folder.to_json(swept, rates))
    console.print(_table(swept))
    say(console, _summary(swept, rates, devices))
    say(console, f"sweep: {folder}")


def _swept(
    console: "Console",
    configs: "list[Config]",
    data: "Corpus",
    memory: int,
    devices: "list[jax.Device]",
    held: "Held",
    plan: str,
) -> "tuple[list[Swept], Rates]":
    """A sweep under a progress bar and signal handlers; one that was asked to stop exits with 128 + the signal."""
    from jaxgrad.cli.progress import bar
    from jaxgrad.cli.training import warnings_shown
    from jaxgrad.training import sweep as sweeps
    from jaxgrad.training.run import Stopped
    from jaxgrad.training.stopping import stopping

    total = len(configs) * configs[0].steps
    with stopping() as stopped_by, warnings_shown():
        kept = sweeps.Kept(held, plan, stop=lambda: stopped_by() is not None)
        try:
            with bar(total, "model-steps") as update:
                return sweeps.sweep(
                    configs, data, memory, devices, lambda p: update(p.model_steps, f"{p.per_second:,.0f} per second"),
                    kept,
                )  # fmt: skip
        except Stopped as stopped:
            say(
                console,
                f"stopped at model-step {stopped.step:,} of {total:,}, saved as {stopped.checkpoint};"
                f" go on with: jaxgrad sweep --resume {shlex.quote(str(held.shown))}",
            )
            raise SystemExit(128 + (stopped_by() or 0)) from None


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
    from jaxgrad.training.config import config_of, flat, flat_sizes

    usual, values = flat(config_of(config.model)), flat(config)
    names = ("seed", "learning_rate", *flat_sizes(config), "steps", "batch_size", "gradients", "optimizer",
             "schedule", "dtype", "corpus")  # fmt: skip
    flags = {"learning_rate": "lr"}
    given = (("--" + flags.get(name, name).replace("_", "-"), values[name]) for name in names
             if values[name] != usual[name])  # fmt: skip
    of_model = () if config.model == models.DEFAULT else ("--model", config.model)
    return shlex.join(["jaxgrad", "train", *of_model, *(str(part) for pair in given for part in pair)])


def _axes(model: str, texts: dict[str, str], given: set[str]) -> dict[str, tuple[Any, ...]]:
    """The values of each size that was given, and of the one that the model's sweeps always tell of."""
    wanted = {*given, models.record(model).swept}
    kinds = {field.name: type(field.default) for field in dataclasses.fields(models.sizes_of(model))}
    return {
        name: tuple(_numbers(f"--{name.replace('_', '-')}", text, kinds[name]))
        for name, text in texts.items()
        if name in wanted
    }


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
