"""Compiled programs of the functions that are checked, kept as long as they are likely to be asked again."""

import functools
import math
from collections.abc import Callable, Hashable
from typing import Any

import jax

from jaxgrad import jax_seam

# About those of the last four checks: a setting more, a seed more or the same check again compiles nothing. Each holds
# memory mappings, of which Linux gives a process 65,530 in all: a suite of a hundred checks that kept every program
# would end there, in a crash.
_KEPT = 64
# A program of fewer numbers than this takes less time to run than XLA takes to optimise it: some 5 ns a number without
# optimisation, 1 ns with it, and 0.1 s or more to make the difference.
_SMALL = 2**24
# As many turns are counted of a loop that a condition ends: an iteration that converges seldom takes more.
_TURNS = 2**10


def run(fn: Callable[..., Any], static: tuple[Hashable, ...], *args: Any) -> Any:
    """`fn(*static, *args)`, compiled as its users would have it."""
    return compiled(fn, *static)(*args)


def run_quickly(fn: Callable[..., Any], static: tuple[Hashable, ...], *args: Any, times: int = 1) -> Any:
    """`fn(*static, *args)`, compiled without optimisation where it is small: its rounding may be another.

    `times` is how often it does in one call what is small or not.
    """
    usual = compiled(fn, *static)
    small = _numbers(usual.trace(*args).jaxpr) <= _SMALL * times
    return (compiled(fn, *static, options=jax_seam.quick_options()) if small else usual)(*args)


@functools.lru_cache(maxsize=_KEPT)
def compiled(fn: Callable[..., Any], *static: Hashable, options: tuple[tuple[str, Any], ...] = ()) -> Any:
    """`fn` with its first arguments fixed, as a compiled function of the others; the same one when asked again."""
    return jax.jit(_fixed(fn, *static), compiler_options=dict(options))


@functools.lru_cache(maxsize=_KEPT)
def _fixed(fn: Callable[..., Any], *static: Hashable) -> Callable[..., Any]:
    # One object for both ways of compiling, so that JAX traces it once.
    return functools.partial(fn, *static)


@functools.lru_cache(maxsize=_KEPT)
def _numbers(program: Any) -> float:
    """About how many numbers a program computes, those of a loop in every turn."""
    return _of_jaxpr(program.jaxpr)


def _of_jaxpr(jaxpr: Any) -> float:
    return sum(_of_equation(eqn) for eqn in jaxpr.eqns)


def _of_equation(eqn: Any) -> float:
    scan = jax_seam.scan(eqn)
    turns = scan.length if scan else _TURNS if jax_seam.while_loop(eqn) else 1
    within = turns * sum(map(_of_jaxpr, jax_seam.inner(eqn)))
    return within + sum(math.prod(getattr(var.aval, "shape", ())) for var in eqn.outvars)
