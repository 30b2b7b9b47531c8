"""Compiled programs of the functions that are checked, kept as long as they are likely to be asked again."""

import contextlib
import functools
import gc
import math
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Executor, Future
from typing import Any, NamedTuple

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
# After so many new objects Python looks for garbage among the youngest, where it would after some hundreds.
_YOUNG = 100_000


@contextlib.contextmanager
def garbage_waits() -> Iterator[None]:
    """Python looks for cycles of unused objects more seldom meanwhile.

    A trace makes many objects, nearly all of which stay, and looking at all of them again and again takes a tenth of a
    check. What it was set to before holds again afterwards; where it was turned off, it stays so.
    """
    before = gc.get_threshold()
    young, *older = before
    if young:
        gc.set_threshold(max(young, _YOUNG), *older)
    try:
        yield
    finally:
        gc.set_threshold(*before)


class Program(NamedTuple):
    """The call `fn(*static, *args)`, to be compiled.

    With `quickly` it is compiled without optimisation where it is small, and its rounding may be another; without, as
    its users would have it. `times` is how often it does in one call what is small or not.
    """

    fn: Callable[..., Any]
    static: tuple[Hashable, ...]
    args: tuple[Any, ...]
    quickly: bool = True
    times: int = 1


def run(program: Program) -> Any:
    """What a program gives. It is compiled once for the shapes of its arguments.

    Raises what the compiler or the program raises.
    """
    chosen = _chosen(program)
    for executable in _begun(*chosen.place):
        return executable.result()(*program.args)
    return chosen.jitted(*program.args)


def begin(program: Program, pool: Executor) -> None:
    """Trace a program, and have another thread compile it before it is `run`: XLA needs no lock of Python's.

    Whoever opens the pool waits for its threads, so that nothing which was begun is left undone.
    """
    chosen = _chosen(program)
    begun = _begun(*chosen.place)
    if not begun:
        begun.append(pool.submit(chosen.jitted.lower(*program.args).compile))


class _Chosen(NamedTuple):
    """A function compiled with the options that were chosen for it, and what tells its executable from others."""

    jitted: Any
    place: tuple[Hashable, ...]


def _chosen(program: Program) -> _Chosen:
    usual = compiled(program.fn, *program.static)
    traced = usual.trace(*program.args).jaxpr
    quick = program.quickly and _numbers(traced) <= _SMALL * program.times
    options = jax_seam.quick_options() if quick else ()
    shardings = tuple(getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(program.args))
    jitted = compiled(program.fn, *program.static, options=options) if options else usual
    return _Chosen(jitted, (traced, options, shardings))


@functools.lru_cache(maxsize=_KEPT)
def _begun(traced: Any, options: Hashable, shardings: Hashable) -> list[Future[Any]]:
    """The executable of a program that was begun; of one that was not, an empty list to put it in."""
    return []


def traced(fn: Callable[..., Any], static: tuple[Hashable, ...], args: tuple[Any, ...]) -> tuple[Any, Any]:
    """The jaxpr of the call `fn(*static, *args)` and the tree of its results; traced once for the shapes of `args`."""
    found = compiled(fn, *static).trace(*args)
    return found.jaxpr, jax.tree.structure(found.out_info)


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
    return _of_jaxpr(program.jaxpr, looped=False)


def _of_jaxpr(jaxpr: Any, *, looped: bool) -> float:
    return sum(_of_equation(eqn, looped) for eqn in jaxpr.eqns)


def _of_equation(eqn: Any, looped: bool) -> float:
    scan = jax_seam.scan(eqn)
    is_loop = bool(scan or jax_seam.while_loop(eqn))
    turns = scan.length if scan else _TURNS if is_loop else 1
    within = turns * sum(_of_jaxpr(inner, looped=looped or is_loop) for inner in jax_seam.inner(eqn))
    # Of a convolution inside of a loop, XLA writes out every term; elsewhere a library sums them.
    terms = jax_seam.convolved(eqn) if looped and jax_seam.name(eqn) == "conv_general_dilated" else 1
    return within + terms * sum(math.prod(getattr(var.aval, "shape", ())) for var in eqn.outvars)
