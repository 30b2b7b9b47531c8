"""Two programs side by side: a graph by module, agreeing parts folded, the place where they part opened.

The other program's modules are the rows, because a plain JAX function has none: each of its values stands in the row of
the value that it agrees with, and what agrees with nothing in the row of what was computed before it.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxgrad.pages import heat
from jaxgrad.pages.document import APART, CLOSE, Column, definitions, paragraph, table, text
from jaxgrad.pages.section import Section, counted, number, told

_GOOD, _PARTS, _BEHIND = "good", "parts", "behind"
_LINKS = {_GOOD: "=", _PARTS: "≠", _BEHIND: "≠"}
_NO_MODULE = "outside of modules"
# Steps shown from the first difference on.
_AFTER = 6


class Row(NamedTuple):
    """A module of the other program, with its values, and those of the JAX function that belong beside them."""

    path: tuple[str, ...]
    own: tuple[Mapping[str, Any], ...]
    other: tuple[Mapping[str, Any], ...]
    state: str


def section(data: Mapping[str, Any]) -> Section:
    """The verdict of `jaxgrad port`, schema `jaxgrad.port/1`."""
    same, of = data["agreeing"]
    kind = CLOSE if data["agrees"] else APART
    said = "the programs agree" if data["agrees"] else f"the programs part ({data['kind']}): {data['sentence']}"
    verdict = f"{said}; {same:,} of {counted(of, 'value')} found on the other side"
    return Section("a port beside its original", kind, verdict, data["date"], body(data))


def body(data: Mapping[str, Any]) -> str:
    """All that a verdict says, as HTML: the region, what would mend it, both programs, the weights."""
    return "".join((
        "" if data["agrees"] else _region(data) + _mends(data), _graph(data),
        _weights(data["mapping"]), _notes(data["notes"]), definitions(told(data["environment"])),
    ))  # fmt: skip


def _region(data: Mapping[str, Any]) -> str:
    """The last agreement, and behind it the first values without a counterpart, each with its source."""
    last = "".join(
        f'<div class="pair"><span class="box">{_place(pair["jax"])}</span><b>=</b>'
        f'<span class="box">{_place(pair["other"])}</span></div>'
        for pair in data["last"][:4]
    )
    then = (
        f'<div class="pair parts"><span class="box">{_place(data["jax"]) or "ends here"}</span><b>≠</b>'
        f'<span class="box">{_place(data["other"]) or "nothing of its own"}</span></div>'
    )
    sides = "".join(
        f"<div><h3>{text(name)}</h3>{''.join(map(_source, lines)) or paragraph('no line is known', 'soft')}</div>"
        for name, lines in (("JAX", data["region"]), (data["other_name"], data["other_region"]))
    )
    off = "" if data["distance"] is None else paragraph(f"off by {number(data['distance'])} of the value's size")
    drawing = ""
    if data["off"] is not None:
        drawing = f"<h3>Where the first differing value is off</h3>{heat.drawn(data['off'], 'the tolerance')}"
    agreed = f"<h3>The last agreement</h3>{last}" if last else ""
    return f'{agreed}<h3>The first difference</h3>{then}{off}<div class="region">{sides}</div>{drawing}'


def _mends(data: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<li>{text(mend['words'])} <small class=soft>{_where(mend['place']['line'])},"
        f" the next values then agree to {number(mend['residual'], 1)}</small>"
        for mend in data["mends"]
    )
    behind = "".join(f"<li>behind it: {text(said)}" for said in data["behind"])
    why = "No known change explains it." if data["complete"] else "Not looked for to the end."
    none = "" if rows else f"<li>{why}"
    return f'<h3>What would mend it</h3><ul class="plain mends">{rows}{none}{behind}</ul>'


def _place(place: Mapping[str, Any] | None) -> str:
    if place is None:
        return ""
    module = f" in {text(place['module'])}" if place["module"] else ""
    return f"<strong>{text(place['op'])}</strong>{module}<br><small>{_where(place['line'])}</small>"


def _where(line: Mapping[str, Any] | None) -> str:
    return "" if line is None else f"{text(_file(line))}:{line['line']:d}"


def _file(line: Mapping[str, Any]) -> str:
    return str(line["file"]).replace("\\", "/").rsplit("/", 1)[-1]


def _source(line: Mapping[str, Any]) -> str:
    """A line of source among its neighbours."""
    around = line["around"] or [[line["line"], line["text"]]]
    rows = "\n".join(
        f"<mark>{n:4d}  {text(code)}</mark>" if n == line["line"] else f"{n:4d}  {text(code)}" for n, code in around
    )
    return f'<p class="soft">{_where(line)} in {text(line["function"])}</p><pre class="source">{rows}</pre>'


def _graph(data: Mapping[str, Any]) -> str:
    rows = arranged(data)
    if not rows:
        return ""
    key = paragraph(
        "✓ found on the other side, ~ only another way to what is found, ✗ not found, · numbers that say nothing, such"
        " as zeros",
        "soft",
    )
    head = (
        f'<div class="pair soft"><span>JAX</span><span></span><span>{text(data["other_name"])}, by module</span></div>'
    )
    return f'<h3>Side by side</h3>{key}<div class="ports">{head}{_nodes(rows, 0, data)}</div>'


def arranged(data: Mapping[str, Any]) -> list[Row]:
    """The rows of the graph, in the order of the other program."""
    own, other = data["steps"], data["other_steps"]
    groups = [
        (key, [n for n, _ in found])
        for key, found in itertools.groupby(enumerate(other), key=lambda item: _path(item[1]))
    ]
    if not groups:
        return []
    group_of = {n: g for g, (_, numbers) in enumerate(groups) for n in numbers}
    parting = _parting(data, groups)
    beside: list[list[Mapping[str, Any]]] = [[] for _ in groups]
    at = 0
    for step in own:
        if step["like"] is not None:
            at = group_of[step["like"]]
        elif parting is not None and _same(step, data["jax"]):
            at = parting
        beside[at].append(step)
    states = [
        _state(g, parting, [*beside[g], *(other[n] for n in numbers)], data) for g, (_, numbers) in enumerate(groups)
    ]
    return [
        Row(path, tuple(beside[g]), tuple(other[n] for n in numbers), states[g])
        for g, (path, numbers) in enumerate(groups)
    ]


def _path(step: Mapping[str, Any]) -> tuple[str, ...]:
    """The path of modules; of a program without any, the function."""
    if step["module"]:
        return tuple(str(step["module"]).split("."))
    return () if step["line"] is None else (str(step["line"]["function"]),)


def _parting(data: Mapping[str, Any], groups: Sequence[tuple[tuple[str, ...], Sequence[int]]]) -> int | None:
    """The row at which the programs part."""
    if data["agrees"]:
        return None
    steps = data["other_steps"]
    at = [g for g, (_, numbers) in enumerate(groups) if any(_same(steps[n], data["other"]) for n in numbers)]
    if at:
        return at[0]
    # Of a program that ends, or does not go on otherwise, what the first value of the other was computed from.
    liked = [
        step["like"]
        for step in itertools.takewhile(lambda step: not _same(step, data["jax"]), data["steps"])
        if step["like"] is not None
    ]
    last = liked[-1] if liked else 0
    return next(g for g, (_, numbers) in enumerate(groups) if last in numbers)


def _same(step: Mapping[str, Any], place: Mapping[str, Any] | None) -> bool:
    return place is not None and all(step[key] == place[key] for key in ("op", "module")) and (
        _where(step["line"]) == _where(place["line"])
    )  # fmt: skip


def _state(g: int, parting: int | None, steps: Sequence[Mapping[str, Any]], data: Mapping[str, Any]) -> str:
    if parting is None or g < parting:
        # A value without a counterpart that leads to one with a counterpart is another way to the same.
        return _GOOD
    if g == parting:
        return _PARTS
    return _BEHIND if any(step["agrees"] is False for step in steps) else _GOOD


def _nodes(rows: Sequence[Row], depth: int, data: Mapping[str, Any]) -> str:
    """The rows by what they are called at this depth: neighbours that agree are folded into one."""
    named = [
        (name, list(found))
        for name, found in itertools.groupby(rows, key=lambda row: row.path[depth] if len(row.path) > depth else "")
    ]
    parts = []
    for state, run in itertools.groupby(named, key=lambda item: _of(item[1])):
        children = list(run)
        if state == _PARTS or len(children) < 3:
            parts += [_node(name, found, depth, data) for name, found in children]
            continue
        inside = "".join(_node(name, found, depth, data) for name, found in children)
        every = [row for _, found in children for row in found]
        # A module's own operations stand among its parts without a name.
        named_ones = [".".join((*every[0].path[:depth], name)) for name, _ in children if name]
        ends = dict.fromkeys((named_ones[0], named_ones[-1]) if named_ones else (_NO_MODULE,))
        parts.append(_fold(" … ".join(ends), every, inside, state))
    return "".join(parts)


def _node(name: str, rows: list[Row], depth: int, data: Mapping[str, Any]) -> str:
    if len(rows) == 1:
        (row,) = rows
        return _fold(".".join(row.path) or _NO_MODULE, rows, _steps(row, data), row.state)
    if not name:
        return "".join(_node(".", [row], depth, data) for row in rows)
    return _fold(".".join(rows[0].path[: depth + 1]), rows, _nodes(rows, depth + 1, data), _of(rows))


def _of(rows: Sequence[Row]) -> str:
    states = [row.state for row in rows]
    return _PARTS if _PARTS in states else _BEHIND if _BEHIND in states else _GOOD


def _fold(title: str, rows: Sequence[Row], inside: str, state: str) -> str:
    own = [step for row in rows for step in row.own]
    other = [step for row in rows for step in row.other]
    functions = list(dict.fromkeys(str(step["module"] or step["line"]["function"]) for step in own if step["line"]))
    named = ", ".join(functions[:3]) + (" …" if len(functions) > 3 else "")
    opened = " open" if state == _PARTS else ""
    return (
        f'<details class="{state}"{opened}><summary><div class="pair"><span class="box">{text(named or "–")}'
        f'<br><small>{_found(own)}</small></span><b>{_LINKS[state]}</b><span class="box">{text(title)}'
        f"<br><small>{_found(other)}</small></span></div></summary>{inside}</details>"
    )


def _found(steps: Sequence[Mapping[str, Any]]) -> str:
    told_of = [step for step in steps if step["agrees"] is not None]
    return f"{sum(step['agrees'] for step in told_of)} of {counted(len(told_of), 'value')} found"


def _steps(row: Row, data: Mapping[str, Any]) -> str:
    sides = (_listed(steps, data[side], row.state) for steps, side in ((row.own, "jax"), (row.other, "other")))
    return f'<div class="steps">{"".join(f"<div>{side}</div>" for side in sides)}</div>'


def _listed(steps: Sequence[Mapping[str, Any]], place: Mapping[str, Any] | None, state: str) -> str:
    """The steps of a row; where the programs part, what comes well after the first difference is folded away."""
    # An operation may be met again in a later layer: the place is that in the row where the programs part.
    first = next((n for n, step in enumerate(steps) if state == _PARTS and _same(step, place)), None)
    lines = [
        f"<li{' class=first' if n == first else ''}>{_sign(step, state, first is not None and n >= first)}"
        f"{text(step['op'])} <small>{text(step['shape'])} {_where(step['line'])}</small>"
        for n, step in enumerate(steps)
    ]
    shown = len(lines) if first is None else first + _AFTER
    rest = lines[shown:]
    told = f"<summary>{counted(len(rest), 'value')} after it</summary><ol>{''.join(rest)}</ol>"
    return f"<ol>{''.join(lines[:shown])}</ol>" + (f"<details class=behind>{told}</details>" if rest else "")


def _sign(step: Mapping[str, Any], state: str, after: bool) -> str:
    if step["agrees"] is None:
        return "<i>·</i>"
    if step["agrees"]:
        return "<i>✓</i>"
    return "<i class=wrong>✗</i>" if state == _BEHIND or after else "<i>~</i>"


def _weights(mapping: Mapping[str, Any] | None) -> str:
    if mapping is None:
        return ""
    rows = [
        (leaf["path"], leaf["shape"], leaf["said"], "" if leaf["proved"] else "by name, not proved")
        for leaf in mapping["leaves"]
    ]
    columns = Column("leaf"), Column("shape"), Column("made from", words=True), Column("")
    return f"<h3>Weights</h3>{table(columns, rows)}"


def _notes(notes: Sequence[str]) -> str:
    return "".join(["<h3>Notes</h3>", *map(paragraph, notes)]) if notes else ""
