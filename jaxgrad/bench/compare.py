"""Two runs of the benchmark: the ratio of each competitor's times, and whether it lies beyond their spread."""

import math
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.table import Table

from jaxgrad import files
from jaxgrad.bench.report import SCHEMA
from jaxgrad.errors import JaxgradError
from jaxgrad.models import DEFAULT

# What a time cannot be compared across.
MACHINE = ("cpu", "cores", "machine", "jax_device_kind", "torch_device_kind", "torch_threads")


class Change(NamedTuple):
    """A competitor's median seconds per step in two runs. `verdict` is "regression" where the quartiles of the second
    lie wholly above those of the first, "faster" where they lie wholly below, else "same".
    """

    size: str
    peer: str
    before: float
    after: float
    ratio: float
    verdict: str


def load(path: Path) -> dict[str, Any]:
    """A run as `report.to_json` wrote it; raises `JaxgradError` for a file that is none."""
    run = files.read_json(path, dict[str, Any], "a benchmark", "give a file written by --json")
    found = run.get("schema")
    if found != SCHEMA:
        raise JaxgradError(f"{path}: has the schema {found!r}; give a file of the schema {SCHEMA!r}, written by --json")
    if not _whole(run):
        raise JaxgradError(f"{path}: lacks what a run of the benchmark has; give a file as --json wrote it")
    return run


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[Change]:
    """One change for each competitor that was timed in both runs at one size; sizes are told apart by their numbers.

    Raises `JaxgradError` where there is none.
    """
    first, second = _timed(before), _timed(after)
    found = [_change(*key, first[key], second[key]) for key in first if key in second]
    if not found:
        raise JaxgradError("the two runs have no competitor at one size in common; compare runs of the same sizes")
    return found


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """In what the machines and versions of two runs differ, a line each; machines first."""
    a, b = before["environment"], after["environment"]
    names = [*MACHINE, *(name for name in a if name not in (*MACHINE, "date"))]
    return [f"{name}: {a.get(name)} before, {b.get(name)} after" for name in names if a.get(name) != b.get(name)]


def table(found: list[Change]) -> Table:
    """The changes, the regressions in red."""
    shown = Table("size", "competitor", box=box.SIMPLE_HEAD, show_edge=False)
    for heading in ("µs/step before", "after", "ratio"):
        shown.add_column(heading, justify="right")
    shown.add_column("")
    styles = {"regression": "bold red", "faster": "green", "same": None}
    for c in found:
        verdict = "" if c.verdict == "same" else c.verdict
        cells = (f"{1e6 * c.before:,.1f}", f"{1e6 * c.after:,.1f}", f"{c.ratio:.2f}", verdict)
        shown.add_row(c.size, c.peer, *cells, style=styles[c.verdict])
    return shown


def _whole(run: dict[str, Any]) -> bool:
    """Whether the times that are compared are all there, and positive numbers."""
    try:
        times = [timing[name] for timing in _timed(run).values() for name in ("median", "low", "high")]
        return isinstance(run["environment"], dict) and all(0 < float(time) < math.inf for time in times)
    except (KeyError, TypeError, ValueError, OverflowError):
        return False


def _timed(run: dict[str, Any]) -> dict[tuple[str, str], dict[str, float]]:
    return {
        (_told(size), peer["name"]): peer["seconds_per_step"]
        for size in run["sizes"]
        for peer in size["peers"]
        if peer["reason"] is None
    }


def _told(size: dict[str, Any]) -> str:
    """The numbers of a size, after its model's name where that is not the notebook's."""
    numbers = " x ".join(str(size[name]) for name in ("batch", *size.get("shown", ["hidden"])))
    return numbers if size.get("model", DEFAULT) == DEFAULT else f"{size['model']}, {numbers}"


def _change(size: str, peer: str, before: dict[str, float], after: dict[str, float]) -> Change:
    verdict = "same"
    if after["low"] > before["high"]:
        verdict = "regression"
    elif after["high"] < before["low"]:
        verdict = "faster"
    return Change(size, peer, before["median"], after["median"], after["median"] / before["median"], verdict)
