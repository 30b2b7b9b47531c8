"""The checker knows a right derivative from a wrong one, and says what the wrong one looks like."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.errors import JaxgradError
from jaxgrad.learn import check, or_answer
from jaxgrad.learn.reference import mistakes
from jaxgrad.mutation import operators
from jaxgrad.mutation.score import mutants
from jaxgrad.parity.cases import seed_names

EPS = 1e-5
_, NAMES = seed_names()


@pytest.fixture(scope="module")
def names(known):
    """What a reader of the notebook has in scope: the values, the right derivatives, and n."""
    derivatives = {f"d{name}": array for name, array in known.right.items()}
    return types.SimpleNamespace(**known.primals, **derivatives, n=len(known.primals["logits"]))


@pytest.mark.parametrize("name", NAMES)
def test_the_right_derivative_is_right_in_every_type(known, name: str):
    assert repr(check(name, known.right[name], known)) == f"d{name}: right, to the last bit."
    assert check(name, known.ours[name], known)
    assert check(name, known.ours[name].astype(np.float32), known)
    assert check(name, known.ours[name].astype(np.float32).tolist(), known)
    assert check(name, jnp.asarray(known.ours[name], jnp.bfloat16), known)


def test_zeros_are_right_where_the_true_derivative_is_zero(known):
    assert check("logit_maxes", np.zeros_like(known.right["logit_maxes"]), known)


def test_without_a_case_it_is_the_notebooks(known):
    assert check("bn_var", known.ours["bn_var"])
    assert np.array_equal(or_answer("bn_var", ...), known.ours["bn_var"])


@pytest.fixture(scope="module")
def diagnosed(known):
    """Of every mutant of our own derivation of a node: the name, the mutant, and the verdict on its result."""
    return [(name, mutant, check(name, wrong, known)) for name in NAMES for mutant, wrong in mistakes(known, name)]


def test_no_mutant_is_taken_for_right_but_those_that_change_rounding_alone(diagnosed):
    right = [(name, mutant.words) for name, mutant, verdict in diagnosed if verdict.right]
    # Those that tests/parity/test_own_score.py knows as equivalent, for the same reasons.
    assert {name for name, _ in right} <= {"logit_maxes", "logits", "h", "W2", "b2", "bnmean"}
    assert len(right) < len(diagnosed) / 10


def test_every_wrong_mutant_has_a_diagnosis(diagnosed):
    assert [(name, mutant.words) for name, mutant, verdict in diagnosed if verdict.kind == "unknown"] == []


def test_a_third_are_told_by_their_looks_alone_where_no_derivation_like_ours_is_at_hand(known, monkeypatch):
    every = [(name, wrong) for name in NAMES for _, wrong in mistakes(known, name)]
    for made in ("mistakes", "other_variables"):
        monkeypatch.setattr(f"jaxgrad.learn.verdict.{made}", lambda known, name: iter(()))
    verdicts = [check(name, wrong, known) for name, wrong in every]
    wrong = [verdict for verdict in verdicts if not verdict.right]
    # Nearly half of all mutants take a wrong variable, which only the derivation itself can tell.
    assert sum(verdict.kind not in ("unknown", "partly right") for verdict in wrong) > len(wrong) * 0.3


def closed_form(v, last_divisor: int, epsilon: float = EPS):
    inverse = (v.bn_var + epsilon) ** -0.5
    raw = v.bn_diff * inverse
    inside = v.dh_norm - v.dbn_bias / v.n - raw * (raw * v.dh_norm).sum(0) / last_divisor
    return v.bn_gain * inverse * inside


def of_epsilon(v, epsilon: float):
    return -0.5 * (v.bn_var + epsilon) ** -1.5 * v.dbn_var_inv


def constants(v):
    return v.bn_gain * v.bn_var_inv * v.dh_norm


CLASSIC = [
    ("b2", lambda v: v.dlogits, "missing sum", "the sum over axis 0 (the batch) is missing"),
    ("bn_gain", lambda v: v.bn_raw * v.dh_norm, "missing sum", "Forward spread bn_gain there"),
    ("bn_gain", lambda v: (v.bn_raw * v.dh_norm).sum(0), "shape", "the axis is dropped; the numbers are right"),
    ("b2", lambda v: v.dlogits.sum(0, keepdims=True), "shape", "the axis is kept; the numbers are right"),
    ("logit_maxes", lambda v: -v.dnorm_logits.sum(1), "shape", "the axis is dropped; the numbers are right"),
    ("logit_maxes", lambda v: -v.dnorm_logits, "missing sum", "axis 1"),
    ("bn_bias", lambda v: v.dh_norm.sum(1, keepdims=True), "wrong axis", "its total is right"),
    ("C", lambda v: v.demb.sum((0, 1)), "summed too much", "axis 0"),
    ("bn_bias", lambda v: v.dh_norm.mean(0, keepdims=True), "mean for sum", "n = 32 times too small"),
    ("bnmean", lambda v: -v.dbn_diff, "missing sum", "axis 0"),
    ("bnmean", lambda v: v.dbn_diff.sum(0, keepdims=True), "sign", "wrong sign"),
    ("bnmean", lambda v: v.dbn_diff, "missing sum", "and the sign is wrong"),
    ("counts_sum_inv", lambda v: v.counts * v.dprobs, "missing sum", "axis 1 (the symbols)"),
    ("W2", lambda v: v.dlogits.T @ v.h, "transposed", "it is transposed"),
    ("W1", lambda v: np.einsum("nk,nh->nkh", v.embcat, v.dh_prenorm), "missing sum", "axis 0 (the batch)"),
    ("bn_diff_sq", lambda v: v.dbn_var / (v.n - 1), "not spread", "each for several entries"),
    ("bn_diff_sq", lambda v: np.ones((v.n, 1)) * v.dbn_var / v.n, "n and n - 1", "1/n where 1/(n - 1) should be"),
    ("bn_diff_sq", lambda v: np.ones((v.n, 1)) * v.dbn_var, "missing n - 1", "1/(n - 1) of the variance is missing"),
    ("bn_diff", lambda v: v.bn_var_inv * v.dbn_raw, "second use", "bn_diff is used twice"),
    ("bn_diff", lambda v: 2 * v.bn_diff * v.dbn_diff_sq, "second use", "bn_diff is used twice"),
    ("bn_diff", lambda v: v.bn_var_inv * v.dbn_raw + v.bn_diff * v.dbn_diff_sq, "missing factor", "first factor, 2"),
    ("counts", lambda v: v.counts_sum_inv * v.dprobs, "second use", "counts is used twice"),
    ("h_prenorm", lambda v: v.dbn_diff, "second use", "h_prenorm is used twice"),
    ("h_prenorm", lambda v: v.dbn_diff, "second use", "it has the batch mean taken for a constant"),
    ("h_prenorm", constants, "missing path", "has the batch statistics taken for constants"),
    ("h_prenorm", lambda v: constants(v) - constants(v).mean(0), "missing path", "has the batch variance taken for a"),
    ("W1", lambda v: v.embcat.T @ constants(v), "missing path", "has the batch statistics taken for constants"),
    ("bn_var", lambda v: (v.bn_var + EPS) ** -1.5 * v.dbn_var_inv, "factor", "and the sign is wrong"),
    ("bn_var", lambda v: -0.5 * (v.bn_var + EPS) ** -0.5 * v.dbn_var_inv, "power", "-0.5 instead of -1.5"),
    (
        "bn_var",
        lambda v: -0.5 * v.bn_var_inv**1.5 * v.dbn_var_inv,
        "power",
        "bn_var_inv to a power that is 1.5 too low",
    ),
    ("bn_var", lambda v: of_epsilon(v, 0), "epsilon", "leaves epsilon out"),
    ("bn_var", lambda v: of_epsilon(v, 1e-6), "epsilon", "an epsilon of about 1e-06"),
    ("bn_diff_sq", lambda v: of_epsilon(v, 0) / (v.n - 1) * np.ones((v.n, 1)), "epsilon", "leaves epsilon out"),
    ("h_prenorm", lambda v: closed_form(v, v.n - 1, 0.1), "epsilon", "an epsilon of about 0.1"),
    ("bn_raw", lambda v: v.dh_norm, "another variable", "is the derivative of h_norm"),
    ("bn_gain", lambda v: (v.h_prenorm * v.dh_norm).sum(0, keepdims=True), "another variable", "`h_prenorm`"),
    ("h_norm", lambda v: v.dh * (1 - v.h_norm**2), "before or after", "before the tanh"),
    ("h_norm", lambda v: v.dh * (1 - v.h) ** 2, "formula", "(1 - h)^2 where 1 - h^2 should be"),
    ("h_norm", lambda v: v.dh.astype(np.float32).astype(float) * (1 - v.h**2), "precision", "as far as float32 goes"),
    ("h_norm", lambda v: 1 - v.h**2, "missing factor", "`dh`, is dropped"),
    ("h", lambda v: v.h, "another variable", "is the value of h, no derivative"),
    ("log_probs", lambda v: np.full(v.probs.shape, -1 / v.n), "extra entries", "is right where it is not zero"),
    ("logit_maxes", lambda v: v.dlogit_maxes + 1e-3, "not zero", "the derivative is zero but for rounding"),
    ("log_probs", lambda v: v.n * v.dlog_probs, "sum for mean", "the 1/n of a mean is missing"),
    ("probs", lambda v: v.dlog_probs * v.probs, "inverse", "multiplies by probs where it should divide"),
    ("logits", lambda v: v.probs / v.n, "missing term", "`one_hot`, is dropped"),
    ("logits", lambda v: v.dlogits * (np.arange(v.n) != 3)[:, None], "partly right", "are all at 3 of axis 0"),
    ("logits", lambda v: v.probs + v.n * v.dlog_probs, "sum for mean", "the 1/n of a mean is missing"),
    ("h_prenorm", lambda v: closed_form(v, v.n), "n and n - 1", "n for n - 1, that is 32 for 31"),
    ("h_prenorm", lambda v: closed_form(v, v.n - 1) / v.bn_gain, "missing factor", "lacks the factor bn_gain"),
    ("emb", lambda v: v.dembcat, "shape", "reshape it"),
    ("C", lambda v: np.zeros_like(v.C), "zero", "no path"),
    ("loss", lambda v: -1.0, "sign", "wrong sign"),
    ("loss", lambda v: v.loss, "another variable", "the value of loss"),
    ("h", lambda v: v.dh * 1.7, "factor", "1.7 times"),
    ("h", lambda v: np.where(v.dh > 0, v.dh, np.nan), "not finite", "is not finite"),
    ("bn_var_inv", lambda v: np.cos(v.dbn_var_inv), "unknown", "no mistake that the checker knows"),
]


@pytest.mark.parametrize(("name", "wrong", "kind", "words"), CLASSIC)
def test_a_classic_mistake_is_told(known, names, name: str, wrong, kind: str, words: str):
    verdict = check(name, wrong(names), known)
    assert (verdict.right, verdict.kind) == (False, kind), verdict
    assert words in repr(verdict)


@pytest.mark.parametrize("epsilon", [0, EPS])
def test_in_float32_an_array_nearer_to_the_answer_without_epsilon_is_wrong(known, names, epsilon: float):
    for name, array in (("bn_var", of_epsilon(names, epsilon)), ("hprebn", closed_form(names, names.n - 1, epsilon))):
        verdict = check(name, array.astype(np.float32), known)
        assert (verdict.right, "epsilon" in verdict.sentence) == (epsilon == EPS, epsilon != EPS), verdict


@pytest.mark.parametrize("complete", [False, True])
def test_a_row_is_all_that_a_new_kind_of_mistake_needs(known, monkeypatch, complete: bool):
    def tripled(program, index):
        step = program.steps[index]
        if step.name == "reduce_sum":
            run = operators._changed(program, step, lambda a: 3 * step.run(a)[0], "3", "a sum taken three times")
            yield run

    row = operators.Operator(tripled, "too often") if complete else tripled
    monkeypatch.setitem(operators.OPERATORS, "a sum tripled", row)
    verdict = check("b2", 3 * known.right["b2"], known)
    assert verdict.kind == ("too often" if complete else "a sum tripled")
    assert verdict.sentence == "db2 looks as if it had a sum taken three times."
    found = mutants(lambda dy: dy.sum(0), jnp.ones((2, 3)))
    assert [mutant.words for mutant in found if mutant.operator == "a sum tripled"] == ["a sum taken three times"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (..., "write your answer first"),
        (None, "write your answer first"),
        (abs, "is a function"),
        ("x", "an array"),
        (1j, "an array"),
    ],
)
def test_what_is_no_answer_is_told(known, given, words: str):
    verdict = check("h", given, known)
    assert (verdict.right, verdict.kind) == (False, "no answer") and words in verdict.sentence


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x", r"no node or parameter 'x'; choose from emb"),
        ("bnvarinv", r"no node or parameter 'bnvarinv'; did you mean bnvar_inv or bn_var_inv"),
        ("dlogprob", r"'dlogprob'; did you mean logprobs or log_probs"),
        ("db1", r"'db1': the first layer has no bias"),
        (np.ones(2), r"the name of a node comes first"),
    ],
)
def test_a_name_that_the_model_does_not_have_is_refused(name, message: str):
    with pytest.raises(JaxgradError, match=message):
        check(name, ...)


def test_a_right_answer_is_kept_and_a_wrong_one_replaced(known):
    mine = known.ours["h"] * (1 + 1e-15)
    assert np.array_equal(or_answer("h", mine, known), mine)
    assert np.array_equal(or_answer("h", -mine, known), known.ours["h"])
