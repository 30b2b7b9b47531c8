"""Rounds are interleaved, and the first is not counted."""

import pytest

from jaxgrad.bench.timing import interleaved


def test_calls_take_turns_and_one_more_round_than_is_counted_runs():
    order = []
    timings = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3)
    assert order == ["a", "b"] * 4
    assert all(0 < t.low <= t.median <= t.high for t in timings.values())


def test_too_few_rounds_are_refused():
    with pytest.raises(ValueError, match="2 rounds have no quartiles"):
        interleaved({}, rounds=2)
