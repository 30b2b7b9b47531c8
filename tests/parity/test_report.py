"""The table reads like the notebook's cmp, and the JSON can be read by any parser."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from jaxgrad.models.mlp.record import MODEL
from jaxgrad.parity import report
from jaxgrad.parity.engines import Target, graph, run
from jaxgrad.parity.verdict import judge, verdict

GRAPH = graph(MODEL, MODEL.sizes(), 27)
BACKWARD_ORDER = list(GRAPH.order)

ENGINES = ("by-node", "jax.grad")


@pytest.fixture(scope="module")
def drowned(seeded_case):
    """A verdict in bfloat16 on a batch of two, where some cotangents nearly vanish."""
    return judge(seeded_case(batch_size=2), Target("bfloat16"), ENGINES)


def printed(renderable) -> str:
    out = io.StringIO()
    Console(file=out, width=80).print(renderable)
    return out.getvalue()


def test_a_row_for_every_node_and_parameter_in_backward_order_within_80_columns(seeded_case):
    text = printed(report.tables(judge(seeded_case(), Target(), ENGINES)))
    lines = text.splitlines()
    assert lines[0].strip() == "by-node | jax.grad"
    assert [word for line in lines for word in line.split()[:1] if word in BACKWARD_ORDER] == BACKWARD_ORDER
    assert "…" not in text and max(map(len, lines)) <= 80
    assert {"exact", "approx", "maxdiff", "ulps", "rel", "noise", "limit", "share"} <= set(text.split())


def test_what_was_not_judged_is_shown_as_such_within_80_columns(drowned):
    lines = printed(report.tables(drowned)).splitlines()
    told = [line.split()[0] for line in lines if line.endswith("not judged")]
    assert told and set(told) <= set(BACKWARD_ORDER)
    assert all(line.split()[2] == "?" for line in lines if line.endswith("not judged"))
    assert max(map(len, lines)) <= 80 and not any("…" in line for line in lines)
    said = report.summary(drowned).plain
    assert f"{len(set(told))} are not judged, because rounding in bfloat16 is as large as" in said
    kept = {tensor["name"]: tensor["pairs"] for tensor in report.case(drowned)["tensors"]}
    assert all(pair["unjudged"] and not pair["judged"] for name in told for pair in kept[name])


def test_json_has_every_pair_of_every_tensor_and_no_number_that_json_lacks(seeded_case):
    case = seeded_case(batch_size=3, h_size=4)
    gradients = run(ENGINES, case, Target())
    spoiled = gradients["by-node"]
    spoiled = spoiled._replace(params=spoiled.params._replace(b2=np.full(27, np.nan)))
    found = verdict(case, Target(), {**gradients, "by-node": spoiled})
    data = json.loads(json.dumps(report.to_json([report.case(found)]), allow_nan=False))
    assert (data["schema"], data["agree"]) == ("jaxgrad.parity/2", False)
    assert data["environment"]["torch"] and data["environment"]["matmul_precision"] == "highest"
    (kept,) = data["cases"]
    assert (kept["outcome"], kept["first"], kept["batch_size"], kept["dtype"]) == ("differs", "b2", 3, "float64")
    assert [tensor["name"] for tensor in kept["tensors"]] == ["forward loss", *BACKWARD_ORDER]
    (pair,) = next(tensor for tensor in kept["tensors"] if tensor["name"] == "b2")["pairs"]
    assert pair["relative"] == "nan" and pair["engines"] == ["by-node", "jax.grad"]
    # Values are in the order of the engines.
    assert pair["values"] == ["nan", float(gradients["jax.grad"].params.b2[0])]
