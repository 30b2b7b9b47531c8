"""Losses that rounding explains agree; a wrong one is told from the others."""

import numpy as np
import pytest

from jaxgrad import corpus
from jaxgrad.bench.agreement import judge, tolerances
from jaxgrad.bench.task import Size, task
from jaxgrad.models.mlp.record import MODEL
from jaxgrad.models.mlp.sizes import Sizes

LIMITS = np.full(3, 1e-6)


def test_all_are_right_where_they_differ_by_less_than_the_tolerance():
    judged = judge({"a": np.array([3.0, 2.0, 1.0]), "b": np.array([3.0, 2.0, 1.0 + 1e-6])}, LIMITS)
    assert judged["b"].worst == pytest.approx(0.5) and judged["b"].loss == 1.0 + 1e-6


def test_one_that_strays_is_wrong_at_the_step_where_it_is_farthest():
    honest = np.array([3.0, 2.0, 1.0])
    judged = judge({"a": honest, "b": honest, "c": honest + np.array([0, 1e-3, 1e-4])}, LIMITS)
    assert judged["a"].worst == judged["b"].worst == 0
    assert judged["c"].worst == pytest.approx(1000) and judged["c"].at == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_no_number_is_wrong_and_spoils_no_other(value: float):
    honest = np.array([3.0, 2.0, 1.0])
    judged = judge({"a": honest, "b": honest, "c": np.array([3.0, value, value])}, LIMITS)
    assert judged["a"].worst == judged["b"].worst == 0 and judged["c"].worst > 1


def test_tolerances_grow_with_the_steps_and_stay_near_roundoff():
    own = task(MODEL, Size("own", 8, Sizes(hidden=16)), lambda sizes: corpus.load(corpus.shipped("names.txt")))
    limits = tolerances(own, 100)
    assert limits.shape == (101,) and (np.diff(limits) > 0).all()
    # A few roundings of a loss near 3.4, each of 4 eps; a hundred steps add what they add, but no more than a digit.
    assert 4 * 2.0**-23 < limits[0] < limits[100] < 10 * limits[0]
