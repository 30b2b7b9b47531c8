"""Parity notices every mistake in this project's backward passes at the notebook's initialisation, and not at zeros."""

from pathlib import Path

import jax
import numpy as np
import pytest

from jaxgrad import models
from jaxgrad.errors import JaxgradError
from jaxgrad.models.mlp import backward
from jaxgrad.models.mlp.forward import Params
from jaxgrad.models.mlp.record import MODEL
from jaxgrad.parity import cases, own_score

PAGE = (Path(__file__).parents[2] / "docs/mutation.md").read_text(encoding="utf-8")
NAMES = ["by_node", "fused", "embedding", "linear", "batch_norm", "tanh", "cross_entropy"]


@pytest.fixture(scope="module", params=["notebook", "square"])
def measured(request):
    notebook, square = own_score.own_cases(MODEL).values()
    return {row.name: row for row in own_score.rows([notebook if request.param == "notebook" else square])}


def test_all_backward_passes_are_measured(measured):
    assert list(measured) == NAMES
    assert all(row.score.killed for row in measured.values())


@pytest.mark.parametrize("name", NAMES)
def test_no_mutant_that_is_not_equivalent_survives_at_the_notebooks_initialisation(measured, name: str):
    assert measured[name].score.survived == ()


def test_what_is_equivalent_cancels(measured):
    # The row maximum's cotangent is zero but for rounding, and a batch's differences from its mean sum to zero, so
    # that the second path into bn_diff adds nothing to the mean's.
    for name, row in measured.items():
        for mutant in row.score.equivalent:
            line = mutant.place.text.partition(" = ")[0]
            assert (name, line) in {
                *(("by_node", d) for d in ("dlogit_maxes", "dlogits", "dh", "dW2", "db2", "dbnmean")),
            }, mutant


def test_zeros_and_ones_hide_half_of_the_mistakes_that_the_notebooks_initialisation_shows(measured):
    for name in ("by_node", "fused"):
        assert len(measured[name].hidden) > len(measured[name].score.killed) / 2


def test_zeros_and_ones_change_nothing_else():
    case = cases.random_case(1, batch_size=3, hidden=4)
    usual = own_score.zeros_and_ones(case)
    for name in Params._fields:
        was, now = getattr(case.params, name), getattr(usual.params, name)
        expected = {"W2": 0 * was, "b2": 0 * was, "bn_bias": 0 * was, "bn_gain": np.ones_like(was)}.get(name, was)
        assert np.array_equal(now, expected)
    assert usual.batch is case.batch


def test_the_table_has_a_line_for_every_row(measured):
    lines = own_score.table(list(measured.values())).splitlines()
    assert len(lines) == 2 + len(NAMES)
    assert lines[0].startswith("| backward pass | mutants | equivalent | killed")
    row = measured["tanh"]
    assert lines[2 + NAMES.index("tanh")] == (
        f"| tanh | {len(row.score.killed)} | 0 | {len(row.score.killed)} | {len(row.hidden)} |"
    )


def test_the_page_has_the_table_of_the_notebooks_batch(measured, request):
    # Another version of JAX may trace other steps; the page names the one that it shows.
    if request.node.callspec.params["measured"] == "notebook" and f"jax {jax.__version__};" in PAGE:
        assert own_score.table(list(measured.values())) in PAGE


def test_a_backward_pass_that_is_wrong_by_itself_is_refused(monkeypatch):
    right = backward.by_node

    def wrong(params, batch, nodes):
        gradients = right(params, batch, nodes)
        return gradients._replace(params=gradients.params._replace(b2=2 * gradients.params.b2))

    monkeypatch.setattr(backward, "by_node", wrong)
    with pytest.raises(JaxgradError, match="wrong in case 0 without a mistake"):
        next(own_score.rows([cases.random_case(0, batch_size=3, hidden=4)]))


@pytest.mark.parametrize("name", ["gpt", "gru"])
def test_models_over_sequences_are_scored_where_every_place_has_a_target(name):
    # Where none has, every cotangent is 0, and no mistake in that turn of a loop could show.
    model = models.record(name)
    for case in own_score.own_cases(model).values():
        assert (np.asarray(case.batch.Y) != model.ignored).any(0).all()
