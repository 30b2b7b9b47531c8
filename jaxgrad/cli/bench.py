"""`jaxgrad bench`: competitors timed side by side, and two such runs compared."""

import itertools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jaxgrad.cli.app import CorpusOption, JsonOption, Platform
from jaxgrad.cli.progress import bar
from jaxgrad.errors import JaxgradError

if TYPE_CHECKING:
    from jaxgrad.bench.task import Size

app = typer.Typer()


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    size: Annotated[
        list[str] | None,
        typer.Option(help="seed (batch 32, hidden 200), middle (1024, 1024) or large (8192, 4096); may be repeated."),
    ] = None,
    batch: Annotated[int | None, typer.Option(min=2, help="Rows of a batch, for a size of your own.")] = None,
    hidden: Annotated[int | None, typer.Option(min=1, help="Hidden neurons, for a size of your own.")] = None,
    rounds: Annotated[int, typer.Option(min=3, help="Interleaved rounds; their median and quartiles are shown.")] = 9,
    seconds: Annotated[float, typer.Option(min=0.001, help="How long a round of one competitor lasts, about.")] = 0.1,
    check_steps: Annotated[
        int | None,
        typer.Option(min=1, max=100, help="Steps after which losses must agree; 100, or fewer where they take long."),
    ] = None,
    peers: Annotated[
        str | None, typer.Option(help="Some competitors, by their names in the table, separated by commas.")
    ] = None,
    device: Annotated[Platform, typer.Option(help="Where JAX runs.")] = Platform.cpu,
    torch_device: Annotated[str, typer.Option(help="Where PyTorch runs: cpu, cuda, mps, ...")] = "cpu",
    compile_limit: Annotated[float, typer.Option(min=1, help="Seconds that torch.compile may take.")] = 300.0,
    corpus: CorpusOption = None,
    json: Annotated[Path | None, typer.Option(help="Write everything as JSON, schema jaxgrad.bench/1.")] = None,
    png: Annotated[Path | None, typer.Option(help="Draw the times.")] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="BEFORE AFTER", help="Compare two JSON files; exit 1 on a slowdown beyond the spread."),
    ] = None,
) -> None:
    """Time a training step of every competitor: hand-written gradients, jax.grad, PyTorch, Flax, Equinox.

    Sizes are seed and middle if none is given. One competitor whose losses are not those of the others is not timed.

    Example: jaxgrad bench --size seed --json a.json --png a.png · jaxgrad bench --compare a.json b.json
    """
    if context.invoked_subcommand is not None:
        return
    if compare is not None:
        _compare(*compare, json)
        return
    # Compile times are shown, so none may come from a cache; read when JAX and PyTorch's compiler are imported.
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"

    from rich.console import Console

    from jaxgrad import corpus as corpora
    from jaxgrad import files
    from jaxgrad.bench import measure, plot, report
    from jaxgrad.bench import peers as competitors

    sizes = _sizes(size or [], batch, hidden)
    some = competitors.chosen(peers)
    place = competitors.Place(device.value, torch_device, compile_limit)
    data = corpora.load(corpora.shipped("names.txt") if corpus is None else corpus)
    # Where nobody looks, nothing need be shortened to fit.
    console = Console() if sys.stdout.isatty() else Console(width=120)
    done = itertools.count(1)
    with bar(console, 1 + measure.pieces(sizes, some, rounds), "pieces") as update:
        update(0, "the fastest product")
        peaks = measure.peaks(place)
        results = measure.run(
            sizes, data, some, place, rounds, seconds, check_steps, lambda text: update(next(done), text)
        )
    run = report.to_json(results, peaks, place, rounds)
    if json is not None:
        files.write_json(json, run)
    if png is not None:
        plot.save(run, png)
    console.print(report.tables(run))


def _sizes(names: list[str], batch: int | None, hidden: int | None) -> "list[Size]":
    from jaxgrad.bench.task import SIZES, Size

    for name in names:
        if name not in SIZES:
            raise JaxgradError(
                f"there is no size {name!r}; choose from {', '.join(SIZES)}, or give --batch and --hidden"
            )
    if (batch is None) != (hidden is None):
        raise JaxgradError(f"--batch is {batch} and --hidden {hidden}; a size of your own needs both")
    chosen = [SIZES[name] for name in dict.fromkeys(names)]
    if batch is not None and hidden is not None:
        chosen.append(Size("own", batch, hidden))
    return chosen or [SIZES["seed"], SIZES["middle"]]


def _compare(before: Path, after: Path, json: Path | None) -> None:
    from rich.console import Console

    from jaxgrad import files
    from jaxgrad.bench import compare

    a, b = compare.load(before), compare.load(after)
    found = compare.changes(a, b)
    if json is not None:
        files.write_json(json, [change._asdict() for change in found])
    console = Console()
    console.print(compare.table(found))
    for line in compare.differences(a, b):
        console.print(line, highlight=False)
    slower = [c for c in found if c.verdict == "regression"]
    if slower:
        console.print(f"{len(slower)} of {len(found)} are slower beyond the spread of their rounds", highlight=False)
        raise typer.Exit(1)


@app.command("embedding")
def bench_embedding(
    rounds: Annotated[int, typer.Option(min=3, help="Interleaved rounds; their median and quartiles are shown.")] = 9,
    json: JsonOption = None,
) -> None:
    """The embedding's gradient as scatter-add, which the op uses, against a one-hot product.

    Example: jaxgrad bench embedding --rounds 15
    """
    import jax
    from rich.console import Console
    from rich.table import Table

    from jaxgrad import files
    from jaxgrad.bench import embedding

    table = Table("lookups", "width", "rows", title=f"microseconds a gradient, {jax.devices()[0].device_kind}")
    for heading in ("scatter-add", "one-hot product", "ratio"):
        table.add_column(heading, justify="right")
    console, rows = Console(), []
    for size in embedding.SIZES:
        with console.status(f"{size.n} lookups"):
            timings = embedding.compare(size, rounds)
        rows.append({**size._asdict(), "seconds": {name: t._asdict() for name, t in timings.items()}})
        cells = [f"{1e6 * t.median:,.1f} ({1e6 * t.low:,.1f}-{1e6 * t.high:,.1f})" for t in timings.values()]
        scatter, product = (t.median for t in timings.values())
        table.add_row(*map(str, size), *cells, f"{product / scatter:.1f}")
    if json is not None:
        files.write_json(json, rows)
    console.print(table)


@app.command("scaling")
def bench_scaling(
    mesh: Annotated[list[str] | None, typer.Option(help="data=N,model=N; may be repeated.")] = None,
    batch: Annotated[int, typer.Option(min=2, help="Rows of a batch, all devices together.")] = 8192,
    hidden: Annotated[int, typer.Option(min=1, help="Hidden neurons, all devices together.")] = 4096,
    json: JsonOption = None,
) -> None:
    """A step's operations, memory and messages on each device: counted by hand, and in the program that XLA makes.

    Nothing is run: on a CPU eight devices are imagined.

    Example: jaxgrad bench scaling --mesh data=4,model=2
    """
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")

    import jax
    from rich.console import Console
    from rich.table import Table

    from jaxgrad import files
    from jaxgrad.bench import scaling
    from jaxgrad.training import mesh as meshes

    table = Table(
        "mesh", show_lines=True, title=f"on each device, batch {batch:,}, hidden {hidden:,}: counted, then compiled"
    )
    for heading in ("MFLOP", "temporary MB", "all-reduces", "reduced kB"):
        table.add_column(heading, justify="right")
    console, rows = Console(), []
    for text in mesh or ["data=1", "data=2", "data=4", "data=8", "data=4,model=2", "model=8"]:
        sizes = meshes.parse(text)
        built = meshes.build(sizes, jax.devices(), batch, hidden)
        with console.status(text):
            pair = scaling.predicted(batch, hidden, **sizes), scaling.compiled(batch, hidden, built)
        rows.append({"mesh": text, "counted": pair[0]._asdict(), "compiled": pair[1]._asdict()})
        scales = {"flops": 1e6, "temporary_bytes": 1e6, "all_reduces": 1, "reduced_bytes": 1e3}
        cells = [
            "\n".join(f"{getattr(one, name) / scale:,.{0 if scale == 1 else 1}f}" for one in pair)
            for name, scale in scales.items()
        ]
        table.add_row(text, *cells)
    bounds = scaling.seconds(256 * batch, hidden, (16, 16))
    if json is not None:
        files.write_json(json, {"meshes": rows, "v5e_16_by_16_seconds": bounds})
    console.print(table)
    told = " · ".join(f"{name} {1e6 * value:,.0f} µs" for name, value in bounds.items())
    console.print(f"on paper, {256 * batch:,} rows on 16 x 16 TPU v5e, at least: {told}", highlight=False)
