"""Comparisons as one self-contained HTML page: graph, table, and a map of each node's error."""

import html as escaping
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from jaxgrad.models.mlp import Gradients
from jaxgrad.parity.compare import Difference, Scale
from jaxgrad.parity.explain import who
from jaxgrad.parity.findings import Finding, Report, Tensor
from jaxgrad.parity.report import as_json, environment
from jaxgrad.parity.verdict import FORWARD_LOSS, USERS, Verdict, tensor

MOST_CELLS = 48


def html(data: dict[str, Any]) -> str:
    """The page of `data`: {title, environment, cases}, as `of_verdicts` and `of_reports` make it.

    It needs no network. Names are shown as they are, whatever they contain.
    """
    template = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    # Inside a script element only a `<` could end it, so there is none.
    kept = json.dumps(as_json(data), allow_nan=False).replace("<", "\\u003c")
    return template.replace("__TITLE__", escaping.escape(data["title"])).replace("__DATA__", kept)


def of_verdicts(verdicts: list[Verdict], gradients: list[dict[str, Gradients]]) -> dict[str, Any]:
    """The data of the model's own parity run: a case for each verdict, with the gradients that it judged."""
    return {
        "title": "jaxgrad parity",
        "environment": environment(),
        "cases": [_of_verdict(v, g) for v, g in zip(verdicts, gradients, strict=True)],
    }


def of_reports(reports: list[Report]) -> dict[str, Any]:
    """The data of checks: a case for each setting of each; the first that failed tells the check's message."""
    cases = []
    for report in reports:
        told = report.message
        for finding in report.findings:
            wrong = not report.passed and finding.first is not None
            cases.append(_of_finding(report, finding, told if wrong else ""))
            told = "" if wrong else told
    return {"title": "jaxgrad three-way checks", "environment": environment(), "cases": cases}


def heat(a: np.ndarray, b: np.ndarray, scale_value: float, most: int = MOST_CELLS) -> dict[str, Any]:
    """log10 of |a - b| over the scale, on a grid of at most `most` by `most` cells, each the largest of its block.

    Leading axes are joined: rows of the grid are those of the last axis. A cell is None where nothing differs and
    "nan" where anything is not finite.
    """
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        gap = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)) / (scale_value or 1.0)
        gap = np.where(np.isfinite(gap), gap, np.nan)
        flat = gap.reshape(-1, gap.shape[-1]) if gap.ndim else gap.reshape(1, 1)
        rows, columns = (np.array_split(np.arange(size), min(size, most)) for size in flat.shape)
        largest = [[float(np.max(flat[np.ix_(row, column)])) for column in columns] for row in rows]
    return {"shape": list(np.shape(a)), "grid": [[_cell(value) for value in line] for line in largest]}


def _cell(value: float) -> float | str | None:
    if math.isnan(value):
        return "nan"
    return round(math.log10(value), 2) if value > 0 else None


def _of_verdict(v: Verdict, gradients: dict[str, Gradients]) -> dict[str, Any]:
    rows = [
        _row(row.name, row.scale, row.pairs, {engine: tensor(g, row.name) for engine, g in gradients.items()})
        for row in v.rows
    ]
    return {
        "name": f"{v.case.name}, JAX on {v.target.jax_device}, PyTorch on {v.target.torch_device}",
        "agree": v.agree,
        "sentence": v.sentence,
        "details": "",
        "dtype": v.target.dtype,
        "losses": v.losses,
        "rows": rows,
        # In backward order a cotangent flows from a node's users to the node.
        "edges": [[FORWARD_LOSS, "loss"], *([user, name] for name, users in USERS.items() for user in users)],
    }


def _of_finding(report: Report, finding: Finding, message: str) -> dict[str, Any]:
    setting = finding.setting
    return {
        "name": f"{report.name}, {setting.transform}, seed {setting.seed}",
        # A gradient that is meant to differ and does is as it should be.
        "agree": finding.agree or report.passed,
        "sentence": who(finding),
        "details": message,
        "dtype": setting.dtype,
        "losses": {},
        "rows": [_of_tensor(t) for t in finding.tensors],
        "edges": [],
    }


def _of_tensor(t: Tensor) -> dict[str, Any]:
    return _row(t.name, t.scale, t.pairs, t.values)


def _row(name: str, scale: Scale, pairs: dict[tuple[str, str], Difference], values: dict[str, Any]) -> dict[str, Any]:
    worst = max(pairs, key=lambda pair: _badness(pairs[pair]), default=None)
    return {
        "name": name,
        "scale": scale._asdict(),
        "pairs": [{"engines": list(pair), **d._asdict()} for pair, d in pairs.items()],
        "heat": None if worst is None else heat(values[worst[0]], values[worst[1]], scale.value),
    }


def _badness(d: Difference) -> float:
    return math.inf if d.not_finite else d.relative / d.tolerance if d.tolerance else d.relative
