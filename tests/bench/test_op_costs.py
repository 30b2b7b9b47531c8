"""What operations cost: every form gives the same values, and what is counted is what is kept."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import ops
from jaxgrad.bench import op_cases, op_costs, op_plot, op_report
from jaxgrad.bench.op_cases import OPS, OURS, PLAIN, TORCH
from jaxgrad.errors import JaxgradError
from jaxgrad.plots import save

ROOT = Path(__file__).parents[2]
RUN = ROOT / "data/benchmarks/ops-cpu.json"


def small(op, **forms):
    case = OPS[op].at(*OPS[op].small)
    return case._replace(forms={**case.forms, **forms})


def test_every_operation_is_in_the_table():
    assert set(OPS) == {name.removesuffix("_fwd") for name in ops.__all__ if name.endswith("_fwd")}


@pytest.mark.parametrize("op", OPS)
def test_ours_and_the_plain_form_take_and_give_the_same_shapes(op):
    case = small(op)
    args, others, dy = op_costs.drawn(case)
    for name in (OURS, PLAIN):
        assert jax.eval_shape(case.forms[name](), *args, *others).shape == dy.shape


@pytest.mark.parametrize("op", ["linear_cross_entropy", "attention", "group_norm", "gru", "lstm"])
def test_all_forms_that_are_there_have_the_same_values(op):
    found = op_costs.measure(small(op), rounds=3, seconds=1e-4).forms
    timed = {cost.form for cost in found if cost.seconds is not None}
    assert {OURS, PLAIN, TORCH} <= timed
    for cost in found:
        assert cost.form in timed or "is not installed: pip install" in cost.reason


def test_a_form_with_other_values_is_not_timed():
    costs = op_costs.measure(small("relu", wrong=lambda: lambda x: 1.01 * jax.nn.relu(x)), 3, 1e-4)
    (wrong,) = (cost for cost in costs.forms if cost.form == "wrong")
    assert wrong.seconds is None and "differs from" in wrong.reason and wrong.difference == pytest.approx(0.01, rel=0.1)


def test_a_form_that_needs_too_much_memory_is_compiled_and_not_run():
    costs = op_costs.measure(small("attention"), 3, 1e-4, most_bytes=1)
    plain = next(cost for cost in costs.forms if cost.form == PLAIN)
    assert plain.seconds is None and "compiled, not run" in plain.reason and plain.temp_bytes > 1


def test_what_is_kept_is_neither_argument_nor_output():
    x = np.ones((4, 8), np.float32)
    assert op_costs.kept_bytes(ops.tanh, (x,), ()) == 0
    assert op_costs.kept_bytes(lambda x: jnp.exp(ops.gelu(jnp.sin(x))), (x,), ()) == 2 * 4 * 8 * 4


def test_an_operation_that_is_not_there_is_refused():
    with pytest.raises(JaxgradError, match="no operation 'gelo'; choose from"):
        op_cases.chosen(["gelo"])


def test_a_limit_is_told_with_what_was_measured():
    times = {OURS: [1.2, 1.3, 1.4], PLAIN: [1.0, 1.0, 1.0], TORCH: [2.0, 2.0, 2.0]}
    forms = [op_costs.Cost(name, seconds, None, 0.0, 100, 10, 0.1) for name, seconds in times.items()]
    run = op_report.to_json([op_costs.Costs(OPS["relu"].at(2, 2), 1, forms)], [], [])
    (row,) = run["table"]
    assert row["limits"]["time"] == {"limit": 1.05, "ratio": 1.3, "low": 1.2, "high": 1.4, "within": False}
    assert row["limits"]["memory"]["within"] and row["limits"]["torch"] is None and row["reason"]
    assert any("above its limit: relu 2×2, time: 1.30, limit 1.05" in line for line in op_report._notes(run))


def test_the_kept_run_is_of_right_values_and_all_operations():
    run = op_report.load(RUN)
    assert [row["op"] for row in run["table"]] == list(OPS)
    for row in run["table"]:
        assert row["forms"][OURS]["seconds"] and row["forms"][PLAIN]["difference"] <= op_costs.TOLERANCE
        assert all(limit is None or limit["within"] for limit in row["limits"].values()) or row["reason"]
        assert row["reason"] != "not looked into"


def test_the_bytes_of_the_kept_run_are_those_of_the_residuals():
    for row in op_report.load(RUN)["table"]:
        case = OPS[row["op"]].at(*row["size"])
        args, others = (
            tuple(jax.ShapeDtypeStruct(shape, kind) for shape, kind in of)
            for of in (
                [(shape, "float32") for shape in case.shapes],
                [(shape, "int32") for shape, _ in case.integers] + [(shape, "float32") for shape in case.constants],
            )
        )
        assert op_costs.kept_bytes(case.forms[OURS](), args, others) == row["forms"][OURS]["kept_bytes"], row["op"]


def test_the_page_has_the_figures_of_the_kept_run():
    run, page = op_report.load(RUN), (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    assert op_report.markdown(run) in page
    assert op_report.beside_libraries(run) in page
    assert op_report.above_limits(run) in page


def test_growth_can_be_drawn(tmp_path: Path):
    save(op_plot.figure(op_report.load(RUN)), tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 20_000


def test_another_file_is_refused(tmp_path: Path):
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"schema": "jaxgrad.bench/1"}))
    with pytest.raises(JaxgradError, match=r"jaxgrad\.bench\.ops/1"):
        op_report.load(file)
