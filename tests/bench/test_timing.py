"""Rounds are interleaved, and the first is not counted."""

import pytest

from jaxgrad.bench.timing import interleaved


def test_calls_take_turns_and_one_more_round_than_is_counted_runs():
    order = []
    timings = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3)
    turns = list(zip(order[::2], order[1::2], strict=True))
    # Each round has both, not always in one order.
    assert len(turns) == 4 and set(turns) == {("a", "b"), ("b", "a")}
    assert all(0 < t.low <= t.median <= t.high for t in timings.values())


def test_too_few_rounds_are_refused():
    with pytest.raises(ValueError, match="2 rounds have no quartiles"):
        interleaved({}, rounds=2)
