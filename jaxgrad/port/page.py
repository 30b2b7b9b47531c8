"""A verdict as one self-contained HTML page: both programs by module, agreeing parts folded, the region opened."""

from jaxgrad.pages.document import document, paragraph
from jaxgrad.pages.sections import port
from jaxgrad.port.explain import as_json
from jaxgrad.port.locate import Verdict


def html(verdict: Verdict, title: str = "jaxgrad port") -> str:
    """The page of a verdict. It needs no network, and shows names as they are, whatever they contain."""
    made = port.section(as_json(verdict))
    return document(title, paragraph(made.verdict, "verdict") + made.body)
