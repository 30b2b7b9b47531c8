"""What one file or folder contributes to a report, and how its numbers are written."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple


class Section(NamedTuple):
    """A part of a report.

    `what` says of which kind it is, `kind` how it ended (`document.CLOSE`, `APART`, `UNJUDGED`), `verdict` that in
    words, and `when` when it was made, empty where the file does not say. `body` is HTML.
    """

    what: str
    kind: str
    verdict: str
    when: str
    body: str


def number(value: Any, digits: int = 2) -> str:
    """A number of a file, which may have one that JSON lacks as text, or none."""
    if value is None or value == "":
        return ""
    if isinstance(value, str) and "j" in value:
        return str(complex(value))
    x = float(value)
    if not math.isfinite(x):
        return str(x).replace("inf", "∞")
    return f"{x:.{digits}g}"


def counted(count: int, one: str, several: str | None = None) -> str:
    """A count with its noun."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def told(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """An environment as names and values."""
    return [(str(name), "not installed" if value is None else str(value)) for name, value in environment.items()]
