"""The smallest case is measured in processes of its own, and the GPT is its torch twin."""

import jax
import numpy as np
import pytest

from jaxgrad.bench import check_cost
from jaxgrad.errors import JaxgradError


def test_one_setting_of_an_op_has_a_ratio():
    costs = [check_cost.measured("op", who) for who in (check_cost.SCRIPT, check_cost.ONE)]
    script, one = check_cost.rows(costs)
    assert script["why"] == one["why"] == ""
    assert script["ratio"] == 1 and 0 < one["ratio"] < 100
    assert 50 < script["peak_mb"] < 4000 and 0 < script["seconds"] < script["whole"]


def test_a_child_that_fails_says_why(monkeypatch):
    monkeypatch.setitem(check_cost.CASES, "op", check_cost.CASES["op"]._replace(limit=0.05))
    assert "took more than" in check_cost.measured("op", check_cost.SCRIPT).why
    with pytest.raises(JaxgradError, match="there is no case"):
        check_cost.measured("none", check_cost.SCRIPT)


def test_the_gpt_is_its_twin_in_torch():
    torch = pytest.importorskip("torch")
    size = check_cost.Width(1, 32, 8, 2)
    params, ids = check_cost._gpt_args(size)
    module = check_cost.torch_gpt(size)
    module.load_state_dict({name: torch.from_numpy(value) for name, value in params.items()})
    expected = module(torch.from_numpy(ids)).detach().numpy()
    with jax.default_matmul_precision("highest"):
        actual = check_cost.gpt(params, ids)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
