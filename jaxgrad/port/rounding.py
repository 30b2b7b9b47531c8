"""What float64's rounding makes of each value of a recorded run: Monte Carlo arithmetic on its flat list of operations.

The program is run again beside itself, with each result times 1 + u xi, where u is the unit roundoff and xi a normal
number, and with the terms of sums shaken likewise: as much more as their partial sums are rounded, sqrt(1 + n/2) for n
terms one after another. The distance of the two runs is what another order of the same operations may make.

Sources: as of `jaxgrad.jaxprs.noise`, which compiles its program for many samples. Here it is run once, in NumPy.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxgrad.jaxprs.noise import MOVES, RUN
from jaxgrad.port import fingerprint
from jaxgrad.port.jax_values import Op, Recorded, float64
from jaxgrad.port.values import as_float64

# Two programs that compute the same in other ways differ by some rounding of either: by at most so many times what is
# measured, and never by more than the coarsest tolerance. Most values' rounding is far below the finest, and a wrong
# epsilon of 1e-6 in the place of 1e-5 above it, so rounding is measured only where a value is off by a little more.
TIMES, FINEST, COARSEST = 16.0, 1e-13, 1e-6
_UNIT = 2.0**-53
_SAMPLES = 2
# How many normal numbers are drawn for an array; a larger one has them again.
_DRAWN = 2**16 - 15
# Operations that take weights.
PRODUCTS = ("dot_general", "conv_general_dilated")
_SUMMED = frozenset((*PRODUCTS, *"reduce_sum cumsum reduce_window_sum scatter-add".split()))


class Noise:
    """The tolerance within which values of two runs agree, measured on demand: relative errors by number of either.

    `used` is the largest that was needed so far.
    """

    def __init__(self, own: Callable[[], Mapping[int, float]], other: Callable[[], Mapping[int, float]]) -> None:
        self.own, self.other = functools.cache(own), functools.cache(other)
        self.used = FINEST

    def tolerance(self, own: int, other: int) -> float:
        """The tolerance for a value of the first run and one of the second, by their numbers."""
        larger = max(self.own().get(own, 0.0), self.other().get(other, 0.0))
        tolerance = min(max(TIMES * larger, FINEST), COARSEST)
        self.used = max(self.used, tolerance)
        return tolerance

    def agree(self, own: int, other: int, within: Callable[[float], bool]) -> bool:
        """Whether two values agree within the finest tolerance, or, where they nearly do, within their own."""
        if within(FINEST):
            return True
        return within(COARSEST) and (tolerance := self.tolerance(own, other)) > FINEST and within(tolerance)


def noise_of(recorded: Recorded) -> dict[int, float]:
    """The largest error of each float value by number, of the largest of its ordinary numbers, over some samples.

    Values of a run that was let go are computed again, and let go again.
    """
    found: dict[int, float] = {}
    for sample in range(_SAMPLES):
        for n, noise in _sampled(recorded, np.random.default_rng((sample, 11))).items():
            found[n] = max(found.get(n, 0.0), noise)
    return found


def _sampled(recorded: Recorded, rng: np.random.Generator) -> dict[int, float]:
    program, found = recorded.program, dict[int, float]()
    made = {n for op in program.ops for n in op.results}
    last = {n: k for k, op in enumerate(program.ops) for n in op.operands}
    shaken: dict[int, Any] = {}
    with float64(), np.errstate(all="ignore"):
        for k, op in enumerate(program.ops):
            exact = [recorded.values[n] for n in op.operands]
            given = [shaken.get(n, x) for n, x in zip(op.operands, exact, strict=True)]
            for n, x in zip(op.results, _rounded(op, given, recorded.floats, rng), strict=True):
                shaken[n] = x
                if n in recorded.floats:
                    found[n] = fingerprint.largest_error(as_float64(x), as_float64(recorded.values[n]))
            for n in op.operands:
                if last[n] == k and n in made:
                    shaken.pop(n, None)
    return found


def _rounded(op: Op, given: list[Any], floats: frozenset[int], rng: np.random.Generator) -> list[Any]:
    """What an operation gives with its roundings drawn."""
    if op.name.replace("-", "_") in MOVES or op.eqn is None or floats.isdisjoint(op.results):
        return op.run(given)
    if op.name in _SUMMED:
        terms = np.size(given[0]) / max(math.prod(op.eqn.outvars[0].aval.shape), 1)
        if op.name in PRODUCTS:
            terms = math.sqrt(terms * np.size(given[1]))
        growth = math.sqrt(1 + min(terms, RUN) / 2)
        at = len(given) - 1 if op.name == "scatter-add" else 0
        given[at] = _shaken(given[at], growth * _UNIT, rng)
    return [_shaken(x, _UNIT, rng) if n in floats else x for n, x in zip(op.results, op.run(given), strict=True)]


def _shaken(x: Any, unit: float, rng: np.random.Generator) -> np.ndarray:
    array = np.asarray(x)
    if array.dtype != np.float64:
        return array
    return array * (1 + unit * np.resize(rng.standard_normal(min(array.size, _DRAWN) or 1), array.shape))
