"""What operations cost as JSON, and that JSON as a table in a terminal."""

import inspect
import re
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from jaxgrad import files, ops
from jaxgrad.bench import report
from jaxgrad.bench.op_cases import OURS, PLAIN, TORCH
from jaxgrad.bench.op_costs import Cost, Costs
from jaxgrad.bench.peak import Peak
from jaxgrad.bench.peers import Place
from jaxgrad.bench.timing import timing
from jaxgrad.checking.report import as_json, version
from jaxgrad.errors import JaxgradError

SCHEMA = "jaxgrad.bench.ops/1"
# XLA counts some bytes of bookkeeping as temporary: what is below a page is no array.
PAGE = 4096

# Why a row is above its limit, by what the compiled programs showed.
_SAME = "the compiled program has as many loops as autodiff's and no more operations: what is measured is the machine"
_LOOPS = (
    "linear softmax log_softmax rope relu relu_squared tanh silu dropout embedding conv kl_div cross_entropy"
    " l2_normalize"
)
REASONS = {
    **dict.fromkeys(_LOOPS.split(), _SAME),
    "logsumexp": "one number a row more than autodiff's: the sum is a product, whose result is an array of its own",
    "linear_cross_entropy": (
        "a loop over blocks, each with its products, exponentials and sums, where autodiff has three large products"
    ),
    "attention": (
        "a scan walks one pair of blocks after another, and threads share its products; PyTorch's kernel gives each"
        " thread blocks of its own"
    ),
}


def to_json(table: list[Costs], growth: list[Costs], peaks: list[Peak], complete: bool = True) -> dict[str, Any]:
    """A run as one JSON object of the schema `jaxgrad.bench.ops/1`.

    `complete` is false for one that was stopped · `environment` and `peaks`: as in `jaxgrad.bench/1` · `table` and
    `growth`: a row for each operation at a size.

    A row has op, size, numbers (in all arguments), calls (in each round) and `forms`: by name, with reason (null, or
    why it was not timed), difference (of values and cotangents from the first form, relative to a tensor's norm),
    temp_bytes (of the compiled forward and backward), kept_bytes (between the two, were they two programs, but for
    arguments and output), compile_seconds, and `seconds`: median, low and high (quartiles) and rounds. `limits` has
    `memory` and `time`, over `jax.numpy` under `jax.grad`, and `torch`, over PyTorch's time: for each the limit, the
    measured ratio (of times the median of the rounds' ratios, with quartiles low and high), and whether it is `within`;
    null where there is no limit or nothing to compare with. `reason`: why a limit is exceeded, null where none is.
    """
    return {
        "schema": SCHEMA,
        "complete": complete,
        "environment": {**report.environment(Place()), **{"tokamax": version("tokamax")}},
        "peaks": [peak._asdict() for peak in peaks],
        "table": [as_json(_row(costs)) for costs in table],
        "growth": [as_json(_row(costs)) for costs in growth],
    }


def load(path: Path) -> dict[str, Any]:
    """A run as `to_json` wrote it; raises `JaxgradError` for a file that is none."""
    run = files.read_json(path, dict[str, Any], "a benchmark of operations", "give a file of jaxgrad bench ops --json")
    if run.get("schema") != SCHEMA or not {"environment", "table", "growth"} <= run.keys():
        raise JaxgradError(
            f"{path}: has the schema {run.get('schema')!r}; give a file of the schema {SCHEMA!r},"
            " written by jaxgrad bench ops --json"
        )
    return run


def tables(run: dict[str, Any]) -> Group:
    """A table with a line for each form of each operation, and below it what stands above its limit, and why."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("operation", no_wrap=True)
    table.add_column("form", no_wrap=True)
    headings = ("ms", f"× {PLAIN}", f"× {TORCH}", "temp MiB", "kept MiB", "compile s")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in (*run["table"], *run["growth"]):
        for name, form in row["forms"].items():
            first = name == OURS
            title = f"{row['op']} {'×'.join(map(str, row['size']))}" if first else ""
            table.add_row(title, name, *_cells(row, form), style="bold" if first else None)
    return Group(table, Text("\n".join(_notes(run))))


def markdown(run: dict[str, Any]) -> str:
    """A table for a page: what each operation keeps and autodiff would, its options and source, and its figures.

    Words are those of the docstrings, options those of the signatures, numbers those of the run.
    """
    lines = [
        "| operation, size | residuals | kept, MiB | autodiff keeps | temporary, of autodiff's | time, of autodiff's"
        " | of PyTorch's | options | source |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for row in run["table"]:
        own, plain = row["forms"][OURS], row["forms"][PLAIN]
        op = getattr(ops, row["op"])
        cells = (
            _named(row),
            _sentence(op, "Residuals"),
            *(f"{form['kept_bytes'] / 2**20:,.2f}" for form in (own, plain)),
            _share(own["temp_bytes"], plain["temp_bytes"]),
            *(_ratio(own, row["forms"].get(name)) for name in (PLAIN, TORCH)),
            ", ".join(f"`{name}`" for name in _options(op)) or "-",
            _sentence(op, "Source"),
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def beside_libraries(run: dict[str, Any]) -> str:
    """A table for a page: the times of other libraries' forms, of plain JAX's, next to ours."""
    lines = ["| operation, size | jaxgrad | other libraries |", "| --- | ---: | --- |"]
    for row in run["table"]:
        plain = row["forms"][PLAIN]
        theirs = {name: _ratio(form, plain) for name, form in row["forms"].items() if name not in (OURS, PLAIN, TORCH)}
        timed = ", ".join(f"{name} {ratio}" for name, ratio in theirs.items() if ratio != "-")
        if timed:
            lines.append(f"| {_named(row)} | {_ratio(row['forms'][OURS], plain)} | {timed} |")
    return "\n".join(lines) + "\n"


def above_limits(run: dict[str, Any]) -> str:
    """A table for a page: what is above its limit, and why; once where it is in the table and in the growth."""
    found: dict[tuple[str, str], str] = {}
    for row in (*run["table"], *run["growth"]):
        for kind, limit, measured in _misses(row):
            cells = f"| {_named(row)} | {kind} | {measured} | {limit} | {row['reason']} |"
            found.setdefault((_named(row), kind), cells)
    head = ["| operation, size | what | measured | limit | why |", "| --- | --- | ---: | ---: | --- |"]
    return "\n".join([*head, *found.values()]) + "\n"


def _misses(row: dict[str, Any]) -> Iterator[tuple[str, float, str]]:
    """The limits that a row is above: the kind of each, the limit and what was measured."""
    for kind, limit in row["limits"].items():
        if limit is not None and not limit["within"]:
            yield kind, limit["limit"], "an array" if limit["ratio"] is None else f"{limit['ratio']:.2f}"


def _named(row: dict[str, Any]) -> str:
    return f"`{row['op']}` {' × '.join(f'{n:,}' for n in row['size'])}"


def _sentence(op: Callable[..., Any], start: str) -> str:
    """What the docstring says after this word."""
    words = " ".join((op.__doc__ or "").split())
    found = words.partition(f"{start}: ")[2]
    # The next label, or the sections of a longer docstring, end it.
    return re.split(r" (?:Residuals|Source|Raises|Args)\b", found)[0].partition("; derivation ours")[0].rstrip(".")


def _options(op: Callable[..., Any]) -> list[str]:
    """Parameters with a default, and keywords."""
    parameters = inspect.signature(op).parameters.values()
    return [p.name for p in parameters if p.default is not p.empty or p.kind is p.KEYWORD_ONLY]


def _share(own: int, plain: int) -> str:
    if plain <= PAGE:
        return "none in both" if own <= PAGE else f"{own / 2**20:,.2f} MiB for none"
    return f"{own / plain:.2f}"


def _row(costs: Costs) -> dict[str, Any]:
    case, by_name = costs.case, {cost.form: cost for cost in costs.forms}
    limits = {
        "memory": _memory(case.limits.memory, by_name[OURS], by_name[PLAIN]),
        "time": _time(case.limits.time, by_name[OURS], by_name[PLAIN]),
        "torch": _time(case.limits.torch, by_name[OURS], by_name[TORCH]),
    }
    above = any(limit is not None and not limit["within"] for limit in limits.values())
    return {
        "op": case.op,
        "size": case.size,
        "numbers": sum(_product(shape) for shape in case.shapes),
        "calls": costs.calls,
        "forms": {name: _form(cost) for name, cost in by_name.items()},
        "limits": limits,
        "reason": REASONS.get(case.op, "not looked into") if above else None,
    }


def _form(cost: Cost) -> dict[str, Any]:
    seconds = None if cost.seconds is None else {**timing(cost.seconds)._asdict(), "rounds": cost.seconds}
    return {**cost._asdict(), "seconds": seconds}


def _memory(limit: float | None, own: Cost, plain: Cost) -> dict[str, Any] | None:
    if limit is None or own.temp_bytes is None or plain.temp_bytes is None:
        return None
    ratio = own.temp_bytes / plain.temp_bytes if plain.temp_bytes else None
    return {"limit": limit, "ratio": ratio, "within": own.temp_bytes <= limit * plain.temp_bytes + PAGE}


def _time(limit: float | None, own: Cost, other: Cost) -> dict[str, Any] | None:
    if limit is None or own.seconds is None or other.seconds is None:
        return None
    ratios = timing([a / b for a, b in zip(own.seconds, other.seconds, strict=True)])
    return {"limit": limit, "ratio": ratios.median, "low": ratios.low, "high": ratios.high,
            "within": ratios.median <= limit}  # fmt: skip


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _cells(row: dict[str, Any], form: dict[str, Any]) -> Iterator[str]:
    yield "-" if form["seconds"] is None else report.figures(1e3 * form["seconds"]["median"])
    for other in (PLAIN, TORCH):
        yield _ratio(form, row["forms"].get(other))
    for name in ("temp_bytes", "kept_bytes"):
        yield "-" if form[name] is None else f"{form[name] / 2**20:,.2f}"
    yield "-" if form["compile_seconds"] is None else f"{form['compile_seconds']:.1f}"


def _ratio(form: dict[str, Any], other: dict[str, Any] | None) -> str:
    if form["seconds"] is None or other is None or other["seconds"] is None:
        return "-"
    ratios = [a / b for a, b in zip(form["seconds"]["rounds"], other["seconds"]["rounds"], strict=True)]
    return f"{statistics.median(ratios):.2f}"


def _notes(run: dict[str, Any]) -> Iterator[str]:
    for row in (*run["table"], *run["growth"]):
        name = f"{row['op']} {'×'.join(map(str, row['size']))}"
        for form, of in row["forms"].items():
            if of["reason"]:
                yield f"not timed: {name}, {form}: {of['reason']}"
        for kind, limit, measured in _misses(row):
            yield f"above its limit: {name}, {kind}: {measured}, limit {limit}: {row['reason']}"
    of = run["environment"]
    yield (
        f"{of['cpu']}, {of['cores']} cores; JAX {of['jax']}, PyTorch {of['torch'] or 'absent'},"
        f" tokamax {of['tokamax'] or 'absent'}; ratios are medians of each round's"
    )
