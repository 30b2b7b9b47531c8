"""Comparisons as one self-contained HTML page: graph, table, and a map of each node's error."""

import html as escaping
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from jaxgrad.checking.compare import Difference, limit
from jaxgrad.checking.explain import who
from jaxgrad.checking.findings import NOT_JUDGED, Finding, Report, Tensor
from jaxgrad.parity import report
from jaxgrad.parity.engines import graph
from jaxgrad.parity.report import as_json, environment
from jaxgrad.parity.verdict import FORWARD_LOSS, Verdict

MOST_CELLS = 48


def html(data: dict[str, Any]) -> str:
    """The page of `data`: {title, environment, cases}, as `of_cases` and `of_reports` make it.

    It needs no network, and shows names as they are, whatever they contain. A case has name, outcome, agree (whether
    the outcome is as expected), sentence, details, dtype, losses, rows and edges; a row is a tensor as `report.tensor`
    makes it, and heat: what `heat` returns, with the two engines, or None. A case's edges go from a node to those that
    get its cotangent.
    """
    template = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    cases = [{**case, "rows": list(map(_ranked, case["rows"]))} for case in data["cases"]]
    kept = json.dumps(as_json({**data, "cases": cases}), allow_nan=False)
    # Inside a script element only a `<` could end it, so there is none.
    parts = {"title": escaping.escape(data["title"]), "data": kept.replace("<", "\\u003c")}
    return re.sub(r"\{\{(title|data)\}\}", lambda found: parts[found[1]], template)


def of_cases(cases: list[dict[str, Any]], jax_device: str, torch_device: str) -> dict[str, Any]:
    """The data of the model's own parity run, from cases that `case` makes."""
    devices = {"JAX device": jax_device, "PyTorch device": torch_device}
    return {"title": "jaxgrad parity", "environment": {**environment(), **devices}, "cases": cases}


def of_reports(reports: list[Report]) -> dict[str, Any]:
    """The data of checks: a case for each setting of each; the first that failed tells the check's message."""
    return {
        "title": "jaxgrad three-way checks",
        "environment": environment(),
        "cases": [case for report in reports for case in _of_report(report)],
    }


def case(v: Verdict) -> dict[str, Any]:
    """A verdict as a case of the page, with maps in the place of its arrays."""
    # In backward order a cotangent flows from a node's users to the node.
    found = graph(v.case.model, v.case.sizes, v.case.vocab_size)
    edges = [
        *([FORWARD_LOSS, name] for name in found.last),
        *([user, name] for name, users in found.users.items() for user in users),
    ]
    return {
        "name": v.case.name,
        "outcome": v.outcome,
        "agree": v.agree,
        "sentence": v.sentence,
        "details": "",
        "dtype": v.target.dtype,
        "losses": v.losses,
        "rows": [_row(t) for t in v.tensors],
        "edges": edges,
    }


def _of_report(report: Report) -> list[dict[str, Any]]:
    first = next((finding for finding in report.findings if not finding.passed), None)
    return [
        {
            "name": _name(report, finding),
            "outcome": finding.outcome,
            "agree": finding.passed,
            "sentence": _sentence(finding),
            "details": report.message if finding is first else "",
            "dtype": finding.setting.dtype,
            "losses": {},
            "rows": [_row(t) for t in finding.tensors],
            "edges": [],
        }
        for finding in report.findings
    ]


def _name(report: Report, finding: Finding) -> str:
    setting = finding.setting
    said = f"{report.name}, {setting.transform}, seed {setting.seed}"
    return f"{said}, {setting.sizes}" if setting.sizes else said


def _sentence(finding: Finding) -> str:
    if finding.outcome == NOT_JUDGED:
        return f"not judged: {finding.why}"
    told = who(finding) if finding.tensors else ""
    return "; ".join(part for part in (told, finding.why) if part)


def _row(t: Tensor) -> dict[str, Any]:
    row = report.tensor(t)
    worst = _worst(row["pairs"])
    if worst is None:
        return {**row, "heat": None}
    (a, b), d = list(t.pairs.items())[worst]
    return {**row, "heat": {"engines": [a, b], **heat(t.values[a], t.values[b], _limits(t, t.values[b], d))}}


def _limits(t: Tensor, expected: np.ndarray, d: Difference) -> Any:
    """How far each element may be from the expected one: as noise explains, or a given tolerance spread evenly."""
    size = float(np.linalg.norm(_wide(expected)))
    if t.given_tolerance:
        return d.tolerance * size / math.sqrt(max(d.size, 1))
    # The noise of a pair is that of a tensor times a factor: two engines are rounded, or one is known to round more.
    own = float(np.linalg.norm(t.noise.deviation))
    factor = d.noise * size / own if own and math.isfinite(d.noise * size) else 1.0
    return limit(1.0, t.noise.samples, d.size) * (factor or 1.0) * t.noise.deviation


def heat(a: np.ndarray, b: np.ndarray, limits: Any, most: int = MOST_CELLS) -> dict[str, Any]:
    """The shape, and log10 of |a - b| over its limit on a grid of at most `most` by `most` cells.

    `limits` is a number, or one for each element. A cell holds the largest of its block; leading axes are joined into
    the grid's rows. It is None where nothing differs, and one of the strings "nan", "inf" and "-inf" where the ratio
    is not finite: where a or b is not, or the limit is 0. Raises `ValueError` where shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"arrays of the shapes {a.shape} and {b.shape} cannot be compared")
    columns = a.shape[-1] if a.ndim else 1
    rows = math.prod(a.shape[:-1])
    wide_a, wide_b = _wide(a), _wide(b)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        gap = np.where(wide_a == wide_b, 0.0, np.abs(wide_a - wide_b))
        # A difference of logarithms, because the quotient of a tiny gap and a large limit may underflow to 0.
        levels = np.where(gap == 0, -np.inf, np.log10(gap) - np.log10(np.asarray(limits, np.float64)))
    # Where nothing differs a level is -inf, below any number; NaN and inf are above all.
    along_rows = np.maximum.reduceat(levels.reshape(rows, columns), _starts(rows, most), 0)
    largest = np.maximum.reduceat(along_rows, _starts(columns, most), 1)
    grid = [[None if level == -np.inf else as_json(round(float(level), 2)) for level in line] for line in largest]
    return {"shape": list(a.shape), "grid": grid}


def _wide(array: np.ndarray) -> np.ndarray:
    array = np.asarray(array)
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _starts(size: int, most: int) -> np.ndarray:
    """Where each of at most `most` blocks of `size` elements begins."""
    blocks = min(size, most)
    return np.arange(blocks) * size // max(blocks, 1)


def _ranked(row: dict[str, Any]) -> dict[str, Any]:
    """A row that also says which of its pairs is the worst."""
    return {**row, "worst": _worst(row["pairs"])}


def _worst(pairs: list[dict[str, Any]]) -> int | None:
    """The pair that most needs a look: one that differs, one that was not judged, or the nearest to its limit."""

    def rank(at: int) -> tuple[bool, bool, bool, float]:
        pair = pairs[at]
        return not pair["agrees"], not pair["judged"], pair["not_finite"] is not None, float(pair["share"])

    return max(range(len(pairs)), key=rank, default=None)
