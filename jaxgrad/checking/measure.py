"""A plain function's results in float64, and the noise that a type's arithmetic has there.

`expected` does the same for the answers of oracles; a function without a question is measured here.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.checking.compare import Noise, is_number
from jaxgrad.checking.draws import evaluated
from jaxgrad.checking.expected import measured
from jaxgrad.checking.pullback import Pulled
from jaxgrad.jaxprs.noise import EXACT, Draw
from jaxgrad.settings import compared_in

# (draws, arguments) -> results for each draw, every rounding drawn at random.
Shaken: TypeAlias = Callable[..., Iterator[Any]]


class Measured(NamedTuple):
    """A function's results in float64, as NumPy arrays, and in the same tree the `Noise` of each."""

    values: Any
    noise: Any


def shaken(fn: Callable[..., Any]) -> Shaken:
    """`fn` as `measure` evaluates it, compiled once for the shapes of its arguments."""
    return functools.partial(evaluated, fn, ())


def measure(run: Shaken, dtype: str, *args: Any) -> Measured:
    """What a function that `shaken` has prepared gives, exactly and with the roundings of a type.

    Arguments are trees of arrays; floats are taken to float64. It runs on the CPU, which has that type everywhere.
    Raises what the function raises.
    """
    with compared_in("float64"), jax.default_device(jax.devices("cpu")[0]):
        wide = jax.tree.map(_wide, args)
        values = next(run([Draw(EXACT, 0)], *wide))
        sampled = lambda draws: map(_as_outputs, run(draws, *wide))  # noqa: E731
        noise = measured(sampled, _as_outputs(values), dtype)
    return Measured(values, jax.tree.unflatten(jax.tree.structure(values), noise.outputs))


def _as_outputs(results: Any) -> Pulled:
    return Pulled(jax.tree.leaves(results), [], [])


def excess(own: np.ndarray, truth: np.ndarray, noise: Noise) -> float:
    """By how much a program's error in a type exceeds the noise that was measured for it, from 1 to 8.

    Measured noise takes roundings as independent. They are not where many rows are equal, and there are more of them
    where an engine keeps sums in a narrow type: what that makes of an oracle is the size of what it makes of others.
    """
    if not is_number(truth):
        return 1.0
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(np.asarray(own, truth.dtype) - truth)
    usable = np.isfinite(error) & ~noise.unsure
    made, predicted = float(np.sum(error[usable] ** 2)), float(np.sum(noise.deviation[usable] ** 2))
    return float(np.clip((made / predicted) ** 0.5, 1.0, 8.0)) if predicted else 1.0


def _wide(leaf: Any) -> Any:
    return jnp.asarray(leaf, jnp.float64 if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else None)
