"""Turns the formulas of the built pages into MathML, which browsers show by themselves: no script, no network."""

import html as escaping
import re
from typing import Any

from latex2mathml.converter import convert

# What `pymdownx.arithmatex` marks: \( … \) in a span, \[ … \] in a div.
MARKED = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', flags=re.DOTALL)
# A notebook's cells keep their dollars; a formula ends with its paragraph.
IN_CELLS = re.compile(r"\$\$(.+?)\$\$|\$((?:[^$\n]|\n(?!\n))+?)\$", flags=re.DOTALL)
CODE = re.compile(r"(<(pre|code|script|style|svg)\b.*?</\2>|<[^>]*>)", flags=re.DOTALL)


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """The page with MathML in the place of TeX; MkDocs calls this for every page."""
    if page.file.src_uri.endswith(".ipynb"):
        pieces = CODE.split(html)
        # The pattern has two groups, so every third piece is text between tags.
        return "".join(
            IN_CELLS.sub(_of_cell, piece) if k % 3 == 0 else piece for k, piece in enumerate(pieces) if k % 3 != 2
        )
    return MARKED.sub(_of_page, html)


def _of_page(found: re.Match[str]) -> str:
    tag, bracket, tex = found.groups()
    return f'<{tag} class="arithmatex">{_mathml(tex, bracket == "[")}</{tag}>'


def _of_cell(found: re.Match[str]) -> str:
    block, inline = found.groups()
    return _mathml(block or inline, block is not None)


def _mathml(tex: str, block: bool) -> str:
    """A formula as MathML. Raises `ValueError` for a command that the converter would show as text."""
    made = convert(escaping.unescape(tex).strip(), display="block" if block else "inline")
    if unknown := re.search(r"<m\w+[^>]*>\\\w+", made):
        raise ValueError(f"{tex!r} cannot be made MathML: {unknown[0]!r}")
    return made
