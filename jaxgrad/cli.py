"""`jaxgrad`: parse, call, print. Every command imports what it needs when it runs, so that help is instant."""

import contextlib
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jaxgrad.errors import JaxgradError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console

    from jaxgrad.corpus import Corpus
    from jaxgrad.parity.cases import Case
    from jaxgrad.training.config import Config
    from jaxgrad.training.run import Losses, Progress

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Hand-written gradients in JAX: prove them against jax.grad and PyTorch, then train with them.",
    epilog="Start with: jaxgrad parity · jaxgrad train · jaxgrad sample RUN",
)
corpus_app = typer.Typer(no_args_is_help=True, help="Look at a corpus, or fetch the seed notebook's exact one.")
bench_app = typer.Typer(no_args_is_help=True, help="Time alternatives side by side on this machine.")
app.add_typer(corpus_app, name="corpus")
app.add_typer(bench_app, name="bench")


class DType(StrEnum):
    """Types that the engines compute in."""

    float64 = "float64"
    float32 = "float32"
    bfloat16 = "bfloat16"


class Platform(StrEnum):
    """Platforms as JAX names them."""

    cpu = "cpu"
    gpu = "gpu"
    tpu = "tpu"


CorpusOption = Annotated[
    Path | None,
    typer.Option(
        "--corpus", envvar="JAXGRAD_CORPUS", help="UTF-8 text, one word a line; without it, names of US births of 2018."
    ),
]


def main() -> None:
    """Run the command line; an error a person can mend is one sentence on stderr and exit code 2."""
    try:
        app(prog_name="jaxgrad")
    except JaxgradError as error:
        print(f"jaxgrad: {error}", file=sys.stderr)
        raise SystemExit(2) from None


@app.command()
def parity(
    seed_case: Annotated[
        bool, typer.Option("--seed-case", help="Compare on the seed notebook's batch; the default without --batches.")
    ] = False,
    batches: Annotated[int, typer.Option(min=0, help="How many random batches of the corpus to compare on.")] = 0,
    dtype: Annotated[DType, typer.Option(help="Type of every number in every engine.")] = DType.float64,
    batch_size: Annotated[int, typer.Option(min=2, help="Rows of a random batch.")] = 32,
    hidden: Annotated[int, typer.Option(min=1, help="Hidden neurons, for random batches.")] = 200,
    context: Annotated[int, typer.Option(min=1, help="Characters of context, for random batches.")] = 3,
    embedding: Annotated[int, typer.Option(min=1, help="Numbers per character, for random batches.")] = 10,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the random batches.")] = 0,
    corpus: CorpusOption = None,
    engines: Annotated[str, typer.Option(help="Two or more of by-node, fused, jax.grad, torch, torch.nn.")] = (
        "by-node,fused,jax.grad,torch"
    ),
    device: Annotated[Platform, typer.Option(help="Where JAX runs.")] = Platform.cpu,
    torch_device: Annotated[str, typer.Option(help="Where PyTorch runs: cpu, cuda, mps, ...")] = "cpu",
    json: Annotated[Path | None, typer.Option(help="Write everything as JSON, schema jaxgrad.parity/1.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with graph, table and maps of the errors.")] = None,
) -> None:
    """Compare every engine's gradients, node by node; exit 0 only when all agree, 1 when not.

    Example: jaxgrad parity --batches 5 --batch-size 64 --dtype float32
    """
    from rich.console import Console

    from jaxgrad import corpus as corpora
    from jaxgrad import files
    from jaxgrad.parity import cases, page, report
    from jaxgrad.parity import verdict as verdicts
    from jaxgrad.parity.engines import Target, run

    names = tuple(name.strip() for name in engines.split(","))
    if len(set(names)) < 2:
        raise JaxgradError(f"--engines is {engines!r}; name at least two different engines, separated by commas")
    chosen: list[Case] = [cases.seed_case()] if seed_case or not batches else []
    if batches:
        data = corpora.load(corpus, context)
        chosen += [cases.corpus_case(data, seed, step, batch_size, embedding, hidden) for step in range(batches)]

    console = Console(soft_wrap=True)
    target = Target(dtype.value, device.value, torch_device)
    found, judged = [], []
    for case in chosen:
        gradients = run(names, case, target)
        verdict = verdicts.verdict(case, target, gradients)
        found.append(verdict)
        if html is not None:
            judged.append(gradients)
        if len(chosen) == 1 or not verdict.agree:
            console.print(report.tables(verdict))
        console.print(report.summary(verdict), highlight=False)
        if not verdict.agree and target.dtype != "float64":
            console.print(verdicts.appeal(verdict, gradients), highlight=False)
    if json is not None:
        files.write_json(json, report.to_json(found))
        console.print(f"written: {json}", highlight=False)
    if html is not None:
        files.write_bytes(html, page.html(page.of_verdicts(found, judged)).encode())
        console.print(f"written: {html}", highlight=False)
    if not all(v.agree for v in found):
        raise SystemExit(1)


@app.command()
def mutate(
    subject: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODULE:FUNCTION]", help="A function that returns (fn, check, args); without it, our own passes."
        ),
    ] = None,
) -> None:
    """Make one mistake at a time in a backward pass and see if its check notices; exit 1 if one survives.

    Example: jaxgrad mutate tests/test_norm.py:subject
    """
    from jaxgrad.parity import mutate as mutation
    from jaxgrad.parity import own_score

    if subject is None:
        raise SystemExit(min(own_score.main(), 1))
    made = mutation.load(subject)
    score = mutation.mutation_score(made.fn, made.check, *made.args)
    print(mutation.describe(score))
    raise SystemExit(1 if score.survived else 0)


@app.command()
def train(
    out: Annotated[Path | None, typer.Option(help="Run folder to make; runs/DATE-TIME if not given.")] = None,
    steps: Annotated[int, typer.Option(min=1)] = 200_000,
    batch_size: Annotated[int, typer.Option(min=2, help="Rows of a batch.")] = 32,
    lr: Annotated[float, typer.Option(help="Learning rate, where the schedule starts; above 0.")] = 0.1,
    optimizer: Annotated[str, typer.Option(help="Any of optax's: sgd, adam, lion, ...")] = "sgd",
    optimizer_arg: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for it, as often as needed.")] = None,
    schedule: Annotated[
        str, typer.Option(help="seed (a tenth of the rate after half the steps) or optax's: cosine_decay, ...")
    ] = "seed",
    schedule_arg: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for it, as often as needed.")] = None,
    gradients: Annotated[str, typer.Option(help="fused, by-node or jax-grad.")] = "fused",
    hidden: Annotated[int, typer.Option(min=1, help="Hidden neurons.")] = 200,
    context: Annotated[int, typer.Option(min=1, help="Characters of context.")] = 3,
    embedding: Annotated[int, typer.Option(min=1, help="Numbers per character.")] = 10,
    dtype: Annotated[DType, typer.Option(help="Type of forward and backward.")] = DType.float32,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of parameters and batches.")] = 0,
    log_every: Annotated[int, typer.Option(min=1, help="Steps per line of metrics.jsonl.")] = 100,
    corpus: CorpusOption = None,
) -> None:
    """Train on hand-written gradients; by default the seed notebook's recipe.

    Example: jaxgrad train --out runs/adam --optimizer adam --lr 0.003 --schedule cosine_decay --steps 50000
    """
    import datetime

    from rich.console import Console

    from jaxgrad import corpus as corpora
    from jaxgrad.training.config import Config, checked, parse_arguments
    from jaxgrad.training.run import train as run

    path = corpora.shipped("names.txt") if corpus is None else corpus
    data = corpora.load(path, context)
    config = checked(
        Config(
            steps=steps, batch_size=batch_size, learning_rate=lr, optimizer=optimizer,
            optimizer_args=parse_arguments(optimizer_arg or []), schedule=schedule,
            schedule_args=parse_arguments(schedule_arg or []), gradients=gradients, context=context,
            embedding=embedding, hidden=hidden, dtype=dtype.value, seed=seed, log_every=log_every,
            corpus=None if corpus is None else str(corpus.absolute()), corpus_sha256=corpora.sha256(path),
            vocabulary=data.vocabulary,
        )
    )  # fmt: skip
    folder = out or Path("runs") / f"{datetime.datetime.now():%Y-%m-%d-%H%M%S}"
    console = Console()
    with _progress(config, console) as report:
        losses = run(config, data, folder, report)
    _print_losses(console, losses)
    console.print(f"run: {folder}", highlight=False)


@app.command("eval")
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    corpus: Annotated[Path | None, typer.Option(help="Another copy of the run's corpus.")] = None,
) -> None:
    """Losses of the three splits, with batch-norm statistics of the training split.

    Example: jaxgrad eval runs/demo
    """
    from rich.console import Console

    from jaxgrad.training import run as runs

    config, params, statistics = runs.load(run)
    with runs.precision(config):
        losses = runs.split_losses(params, statistics, _corpus_of(config, corpus))
    _print_losses(Console(), losses)


@app.command()
def sample(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    n: Annotated[int, typer.Option("-n", min=1, help="How many words.")] = 20,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="The same seed gives the same words.")] = 0,
    temperature: Annotated[float, typer.Option(help="Above 0: likelier words below 1, wilder above.")] = 1.0,
) -> None:
    """New words from a trained model, one a line.

    Example: jaxgrad sample runs/demo -n 20 --seed 42 --temperature 0.8
    """
    import jax

    from jaxgrad.training import run as runs
    from jaxgrad.training import sample as sampling

    config, params, statistics = runs.load(run)
    with runs.precision(config):
        key = jax.random.key(seed)
        print("\n".join(sampling.sample(params, statistics, config.vocabulary, key, n, temperature)))


@corpus_app.command("show")
def corpus_show(
    corpus: CorpusOption = None,
    context: Annotated[int, typer.Option(min=1, help="Characters of context.")] = 3,
) -> None:
    """Words, symbols and the sizes of the three splits.

    Example: jaxgrad corpus show --corpus words.txt
    """
    from jaxgrad import corpus as corpora

    path = corpora.shipped("names.txt") if corpus is None else corpus
    data = corpora.load(path, context)
    print(f"{path}: {len(corpora.read_words(path)):,} words, {len(data.vocabulary)} symbols {''.join(data.vocabulary)}")
    for name in ("train", "dev", "test"):
        split = getattr(data, name)
        print(f"{name:5s} X {split.X.shape} Y {split.Y.shape} {split.X.dtype}")


@corpus_app.command("fetch")
def corpus_fetch(
    target: Annotated[Path, typer.Argument(help="Where to put the file.")] = Path("names.txt"),
) -> None:
    """Download the seed notebook's exact corpus, checked by its sha256 before it replaces anything.

    Example: jaxgrad corpus fetch names.txt && export JAXGRAD_CORPUS=$PWD/names.txt
    """
    from jaxgrad import corpus as corpora

    corpora.fetch(target)
    print(f"{target}: the seed's corpus; use it with --corpus {target} or JAXGRAD_CORPUS")


@bench_app.command("embedding")
def bench_embedding(
    rounds: Annotated[int, typer.Option(min=3, help="Interleaved rounds; their median and quartiles are shown.")] = 9,
) -> None:
    """The embedding's gradient as scatter-add, which the op uses, against a one-hot product.

    Example: jaxgrad bench embedding --rounds 15
    """
    import jax
    from rich.console import Console
    from rich.table import Table

    from jaxgrad.bench import embedding

    table = Table("lookups", "width", "rows", title=f"microseconds a gradient, {jax.devices()[0].device_kind}")
    for heading in ("scatter-add", "one-hot product", "ratio"):
        table.add_column(heading, justify="right")
    for size in embedding.SIZES:
        timings = embedding.compare(size, rounds)
        cells = [f"{1e6 * t.median:,.1f} ({1e6 * t.low:,.1f}-{1e6 * t.high:,.1f})" for t in timings.values()]
        scatter, product = (t.median for t in timings.values())
        table.add_row(*map(str, size), *cells, f"{product / scatter:.1f}")
    Console().print(table)


@contextlib.contextmanager
def _progress(config: "Config", console: "Console") -> "Iterator[Callable[[Progress], None]]":
    """A bar on a terminal, and nothing elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("step"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[now]}"), TimeRemainingColumn()
    )  # fmt: skip
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("train", total=config.steps, now="compiling")

        def report(progress: "Progress") -> None:
            now = f"loss {progress.loss:.4f} · {progress.steps_per_second:,.0f} steps/s"
            bar.update(task, completed=progress.step, now=now)

        yield report


def _print_losses(console: "Console", losses: "Losses") -> None:
    console.print(" · ".join(f"{name} {loss:.4f}" for name, loss in losses._asdict().items()), highlight=False)


def _corpus_of(config: "Config", given: Path | None) -> "Corpus":
    """The corpus that a run was trained on: its path, or another copy, must still have the same bytes."""
    from jaxgrad import corpus as corpora

    path = given or (corpora.shipped("names.txt") if config.corpus is None else Path(config.corpus))
    data = corpora.load(path, config.context)
    if corpora.sha256(path) != config.corpus_sha256:
        raise JaxgradError(
            f"{path}: is not the corpus of this run (sha256 {config.corpus_sha256}); give that one with --corpus"
        )
    return data
