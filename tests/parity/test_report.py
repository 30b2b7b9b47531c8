"""The table reads like the seed's cmp, and the JSON can be read by any parser."""

import io
import json

import numpy as np
from rich.console import Console

from jaxgrad.parity import report
from jaxgrad.parity.engines import Target, run
from jaxgrad.parity.verdict import BACKWARD_ORDER, judge, verdict

ENGINES = ("by-node", "jax.grad")


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
    assert {"exact", "approx", "maxdiff", "ulps", "rel", "tol", "scale"} <= set(text.split())
    assert "terms" in next(line for line in lines if line.startswith("logit_maxes"))


def test_json_has_every_pair_of_every_row_and_no_number_that_json_lacks(seeded_case):
    case = seeded_case(batch_size=3, h_size=4)
    gradients = run(ENGINES, case, Target())
    spoiled = gradients["by-node"]
    spoiled = spoiled._replace(params=spoiled.params._replace(b2=np.full(27, np.nan)))
    found = verdict(case, Target(), {**gradients, "by-node": spoiled})
    data = json.loads(json.dumps(report.to_json([found]), allow_nan=False))
    assert (data["schema"], data["agree"]) == ("jaxgrad.parity/1", False)
    assert data["environment"]["torch"] and data["environment"]["matmul_precision"] == "highest"
    (kept,) = data["cases"]
    assert (kept["first"], kept["batch_size"], kept["dtype"]) == ("b2", 3, "float64")
    assert [row["name"] for row in kept["rows"]] == ["forward loss", *BACKWARD_ORDER]
    b2 = next(row for row in kept["rows"] if row["name"] == "b2")
    assert b2["pairs"][0]["relative"] == "nan" and b2["pairs"][0]["engines"] == ["by-node", "jax.grad"]
