"""Times of several functions, taken in turns so that a busy moment of the machine hits them all."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax


class Timing(NamedTuple):
    """Seconds of one call: the median of the rounds, and the quartiles around it."""

    median: float
    low: float
    high: float


def interleaved(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, Timing]:
    """Time each call once a round, for `rounds` rounds of at least 3, after one round that is not counted.

    A call's results are waited for. Raises `ValueError` for fewer rounds, which have no quartiles.
    """
    if rounds < 3:
        raise ValueError(f"{rounds} rounds have no quartiles; give at least 3")
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for at in range(rounds + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            jax.block_until_ready(call())
            if at:
                seconds[name].append(time.perf_counter() - began)
    return {name: _timing(taken) for name, taken in seconds.items()}


def _timing(seconds: list[float]) -> Timing:
    low, median, high = statistics.quantiles(seconds, n=4)
    return Timing(median, low, high)
