"""`jaxgrad bench`: competitors timed side by side, and two such runs compared."""

import functools
import itertools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxgrad import models
from jaxgrad.cli.app import CorpusOption, JsonOption, Platform
from jaxgrad.cli.progress import bar, stoppable
from jaxgrad.cli.sized import ModelOption
from jaxgrad.errors import JaxgradError

if TYPE_CHECKING:
    from jaxgrad.bench.task import Size
    from jaxgrad.corpus import Corpus
    from jaxgrad.models.model import Model

app = typer.Typer()


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    model: ModelOption = models.DEFAULT,
    size: Annotated[
        list[str] | None,
        typer.Option(help="One of the model's, such as seed, middle or large; may be repeated."),
    ] = None,
    batch: Annotated[int | None, typer.Option(min=2, help="Rows of a batch, for a size of your own.")] = None,
    hidden: Annotated[int | None, typer.Option(min=1, help="Its hidden neurons, or the model's width.")] = None,
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

    One competitor whose losses are not those of the others is not timed.

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
    from jaxgrad.models.model import load_corpus

    timed = models.record(model)
    sizes = _sizes(timed, size or [], batch, hidden)
    some = competitors.chosen(peers)
    place = competitors.Place(device.value, torch_device, compile_limit)
    path = corpora.shipped("names.txt") if corpus is None else corpus

    @functools.cache
    def read(own: Any) -> "Corpus":
        """The corpus in the model's examples; as one stream where it takes one, because rows of words have gaps."""
        return load_corpus(timed, own, path, timed.streams)

    # Where nobody looks, nothing need be shortened to fit.
    console = Console() if sys.stdout.isatty() else Console(width=120)
    done = itertools.count(1)
    with bar(1 + measure.pieces(timed, sizes, some, rounds), "pieces") as update:
        update(0, "the fastest product")
        peaks = measure.peaks(place)
        results = measure.run(
            timed, sizes, read, some, place, rounds, seconds, check_steps, lambda text: update(next(done), text)
        )
    run = report.to_json(results, peaks, place, rounds)
    if json is not None:
        files.write_json(json, run)
    if png is not None:
        plot.save(run, png)
    console.print(report.tables(run))


def _sizes(model: "Model", names: list[str], batch: int | None, hidden: int | None) -> "list[Size]":
    from jaxgrad.bench.task import benchmark, named_size, of_ones_own, sizes_of

    known = sizes_of(model)
    if (batch is None) != (hidden is None):
        raise JaxgradError(f"--batch is {batch} and --hidden {hidden}; a size of your own needs both")
    chosen = [named_size(model, name) for name in dict.fromkeys(names)]
    if batch is not None and hidden is not None:
        chosen.append(of_ones_own(model, known[benchmark(model).usual[0]], batch, hidden))
    return chosen or [known[name] for name in benchmark(model).usual]


def _compare(before: Path, after: Path, json: Path | None) -> None:
    from rich.console import Console

    from jaxgrad import files
    from jaxgrad.bench import compare
    from jaxgrad.checking.report import dated

    a, b = compare.load(before), compare.load(after)
    found = compare.changes(a, b)
    if json is not None:
        files.write_json(json, dated("jaxgrad.bench.compare/1", changes=[change._asdict() for change in found]))
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
    from jaxgrad.checking.report import dated

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
        files.write_json(json, dated("jaxgrad.bench.embedding/1", sizes=rows))
    console.print(table)


@app.command("scaling")
def bench_scaling(
    model: ModelOption = models.DEFAULT,
    size: Annotated[str | None, typer.Option(help="One of the model's.  [default: its largest]")] = None,
    mesh: Annotated[list[str] | None, typer.Option(help="data=N,model=N; may be repeated.")] = None,
    batch: Annotated[int | None, typer.Option(min=2, help="Rows of a batch, all devices together.")] = None,
    hidden: Annotated[int | None, typer.Option(min=1, help="Hidden neurons, or the model's width.")] = None,
    json: JsonOption = None,
) -> None:
    """A step's operations, memory and messages on each device: counted by hand, and in the program that XLA makes.

    Nothing is run: on a CPU eight devices are imagined. The hand's count is the notebook's model's alone. Without
    --mesh, meshes are those of up to eight devices that the size divides by.

    Example: jaxgrad bench scaling --mesh data=4,model=2
    """
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")

    import jax
    from rich.console import Console
    from rich.table import Table

    from jaxgrad import files
    from jaxgrad.bench import scaling
    from jaxgrad.bench.task import benchmark
    from jaxgrad.checking.report import dated
    from jaxgrad.training import mesh as meshes

    timed = models.record(model)
    chosen = scaling.size_of(timed, size, batch, hidden)
    split = timed.split(chosen.sizes)
    told = ", ".join(f"{name} {getattr(chosen.sizes, name):,}" for name in benchmark(timed).shown)
    table = Table("mesh", show_lines=True, title=f"on each device, {model}, batch {chosen.batch:,}, {told}")
    for heading in ("", "MFLOP", "temporary MB", "all-reduces", "reduced kB"):
        table.add_column(heading, justify="right" if heading else "left")
    scales = {"flops": 1e6, "temporary_bytes": 1e6, "all_reduces": 1, "reduced_bytes": 1e3}
    console, rows = Console(), []
    for text in mesh or scaling.dividing(chosen, split):
        axes = meshes.parse(text)
        built = meshes.build(axes, jax.devices(), chosen.batch, split)
        with console.status(text):
            ways = {
                "counted": scaling.counted(timed, chosen, axes["data"], axes["model"]),
                "compiled": scaling.compiled(timed, chosen, built),
            }
        known = {way: of for way, of in ways.items() if of is not None}
        rows.append({"mesh": text, **{way: of._asdict() for way, of in known.items()}})
        cells = (
            "\n".join(f"{getattr(of, name) / scale:,.{0 if scale == 1 else 1}f}" for of in known.values())
            for name, scale in scales.items()
        )
        table.add_row(text, "\n".join(known), *cells)
    of_slice = scaling.counted(timed, chosen._replace(batch=256 * chosen.batch), 256, 1)
    bounds = of_slice and scaling.seconds(of_slice, (16, 16))
    if json is not None:
        files.write_json(json, dated("jaxgrad.bench.scaling/1", meshes=rows, v5e_16_by_16_seconds=bounds))
    console.print(table)
    if bounds:
        least = " · ".join(f"{name} {1e6 * value:,.0f} µs" for name, value in bounds.items())
        console.print(f"on paper, {256 * chosen.batch:,} rows on 16 x 16 TPU v5e, at least: {least}", highlight=False)


@app.command("verdicts")
def bench_verdicts(
    programs: Annotated[int, typer.Option(min=1, help="How many: a chain of functions, a type and a draw.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Draws the chains and their arguments.")] = 0,
    only: Annotated[str | None, typer.Option(help="One program by its name, with the draw --seed.")] = None,
    json: JsonOption = None,
) -> None:
    """How often a right gradient is called wrong, and how small a fault is seen.

    Programs are right: pairs that are equal mathematically and written otherwise. Exit 1 where one is accused.

    Example: jaxgrad bench verdicts --programs 150
    """
    from rich.console import Console
    from rich.table import Table

    from jaxgrad import files
    from jaxgrad.bench import verdicts
    from jaxgrad.checking.report import as_json, dated

    console = Console()
    with stoppable() as stop:
        if only is not None:
            stop.found = list(verdicts.judged(verdicts.parsed(only), verdicts.DTYPES, (seed,)))
        else:
            with bar(programs, "programs") as update:
                stop.found = verdicts.run(programs, seed, update)
    found: list[verdicts.Verdict] = stop.found or []
    rows = verdicts.summary(found)
    if json is not None:
        parts = as_json({"summary": rows, "verdicts": [verdict._asdict() for verdict in found]})
        files.write_json(json, dated("jaxgrad.bench.verdicts/1", complete=not stop.came, **parts))
    table = Table("dtype", title="right programs, and the smallest factor seen as a multiple of the noise")
    headings = {
        "agrees": "agree", "differs": "false alarms", "not judged": "not judged", "median share": "share of limit",
        "largest share": "largest", "median seen": "factor seen", "largest seen": "largest", "wanted": "wanted",
    }  # fmt: skip
    for heading in headings.values():
        table.add_column(heading, justify="right")
    for row in rows:
        cells = (row[name] for name in headings)
        table.add_row(row["dtype"], *("" if c is None else str(c) if isinstance(c, int) else f"{c:.3g}" for c in cells))
    console.print(table)
    for verdict in found:
        if verdict.outcome == "differs" or (only is not None and verdict.why):
            console.print(
                f"{verdict.program!r}, {verdict.dtype}, seed {verdict.seed}: {verdict.outcome}; {verdict.why}"
            )
    stop.exit(1 if any(verdict.outcome == "differs" for verdict in found) else 0)


@app.command("check")
def bench_check(
    case: Annotated[
        list[str] | None, typer.Option(help="op, gpt, attention, solver, large, port or large-port.")
    ] = None,
    large: Annotated[bool, typer.Option("--large", help="A GPT of 12 layers and width 768 too.")] = False,
    json: JsonOption = None,
) -> None:
    """What a check costs beside a script, and a port's comparison beside its gradient, each in its own process.

    Cases are op, gpt and attention if none is given: some take many minutes. Exit 1 where a measurement fails.

    Example: jaxgrad bench check --case op
    """
    from rich.console import Console
    from rich.table import Table

    from jaxgrad import files
    from jaxgrad.bench import check_cost
    from jaxgrad.checking.report import as_json, dated

    chosen = case or ["op", "gpt", "attention"]
    names = tuple(dict.fromkeys([*chosen, "large"] if large else chosen))
    for name in names:
        if name not in check_cost.CASES:
            raise JaxgradError(f"there is no case {name!r}; choose from {', '.join(check_cost.CASES)}")
    console = Console()
    total = sum(len(check_cost.CASES[name].whos) for name in names)
    with stoppable() as stop, bar(total, "measurements") as update:
        stop.found = check_cost.run(names, update)
    rows = check_cost.rows(stop.found or [])
    if json is not None:
        files.write_json(json, dated("jaxgrad.bench.check/1", complete=not stop.came, costs=as_json(rows)))
    table = Table("case", "", title="a cold process on the CPU; seconds are without imports")
    for heading in ("seconds", "of the first's", "with imports", "peak MB"):
        table.add_column(heading, justify="right")
    for row in rows:
        shown = (f"{row['seconds']:.1f}", f"{row['ratio']:.1f} x", f"{row['whole']:.1f}", f"{row['peak_mb']:,.0f}")
        table.add_row(row["title"], row["who"], *(shown if not row["why"] else ("failed", "", "", "")))
    console.print(table)
    for row in rows:
        if row["why"]:
            console.print(f"{row['title']}, {row['who']}: {row['why']}", highlight=False)
    stop.exit(1 if any(row["why"] for row in rows) else 0)


@app.command("checkers")
def bench_checkers(
    case: Annotated[list[str] | None, typer.Option(help="A function by its name; may be repeated.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write everything, schema jaxgrad.bench.checkers/1.")] = None,
) -> None:
    """`jaxgrad.check` beside other gradient checkers, on forty right and forty faulty functions.

    Others are jax.test_util.check_grads, torch's gradcheck, chex and numpy's allclose. Some minutes for all.

    Example: jaxgrad bench checkers --case linear --case softmax
    """
    # What a check takes is mostly compilation, so none may come from a cache.
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"

    from rich.console import Console
    from rich.table import Table

    from jaxgrad import files
    from jaxgrad.bench import checkers
    from jaxgrad.bench.checker_cases import CASES

    known = {one.name: one for one in CASES}
    for name in case or ():
        if name not in known:
            raise JaxgradError(f"there is no function {name!r}; choose from {', '.join(known)}")
    chosen = [known[name] for name in case] if case else list(CASES)
    console = Console()
    rows: list[checkers.Row] = []
    some = checkers.installed()
    with bar(2 * len(chosen) * len(some), "functions") as update:
        for row in checkers.run(chosen, some, update):
            rows.append(row)
    run = checkers.to_json(rows)
    if json is not None:
        files.write_json(json, run)
    table = Table("checker", title="faults found, right functions accused, and the argument named")
    for heading in ("found", "false alarms", "named", "CPU seconds"):
        table.add_column(heading, justify="right")
    for of in checkers.summary(run):
        cells = (f"{of.found} of {of.faulty}", f"{of.false_alarms} of {of.right}", str(of.placed), f"{of.seconds:.1f}")
        table.add_row(of.checker, *cells)
    console.print(table)
    for name, who in checkers.mistaken(run).items():
        console.print(f"{name}: {', '.join(who)}", highlight=False)
    for name in checkers.CHECKERS:
        if name not in some:
            console.print(f"{name}: not installed")


@app.command("ops")
def bench_ops(
    op: Annotated[list[str] | None, typer.Option(help="An operation by its name; may be repeated.")] = None,
    growth: Annotated[bool, typer.Option(help="Larger sizes too, for the picture; minutes.")] = True,
    rounds: Annotated[int, typer.Option(min=3, help="Interleaved rounds; their median and quartiles are shown.")] = 9,
    seconds: Annotated[float, typer.Option(min=0.001, help="How long a round of one form lasts at least.")] = 0.05,
    json: Annotated[Path | None, typer.Option(help="Write everything as JSON, schema jaxgrad.bench.ops/1.")] = None,
) -> None:
    """What each operation with its gradient costs, beside jax.grad, jax.nn, optax, Flax, tokamax and PyTorch.

    Values are compared first; time, temporary memory and compilation are shown, with the limit that is set for each.

    Example: jaxgrad bench ops --op attention --op gelu --no-growth
    """
    # Compile times are shown, so none may come from a cache. PyTorch's threads would spin through the next form's turn.
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    from rich.console import Console

    from jaxgrad import files
    from jaxgrad.bench import measure, op_cases, op_costs, op_report, peak
    from jaxgrad.bench.peers import Place

    cases = op_cases.chosen(op or [])
    growing = [case for case in op_cases.growing() if growth and (not op or case.op in op)]
    console = Console() if sys.stdout.isatty() else Console(width=120)
    table: list[op_costs.Costs] = []
    larger: list[op_costs.Costs] = []
    peaks: list[peak.Peak] = []
    with stoppable() as stop, bar(len(cases) + len(growing), "operations") as update:
        peaks = measure.peaks(Place())
        for done, case in enumerate(cases):
            update(done, case.name)
            table.append(op_costs.measure(case, rounds, seconds))
        for done, case in enumerate(growing, len(cases)):
            update(done, case.name)
            if json is not None:
                # The largest take minutes: what is known is kept if they are killed.
                files.write_json(json, op_report.to_json(table, larger, peaks, complete=False))
            larger.append(op_costs.measure(case, op_costs.LONG_ROUNDS, seconds))
    run = op_report.to_json(table, larger, peaks, complete=not stop.came)
    if json is not None:
        files.write_json(json, run)
    console.print(op_report.tables(run))
    stop.exit(0)
