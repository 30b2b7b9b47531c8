"""A run of the benchmark as JSON, and that JSON as tables in a terminal."""

import dataclasses
import os
import platform
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from jaxgrad.bench.measure import Result, Row
from jaxgrad.bench.peak import Peak, jax_precision
from jaxgrad.bench.peers import REFERENCE, TORCH, Place
from jaxgrad.bench.task import SEED, benchmark, flops
from jaxgrad.bench.timing import timing
from jaxgrad.checking import report as checks
from jaxgrad.checking.report import version

SCHEMA = "jaxgrad.bench/1"


def to_json(results: list[Result], peaks: list[Peak], place: Place, rounds: int) -> dict[str, Any]:
    """All of a run as one JSON object of the schema `jaxgrad.bench/1`.

    `environment`: versions of the packages (null where absent), machine, CPU, cores, devices, threads, the date (UTC).
    `peaks`, one for each library: library, device, rows of its square product, flops_per_second, precision (the
    library's setting, which is its default) and error (what that precision means: the relative root mean square
    error of a product of 16 terms).
    `sizes`, one for each: name, model (none in runs of before there was a choice: mlp), batch, the model's own sizes by
    name, shown (those that a title tells), vocab, learning_rate, seed, flops_per_step (see the model's record), rounds,
    steps_per_round, steps_checked, tolerance (of the loss after the last of them) and `peers`.

    A peer has name, library, device, and `reason`: null, or why it was not timed, and then only what is known of it.
    loss: after the steps checked, null if it never ran · worst: its largest distance from the median of all losses, in
    tolerances (see `agreement`) · compile_seconds, temp_bytes: null where there is none or nobody counts it ·
    `seconds_per_step`: median, low and high (quartiles) of `rounds`, which has one number a round ·
    examples_per_second and flops_per_second, by the median · peak_fraction: of the best peak of that device ·
    `to_jax_grad` and `to_torch`: its time over that of jax.grad/scan and of torch: ratio, of the medians; low and
    high, the quartiles of the ratios in each round; null where that one was not timed.
    A number that is not finite is one of the strings "nan", "inf" and "-inf".
    """
    return {
        "schema": SCHEMA,
        "environment": environment(place),
        "peaks": [peak._asdict() for peak in peaks],
        "sizes": [checks.as_json(_size(result, peaks, place, rounds)) for result in results],
    }


def environment(place: Place) -> dict[str, Any]:
    """What times depend on: versions of the packages (None where absent), the machine, its devices and threads."""
    device = jax.devices(place.jax_device)[0]
    return {
        **checks.environment(),
        **{name: version(name) for name in ("optax", "flax", "equinox")},
        "matmul_precision": jax_precision(),
        "cpu": _cpu_name(),
        "cores": _cores(),
        "jax_device": place.jax_device,
        "jax_device_kind": device.device_kind,
        **_torch_environment(place),
        "date": checks.now(),
    }


def tables(run: dict[str, Any]) -> Group:
    """One table for each size of a run in the form of `to_json`, and below it who was not timed and why."""
    parts = (part for size in run["sizes"] for part in (_table(size), Text(_untimed(size))))
    return Group(*parts, Text(_footer(run)))


def _size(result: Result, peaks: list[Peak], place: Place, rounds: int) -> dict[str, Any]:
    task = result.task
    seconds = {row.peer.name: row.seconds for row in result.rows}
    return {
        "name": task.size.name,
        "model": task.model.name,
        "batch": task.size.batch,
        **dataclasses.asdict(task.size.sizes),
        "shown": list(benchmark(task.model).shown),
        "vocab": task.vocab_size,
        "learning_rate": task.learning_rate,
        "seed": SEED,
        "flops_per_step": flops(task),
        "rounds": rounds,
        "steps_per_round": result.steps_per_round,
        "steps_checked": result.steps_checked,
        "tolerance": result.tolerance,
        "peers": [_peer(row, result, seconds, peaks, place) for row in result.rows],
    }


def _peer(
    row: Row, result: Result, seconds: dict[str, list[float] | None], peaks: list[Peak], place: Place
) -> dict[str, Any]:
    device = place.torch_device if row.peer.library == "torch" else place.jax_device
    known = {
        "name": row.peer.name,
        "library": row.peer.library,
        "device": device,
        "reason": row.reason,
        "loss": row.judged and row.judged.loss,
        "worst": row.judged and row.judged.worst,
    }
    if row.seconds is None:
        return known
    of_step = timing(row.seconds)
    rate = flops(result.task) / of_step.median
    best = max((p.flops_per_second for p in peaks if _kind(p.device) == _kind(device)), default=None)
    return {
        **known,
        "compile_seconds": row.compile_seconds,
        "temp_bytes": row.temp_bytes,
        "seconds_per_step": {**of_step._asdict(), "rounds": row.seconds},
        "examples_per_second": result.task.size.batch / of_step.median,
        "flops_per_second": rate,
        "peak_fraction": best and rate / best,
        "to_jax_grad": _ratio(row.seconds, seconds.get(REFERENCE)),
        "to_torch": _ratio(row.seconds, seconds.get(TORCH)),
    }


def _ratio(own: list[float], other: list[float] | None) -> dict[str, float] | None:
    if other is None:
        return None
    spread = timing([a / b for a, b in zip(own, other, strict=True)])
    return {"ratio": statistics.median(own) / statistics.median(other), "low": spread.low, "high": spread.high}


def _kind(device: str) -> str:
    """One name for what JAX and PyTorch name apart."""
    name = device.partition(":")[0]
    return "gpu" if name in ("cuda", "rocm") else name


def _cores() -> int:
    """Those that this process may use, where the system says."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _torch_environment(place: Place) -> dict[str, Any]:
    try:
        import torch
    except ModuleNotFoundError:
        return {"torch_device": None, "torch_device_kind": None, "torch_threads": None}
    on_cuda = place.torch_device.startswith("cuda") and torch.cuda.is_available()
    return {
        "torch_device": place.torch_device,
        "torch_device_kind": torch.cuda.get_device_name(place.torch_device) if on_cuda else place.torch_device,
        "torch_threads": torch.get_num_threads(),
    }


def titled(size: dict[str, Any]) -> str:
    """A size of a run in words; those of before there was a choice of models are the notebook's."""
    told = ", ".join(f"{name} {size[name]:,}" for name in ("batch", *size.get("shown", ["hidden"])))
    return f"{size['name']}: {told}"


def _table(size: dict[str, Any]) -> Table:
    title = f"{titled(size)}, vocabulary {size['vocab']}; {figures(size['flops_per_step'] / 1e6)} MFLOP a step"
    caption = (
        f"{size['rounds']} rounds of {size['steps_per_round']:,} steps;"
        f" losses agree within {size['tolerance']:.1e} after {size['steps_checked']} steps"
    )
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0),
                  title_justify="left", caption_justify="left")  # fmt: skip
    table.add_column("", no_wrap=True)
    headings = ("µs/step", "examples\n/s", "× jax.grad", "× torch", "compile\ns", "temp\nMiB", "of\npeak")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for peer in size["peers"]:
        if peer["reason"] is None:
            table.add_row(*_cells(peer))
    return table


def _cells(peer: dict[str, Any]) -> Iterable[str]:
    seconds = peer["seconds_per_step"]
    compile_seconds, temp, peak = (peer[name] for name in ("compile_seconds", "temp_bytes", "peak_fraction"))
    yield peer["name"]
    yield figures(1e6 * seconds["median"]) + _spread(seconds["median"], seconds)
    yield figures(peer["examples_per_second"])
    for ratio in (peer["to_jax_grad"], peer["to_torch"]):
        yield "-" if ratio is None else _ratio_cell(ratio)
    yield "-" if compile_seconds is None else f"{compile_seconds:.1f}"
    yield "-" if temp is None else figures(temp / 2**20)
    yield "-" if peak is None else f"{100 * peak:.2g}%"


def _ratio_cell(ratio: dict[str, float]) -> str:
    return figures(ratio["ratio"]) + _spread(ratio["ratio"], ratio)


def _spread(middle: float, quartiles: dict[str, float]) -> str:
    """The distance of the farther quartile, in per cent of the middle."""
    farther = max(quartiles["high"] - middle, middle - quartiles["low"])
    return f" ±{100 * farther / middle:.0f}%"


def figures(value: float) -> str:
    """Two figures at least."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 1 else f"{value:.2g}"


def _untimed(size: dict[str, Any]) -> str:
    return "".join(f"not timed: {p['name']}: {p['reason']}\n" for p in size["peers"] if p["reason"])


def _footer(run: dict[str, Any]) -> str:
    of = run["environment"]
    peaks = " · ".join(
        f"{p['library']} on {p['device']} {p['flops_per_second'] / 1e9:,.0f} GFLOP/s, precision {p['precision']}"
        f" (error {p['error']:.0e})"
        for p in run["peaks"]
    )
    threads = f", {of['torch_threads']} threads" if of["torch_threads"] else ""
    return (
        f"{of['cpu']}, {of['cores']} cores, {of['machine']}; JAX {of['jax']} on {of['jax_device_kind']},"
        f" PyTorch {of['torch'] or 'absent'} on {of['torch_device_kind'] or 'nothing'}{threads}\n"
        f"a float32 product of {run['peaks'][0]['rows']:,} rows: {peaks}\n"
        f"±: the farther quartile of the rounds · ×: time over that of {REFERENCE} or {TORCH}, below 1 is faster"
        " · -: nothing to tell"
    )
