"""No mistake in our own backward passes escapes parity, and README's table of what zeros would hide is measured."""

from pathlib import Path

import pytest

from jaxgrad.parity import cases
from jaxgrad.parity.mutate import describe
from jaxgrad.parity.own_score import SQUARE, rows, table, zeros_and_ones

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def measured(seeded_case):
    return list(rows([seeded_case()], {}))


def test_every_mutant_that_is_not_equivalent_is_killed_on_the_notebooks_batch(measured):
    assert [row.name for row in measured[:2]] == ["by_node", "fused"]
    for row in measured:
        assert not row.score.survived, f"{row.name}: {describe(row.score)}"


def test_readme_shows_what_was_measured(measured):
    assert table(measured) in README


def test_zeros_and_ones_hide_more_than_half_of_the_mistakes_in_a_whole_backward_pass(measured):
    for row in measured[:2]:
        assert len(row.hidden) > len(row.score.killed) / 2


def test_where_all_sizes_are_equal_more_mistakes_fit_and_none_escapes():
    for row in rows([cases.random_case(0, **SQUARE)], SQUARE):
        assert not row.score.survived, f"{row.name}: {describe(row.score)}"


def test_the_usual_initialisation_changes_what_it_says_and_nothing_else(seeded_case):
    case = seeded_case(batch_size=3, h_size=4)
    params = zeros_and_ones(case).params
    assert not params.W2.any() and not params.b2.any() and not params.bn_bias.any() and (params.bn_gain == 1).all()
    assert params.C is case.params.C and params.W1 is case.params.W1
