"""Comparisons as one self-contained page: graph, table, and a map of each node's error, to be clicked through."""

import html as escaping
import json
import re
from pathlib import Path
from typing import Any

from jaxgrad.checking.report import as_json, worst
from jaxgrad.pages.document import STYLE, THEME
from jaxgrad.text import visible


def html(data: dict[str, Any]) -> str:
    """The page of `data`: {title, environment, cases}, as `of_checks` and `parity.page.of_cases` make it.

    It needs no network, and shows names as they are, whatever they contain. A case has name, outcome, agree (whether
    the outcome is as expected), sentence, details, dtype, losses, rows and edges; a row is a tensor as
    `checking.report.mapped` makes it. A case's edges go from a node to those that get its cotangent.
    """
    template = (Path(__file__).parent / "comparison.html").read_text(encoding="utf-8")
    cases = [{**case, "rows": list(map(_ranked, case["rows"]))} for case in data["cases"]]
    kept = json.dumps(_visible(as_json({**data, "cases": cases})), allow_nan=False)
    # Inside a script element only a `<` could end it, so there is none.
    parts = {
        "title": escaping.escape(visible(data["title"])),
        "style": STYLE,
        "theme": THEME,
        "data": kept.replace("<", "\\u003c"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def of_checks(found: dict[str, Any]) -> dict[str, Any]:
    """The data of checks in the form of `checking.report.to_json`: a case for each setting of each.

    The first setting that failed tells the check's message.
    """
    return {
        "title": "jaxgrad three-way checks",
        "environment": found["environment"],
        "cases": [case for check in found["checks"] for case in _of_check(check)],
    }


def _of_check(check: dict[str, Any]) -> list[dict[str, Any]]:
    first = next((setting for setting in check["settings"] if not setting["passed"]), None)
    return [
        {
            "name": _name(check, setting),
            "outcome": setting["outcome"],
            "agree": setting["passed"],
            "sentence": setting["sentence"],
            "details": check["message"] if setting is first else "",
            "dtype": setting["dtype"],
            "losses": {},
            "rows": setting["tensors"],
            "edges": [],
        }
        for setting in check["settings"]
    ]


def _name(check: dict[str, Any], setting: dict[str, Any]) -> str:
    said = f"{check['name']}, {setting['transform']}, seed {setting['seed']}"
    return f"{said}, {setting['sizes']}" if setting["sizes"] else said


def _ranked(row: dict[str, Any]) -> dict[str, Any]:
    """A row that also says which of its pairs is the worst."""
    return {**row, "worst": worst(row["pairs"])}


def _visible(value: Any) -> Any:
    match value:
        case dict():
            return {visible(str(key)): _visible(item) for key, item in value.items()}
        case list():
            return [_visible(item) for item in value]
        case str():
            return visible(value)
        case _:
            return value
