"""Would the check have noticed? What became of the mutants of backward passes."""

from collections.abc import Mapping
from typing import Any

from jaxgrad.pages.document import APART, CLOSE, Column, table, text
from jaxgrad.pages.section import Section, counted


def scores(data: Mapping[str, Any]) -> Section:
    """A run of `jaxgrad mutate`, schema `jaxgrad.mutation/1`."""
    found = data["scores"]
    counts = [
        (name, score["killed"], len(score["survived"]), score["equivalent"], score["untried"])
        for name, score in found.items()
    ]
    survivors = [(name, mutant) for name, score in found.items() for mutant in score["survived"]]
    kinds = ["apart" if row[2] else "" for row in counts]
    heads = ("killed", "survived", "equivalent", "not tried")
    body = table((Column("backward pass"), *map(Column, heads)), counts, kinds)
    for name, mutant in survivors:
        where = f"{mutant['file']}:{mutant['line']}" if mutant["line"] else "JAX does not tell where"
        body += (
            f"<h3>Survived in {text(name)}: {text(mutant['operator'])}</h3>"
            f"<pre>{text(where)}\n{text(mutant['text'])}</pre><p>{text(mutant['mistake'])}</p>"
        )
    killed = sum(row[1] for row in counts)
    verdict = f"{counted(killed, 'mutant')} killed, {len(survivors)} survived"
    kind = APART if survivors else CLOSE
    return Section("mutants of backward passes", kind, verdict, data["date"], body)
