"""The checker takes its cases from any model of the list: a GPT's nodes inside of its blocks, a GRU's of every step."""

from typing import Any

import numpy as np
import pytest

from jaxgrad.errors import JaxgradError
from jaxgrad.learn import answers, check, or_answer
from jaxgrad.learn.reference import Answers
from jaxgrad.parity import cases

SIZES = {
    "gpt": {"layers": 1, "heads": 2, "width": 10, "block": 4, "dropout": 0.0},
    "gru": {"embedding": 3, "hidden": 4, "block": 4, "dropout": 0.0},
}


@pytest.fixture(scope="module", params=list(SIZES))
def known(request) -> Answers:
    return answers(cases.random_case(0, batch_size=3, vocab_size=5, model=request.param, **SIZES[request.param]))


def test_every_derivative_by_hand_is_right(known):
    assert [name for name in known.right if not check(name, known.ours[name], known)] == []
    assert known.primals.keys() == known.right.keys() and next(iter(known.right)).endswith("emb")


class Names:
    """Values and derivatives of a block of the GPT by their names, without the axis of its one layer."""

    def __init__(self, of: dict[str, np.ndarray]) -> None:
        self.of = of

    def __getattr__(self, name: str) -> Any:
        return self.of[f"block.{name}"][0] if f"block.{name}" in self.of else self.of[name]


WRONG = [
    ("block.q", lambda v, d: np.einsum("bhij,bjhe->bihe", d.scores, v.k), "missing factor", "the scale 1/sqrt(5)"),
    ("block.v", lambda v, d: d.mix, "another variable", "is the derivative of block.mix"),
    ("block.exps", lambda v, d: d.att / v.exps_sum, "second use", "block.exps is used twice in forward"),
    ("block.scores", lambda v, d: v.exps * d.att / v.exps_sum, "another variable", "`dexps_by_att` and not `dexps`"),
    ("block.x", lambda v, d: d.mid, "second use", "block.x is used twice in forward"),
    ("block.mid", lambda v, d: -d.mid, "sign", "wrong sign"),
    ("block.ln1_diff_sq", lambda v, d: d.ln1_var * np.ones_like(v.ln1_diff), "sum for mean", "layer norm's mean"),
    ("stream", lambda v, d: d.ln_hat * v.ln_var_inv, "missing path", "the statistics of the layer norm ln taken for"),
    ("ln_var", lambda v, d: -0.5 * v.ln_var**-1.5 * d.ln_var_inv, "epsilon", "adds 1e-05 to its variance"),
    ("block.ln1_mean", lambda v, d: -d.ln1_diff, "missing sum", "the width"),
    ("tokens", lambda v, d: d.tokens - np.einsum("btv,btd->vd", d.logits, v.ln), "second use", "tokens is used twice"),
]


@pytest.mark.parametrize("known", ["gpt"], indirect=True)
@pytest.mark.parametrize(("name", "wrong", "kind", "words"), WRONG)
def test_a_mistake_in_a_transformer_is_told(known, name: str, wrong, kind: str, words: str):
    verdict = check(name, wrong(Names(known.primals), Names(known.right)), known)
    assert (verdict.right, verdict.kind) == (False, kind) and words in verdict.sentence, verdict


def test_an_answer_without_the_axis_of_one_layer_is_an_answer(known):
    for name in [name for name, right in known.right.items() if right.shape[:1] == (1,) and "." in name]:
        assert check(f"d{name}", known.ours[name][0], known)
        assert np.array_equal(or_answer(name, known.ours[name][0], known), known.ours[name])


def test_a_name_of_another_model_is_refused(known):
    with pytest.raises(JaxgradError, match=r"there is no node or parameter 'bn_diff'; .*logits"):
        check("bn_diff", ..., known)
    with pytest.raises(JaxgradError, match=r"no size 'h_size'; choose from .*block, dropout"):
        cases.random_case(0, model=known.case.model.name, h_size=3)


def test_sizes_have_the_names_of_the_maths_too():
    a, b = cases.random_case(0, n=2, emb_size=3, h_size=4), cases.random_case(0, context=2, embedding=3, hidden=4)
    assert a.sizes == b.sizes
