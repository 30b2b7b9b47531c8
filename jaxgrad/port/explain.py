"""A verdict in words, and as JSON."""

import linecache
from collections.abc import Iterable
from typing import Any

from jaxgrad.checking.report import dated
from jaxgrad.port.locate import BACKWARD, FORWARD, LAYOUT, Verdict
from jaxgrad.port.mapping import Mapping
from jaxgrad.port.values import Line, Place, Step

SCHEMA = "jaxgrad.port/1"
# Lines of source shown before and after the one that is meant.
_AROUND = 2


def text(verdict: Verdict) -> str:
    """The verdict as lines of plain text."""
    same, of = verdict.agreeing
    if verdict.agrees:
        said = f"agrees: {verdict.sentence}; {same} of {of} values inside are found in {verdict.other_name}"
        return "\n".join([said, *_noted(verdict)])
    lines = [f"they part ({verdict.kind}): {verdict.sentence}"]
    for pair in verdict.last[:4]:
        lines += [f"  last agreement   JAX    {pair.jax}", f"                   {_name(verdict)} {pair.other}"]
    lines.append(f"  then             JAX    {verdict.jax or 'ends here'}")
    if verdict.other is not None:
        lines.append(f"                   {_name(verdict)} {verdict.other}")
    if verdict.distance is not None:
        lines.append(f"  off by           {verdict.distance:.2g} of the value's size")
    lines += _listed("  JAX's lines      ", verdict.region) + _listed("  the other's lines", verdict.other_region)
    for number, mend in enumerate(verdict.mends):
        those = "gradients" if verdict.kind == BACKWARD else "next values"
        what = f"{mend.words}, {mend.place.line or mend.place.op}; the {those} then agree to {mend.residual:.0e}"
        lines.append(("  would mend it    " if not number else "  or               ") + what)
    if not verdict.mends and verdict.kind in (FORWARD, LAYOUT):
        said = "no known change explains it" if verdict.complete else "not looked for to the end"
        lines.append(f"  would mend it    {said}")
    lines += [f"  behind it        {said}" for said in verdict.behind]
    lines.append(f"  {same} of {of} values agree")
    return "\n".join([*lines, *_noted(verdict)])


def brief(verdict: Verdict) -> list[tuple[str, str]]:
    """The place in a few lines, each with its label, as a check tells it; nothing where the programs agree."""
    if verdict.agrees:
        return []
    other = "torch" if verdict.other_name == "torch" else "reference"
    lines = [("parts", f"{verdict.jax}" if verdict.jax else "the function ends where the other goes on")]
    lines += [("", f"{other}: {verdict.other}")] if verdict.other is not None else []
    lines += [("agree", f"the last before it: {pair.jax}") for pair in verdict.last[:1]]
    lines += [("mend", f"{mend.words}, {mend.place.line or mend.place.op}") for mend in verdict.mends[:2]]
    lines += [("note", note) for note in verdict.notes if verdict.kind == FORWARD]
    return lines


def _name(verdict: Verdict) -> str:
    return "torch " if verdict.other_name == "torch" else "other "


def _noted(verdict: Verdict) -> list[str]:
    return [f"  note             {note}" for note in verdict.notes]


def _listed(head: str, lines: Iterable[Line]) -> list[str]:
    found = [str(line) for line in lines]
    return [(head if not k else " " * len(head)) + f" {line}" for k, line in enumerate(found)]


def as_json(verdict: Verdict) -> dict[str, Any]:
    """The verdict as data for JSON.

    `agrees`, `kind`, `sentence`, `last`, `jax`, `other`, `distance`, `off`, `mends`, `behind`, `agreeing`, `notes` and
    `other_name` are those of `Verdict`; `complete` is false where it was stopped before all was tried. A place has op,
    module, line (file, line, function and text), and the line `called_at` that called that line's function, or null.
    The lines of `region` and `other_region` have those `around` them, as numbers and texts. `steps` and `other_steps`
    are all values: place, shape, agrees, and of the first which of the second each is like. `mapping` is as
    `Mapping.save` writes it, with each rule in words.
    """
    return {
        **dated(SCHEMA),
        "complete": verdict.complete,
        "agrees": verdict.agrees,
        "kind": verdict.kind,
        "sentence": verdict.sentence,
        "last": [{"jax": _place(pair.jax), "other": _place(pair.other)} for pair in verdict.last],
        "jax": _place(verdict.jax),
        "other": _place(verdict.other),
        "region": [_opened(line) for line in verdict.region],
        "other_region": [_opened(line) for line in verdict.other_region],
        "distance": verdict.distance,
        "off": verdict.off,
        "mends": [{"place": _place(m.place), "words": m.words, "residual": m.residual} for m in verdict.mends],
        "behind": list(verdict.behind),
        "agreeing": list(verdict.agreeing),
        "mapping": None if verdict.mapping is None else _mapping(verdict.mapping),
        "notes": list(verdict.notes),
        "other_name": verdict.other_name,
        "steps": [_step(step) for step in verdict.steps],
        "other_steps": [_step(step) for step in verdict.other_steps],
    }


def _place(place: Place | None) -> dict[str, Any] | None:
    if place is None:
        return None
    line, caller = (None if each is None else _line(each) for each in (place.line, place.caller))
    return {"op": place.op, "module": place.module, "line": line, "called_at": caller}


def _line(line: Line) -> dict[str, Any]:
    return {"file": line.file, "line": line.number, "function": line.function, "text": line.text}


def _opened(line: Line) -> dict[str, Any]:
    numbers = range(max(1, line.number - _AROUND), line.number + _AROUND + 1)
    around = [[n, code.rstrip("\n")] for n in numbers if (code := linecache.getline(line.file, n))]
    return {**_line(line), "around": around}


def _step(step: Step) -> dict[str, Any]:
    place = step.place
    line = None if place.line is None else _line(place.line)
    shown = {"op": place.op, "module": place.module, "line": line, "shape": list(step.shape)}
    return {**shown, "agrees": step.agrees, "like": step.like}


def _mapping(mapping: Mapping) -> dict[str, Any]:
    data = mapping.as_json()
    leaves = [{**leaf, "said": str(e.rule)} for leaf, e in zip(data["leaves"], mapping.entries, strict=True)]
    return {**data, "leaves": leaves}
