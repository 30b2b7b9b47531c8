"""Times of several functions, taken in turns so that a busy moment of the machine hits them all."""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax


class Timing(NamedTuple):
    """Of the rounds of one call, in seconds or as ratios: their median, and the quartiles around it."""

    median: float
    low: float
    high: float


def rounds_of(
    calls: Mapping[str, Callable[[], Any]],
    rounds: int,
    pause: float = 0.0,
    tell: Callable[[int], None] = lambda at: None,
) -> dict[str, list[float]]:
    """Seconds of each call in each of `rounds` rounds, of at least 3, after one round that is not counted.

    A call's results are waited for. Before each call is a pause of so many seconds, in which the threads of the last
    one fall asleep. `tell` hears the number of each round before it, 0 for the one that is not counted. Raises
    `ValueError` for fewer rounds, which have no quartiles.
    """
    if rounds < 3:
        raise ValueError(f"{rounds} rounds have no quartiles; give at least 3")
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for at in range(rounds + 1):
        tell(at)
        # In another order each round, because what ran before a call, and the state it left, are part of its time.
        for name in random.Random(at).sample(list(calls), len(calls)):
            time.sleep(pause)
            began = time.perf_counter()
            jax.block_until_ready(calls[name]())
            if at:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def interleaved(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, Timing]:
    """The median and quartiles of `rounds_of` each call."""
    return {name: timing(taken) for name, taken in rounds_of(calls, rounds).items()}


def timing(values: Sequence[float]) -> Timing:
    """The median of at least two values, and the quartiles around it."""
    low, median, high = statistics.quantiles(values, n=4)
    return Timing(median, low, high)
