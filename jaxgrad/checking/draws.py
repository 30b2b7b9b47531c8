"""A function's results with its roundings drawn at random, for one draw after another."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxgrad.checking.programs import Program, run, traced
from jaxgrad.jax_seam import ClosedJaxpr
from jaxgrad.jaxprs import in_numpy
from jaxgrad.jaxprs.noise import EXACT, Draw, Rounding, noisy_now, repeated

# One call for several draws spares calls, fresh memory for each of them and copies; but it holds what all of them give.
_TOGETHER = 4
_MOST_TOGETHER = 2**22
# Seconds, of which the ratios matter: of an equation and its noise in NumPy, and for each of its numbers; to compile
# an equation by itself; to compile a program with its noise, and more for each of its equations.
_EQUATION, _NUMBER, _ALONE = 20e-6, 5e-9, 30e-3
_COMPILED, _COMPILED_EQUATION = 0.15, 6e-3
# Most programs are asked for some forty draws or eighty; that of a check's first row, in every type and for every seed,
# for a thousand, of which compiled ones take a third of the time. What was asked before does not count: the last digit
# of a report would hang on it.
_DRAWS = 60


def evaluated(fn: Callable[..., Any], static: tuple[Hashable, ...], draws: Sequence[Draw], *args: Any) -> Iterator[Any]:
    """The results of `fn(*static, *args)` for each draw, as NumPy arrays, keys as their data.

    `args` are trees of arrays. A small program is evaluated in NumPy; another is compiled once for their shapes.
    """
    program, structure = traced(fn, static, args)
    leaves = jax.tree.leaves(args)
    exact = in_numpy.if_normal(program, leaves) if _at_hand(program) else None
    if exact is not None:
        once, given = noisy_now(program), list(map(np.asarray, leaves))
        for draw in draws:
            results = exact if draw.rounding == EXACT else once(draw.seed, draw.rounding, *given)
            yield jax.tree.unflatten(structure, results)
        return
    # A pullback gives about as many numbers as it is given.
    length = _TOGETHER if sum(map(np.size, leaves)) <= _MOST_TOGETHER else 1
    for start in range(0, len(draws), length):
        part = draws[start : start + length]
        results = run(Program(repeated, (program,), (*_stacked(part, length), *leaves), times=length))
        arrays = list(map(np.asarray, results))
        yield from (jax.tree.unflatten(structure, [x[at] for x in arrays]) for at in range(len(part)))


def _at_hand(program: ClosedJaxpr) -> bool:
    """Whether the draws of a program are evaluated sooner in NumPy than it is compiled."""
    work = in_numpy.work(program)
    if work is None:
        return False
    taken = len(work.others) * _ALONE + _DRAWS * (work.equations * _EQUATION + work.numbers * _NUMBER)
    return taken <= _COMPILED + work.written * _COMPILED_EQUATION


def _stacked(draws: Sequence[Draw], length: int) -> tuple[np.ndarray, np.ndarray, Rounding]:
    """How many draws there are, their seeds and their roundings, for as many as are evaluated in one call."""
    padded = [*draws, *[draws[-1]] * (length - len(draws))]
    roundings = jax.tree.map(lambda *each: np.array(each), *(draw.rounding for draw in padded))
    return np.array(len(draws)), np.array([draw.seed for draw in padded], np.uint32), roundings
