"""Every mistake is found, at the node where it was made, and the engine that made it is named."""

import jax
import numpy as np
import pytest

from jaxgrad.models.mlp.forward import Nodes, Params
from jaxgrad.models.mlp.record import MODEL
from jaxgrad.parity import verdict as verdicts
from jaxgrad.parity.cases import Case
from jaxgrad.parity.engines import Target, graph, run
from jaxgrad.parity.verdict import appeal, judge, verdict, was_judged

GRAPH = graph(MODEL, MODEL.sizes(), 27)
BACKWARD_ORDER = list(GRAPH.order)

ENGINES = ("by-node", "fused", "jax.grad", "torch")


@pytest.fixture(scope="module")
def honest(seeded_case):
    case = seeded_case()
    return case, {dtype: run(ENGINES, case, Target(dtype)) for dtype in ("float64", "float32", "bfloat16")}


@pytest.fixture(scope="module", autouse=True)
def measured_once():
    """Most tests here ask of one case: its truth and its engines' noise are measured for the first of them."""

    def once(fn):
        known = {}

        def asked(*args):
            key = tuple(id(arg) if isinstance(arg, Case) else arg for arg in args)
            if key not in known:
                # Its arguments are kept too: a case that is alive shares its id with no other.
                known[key] = args, fn(*args)
            return known[key][1]

        return asked

    with pytest.MonkeyPatch.context() as patch:
        for name in ("truth", "own_noise"):
            patch.setattr(verdicts, name, once(getattr(verdicts, name)))
        yield


def spoil(gradients, engine: str, name: str, change):
    g = gradients[engine]
    if name in Params._fields:
        return {**gradients, engine: g._replace(params=g.params._replace(**{name: change(getattr(g.params, name))}))}
    return {**gradients, engine: g._replace(nodes={**g.nodes, name: change(g.nodes[name])})}


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
    assert "There fused and by-node hold nan against" in found.sentence and "at [0], 27 in all" in found.sentence


def test_a_nan_in_all_engines_is_nobodys_disagreement(honest):
    case, gradients = honest
    spoiled = gradients["float64"]
    for engine in spoiled:
        spoiled = spoil(spoiled, engine, "b2", lambda x: np.full_like(x, np.nan))
    found = verdict(case, Target(), spoiled)
    assert not found.agree and found.first == "b2" and found.alone is None
    assert "No two engines hold finite numbers at b2" in found.sentence
    assert "torch nan at [0], 27 in all" in found.sentence


def test_a_wrong_loss_is_found_before_any_cotangent(honest):
    case, gradients = honest
    g = gradients["float64"]
    found = verdict(case, Target(), {**g, "torch": g["torch"]._replace(loss=g["torch"].loss * (1 + 1e-9))})
    assert (found.first, found.alone) == ("forward loss", "torch")


def test_the_order_is_one_in_which_a_backward_pass_can_run():
    # A node's cotangent needs those of its users, so each user must come before it.
    assert {"loss", *GRAPH.users} == set(BACKWARD_ORDER)
    for name, users in GRAPH.users.items():
        for user in users:
            assert BACKWARD_ORDER.index(user) < BACKWARD_ORDER.index(name), (user, name)


def test_float64_says_who_is_off_when_float32_is_not_enough(honest):
    case, gradients = honest
    target = Target("float32")
    spoiled = spoil(gradients["float32"], "fused", "h", lambda x: x * np.float32(1.01))
    contested = verdict(case, target, spoiled)
    assert contested.alone == "fused"
    said = appeal(contested)
    assert said.startswith("In float64 all agree") and said.endswith("fused is farthest off.")


@pytest.mark.parametrize("factor", [0.0, -1.0, 2.0])
def test_in_bfloat16_a_cotangent_that_is_zero_negated_or_doubled_does_not_pass(honest, factor: float):
    case, gradients = honest
    wrong = gradients["bfloat16"]
    for name in BACKWARD_ORDER:
        wrong = spoil(wrong, "by-node", name, lambda x: (factor * x.astype(np.float32)).astype(x.dtype))
    found = verdict(case, Target("bfloat16"), wrong)
    assert (found.outcome, found.first, found.alone) == ("differs", "loss", "by-node")
    # The cotangent of logit_maxes is 0 but for rounding, and what is not judged is not said to agree.
    passed = [t.name for t in found.tensors if t.agree and was_judged(t)]
    assert set(passed) <= {"forward loss", "logit_maxes"}


def test_one_engine_that_differs_from_float64_stands_alone_if_another_does_not(honest):
    case, gradients = honest
    two = {name: gradients["float32"][name] for name in ("by-node", "torch")}
    found = verdict(case, Target("float32"), spoil(two, "torch", "h", lambda x: 2 * x))
    assert (found.first, found.alone) == ("h", "torch")
    assert "torch stands alone: by-node agree with float64" in found.sentence
    one = spoil({"torch": two["torch"]}, "torch", "h", lambda x: 2 * x)
    assert verdict(case, Target("float32"), one).alone is None


def test_what_is_as_small_as_its_rounding_is_not_judged_and_said_so(seeded_case):
    # In a batch of two normalised values are near 1 and -1, whatever h_prenorm: its cotangent nearly vanishes.
    found = judge(seeded_case(batch_size=2), Target("bfloat16"), ("by-node", "jax.grad"))
    lost = [t.name for t in found.tensors if not was_judged(t)]
    assert found.agree and "h_prenorm" in lost and "logits" not in lost
    assert f"{len(lost)} are not judged, because rounding in bfloat16 is as large as" in found.sentence
    assert found.sentence.endswith(f"{', '.join(lost)}.")


def test_a_comparison_of_a_single_engine_judges_nothing(honest):
    case, gradients = honest
    found = verdict(case, Target(), {"torch": gradients["float64"]["torch"]})
    assert (found.outcome, found.agree, found.sentence) == ("not judged", False, "Nothing was judged.")


def test_closed_forms_may_cancel_where_single_nodes_do_not_and_no_more_than_that(seeded_case):
    # Where a probability is 1 but for 1e-7, p - 1 has lost 7 of its digits in the closed form.
    case = seeded_case(batch_size=5, h_size=8)
    b2 = np.full_like(case.params.b2, -16.0)
    b2[0] = 0.0
    params = case.params._replace(b2=b2, W2=0 * case.params.W2)
    case = case._replace(params=params, batch=case.batch._replace(Y=np.zeros_like(case.batch.Y)))
    gradients = run(("fused", "jax.grad", "torch"), case, Target("float32"))
    found = verdict(case, Target("float32"), gradients)
    assert found.agree
    noted = [t.name for t in found.tensors if t.note]
    assert "logits" in noted
    wrong = spoil(gradients, "fused", "logits", lambda x: 2 * x)
    assert verdict(case, Target("float32"), wrong).first == "logits"


def test_all_engines_have_equal_keys(honest):
    for gradients in honest[1]["float64"].values():
        assert gradients.params._fields == Params._fields and gradients.nodes.keys() <= {*Nodes._fields}
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(gradients.params))
