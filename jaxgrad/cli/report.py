"""`jaxgrad report`: one page of many results, for a colleague or a CI job's artefacts."""

import datetime
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxgrad.errors import JaxgradError

if TYPE_CHECKING:
    from jaxgrad.pages.report import Source

RUN_SCHEMA = "jaxgrad.run/1"


def report(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="RUN_OR_JSON...", help="Folders of runs and sweeps, and files written by --json."),
    ],
    out: Annotated[Path, typer.Option(help="The page.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Its heading.")] = "jaxgrad report",
) -> None:
    """Make one page of runs, sweeps and what commands wrote with --json, in the order that they are given.

    The page needs no network and no script, and opens in any browser.

    Example: jaxgrad report parity.json checks.json runs/demo --out report.html
    """
    from rich.console import Console

    from jaxgrad import files
    from jaxgrad.cli.terminal import say
    from jaxgrad.pages import report as pages

    files.check_writable(out)
    files.write_text(out, pages.html([_source(path) for path in sources], title))
    say(Console(soft_wrap=True), f"written: {out}")


def _source(path: Path) -> "Source":
    from jaxgrad import files
    from jaxgrad.pages.report import Source

    advice = "give what jaxgrad writes with --json, or the folder of a run or a sweep"
    if path.is_dir():
        file, data = _folder(path, advice)
    else:
        file, data = path, files.read_json(path, dict[str, Any], "a result", advice)
    return Source(str(path), data, _written(file))


def _folder(path: Path, advice: str) -> tuple[Path, dict[str, Any]]:
    """What a folder holds, and the file that tells when it was last written."""
    from jaxgrad import files

    if (path / "config.json").exists():
        return _run(path)
    if (path / "sweep.json").exists():
        return path / "sweep.json", files.read_json(path / "sweep.json", dict[str, Any], "a sweep", advice)
    if (path / "plan.json").exists():
        raise JaxgradError(f"{path}: the sweep is not finished; go on with jaxgrad sweep --resume {path}")
    raise JaxgradError(f"{path}: is the folder of neither a run nor a sweep; {advice}")


def _run(path: Path) -> tuple[Path, dict[str, Any]]:
    """A run's folder, read as training reads it, in the schema `jaxgrad.run/1`."""
    from jaxgrad import files
    from jaxgrad.training import checkpoints
    from jaxgrad.training.config import flat
    from jaxgrad.training.folder import METRICS, load_config, read_metrics

    metrics, losses = path / METRICS, path / "losses.json"
    lines = read_metrics(path) if metrics.exists() else []
    data = {
        "schema": RUN_SCHEMA,
        "date": "",
        "config": json.loads(json.dumps(flat(load_config(path)))),
        "metrics": [line._asdict() for line in lines],
        "losses": files.read_json(losses, dict[str, float], "losses", "remove it") if losses.exists() else None,
        "checkpoints": [folder.name for folder in checkpoints.saved(path)],
    }
    return (losses if losses.exists() else metrics if metrics.exists() else path / "config.json"), data


def _written(file: Path) -> str:
    """When a file was last written, in UTC."""
    at = datetime.datetime.fromtimestamp(file.stat().st_mtime, datetime.UTC)
    return at.isoformat(timespec="seconds")
