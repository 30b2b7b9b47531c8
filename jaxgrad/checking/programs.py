"""Compiled programs of the functions that are checked, kept as long as they are likely to be asked again."""

import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax

# About those of the last four checks: a setting more, a seed more or the same check again compiles nothing. Each holds
# memory mappings, of which Linux gives a process 65,530 in all: a suite of a hundred checks that kept every program
# would end there, in a crash.
_KEPT = 64


@functools.lru_cache(maxsize=_KEPT)
def compiled(fn: Callable[..., Any], *static: Hashable) -> Callable[..., Any]:
    """`fn` with its first arguments fixed, as a compiled function of the others; the same one when asked again."""
    return jax.jit(functools.partial(fn, *static))
