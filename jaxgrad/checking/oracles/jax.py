"""JAX's answer to a question: the pullback of a plain function, exactly in float64, and with its rounding at random."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.checking.draws import evaluated
from jaxgrad.checking.oracles import Oracle, Samples
from jaxgrad.checking.programs import Program, run
from jaxgrad.checking.pullback import Pulled, pull, pull_again
from jaxgrad.checking.question import Question, output_names
from jaxgrad.jaxprs.noise import Draw
from jaxgrad.jaxprs.taps import tapped

Function: TypeAlias = Callable[[list[Any], list[Any]], Any]


def jax_oracle(name: str, fn: Function) -> Oracle:
    """A plain JAX function, as `question.applied` makes it, as an oracle."""

    def answered(q: Question, second: bool) -> tuple[Pulled, list[str]]:
        return pulled(fn, q, second), [] if second else node_names(fn, q)

    def sampled(q: Question, second: bool) -> Samples:
        return functools.partial(rounded, fn, q, second)

    return Oracle(name, answered, sampled, lambda q: node_names(fn, q), fn)


def pulled(fn: Function, question: Question, second: bool) -> Pulled:
    """The pullback in the question's own type; `second` asks for second order."""
    return on_host(run(pullback(fn, question, second)))


def pullback(fn: Function, question: Question, second: bool, as_used: bool = False) -> Program:
    """The program that `pulled` runs; compiled as those who use the function compile it where it is to be `as_used`."""
    return Program(_traced, (fn, second), (question,), quickly=not as_used)


def step_by_step(fn: Function, question: Question) -> Pulled:
    """The pullback in the question's own type, every operation a program of its own."""
    with jax.disable_jit():
        return on_host(_traced(fn, False, jax.tree.map(jnp.asarray, question)))


def called(fn: Function, question: Question) -> list[np.ndarray]:
    """The outputs of a call that is not differentiated, in the question's own type."""
    return on_host(run(Program(_called, (fn,), (question.inputs, question.carried))))


def rounded(fn: Function, question: Question, second: bool, draws: Sequence[Draw]) -> Iterator[Pulled]:
    """The pullback of a float64 question for each draw, its roundings drawn at random; `EXACT` rounds nothing."""
    return evaluated(_traced, (fn, second), draws, question)


def program(fn: Function, question: Question, second: bool) -> Any:
    """The jaxpr of the pullback at a question."""
    return jax.make_jaxpr(functools.partial(_traced, fn, second))(question)


def node_names(fn: Function, question: Question) -> list[str]:
    """The names of a function's taps, in backward order."""
    return list(reversed(tapped(fn, question.inputs, question.carried, in_scans=True)[1]))


def names_of_outputs(fn: Function, question: Question) -> list[str]:
    """A name for every leaf of what a function returns."""
    return output_names(jax.eval_shape(fn, question.inputs, question.carried))


def on_host(tree: Any) -> Any:
    """The tree with NumPy arrays for JAX's; keys, of which NumPy has no type, as their data."""
    return jax.tree.map(_host, tree)


def _host(leaf: Any) -> np.ndarray:
    if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def _traced(fn: Function, second: bool, question: Question) -> Pulled:
    if second:
        return pull_again(fn, *question)
    return pull(fn, question.inputs, question.carried, question.dys)


def _called(fn: Function, inputs: list[Any], carried: list[Any]) -> list[Any]:
    return jax.tree.leaves(fn(inputs, carried))
