"""The skeleton of a page that needs neither a network nor a script: its style, its colours, its tables."""

import html as escaping
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxgrad.text import visible

STYLE = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")

# A choice that style sheets can see, so that it takes no script.
THEME = (
    '<fieldset class="theme"><legend>Colours</legend>'
    + "".join(
        f'<label><input type="radio" name="theme" id="{name}"{" checked" if name == "system" else ""}>{name}</label>'
        for name in ("system", "light", "dark")
    )
    + "</fieldset>"
)

# Nothing is fetched, and nothing is run.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

CLOSE, APART, UNJUDGED = "close", "apart", "unjudged"
MARKS = {CLOSE: "✓", APART: "✗", UNJUDGED: "?"}


class Column(NamedTuple):
    """A column of a table: its heading, and whether its cells are words, which stand on the left and may wrap."""

    heading: str
    words: bool = False


def document(title: str, body: str, style: str = "") -> str:
    """A page of a body in HTML; `title` is plain text, and its heading."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n<link rel="icon" href="data:,">\n'
        f"<title>{text(title)}</title>\n<style>\n{STYLE}{style}</style>\n</head>\n"
        f"<body>\n<header>{THEME}<h1>{text(title)}</h1></header>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def text(value: object) -> str:
    """Plain text in HTML, whatever it contains; what would command a terminal or turn a line around is an escape."""
    return escaping.escape(visible(str(value)))


def paragraph(value: object, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{kind}">{text(value)}</p>' if kind else f"<p>{text(value)}</p>"


def mark(kind: str) -> str:
    """The sign of a verdict, which says without colour what its colour says."""
    return f'<span class="{kind}"><span class="mark">{MARKS[kind]}</span></span>'


def listed(items: Iterable[object]) -> str:
    """A list of plain texts; nothing for none."""
    rows = "".join(f"<li>{text(item)}" for item in items)
    return f'<ul class="plain">{rows}</ul>' if rows else ""


def table(columns: Sequence[Column], rows: Iterable[Sequence[object]], kinds: Sequence[str] = ()) -> str:
    """A table of plain texts in a box that scrolls; `kinds` are the rows' own classes, where they have any."""
    lines = list(rows)
    of_rows = kinds or [""] * len(lines)
    wrapping = [' class="words"' if column.words else "" for column in columns]
    heads = "".join(f'<th scope="col"{w}>{text(c.heading)}' for c, w in zip(columns, wrapping, strict=True))
    body = "".join(
        (f'<tr class="{kind}">' if kind else "<tr>")
        + "".join(f"<td{w}>{text(cell)}" for cell, w in zip(line, wrapping, strict=True))
        for kind, line in zip(of_rows, lines, strict=True)
    )
    return f'<div class="scroll"><table><thead><tr>{heads}</thead><tbody>{body}</tbody></table></div>'


def definitions(pairs: Iterable[tuple[object, object]]) -> str:
    """Names and what they stand for."""
    return "<dl>" + "".join(f"<dt>{text(name)}<dd>{text(value)}" for name, value in pairs) + "</dl>"


def folded(summary: str, body: str, kind: str = CLOSE, opened: bool = False) -> str:
    """A card of HTML that opens and closes."""
    bad = " bad" if kind == APART else ""
    return f'<details class="card{bad}"{" open" if opened else ""}><summary>{summary}</summary>{body}</details>'
