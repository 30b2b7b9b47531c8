"""Times, memory and costs: what the commands of `jaxgrad bench` write."""

from collections.abc import Mapping
from typing import Any

from jaxgrad.pages.document import APART, CLOSE, Column, definitions, listed, table, text
from jaxgrad.pages.section import Section, counted, number, told

_MIB = 2**20


def steps(data: Mapping[str, Any]) -> Section:
    """A run of `jaxgrad bench`, schema `jaxgrad.bench/1`."""
    columns = (
        Column("competitor"), Column("µs a step"), Column("quartiles"), Column("× jax.grad"), Column("× PyTorch"),
        Column("temporary MiB"), Column("of the peak"),
    )  # fmt: skip
    body, timed, untimed = "", 0, []
    for size in data["sizes"]:
        rows = []
        for peer in size["peers"]:
            if peer["reason"] is not None:
                untimed.append(f"{peer['name']} at {size['name']}: {peer['reason']}")
                continue
            timed += 1
            seconds = peer["seconds_per_step"]
            rows.append((
                peer["name"], f"{1e6 * seconds['median']:,.1f}",
                f"{1e6 * seconds['low']:,.1f} to {1e6 * seconds['high']:,.1f}",
                *(_ratio(peer[key]) for key in ("to_jax_grad", "to_torch")),
                number(None if peer["temp_bytes"] is None else peer["temp_bytes"] / _MIB, 3),
                "" if peer["peak_fraction"] is None else f"{peer['peak_fraction']:.0%}",
            ))  # fmt: skip
        shown = ", ".join(f"{name} {size[name]:,}" for name in ("batch", *size.get("shown", ["hidden"])))
        title = f"{size.get('model', 'mlp')} {size['name']}: {shown}"
        body += f"<h3>{text(title)}</h3>{table(columns, rows)}"
    verdict = f"{counted(timed, 'time')} measured" + (f", {len(untimed)} not timed" if untimed else "")
    environment = data["environment"]
    return Section(
        "benchmark of a training step", CLOSE, verdict, environment.get("date", ""),
        body + listed(untimed) + definitions(told(environment)),
    )  # fmt: skip


def operations(data: Mapping[str, Any]) -> Section:
    """A run of `jaxgrad bench ops`, schema `jaxgrad.bench.ops/1`."""
    columns = (
        Column("operation"), Column("form"), Column("ms"), Column("temporary MiB"), Column("kept MiB"),
        Column("compile s"),
    )  # fmt: skip
    rows, beyond = [], []
    for row in (*data["table"], *data["growth"]):
        title = f"{row['op']} {' × '.join(f'{n:,}' for n in row['size'])}"
        for name, form in row["forms"].items():
            if form["reason"] is not None:
                rows.append((title, name, form["reason"], "", "", ""))
                continue
            rows.append((
                title, name, number(1e3 * form["seconds"]["median"], 3),
                *(number(None if form[key] is None else form[key] / _MIB, 3) for key in ("temp_bytes", "kept_bytes")),
                number(form["compile_seconds"], 3),
            ))  # fmt: skip
        beyond += [
            f"{title}: {number(limit['ratio'])} times in {name}, above {number(limit['limit'])}"
            + (f" ({row['reason']})" if row["reason"] else "")
            for name, limit in row["limits"].items()
            if limit is not None and not limit["within"]
        ]
    verdict = f"{counted(len(data['table']), 'operation')}, {len(beyond)} above a limit"
    environment = data["environment"]
    return Section(
        "benchmark of operations", APART if beyond else CLOSE, verdict, environment.get("date", ""),
        listed(beyond) + table(columns, rows) + definitions(told(environment)),
    )  # fmt: skip


def changes(data: Mapping[str, Any]) -> Section:
    """Two runs compared, schema `jaxgrad.bench.compare/1`."""
    rows, kinds = [], []
    for change in data["changes"]:
        times = (f"{1e6 * change[key]:,.1f}" for key in ("before", "after"))
        rows.append((change["size"], change["peer"], *times, f"{change['ratio']:.2f}", change["verdict"]))
        kinds.append("apart" if change["verdict"] == "regression" else "")
    slower = sum(kind == "apart" for kind in kinds)
    columns = (
        Column("size"), Column("competitor"), Column("µs before"), Column("after"), Column("ratio"), Column("verdict")
    )  # fmt: skip
    verdict = f"{slower} of {len(rows)} slower beyond the spread" if slower else f"none of {len(rows)} is slower"
    return Section(
        "two benchmarks compared", APART if slower else CLOSE, verdict, data["date"], table(columns, rows, kinds)
    )


def check_costs(data: Mapping[str, Any]) -> Section:
    """A run of `jaxgrad bench check`, schema `jaxgrad.bench.check/1`."""
    rows, kinds = [], []
    for row in data["costs"]:
        measured = (
            number(row["seconds"], 3), number(row["ratio"], 3), number(row["whole"], 3), f"{float(row['peak_mb']):,.0f}"
        )  # fmt: skip
        rows.append((row["title"], row["who"], *(measured if not row["why"] else (row["why"], "", "", ""))))
        kinds.append("apart" if row["why"] else "")
    failed = sum(map(bool, kinds))
    columns = (
        Column("case"), Column("who"), Column("seconds"), Column("× the script's"), Column("with imports"),
        Column("peak MB"),
    )  # fmt: skip
    verdict = f"{counted(len(rows), 'measurement')}" + (f", {failed} failed" if failed else "")
    return Section("what a check costs", APART if failed else CLOSE, verdict, data["date"], table(columns, rows, kinds))


def verdicts(data: Mapping[str, Any]) -> Section:
    """A run of `jaxgrad bench verdicts`, schema `jaxgrad.bench.verdicts/1`."""
    names = ("agrees", "differs", "not judged", "median share", "largest share", "median seen", "largest seen")
    rows = [(row["dtype"], *(number(row[name], 3) for name in names)) for row in data["summary"]]
    alarms = [v for v in data["verdicts"] if v["outcome"] == "differs"]
    columns = (Column("dtype"), *map(Column, names))
    said = listed(f"{v['program']}, {v['dtype']}, seed {v['seed']}: {v['why']}" for v in alarms)
    verdict = f"{counted(len(alarms), 'false alarm')} in {counted(len(data['verdicts']), 'right program')}"
    return Section(
        "verdicts on right programs", APART if alarms else CLOSE, verdict, data["date"], table(columns, rows) + said
    )


def checkers(data: Mapping[str, Any]) -> Section:
    """A run of `jaxgrad bench checkers`, schema `jaxgrad.bench.checkers/1`."""
    rows = []
    for checker in dict.fromkeys(row["checker"] for row in data["rows"]):
        of = [row for row in data["rows"] if row["checker"] == checker]
        found, alarms = ([row["alarm"] is not None for row in of if row["faulty"] is wrong] for wrong in (True, False))
        seconds = number(sum(row["seconds"] for row in of), 3)
        rows.append((checker, f"{sum(found)} of {len(found)}", f"{sum(alarms)} of {len(alarms)}", seconds))
    columns = tuple(map(Column, ("checker", "found", "false alarms", "CPU seconds")))
    environment = data["environment"]
    body = table(columns, rows) + definitions(told(environment))
    verdict = f"{counted(len(rows), 'checker')} on the same functions"
    return Section("gradient checkers", CLOSE, verdict, environment.get("date", ""), body)


def embedding(data: Mapping[str, Any]) -> Section:
    """A run of `jaxgrad bench embedding`, schema `jaxgrad.bench.embedding/1`."""
    sizes = ("n", "width", "rows")
    forms = list(data["sizes"][0]["seconds"]) if data["sizes"] else []
    rows = [
        (*(f"{row[name]:,}" for name in sizes), *(f"{1e6 * row['seconds'][form]['median']:,.1f}" for form in forms))
        for row in data["sizes"]
    ]
    columns = tuple(map(Column, (*sizes, *(f"{form}, µs" for form in forms))))
    return Section("gradient of an embedding", CLOSE, f"{len(rows)} sizes", data["date"], table(columns, rows))


def scaling(data: Mapping[str, Any]) -> Section:
    """A run of `jaxgrad bench scaling`, schema `jaxgrad.bench.scaling/1`."""
    keys = ("flops", "temporary_bytes", "all_reduces", "reduced_bytes")
    rows = [
        (row["mesh"], way, *(number(row[way][key], 4) for key in keys))
        for row in data["meshes"]
        for way in ("counted", "compiled")
        if way in row
    ]
    columns = tuple(map(Column, ("mesh", "", *(key.replace("_", " ") for key in keys))))
    return Section("a step over devices", CLOSE, f"{len(data['meshes'])} meshes", data["date"], table(columns, rows))


def _ratio(found: Mapping[str, Any] | None) -> str:
    return "" if found is None else f"{found['ratio']:.2f}"
