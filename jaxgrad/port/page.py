"""A verdict as one self-contained HTML page: both programs by module, agreeing parts folded, the region opened."""

import html as escaping
import itertools
from collections.abc import Iterator, Sequence

from jaxgrad.port.locate import Mend, Verdict
from jaxgrad.port.values import Line, Place, Step

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #2a8a4a; --bad: #c0392b; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
code, td { font-family: ui-monospace, monospace; font-size: 13px; }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 1.5rem; align-items: start; }
details, .region { border: 1px solid var(--line); border-radius: 6px; margin: .3rem 0; padding: .3rem .7rem; }
.good > summary::before { content: "✓ "; color: var(--good); }
.bad > summary::before { content: "✗ "; color: var(--bad); }
.first { border-left: 4px solid var(--bad); padding-left: .5rem; }
table { border-collapse: collapse; } td, th { border-bottom: 1px solid var(--line); padding: .2rem .8rem .2rem 0;
  text-align: left; vertical-align: top; overflow-wrap: anywhere; }
pre { overflow-x: auto; margin: .2rem 0; }
@media (max-width: 60rem) { .sides { grid-template-columns: 1fr; } }
"""


def html(verdict: Verdict, title: str = "jaxgrad port") -> str:
    """The page of a verdict. It needs no network, and shows names as they are, whatever they contain."""
    said = "The programs agree" if verdict.agrees else "The programs part"
    parts = [
        f"<h1>{said}</h1><p>{_e(verdict.sentence)}. {verdict.agreeing[0]} of {verdict.agreeing[1]} values agree.</p>",
        _region(verdict),
        _mends(verdict.mends, verdict),
        "<h2>Side by side</h2><div class=sides>",
        "<div><h3>JAX</h3>" + "".join(_modules(verdict.steps, verdict.jax)) + "</div>",
        f"<div><h3>{_e(verdict.other_name)}</h3>"
        + "".join(_modules(verdict.other_steps, verdict.other))
        + "</div></div>",
        _mapping(verdict),
    ]
    if verdict.notes:
        parts.append("<h2>Notes</h2><ul>" + "".join(f"<li>{_e(note)}</li>" for note in verdict.notes) + "</ul>")
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{_e(title)}</title><style>{_STYLE}</style>"
    return f"{head}<body>{''.join(parts)}</body></html>"


def _e(text: object) -> str:
    return escaping.escape(str(text))


def _region(verdict: Verdict) -> str:
    if verdict.agrees:
        return ""
    last = "".join(f"<tr><td>last agreement<td>{_place(p.jax)}<td>{_place(p.other)}" for p in verdict.last)
    own = _place(verdict.jax) if verdict.jax else "ends here"
    other = _place(verdict.other) if verdict.other else ""
    off = "" if verdict.distance is None else f"<tr><td>off by<td colspan=2>{verdict.distance:.2g} of the value's size"
    lines = f"<tr><td>lines between<td>{_lines(verdict.region)}<td>{_lines(verdict.other_region)}"
    head = f"<tr><th><th>JAX<th>{_e(verdict.other_name)}"
    then = f"<tr><td>then<td class=first>{own}<td class=first>{other}"
    return f"<div class=region><table>{head}{last}{then}{off}{lines}</table></div>"


def _place(place: Place) -> str:
    where = f" in {place.module}" if place.module else ""
    return f"<b>{_e(place.op)}</b>{_e(where)}<br>" + (_lines([place.line]) if place.line else "")


def _lines(lines: Sequence[Line]) -> str:
    return "".join(f"<pre>{_e(line.file.rsplit('/', 1)[-1])}:{line.number}  {_e(line.text)}</pre>" for line in lines)


def _mends(mends: Sequence[Mend], verdict: Verdict) -> str:
    if verdict.agrees:
        return ""
    rows = [f"<li>{_e(m.words)}{_lines([m.place.line]) if m.place.line else ''}" for m in mends]
    behind = "".join(f"<li>behind it: {_e(said)}" for said in verdict.behind)
    return f"<h2>What would mend it</h2><ul>{''.join(rows) or '<li>No known change explains it.'}{behind}</ul>"


def _modules(steps: Sequence[Step], first: Place | None) -> Iterator[str]:
    """The steps by module, in order: folded where all agree, open where one does not."""
    for module, group in itertools.groupby(steps, key=lambda step: step.place.module):
        rows = list(group)
        bad = any(step.agrees is False for step in rows)
        here = first is not None and any(step.place == first for step in rows)
        count = sum(step.agrees is True for step in rows), sum(step.agrees is not None for step in rows)
        body = "".join(_row(step, step.place == first) for step in rows)
        kind, opened = ("bad", " open" if here else "") if bad else ("good", "")
        name = f"{_e(module or 'outside of modules')} <small>{count[0]} of {count[1]}</small>"
        yield f"<details class={kind}{opened}><summary>{name}</summary><table>{body}</table></details>"


def _row(step: Step, first: bool) -> str:
    mark = {True: "✓", False: "✗", None: "·"}[step.agrees]
    line = step.place.line
    where = f"{line.file.rsplit('/', 1)[-1]}:{line.number}" if line else ""
    style = " class=first" if first else ""
    return f"<tr{style}><td>{mark}<td>{_e(step.place.op)}<td>{list(step.shape)}<td>{_e(where)}"


def _mapping(verdict: Verdict) -> str:
    if verdict.mapping is None:
        return ""
    rows = "".join(
        f"<tr><td>{_e(e.path)}<td>{_e(list(e.shape))}<td>{_e(e.rule)}<td>{'' if e.proved else 'by name, not proved'}"
        for e in verdict.mapping.entries
    )
    return f"<h2>Weights</h2><table><tr><th>leaf<th>shape<th>made from<th>{rows}</table>"
