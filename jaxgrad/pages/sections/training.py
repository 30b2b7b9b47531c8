"""What training leaves: the folder of a run, a sweep, the losses of an evaluation."""

from collections.abc import Mapping
from typing import Any

from jaxgrad.pages import curve
from jaxgrad.pages.document import APART, CLOSE, UNJUDGED, Column, definitions, paragraph, table
from jaxgrad.pages.section import Section, counted, number

_SHOWN = 20


def run(data: Mapping[str, Any]) -> Section:
    """A run's folder, read into the schema `jaxgrad.run/1`: config, metrics, losses and checkpoints."""
    config, lines, losses = data["config"], data["metrics"], data["losses"]
    last = lines[-1] if lines else None
    if losses is not None:
        kind, verdict = CLOSE, _losses(losses)
    elif last is not None:
        kind, verdict = UNJUDGED, f"not finished: step {last['step']:,} of {config['steps']:,}"
    else:
        kind, verdict = UNJUDGED, "not begun"
    steps, values = [line["step"] for line in lines], [float(line["loss"]) for line in lines]
    every = max(1, len(lines) // _SHOWN)
    rows = [
        (f"{line['step']:,}", number(line["loss"], 5), number(line["learning_rate"], 3)) for line in lines[::-every]
    ]
    parts = [
        curve.drawn(steps, values, "loss over steps") if lines else "",
        "<h3>Samples of the loss, the last first</h3>" if rows else "",
        table((Column("step"), Column("loss"), Column("learning rate")), rows) if rows else "",
        "<h3>Checkpoints</h3>",
        paragraph(" · ".join(data["checkpoints"]) or "none"),
        "<h3>Config</h3>",
        definitions((name, _short(value)) for name, value in config.items()),
    ]
    return Section(f"training run of {config['model']}", kind, verdict, data["date"], "".join(parts))


def sweep(data: Mapping[str, Any]) -> Section:
    """A sweep, schema `jaxgrad.sweep/1`."""
    runs = data["runs"]
    names = list(runs[0]) if runs else []
    rows = [tuple("diverged" if row[name] is None else _cell(row[name]) for name in names) for row in runs]
    diverged = sum(row["dev"] is None for row in runs)
    best = next((row for row in runs if row["dev"] is not None), None)
    verdict = f"{counted(len(runs), 'run')}" + (f", {diverged} diverged" if diverged else "")
    if best is not None:
        verdict += f"; the best has dev {number(best['dev'], 5)}"
    body = table(tuple(Column(name.replace("_", " ")) for name in names), rows)
    config = definitions((name, _short(value)) for name, value in data["config"].items())
    kind = CLOSE if best is not None else APART
    return Section("sweep", kind, verdict, data.get("date", ""), f"{body}<h3>Config of all</h3>{config}")


def losses(data: Mapping[str, Any]) -> Section:
    """What `jaxgrad eval` measured, schema `jaxgrad.eval/1`."""
    measured = {split: data[split] for split in ("train", "dev", "test")}
    more = f"{data['run']} · its PyTorch twin: {_losses(data['twin'])}" if "twin" in data else data["run"]
    return Section("losses of a run", CLOSE, _losses(measured), data["date"], paragraph(more, "soft"))


def corpus(data: Mapping[str, Any]) -> Section:
    """What `jaxgrad corpus show` tells of a corpus, schema `jaxgrad.corpus/1`."""
    symbols = data["vocabulary"]
    rows = [(split, *(f"{n:,}" for n in shape)) for split, shape in data["X"].items()]
    columns = Column("split"), Column("examples"), Column("characters of context")
    verdict = f"{counted(data['words'], 'word')}, {counted(len(symbols), 'symbol')}"
    named = paragraph(f"{data['corpus']}: {''.join(symbols)}", "soft")
    return Section("corpus", CLOSE, verdict, data["date"], named + table(columns, rows))


def _losses(losses: Mapping[str, Any]) -> str:
    return " · ".join(f"{name} {float(loss):.4f}" for name, loss in losses.items())


def _cell(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _short(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "none" if value is None else str(value)
