"""Checks as JSON, and what their numbers depend on."""

import datetime
import math
import platform
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from jaxgrad.checking import heat
from jaxgrad.checking.explain import who
from jaxgrad.checking.findings import NOT_JUDGED, Finding, Report, Tensor

SCHEMA = "jaxgrad.check/1"


def to_json(checks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All checks, as `check` makes them, as one JSON object of the schema `jaxgrad.check/1`.

    `passed`: whether all did · `date` · `environment`: versions, machine, matmul precision · `checks`: for each its
    name, the test that made it, passed, the message of a failure, and `settings`. A setting has dtype, transform, seed,
    sizes, outcome ("agrees", "differs", "not judged"), why, passed, sentence, first, alone and `tensors`. A tensor is
    one of `jaxgrad.parity/2`, and has a `heat`: where the pair that most needs a look differs, as `heat.of_pair` gives
    it; null where there is no pair, or where a tensor of more than `findings.MOST_KEPT` elements agrees. A number that
    is not finite is one of the strings "nan", "inf", "-inf".
    """
    return dated(SCHEMA, passed=all(one["passed"] for one in checks), checks=list(checks))


def check(report: Report, test: str = "") -> dict[str, Any]:
    """A report as the JSON of one check, with maps in the place of its arrays."""
    return {
        "name": report.name,
        "test": test,
        "passed": report.passed,
        "message": report.message,
        "settings": [_setting(finding) for finding in report.findings],
    }


def tensor(t: Tensor) -> dict[str, Any]:
    """A tensor of a verdict or of a check as JSON, without its arrays."""
    pairs = [
        # The difference of a pair (a, b) holds the value of b, which was expected, first.
        as_json({"engines": pair, **d._asdict(), "values": d.values[::-1], "judged": d.judged})
        for pair, d in t.pairs.items()
    ]
    return {"name": t.name, "kind": t.kind, "note": t.note, "pairs": pairs}


def mapped(t: Tensor) -> dict[str, Any]:
    """A tensor as JSON, with the heat of its worst pair, if it still has its arrays."""
    row = tensor(t)
    at = worst(row["pairs"]) if t.values else None
    return {**row, "heat": None if at is None else heat.of_pair(t, list(t.pairs)[at])}


def worst(pairs: Sequence[dict[str, Any]]) -> int | None:
    """The pair that most needs a look: one that differs, one that was not judged, or the nearest to its limit."""

    def rank(at: int) -> tuple[bool, bool, bool, float]:
        pair = pairs[at]
        return not pair["agrees"], not pair["judged"], pair["not_finite"] is not None, float(pair["share"])

    return max(range(len(pairs)), key=rank, default=None)


def dated(schema: str, **parts: Any) -> dict[str, Any]:
    """A result as JSON: its schema, when it was made, what its numbers depend on, and its own parts by name."""
    return {"schema": schema, "date": now(), "environment": environment(), **parts}


def environment() -> dict[str, str | None]:
    """What the numbers depend on: versions of the packages in use (None where absent), the machine, the precision."""
    packages = ("jaxgrad", "jax", "jaxlib", "torch", "numpy")
    return {
        **{name: version(name) for name in packages},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "matmul_precision": "highest",
    }


def version(package: str) -> str | None:
    """The version of an installed package; None for one that is not."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def now() -> str:
    """The time in UTC, as ISO 8601 writes it, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def as_json(value: Any) -> Any:
    """`value` with tuples as lists, and numbers that JSON lacks as strings: "nan", "inf", "-inf", "(1+2j)"."""
    match value:
        case dict():
            return {key: as_json(item) for key, item in value.items()}
        case tuple() | list():
            return [as_json(item) for item in value]
        case float() if not math.isfinite(value):
            return str(value)
        case complex():
            return str(value)
        case _:
            return value


def _setting(finding: Finding) -> dict[str, Any]:
    return {
        **finding.setting._asdict(),
        "outcome": finding.outcome,
        "why": finding.why,
        "passed": finding.passed,
        "sentence": _sentence(finding),
        "first": finding.first,
        "alone": finding.alone,
        "tensors": [mapped(t) for t in finding.tensors],
    }


def _sentence(finding: Finding) -> str:
    if finding.outcome == NOT_JUDGED:
        return f"not judged: {finding.why}"
    told = who(finding) if finding.tensors else ""
    return "; ".join(part for part in (told, finding.why) if part)
