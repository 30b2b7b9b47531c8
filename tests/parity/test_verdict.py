"""Every mistake is found, at the node where it was made, and the engine that made it is named."""

import jax
import numpy as np
import pytest

from jaxgrad.models.mlp import Nodes, Params
from jaxgrad.parity.engines import Target, run
from jaxgrad.parity.verdict import BACKWARD_ORDER, USERS, appeal, verdict

ENGINES = ("by-node", "fused", "jax.grad", "torch")


@pytest.fixture(scope="module")
def honest(seeded_case):
    case = seeded_case()
    return case, {dtype: run(ENGINES, case, Target(dtype)) for dtype in ("float64", "float32")}


def spoil(gradients, engine: str, name: str, change):
    g = gradients[engine]
    part = "params" if name in Params._fields else "nodes"
    tree = getattr(g, part)
    return {**gradients, engine: g._replace(**{part: tree._replace(**{name: change(getattr(tree, name))})})}


@pytest.mark.parametrize("name", [n for n in BACKWARD_ORDER if n != "loss"])
@pytest.mark.parametrize("mistake", ["one part in 10^9", "the last element zero", "transposed in sign"])
def test_a_mistake_at_any_node_is_found_there_and_its_engine_named(honest, name: str, mistake: str):
    case, gradients = honest

    def change(x: np.ndarray) -> np.ndarray:
        x = x.copy()
        if mistake == "one part in 10^9":
            return x * (1 + 1e-9)
        if mistake == "the last element zero":
            x.flat[np.flatnonzero(x)[-1]] = 0
            return x
        return -x

    if name == "logit_maxes":
        # Its true value is 0, of which no part can be wrong; an error of a billionth of its terms can.
        def change(x: np.ndarray) -> np.ndarray:
            return x + 1e-9

    found = verdict(case, Target("float64"), spoil(gradients["float64"], "by-node", name, change))
    assert not found.agree
    assert (found.first, found.alone) == (name, "by-node")
    assert found.sentence.startswith(f"Engines part at {name}, the first in backward order. by-node stands alone")


def test_the_first_node_in_backward_order_is_named_where_several_are_wrong(honest):
    case, gradients = honest
    wrong = spoil(gradients["float64"], "torch", "emb", lambda x: 2 * x)
    wrong = spoil(wrong, "torch", "bn_var", lambda x: 2 * x)
    assert verdict(case, Target(), wrong).first == "bn_var"


def test_with_two_against_two_nobody_stands_alone(honest):
    case, gradients = honest
    wrong = spoil(gradients["float64"], "by-node", "W1", lambda x: 2 * x)
    wrong = spoil(wrong, "fused", "W1", lambda x: 2 * x)
    found = verdict(case, Target(), wrong)
    assert (found.first, found.alone) == ("W1", None)
    assert "by-node from jax.grad" in found.sentence


def test_two_engines_that_differ_are_not_judged_by_majority(honest):
    case, gradients = honest
    two = {name: gradients["float64"][name] for name in ("by-node", "torch")}
    assert verdict(case, Target(), spoil(two, "torch", "h", lambda x: 2 * x)).alone is None


def test_a_nan_is_a_disagreement_that_names_it(honest):
    case, gradients = honest
    found = verdict(case, Target(), spoil(gradients["float64"], "fused", "b2", lambda x: np.full_like(x, np.nan)))
    assert (found.first, found.alone) == ("b2", "fused")
    assert "There by-node and fused hold" in found.sentence and "against nan at [0], 27 in all" in found.sentence


def test_a_nan_in_all_engines_is_nobodys_disagreement(honest):
    case, gradients = honest
    spoiled = gradients["float64"]
    for engine in spoiled:
        spoiled = spoil(spoiled, engine, "b2", lambda x: np.full_like(x, np.nan))
    found = verdict(case, Target(), spoiled)
    assert not found.agree and found.first == "b2" and found.alone is None
    assert "No two engines hold finite numbers at b2" in found.sentence


def test_a_wrong_loss_is_found_before_any_cotangent(honest):
    case, gradients = honest
    g = gradients["float64"]
    found = verdict(case, Target(), {**g, "torch": g["torch"]._replace(loss=g["torch"].loss * (1 + 1e-9))})
    assert (found.first, found.alone) == ("forward loss", "torch")


def test_the_order_is_one_in_which_a_backward_pass_can_run():
    # A node's cotangent needs those of its users, so each user must come before it.
    assert {"loss", *USERS} == set(BACKWARD_ORDER)
    for name, users in USERS.items():
        for user in users:
            assert BACKWARD_ORDER.index(user) < BACKWARD_ORDER.index(name), (user, name)


def test_float64_says_who_is_off_when_float32_is_not_enough(honest):
    case, gradients = honest
    target = Target("float32")
    spoiled = spoil(gradients["float32"], "fused", "h", lambda x: x * np.float32(1.01))
    contested = verdict(case, target, spoiled)
    assert contested.alone == "fused"
    said = appeal(contested, spoiled)
    assert said.startswith("In float64 all agree") and said.endswith("fused is farthest off.")


def test_all_engines_have_equal_keys(honest):
    for gradients in honest[1]["float64"].values():
        assert gradients.params._fields == Params._fields and gradients.nodes._fields == Nodes._fields
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(gradients.params))
