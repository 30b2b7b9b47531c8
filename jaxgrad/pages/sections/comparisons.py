"""Engines beside one another: a parity run, and checks of one's own."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxgrad.checking.report import worst
from jaxgrad.pages import heat
from jaxgrad.pages.document import APART, CLOSE, UNJUDGED, Column, definitions, folded, mark, paragraph, table, text
from jaxgrad.pages.section import Section, counted, number, told

_COLUMNS = (
    Column("tensor"), Column("× limit"), Column("rel"), Column("noise"), Column("limit"), Column("maxdiff"),
    Column("ulps"), Column("worst pair"),
)  # fmt: skip


def parity(data: Mapping[str, Any]) -> Section:
    """A run of `jaxgrad parity`, schema `jaxgrad.parity/2`."""
    cases = data["cases"]
    wrong = [case for case in cases if case["outcome"] == "differs"]
    unjudged = [case for case in cases if case["outcome"] == "not judged"]
    kind = APART if wrong else UNJUDGED if unjudged else CLOSE
    verdict = _counted(len(cases) - len(wrong) - len(unjudged), len(wrong), len(unjudged), "case")
    body = "".join(_case(case, opened=case in wrong[:1] or len(cases) == 1) for case in cases)
    environment = definitions(told(data["environment"]))
    return Section("parity of engines", kind, verdict, data.get("date", ""), body + environment)


def checks(data: Mapping[str, Any]) -> Section:
    """The checks of a session, schema `jaxgrad.check/1`."""
    found = data["checks"]
    wrong = [check for check in found if not check["passed"]]
    settings = [setting for check in found for setting in check["settings"]]
    unjudged = sum(setting["outcome"] == "not judged" for setting in settings)
    kind = APART if wrong else CLOSE if len(settings) > unjudged else UNJUDGED
    verdict = _counted(len(found) - len(wrong), len(wrong), 0, "check")
    if unjudged:
        verdict += f"; {unjudged:,} of {counted(len(settings), 'setting')} not judged"
    body = "".join(_check(check, opened=check in wrong[:1] or len(found) == 1) for check in [*wrong, *_rest(found)])
    environment = definitions(told(data["environment"]))
    return Section("gradient checks", kind, verdict, data["date"], body + environment)


def _rest(found: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [check for check in found if check["passed"]]


def _counted(agree: int, differ: int, unjudged: int, noun: str) -> str:
    parts = [
        f"{counted(agree, noun)} {'agrees' if agree == 1 else 'agree'}" if agree or not (differ or unjudged) else "",
        f"{counted(differ, noun)} {'differs' if differ == 1 else 'differ'}" if differ else "",
        f"{counted(unjudged, noun)} not judged" if unjudged else "",
    ]
    return ", ".join(part for part in parts if part)


def _case(case: Mapping[str, Any], opened: bool) -> str:
    kind = {"agrees": CLOSE, "differs": APART}.get(case["outcome"], UNJUDGED)
    losses = " · ".join(f"{engine} {number(loss, 5)}" for engine, loss in case["losses"].items())
    summary = f"{mark(kind)} <h2>{text(case['name'])}</h2> <span class=soft>{text(case['dtype'])}</span>"
    body = (paragraph(f"loss: {losses}", "soft") if losses else "") + _tensors(case["tensors"])
    return folded(f"{summary}{paragraph(case['sentence'])}", body, kind, opened)


def _check(check: Mapping[str, Any], opened: bool) -> str:
    kind = CLOSE if check["passed"] else APART
    settings = check["settings"]
    if all(setting["outcome"] == "not judged" for setting in settings) and check["passed"]:
        kind = UNJUDGED
    name, test = check["name"], check["test"]
    title = name if not test else test if name in test else f"{name} · {test}"
    message = f"<pre>{text(check['message'])}</pre>" if check["message"] else ""
    first = next((setting for setting in settings if not setting["passed"]), None)
    shown = _tensors(first["tensors"]) if first is not None else ""
    rows = [
        (
            f"{s['dtype']}/{s['transform']}/{s['seed']}{', ' + s['sizes'] if s['sizes'] else ''}",
            s["outcome"], s["sentence"],
        )
        for s in settings
    ]  # fmt: skip
    kinds = ["apart" if not s["passed"] else "soft" if s["outcome"] == "not judged" else "" for s in settings]
    listed = table((Column("setting"), Column("outcome"), Column("why", words=True)), rows, kinds)
    return folded(f"{mark(kind)} <h2>{text(title)}</h2>", message + shown + f"<h3>Settings</h3>{listed}", kind, opened)


def _tensors(tensors: Sequence[Mapping[str, Any]]) -> str:
    """The worst pair of each tensor as a table, and the map of the first that differs."""
    rows, kinds = [], []
    for tensor in tensors:
        at = worst(tensor["pairs"])
        if at is None:
            rows.append((tensor["name"], "not compared", *[""] * (len(_COLUMNS) - 2)))
            kinds.append("soft")
            continue
        pair = tensor["pairs"][at]
        share = "not finite" if pair["not_finite"] else number(pair["share"])
        measured = (number(pair[key]) for key in ("relative", "noise", "tolerance", "max_abs", "ulps"))
        rows.append((tensor["name"], share, *measured, " | ".join(pair["engines"])))
        kinds.append("apart" if not pair["agrees"] else "" if pair["judged"] else "soft")
    first = next((t for t in tensors if t.get("heat") and not all(p["agrees"] for p in t["pairs"])), None)
    drawing = ""
    if first is not None:
        a, b = first["heat"]["engines"]
        drawing = f"<h3>Where {text(a)} and {text(b)} differ in {text(first['name'])}</h3>{heat.drawn(first['heat'])}"
    return (table(_COLUMNS, rows, kinds) if rows else paragraph("No array was compared.", "soft")) + drawing
