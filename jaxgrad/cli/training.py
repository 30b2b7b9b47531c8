"""`jaxgrad train`, `eval` and `sample`: runs and what they leave."""

import contextlib
import dataclasses
import math
import os
import shlex
import signal
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxgrad import models
from jaxgrad.cli.app import CorpusOption, DType, JsonOption
from jaxgrad.cli.progress import bar
from jaxgrad.cli.sized import ModelOption, given_options, sizes_given
from jaxgrad.cli.terminal import complain, say
from jaxgrad.errors import JaxgradError
from jaxgrad.text import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jax.sharding import Mesh
    from rich.console import Console

    from jaxgrad.corpus import Corpus
    from jaxgrad.training.config import Config
    from jaxgrad.training.run import Losses, Progress


# What a resumed run may be given beside its folder: where its corpus is now, and where it goes on.
_ANEW = {"resume", "steps", "corpus", "mesh", "distributed", "coordinator", "processes", "process_id"}

# Options whose field of a config has another name.
_IN_CONFIG = {"lr": "learning_rate", "optimizer_arg": "optimizer_args", "schedule_arg": "schedule_args"}

BestOption = Annotated[bool, typer.Option("--best", help="The kept checkpoint of the lowest dev loss, not the last.")]


def train(
    context_of_call: typer.Context,
    model: ModelOption = models.DEFAULT,
    out: Annotated[Path | None, typer.Option(help="Run folder to make; else runs/DATE-TIME.")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Go on with it; with --steps, to more.")] = None,
    init: Annotated[Path | None, typer.Option(metavar="FILE", help="Start from another's checkpoint; gpt.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="How long.")] = 200_000,
    batch_size: Annotated[int, typer.Option(min=2, help="Rows of a batch.")] = 32,
    lr: Annotated[float, typer.Option(help="Learning rate at first.")] = 0.1,
    optimizer: Annotated[str, typer.Option(help="One of optax's: adam, lion, ...")] = "sgd",
    optimizer_arg: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for it; may be repeated.")] = None,
    schedule: Annotated[str, typer.Option(help="seed (a tenth from half-way) or one of optax's.")] = "seed",
    schedule_arg: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for it; may be repeated.")] = None,
    gradients: Annotated[str, typer.Option(help="fused, by-node, jax-grad, kernel.")] = "fused",
    clip: Annotated[float | None, typer.Option(help="Largest norm of all gradients.")] = None,
    accumulate: Annotated[int, typer.Option(min=1, help="Parts of a batch, in turn.")] = 1,
    dtype: Annotated[DType, typer.Option(metavar="TYPE", help="float32, float64, bfloat16.")] = DType.float32,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of parameters and batches.")] = 0,
    log_every: Annotated[int, typer.Option(min=1, help="Steps per metrics line.")] = 100,
    chunk: Annotated[int, typer.Option(min=1, help="Steps per jitted call.")] = 5_000,
    save_every: Annotated[
        int | None,
        typer.Option(min=1, help="Steps per checkpoint."),
    ] = None,
    keep: Annotated[int, typer.Option(min=1, help="Last checkpoints that stay.")] = 3,
    corpus: CorpusOption = None,
    text: Annotated[Path | None, typer.Option(help="UTF-8 text as one stream, not words; gpt, gru.")] = None,
    mesh: Annotated[str | None, typer.Option(help="Devices: data=8, or data=4,model=2.")] = None,
    distributed: Annotated[bool, typer.Option("--distributed", help="Be one process of several.")] = False,
    coordinator: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Process 0's; clusters know it.")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="How many there are.")] = None,
    process_id: Annotated[int | None, typer.Option(min=0, help="Which one this is.")] = None,
) -> None:
    """Train on hand-written gradients; by default the notebook's recipe.

    A finished run is continued with --resume and as many --steps as it shall have then, the old ones counted too.
    Ctrl-C or SIGTERM: the run is saved after its chunk, and goes on with --resume as if it had never been stopped.

    Example: jaxgrad train --out runs/adam --optimizer adam --lr 0.003 --schedule cosine_decay --steps 50000
    """
    import datetime

    from jaxgrad import corpus as corpora
    from jaxgrad import files
    from jaxgrad.models.model import load_corpus
    from jaxgrad.training import initial
    from jaxgrad.training import run as runs
    from jaxgrad.training.config import changed, checked, config_of, parse_arguments, record
    from jaxgrad.training.distributed import join, prepared
    from jaxgrad.training.folder import load_config

    def new() -> "tuple[Config, Corpus, Mesh | None]":
        if text is not None and "corpus" in given:
            raise JaxgradError("--text and --corpus are two corpora; give one of them")
        read = corpus if text is None else text
        path = corpora.shipped("names.txt") if read is None else read
        # What the command line did not give is the model's own.
        told: dict[str, Any] = {
            "steps": steps, "batch_size": batch_size, "lr": lr, "optimizer": optimizer,
            "optimizer_arg": optimizer_arg, "schedule": schedule, "schedule_arg": schedule_arg,
            "gradients": gradients, "clip": clip, "accumulate": accumulate,
        }  # fmt: skip
        chosen = {_IN_CONFIG.get(name, name): value for name, value in told.items() if name in given}
        for name in ("optimizer_args", "schedule_args"):
            if name in chosen:
                chosen[name] = parse_arguments(chosen[name])
        sizes = sizes_given(context_of_call)
        if init is not None:
            _, of_file = initial.read(models.record(model), init, **sizes)
            sizes = dataclasses.asdict(of_file)
            chosen |= {"init": str(init.absolute()), "init_sha256": files.sha256(init)}
        # Checked before a corpus is read, which may take long. What that adds is checked as the run begins.
        config = checked(config_of(
            model, **chosen, **sizes, dtype=dtype.value, seed=seed, log_every=log_every,
            chunk=chunk, save_every=save_every, keep=keep, corpus=None if read is None else str(read.absolute()),
            text=text is not None,
        ))  # fmt: skip
        data = load_corpus(record(config), config.sizes, path, config.text)
        config = changed(config, vocabulary=data.vocabulary, corpus_sha256=corpora.sha256(path))
        return config, data, _mesh(mesh, distributed, config)

    def old(folder: Path) -> "tuple[Config, Corpus, Mesh | None]":
        if leave_out := sorted(given - _ANEW):
            flags = ", ".join("--" + name.replace("_", "-") for name in leave_out)
            raise JaxgradError(f"--resume takes everything from {folder}/config.json; leave out {flags}")
        config = load_config(folder)
        # A corpus in the environment is for new runs: this one has its own.
        data = corpus_of(config, corpus if "corpus" in given else None)
        return config, data, _mesh(mesh, distributed, config)

    given = given_options(context_of_call)
    if distributed:
        join(coordinator, processes, process_id)
    elif {coordinator, processes, process_id} != {None}:
        raise JaxgradError("--coordinator, --processes and --process-id are for several processes; add --distributed")
    with _together() if distributed else contextlib.nullcontext():
        if resume is None:
            folder = out or Path("runs") / f"{datetime.datetime.now():%Y-%m-%d-%H%M%S}"
            config, data, over = prepared(new)
            _run(config.steps, folder, lambda report, stop: runs.train(config, data, folder, report, stop, over))
        else:
            config, data, over = prepared(lambda: old(resume))
            more = steps if "steps" in given else None
            _run(more or config.steps, resume, lambda report, stop: runs.resume(resume, data, report, stop, over, more))


def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    corpus: Annotated[Path | None, typer.Option(help="Another copy of the run's corpus.")] = None,
    best: BestOption = False,
    twin: Annotated[bool, typer.Option("--twin", help="Train its PyTorch twin too, on the same batches.")] = False,
    json: JsonOption = None,
) -> None:
    """Losses of the three splits; batch-norm statistics, where a model has them, are of the training split.

    Example: jaxgrad eval runs/demo
    """
    from rich.console import Console

    from jaxgrad import files
    from jaxgrad.checking.report import as_json, dated
    from jaxgrad.training import run as runs

    with warnings_shown():
        config, params, statistics = runs.load(run, best)
    data, console = corpus_of(config, corpus), Console()
    with runs.precision(config):
        losses = runs.split_losses(config, params, statistics, data)
    _print_losses(console, losses)
    found: dict[str, Any] = losses._asdict()
    if twin:
        from jaxgrad.training.twin import train_twin

        with bar(config.steps, "steps") as update:
            of_twin = train_twin(config, data, lambda step: update(step, "PyTorch"))
        _print_losses(console, of_twin)
        found["twin"] = of_twin._asdict()
    if json is not None:
        files.write_json(json, dated("jaxgrad.eval/1", run=str(run), **as_json(found)))


def sample(
    run: Annotated[Path | None, typer.Argument(help="Folder of a run.")] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="How many words.")] = 20,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="The same seed gives the same words.")] = 0,
    temperature: Annotated[float, typer.Option(help="Above 0: likelier words below 1, wilder above.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(min=1, help="Draw from so many of the likeliest characters.")] = None,
    prompt: Annotated[str, typer.Option(help="What every word begins with.")] = "",
    longest: Annotated[int | None, typer.Option(min=1, help="Characters at most: 64 of a word, 500 of a text.")] = None,
    best: BestOption = False,
    init: Annotated[Path | None, typer.Option(metavar="FILE", help="Another's checkpoint instead of a run.")] = None,
    ids: Annotated[str | None, typer.Option(help="With --init: the symbols to begin with, commas between.")] = None,
    size: Annotated[list[str] | None, typer.Option(help="With --init: what it does not say, as heads=2.")] = None,
    model: Annotated[
        str | None, typer.Option(help="With --init: whose it is.  [default: the first that has any]")
    ] = None,
) -> None:
    """New words from a trained model, one a line; or of a stream of text, samples with a line between.

    A checkpoint that others have made has symbols without characters: --ids are those to begin with, and what follows
    is printed as numbers too, a sample a line, for the tokenizer that the checkpoint was trained with.

    Example: jaxgrad sample runs/demo -n 20 --seed 42 --temperature 0.8
    """
    import jax

    from jaxgrad.training import run as runs
    from jaxgrad.training import sample as sampling
    from jaxgrad.training.config import record

    if init is not None:
        if run is not None or prompt or best:
            raise JaxgradError("--init is instead of a run, and begins with --ids; leave RUN, --prompt and --best out")
        key = jax.random.key(seed)
        for drawn in _of_checkpoint(init, ids, size or [], model, key, n, temperature, top_k, longest):
            print(*drawn)
        return
    if run is None:
        raise JaxgradError("give the folder of a run, or with --init a checkpoint")
    if ids is not None or size or model is not None:
        raise JaxgradError("--ids, --size and --model are of a checkpoint, given by --init; a run knows its own")
    with warnings_shown():
        config, params, statistics = runs.load(run, best)
    with runs.precision(config):
        key = jax.random.key(seed)
        words = sampling.sample(
            record(config), config.sizes, params, statistics, config.vocabulary, key, n, temperature, top_k, prompt,
            longest or (500 if config.text else sampling.LONGEST),
        )  # fmt: skip
    if config.text:
        print("\n---\n".join("\n".join(map(visible, sample.split("\n"))) for sample in words))
    else:
        print("\n".join(map(visible, words)))


def _of_checkpoint(
    path: Path,
    ids: str | None,
    sizes: list[str],
    name: str | None,
    key: Any,
    n: int,
    temperature: float,
    top_k: int | None,
    longest: int | None,
) -> list[list[int]]:
    """Symbols drawn from a checkpoint that others have made, those of `ids` before them."""
    from jaxgrad.training import initial
    from jaxgrad.training import sample as sampling
    from jaxgrad.training.config import parse_arguments

    if ids is None or not all(one.strip().isdecimal() for one in ids.split(",")):
        raise JaxgradError(
            f"{path}: has symbols and no characters; give those to begin with as whole numbers, such as --ids 464,3290"
        )
    own = name or next(other for other in models.MODELS if models.record(other).checkpoints is not None)
    given = dict(parse_arguments(sizes))
    models.sizes_by_name(own, given)
    model = models.record(own)
    params, found = initial.read(model, path, **given)
    prompt = [int(one) for one in ids.split(",")]
    return sampling.sample_symbols(
        model, found, params, key, prompt, n, temperature, top_k, longest or sampling.LONGEST
    )


def _mesh(text: str | None, distributed: bool, config: "Config") -> "Mesh | None":
    """The mesh that was asked for; over several processes it has all of their devices."""
    import jax

    from jaxgrad.training import mesh as meshes
    from jaxgrad.training.config import record

    if text is None and not distributed:
        return None
    devices = jax.devices()
    sizes = meshes.parse(text or f"data={len(devices)}")
    if distributed and math.prod(sizes.values()) != len(devices):
        raise JaxgradError(f"--mesh {text} must have all {len(devices)} devices of all processes; leave none without")
    return meshes.build(sizes, devices, config.batch_size, record(config).split(config.sizes))


def _run(
    steps: int,
    folder: Path,
    begin: "Callable[[Callable[[Progress], None], Callable[[], bool]], Losses]",
) -> None:
    """A run under a progress bar and signal handlers; one that was asked to stop exits with 128 + the signal."""
    from rich.console import Console

    from jaxgrad.training.distributed import leads
    from jaxgrad.training.run import Stopped
    from jaxgrad.training.stopping import stopping

    console = Console(soft_wrap=True, quiet=not leads())
    number: int | None = None
    with stopping() as stopped_by, warnings_shown():
        try:
            with bar(steps, "steps", shown=leads()) as update:

                def report(progress: "Progress") -> None:
                    update(progress.step, f"loss {progress.loss:.4f} · {progress.steps_per_second:,.0f} a second")

                losses = begin(report, lambda: stopped_by() is not None)
            _print_losses(console, losses)
            say(console, f"run: {folder}")
            number = stopped_by()
        except Stopped as stopped:
            say(
                console,
                f"stopped at step {stopped.step:,} of {steps:,}, saved as {stopped.checkpoint};"
                f" go on with: jaxgrad train --resume {shlex.quote(str(folder))}",
            )
            # Of several processes only one may have been sent the signal that stopped them all.
            number = stopped_by() or signal.SIGTERM
    if number is not None:
        raise SystemExit(128 + number)


@contextlib.contextmanager
def _together() -> "Iterator[None]":
    """Where several processes are one run, one that fails ends at once: at its exit JAX would wait for the others."""
    import jax

    from jaxgrad.training.distributed import lost

    try:
        yield
    except Exception as error:
        if jax.process_count() == 1:
            raise
        if isinstance(error, JaxgradError):
            complain(error)
        elif (sentence := lost(error)) is not None:
            complain(sentence)
        else:
            traceback.print_exc()
        os._exit(2)


@contextlib.contextmanager
def warnings_shown() -> "Iterator[None]":
    """What the library warns of, as sentences on stderr."""
    import logging

    handler, logger = logging.StreamHandler(), logging.getLogger("jaxgrad")
    handler.setFormatter(logging.Formatter("jaxgrad: %(message)s"))
    logger.addHandler(handler)
    # Others, when imported, give the root logger handlers in a format of their own.
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = True
        logger.removeHandler(handler)


def _print_losses(console: "Console", losses: "Losses") -> None:
    say(console, " · ".join(f"{name} {loss:.4f}" for name, loss in losses._asdict().items()))


def corpus_of(config: "Config", given: Path | None) -> "Corpus":
    """The corpus that a run was trained on: its path, or another copy, must still have the same bytes."""
    from jaxgrad import corpus as corpora
    from jaxgrad.models.model import load_corpus
    from jaxgrad.training.config import record

    path = given or (corpora.shipped("names.txt") if config.corpus is None else Path(config.corpus))
    data = load_corpus(record(config), config.sizes, path, config.text)
    if corpora.sha256(path) != config.corpus_sha256:
        raise JaxgradError(
            f"{path}: is not the corpus of this run (sha256 {config.corpus_sha256}); give that one with --corpus"
        )
    return data
