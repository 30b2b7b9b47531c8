"""A function's results with its roundings drawn at random, for one draw after another."""

import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxgrad.checking.programs import Program, run
from jaxgrad.jaxprs.noise import Draw, Rounding, repeated

# One call for several draws spares calls, fresh memory for each of them and copies; but it holds what all of them give.
_TOGETHER = 4
_MOST_TOGETHER = 2**22


def evaluated(fn: Callable[..., Any], static: tuple[Hashable, ...], draws: Sequence[Draw], *args: Any) -> Iterator[Any]:
    """The results of `fn(*static, *args)` for each draw, as NumPy arrays, keys as their data.

    It is compiled once for the shapes of `args`, trees of arrays.
    """
    given = sum(np.size(leaf) for leaf in jax.tree.leaves(args))
    # A pullback gives about as many numbers as it is given.
    length = _TOGETHER if given <= _MOST_TOGETHER else 1
    for start in range(0, len(draws), length):
        part = draws[start : start + length]
        results = run(Program(_repeated, (fn, static), (*_stacked(part, length), *args), times=length))
        arrays = jax.tree.map(np.asarray, results)
        yield from (jax.tree.map(lambda leaf, at=at: leaf[at], arrays) for at in range(len(part)))


def _stacked(draws: Sequence[Draw], length: int) -> tuple[np.ndarray, np.ndarray, Rounding]:
    """How many draws there are, their seeds and their roundings, for as many as are evaluated in one call."""
    padded = [*draws, *[draws[-1]] * (length - len(draws))]
    roundings = jax.tree.map(lambda *each: np.array(each), *(draw.rounding for draw in padded))
    return np.array(len(draws)), np.array([draw.seed for draw in padded], np.uint32), roundings


def _repeated(
    fn: Callable[..., Any], static: tuple[Hashable, ...], count: Any, seeds: Any, roundings: Rounding, *args: Any
) -> Any:
    program, shapes = jax.make_jaxpr(functools.partial(fn, *static), return_shape=True)(*args)
    results = repeated(program)(count, seeds, roundings, *jax.tree.leaves(args))
    return jax.tree.unflatten(jax.tree.structure(shapes), results)
