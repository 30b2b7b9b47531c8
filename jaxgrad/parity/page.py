"""Comparisons as one self-contained HTML page: graph, table, and a map of each node's error."""

import html as escaping
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from jaxgrad.checking.compare import Difference, Scale
from jaxgrad.checking.explain import who
from jaxgrad.checking.findings import Report
from jaxgrad.models.mlp import Gradients
from jaxgrad.parity.report import as_json, environment
from jaxgrad.parity.verdict import FORWARD_LOSS, USERS, Verdict, tensor

MOST_CELLS = 48


def html(data: dict[str, Any]) -> str:
    """The page of `data`: {title, environment, cases}, as `of_verdicts` and `of_reports` make it.

    It needs no network, and shows names as they are, whatever they contain. A case has name, agree, sentence,
    details, dtype, losses, rows and edges; a row has name, scale, pairs as in `report.to_json`, and heat: what
    `heat` returns, with the two engines, or None. A case's edges go from a node to those that get its cotangent.
    """
    template = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    cases = [{**case, "rows": [_ranked(row) for row in case["rows"]]} for case in data["cases"]]
    kept = json.dumps(as_json({**data, "cases": cases}), allow_nan=False)
    # Inside a script element only a `<` could end it, so there is none.
    parts = {"title": escaping.escape(data["title"]), "data": kept.replace("<", "\\u003c")}
    return re.sub(r"\{\{(title|data)\}\}", lambda found: parts[found[1]], template)


def of_verdicts(verdicts: list[Verdict], gradients: list[dict[str, Gradients]]) -> dict[str, Any]:
    """The data of the model's own parity run: a case for each verdict, with the gradients that it judged."""
    devices = {
        "JAX device": ", ".join(sorted({v.target.jax_device for v in verdicts})),
        "PyTorch device": ", ".join(sorted({v.target.torch_device for v in verdicts})),
    }
    return {
        "title": "jaxgrad parity",
        "environment": {**environment(), **devices},
        "cases": [_of_verdict(v, g) for v, g in zip(verdicts, gradients, strict=True)],
    }


def of_reports(reports: list[Report]) -> dict[str, Any]:
    """The data of checks: a case for each setting of each; the first that failed tells the check's message."""
    return {
        "title": "jaxgrad three-way checks",
        "environment": environment(),
        "cases": [case for report in reports for case in _of_report(report)],
    }


def heat(a: np.ndarray, b: np.ndarray, scale_value: float, most: int = MOST_CELLS) -> dict[str, Any]:
    """The shape, and log10 of |a - b| over the scale on a grid of at most `most` by `most` cells.

    A cell holds the largest of its block; leading axes are joined into the grid's rows. It is None where nothing
    differs, and one of the strings "nan", "inf" and "-inf" where the ratio is not finite: where a or b is not, or
    the scale is 0. Raises `ValueError` where shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"arrays of the shapes {a.shape} and {b.shape} cannot be compared")
    columns = a.shape[-1] if a.ndim else 1
    rows = math.prod(a.shape[:-1])
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        gap = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).reshape(rows, columns)
        largest = np.maximum.reduceat(np.maximum.reduceat(gap, _starts(rows, most), 0), _starts(columns, most), 1)
        # A difference of logarithms, because the quotient of a tiny gap and a large scale may underflow to 0.
        levels = np.where(largest == 0, np.nan, np.log10(largest) - np.log10(np.float64(scale_value)))
    grid = [
        [None if top == 0 else as_json(round(float(level), 2)) for top, level in zip(*line, strict=True)]
        for line in zip(largest, levels, strict=True)
    ]
    return {"shape": list(a.shape), "grid": grid}


def _starts(size: int, most: int) -> np.ndarray:
    """Where each of at most `most` blocks of `size` elements begins."""
    blocks = min(size, most)
    return np.arange(blocks) * size // max(blocks, 1)


def _ranked(row: dict[str, Any]) -> dict[str, Any]:
    """A row that also says which of its pairs is the worst, and by how much each exceeds its tolerance."""
    pairs = [{**pair, "excess": _excess(pair)} for pair in row["pairs"]]
    return {**row, "pairs": pairs, "worst": _worst(pairs)}


def _worst(pairs: list[dict[str, Any]]) -> int | None:
    return max(range(len(pairs)), key=lambda at: (not pairs[at]["agrees"], _excess(pairs[at])), default=None)


def _excess(pair: dict[str, Any]) -> float:
    """The relative difference over its tolerance; infinite where anything is not finite."""
    relative, limit = float(pair["relative"]), float(pair["tolerance"])
    if pair["not_finite"] or not math.isfinite(relative):
        return math.inf
    return relative / limit if limit else math.inf if relative else 0.0


def _of_verdict(v: Verdict, gradients: dict[str, Gradients]) -> dict[str, Any]:
    rows = [
        _row(row.name, row.scale, row.pairs, {engine: tensor(g, row.name) for engine, g in gradients.items()})
        for row in v.rows
    ]
    return {
        "name": v.case.name,
        "agree": v.agree,
        "sentence": v.sentence,
        "details": "",
        "dtype": v.target.dtype,
        "losses": v.losses,
        "rows": rows,
        # In backward order a cotangent flows from a node's users to the node.
        "edges": [[FORWARD_LOSS, "loss"], *([user, name] for name, users in USERS.items() for user in users)],
    }


def _of_report(report: Report) -> list[dict[str, Any]]:
    first = next((finding for finding in report.findings if not finding.passed), None)
    return [
        {
            "name": f"{report.name}, {finding.setting.transform}, seed {finding.setting.seed}",
            "agree": finding.passed,
            "sentence": who(finding),
            "details": report.message if finding is first else "",
            "dtype": finding.setting.dtype,
            "losses": {},
            "rows": [_row(t.name, t.scale, t.pairs, t.values) for t in finding.tensors],
            "edges": [],
        }
        for finding in report.findings
    ]


def _row(name: str, scale: Scale, pairs: dict[tuple[str, str], Difference], values: dict[str, Any]) -> dict[str, Any]:
    listed = [as_json({"engines": list(pair), **d._asdict()}) for pair, d in pairs.items()]
    worst = _worst(listed)
    drawn = None
    if worst is not None:
        a, b = listed[worst]["engines"]
        drawn = {"engines": [a, b], **heat(values[a], values[b], scale.value)}
    return {"name": name, "scale": as_json(scale._asdict()), "pairs": listed, "heat": drawn}
