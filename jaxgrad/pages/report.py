"""One page of many results: a table of verdicts at the top, and a section for each file or folder below it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxgrad.errors import JaxgradError
from jaxgrad.pages.document import APART, MARKS, UNJUDGED, document, mark, text
from jaxgrad.pages.section import Section
from jaxgrad.pages.sections import benchmarks, comparisons, mutants, port, training

# A kind of file is one row: its schema, and what makes a section of it.
SECTIONS: dict[str, Callable[[Mapping[str, Any]], Section]] = {
    "jaxgrad.parity/2": comparisons.parity,
    "jaxgrad.check/1": comparisons.checks,
    "jaxgrad.port/1": port.section,
    "jaxgrad.mutation/1": mutants.scores,
    "jaxgrad.run/1": training.run,
    "jaxgrad.sweep/1": training.sweep,
    "jaxgrad.eval/1": training.losses,
    "jaxgrad.corpus/1": training.corpus,
    "jaxgrad.bench/1": benchmarks.steps,
    "jaxgrad.bench.ops/1": benchmarks.operations,
    "jaxgrad.bench.compare/1": benchmarks.changes,
    "jaxgrad.bench.check/1": benchmarks.check_costs,
    "jaxgrad.bench.verdicts/1": benchmarks.verdicts,
    "jaxgrad.bench.checkers/1": benchmarks.checkers,
    "jaxgrad.bench.embedding/1": benchmarks.embedding,
    "jaxgrad.bench.scaling/1": benchmarks.scaling,
}

_STYLE = """
.summary td { vertical-align: top; }
.summary td:last-child { white-space: normal; }
.part { margin: 32px 0; }
.part > h2 { margin-bottom: 2px; }
"""

_WORDS = "what jaxgrad writes with --json, or the folder of a run or a sweep"
# What reading a value of another type, or one that is not there, raises.
_DAMAGED = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)


class Source(NamedTuple):
    """A file or folder: its name as it was given, what it holds, and when it was last written, in ISO 8601."""

    name: str
    data: Mapping[str, Any]
    written: str


def section(source: Source) -> Section:
    """The section of a source. Raises `JaxgradError` for data of a schema that is not known, or not as it should be."""
    schema = source.data.get("schema")
    make = SECTIONS.get(schema) if isinstance(schema, str) else None
    if make is None:
        told = "no schema" if schema is None else f"the schema {str(schema)[:80]!r}"
        raise JaxgradError(f"{source.name}: has {told}, which no report shows; give {_WORDS}")
    try:
        made = make(source.data)
    except _DAMAGED as error:
        told = f"no {error}" if isinstance(error, KeyError) else str(error)[:200]
        raise JaxgradError(f"{source.name}: is not as {schema} should be ({told}); write it again") from None
    made = made if made.when else made._replace(when=source.written)
    if source.data.get("complete") is False:
        kind = APART if made.kind == APART else UNJUDGED
        return made._replace(kind=kind, verdict=f"stopped before its end: {made.verdict}")
    return made


def html(sources: Sequence[Source], title: str = "jaxgrad report") -> str:
    """The page of the sources, in their order. It needs neither a network nor a script. Raises as `section` does."""
    made = [section(source) for source in sources]
    rows = "".join(
        f'<tr class="{one.kind}"><td>{mark(one.kind)}<td class="words"><a href="#part-{k}">{text(one.what)}</a>'
        f'<br><span class="soft">{text(source.name)}</span><td class="words">{text(one.verdict)}<td>{_time(one.when)}'
        for k, (source, one) in enumerate(zip(sources, made, strict=True))
    )
    heads = '<th scope="col"><span class="soft">ends</span><th scope="col" class="words">what' \
        '<th scope="col" class="words">verdict<th scope="col">when (UTC)'  # fmt: skip
    table = f'<table class="summary"><thead><tr>{heads}</thead><tbody>{rows}</tbody></table>'
    parts = "".join(
        f'<section class="part" id="part-{k}"><h2>{mark(one.kind)} {text(one.what)}</h2>'
        f'<p class="soft">{text(source.name)} · {_time(one.when)}</p><p class="verdict">{text(one.verdict)}</p>'
        f"{one.body}</section>"
        for k, (source, one) in enumerate(zip(sources, made, strict=True))
    )
    signs = " · ".join(
        f"{MARKS[kind]} {words}" for kind, words in
        (("close", "as it should be"), ("apart", "not so"), ("unjudged", "nothing to judge by, or not finished"))
    )  # fmt: skip
    return document(title, f'<div class="scroll">{table}</div><p class="soft">{signs}</p>{parts}', _STYLE)


def _time(when: str) -> str:
    return f'<time datetime="{text(when)}">{text(when[:16].replace("T", " "))}</time>' if when else ""
