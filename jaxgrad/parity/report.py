"""A verdict as tables in a terminal, and as JSON."""

import math
import platform
from importlib import metadata
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from jaxgrad.checking.compare import Difference
from jaxgrad.parity.verdict import Row, Verdict

SCHEMA = "jaxgrad.parity/1"


def tables(verdict: Verdict) -> Group:
    """One table for each pair of engines, a row for each node and parameter in backward order, in the seed's words.

    exact: equal bit for bit (signs of zero apart) · approx: within the tolerance · maxdiff: largest |a - b| ·
    ulps: largest |a - b| in units of its own last place · rel: 2-norm of a - b over that of the scale ·
    tol: the tolerance of rel · scale: the tensor's own norm, or that of the terms which cancel in it.
    """
    pairs = dict.fromkeys(pair for row in verdict.rows for pair in row.pairs)
    return Group(*(Group(_pair_table(verdict, pair), "") for pair in pairs))


def _pair_table(verdict: Verdict, pair: tuple[str, str]) -> Table:
    table = Table(
        title=f"{pair[0]} | {pair[1]}", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), title_justify="left"
    )
    for heading in ("", "exact", "approx", "maxdiff", "ulps", "rel", "tol", "scale"):
        table.add_column(heading, justify="left" if heading in ("", "scale") else "right", no_wrap=True)
    for row in verdict.rows:
        if pair in row.pairs:
            table.add_row(*_cells(row, row.pairs[pair]), style=None if row.pairs[pair].agrees else "bold red")
    return table


def _cells(row: Row, d: Difference) -> tuple[str, ...]:
    return (
        row.name,
        str(d.exact),
        str(d.agrees),
        f"{d.max_abs:.3e}",
        f"{d.ulps:.2g}",
        f"{d.relative:.1e}",
        f"{d.tolerance:.1e}",
        row.scale.kind,
    )


def summary(verdict: Verdict) -> Text:
    """The losses, the devices, and at the end who agrees with whom."""
    target = verdict.target
    losses = " · ".join(f"{name} {loss:.4f}" for name, loss in verdict.losses.items())
    style = "bold green" if verdict.agree else "bold red"
    return Text.assemble(
        f"{verdict.case.name}, {target.dtype}, JAX on {target.jax_device}, PyTorch on {target.torch_device},"
        " matmul precision highest\n",
        f"loss: {losses}\n",
        (verdict.sentence, style),
    )


def to_json(verdicts: list[Verdict]) -> dict[str, Any]:
    """All of the verdicts as one JSON object of the schema `jaxgrad.parity/1`.

    `agree`: whether all cases agree · `environment`: versions, machine, matmul precision · `cases`: for each its
    name, dtype, devices, sizes, losses, agree, first, alone, sentence and `rows`. A row has name, scale (kind,
    value, roundings) and `pairs`, each with its two engines and the fields of `compare.Difference`. A number that
    is not finite is one of the strings "nan", "inf", "-inf".
    """
    return {
        "schema": SCHEMA,
        "agree": all(v.agree for v in verdicts),
        "environment": environment(),
        "cases": [_case(v) for v in verdicts],
    }


def environment() -> dict[str, str | None]:
    """What the numbers depend on: versions of the packages in use (None where absent), the machine, the precision."""
    packages = ("jaxgrad", "jax", "jaxlib", "torch", "numpy")
    return {
        **{name: _version(name) for name in packages},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "matmul_precision": "highest",
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _case(v: Verdict) -> dict[str, Any]:
    rows = [
        {
            "name": row.name,
            "scale": as_json(row.scale._asdict()),
            "pairs": [{"engines": list(pair), **as_json(d._asdict())} for pair, d in row.pairs.items()],
        }
        for row in v.rows
    ]
    sizes = {name: list(p.shape) for name, p in v.case.params._asdict().items()}
    return {
        "name": v.case.name,
        **v.target._asdict(),
        "batch_size": len(v.case.batch.Y),
        "shapes": sizes,
        "losses": as_json(v.losses),
        "agree": v.agree,
        "first": v.first,
        "alone": v.alone,
        "sentence": v.sentence,
        "rows": rows,
    }


def as_json(value: Any) -> Any:
    """`value` with tuples as lists, and numbers that JSON lacks as the strings "nan", "inf" and "-inf"."""
    match value:
        case dict():
            return {key: as_json(item) for key, item in value.items()}
        case tuple() | list():
            return [as_json(item) for item in value]
        case float() if not math.isfinite(value):
            return str(value)
        case _:
            return value
