"""A model's parity run as the data of `pages.comparison`: cases with their nodes as a graph."""

from typing import Any

from jaxgrad.checking.report import environment, mapped
from jaxgrad.parity.engines import graph
from jaxgrad.parity.verdict import FORWARD_LOSS, Verdict


def of_cases(cases: list[dict[str, Any]], jax_device: str, torch_device: str) -> dict[str, Any]:
    """The data of the page, from cases that `case` makes."""
    devices = {"JAX device": jax_device, "PyTorch device": torch_device}
    return {"title": "jaxgrad parity", "environment": {**environment(), **devices}, "cases": cases}


def case(v: Verdict) -> dict[str, Any]:
    """A verdict as a case of the page, with maps in the place of its arrays."""
    # In backward order a cotangent flows from a node's users to the node.
    found = graph(v.case.model, v.case.sizes, v.case.vocab_size)
    edges = [
        *([FORWARD_LOSS, name] for name in found.last),
        *([user, name] for name, users in found.users.items() for user in users),
    ]
    return {
        "name": v.case.name,
        "outcome": v.outcome,
        "agree": v.agree,
        "sentence": v.sentence,
        "details": "",
        "dtype": v.target.dtype,
        "losses": v.losses,
        "rows": [mapped(t) for t in v.tensors],
        "edges": edges,
    }
