"""A verdict as tables in a terminal, and as JSON."""

from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from jaxgrad.checking import report as checks
from jaxgrad.checking.compare import Difference
from jaxgrad.checking.findings import AGREES, DIFFERS, NOT_JUDGED
from jaxgrad.models.model import named
from jaxgrad.parity.verdict import Verdict

SCHEMA = "jaxgrad.parity/2"


def tables(verdict: Verdict) -> Group:
    """One table for each pair of engines, a row for each node and parameter in backward order, in the notebook's words.

    exact: equal bit for bit (signs of zero apart) · approx: within the limits, "?" where that was not judged ·
    maxdiff: largest |a - b| · ulps: that in units of its own last place, the largest of all elements · rel: 2-norm of
    a - b over that of b · noise: 2-norm of the measured rounding error over that of b · limit: the largest rel that
    such noise explains · share: the largest part of its limit that the tensor, a slice or an element takes.
    """
    pairs = dict.fromkeys(pair for tensor in verdict.tensors for pair in tensor.pairs)
    return Group(*(Group(_pair_table(verdict, pair), "") for pair in pairs))


def _pair_table(verdict: Verdict, pair: tuple[str, str]) -> Table:
    table = Table(title=f"{pair[0]} | {pair[1]}", box=box.SIMPLE_HEAD, show_edge=False, padding=0, title_justify="left")
    for heading in ("", "exact", "approx", "maxdiff", "ulps", "rel", "noise", "limit", "share"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for tensor in verdict.tensors:
        if pair in tensor.pairs:
            d = tensor.pairs[pair]
            style = "bold red" if not d.agrees else None if d.judged else "dim"
            table.add_row(tensor.name, *_cells(d), style=style)
    return table


def _cells(d: Difference) -> tuple[str, ...]:
    return (
        str(d.exact),
        str(d.agrees) if d.judged or not d.agrees else "?",
        f"{d.max_abs:.1e}",
        f"{d.ulps:.2g}",
        f"{d.relative:.1e}",
        f"{d.noise:.1e}",
        f"{d.tolerance:.1e}",
        f"{d.share:.2g}" if d.judged or not d.agrees else "not judged",
    )


def summary(verdict: Verdict) -> Text:
    """The losses, the devices, and at the end who agrees with whom."""
    target = verdict.target
    losses = " · ".join(f"{name} {loss:.4f}" for name, loss in verdict.losses.items())
    style = {AGREES: "bold green", DIFFERS: "bold red", NOT_JUDGED: "bold yellow"}[verdict.outcome]
    return Text.assemble(
        f"{verdict.case.name}, {target.dtype}, JAX on {target.jax_device}, PyTorch on {target.torch_device},"
        " matmul precision highest\n",
        f"loss: {losses}\n",
        (verdict.sentence, style),
    )


def to_json(cases: list[dict[str, Any]], complete: bool = True) -> dict[str, Any]:
    """All cases, as `case` makes them, as one JSON object of the schema `jaxgrad.parity/2`.

    `complete` is false where Ctrl-C stopped it · `agree`: whether all cases agree · `date` · `environment`: versions,
    machine, matmul precision · `cases`: for each its name, dtype, devices, sizes, losses, outcome ("agrees", "differs",
    "not judged"), first, alone, sentence and `tensors`. A tensor has name, kind ("output", "node", "input"), note and
    `pairs`: for each its two engines and the fields of `compare.Difference`, with `values` in the order of the engines,
    and whether it was `judged`; one that differs has a `heat` too, the map of its worst pair, as `checking.heat` makes
    it. In float32 and bfloat16 the second engine is "float64", the truth. A number that is not finite is one of the
    strings "nan", "inf", "-inf".
    """
    return checks.dated(SCHEMA, complete=complete, agree=all(case["outcome"] == AGREES for case in cases), cases=cases)


def case(v: Verdict) -> dict[str, Any]:
    """A verdict as the JSON of one case, without its arrays."""
    return {
        "name": v.case.name,
        **v.target._asdict(),
        "batch_size": len(v.case.batch.Y),
        "shapes": {name: list(p.shape) for name, p in named(v.case.params).items()},
        "losses": checks.as_json(v.losses),
        "outcome": v.outcome,
        "first": v.first,
        "alone": v.alone,
        "sentence": v.sentence,
        "tensors": [checks.tensor(t) if t.agree else checks.mapped(t) for t in v.tensors],
    }
