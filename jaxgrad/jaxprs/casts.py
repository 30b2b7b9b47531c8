"""Where a program computes in a narrower type than it was given."""

import linecache
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxgrad import jax_seam
from jaxgrad.jax_seam import ClosedJaxpr

_CUSTOM_JVP = ("custom_jvp_call",)
_CUSTOM_VJP = ("custom_vjp_call", "custom_vjp_call_jaxpr")
CUSTOM_RULES = _CUSTOM_JVP + _CUSTOM_VJP

# A check calls the function from here.
_OURS = tuple(str(Path(__file__).parents[1] / room) for room in ("checking", "jaxprs"))


class Cast(NamedTuple):
    """A conversion to a narrower float type, and the line that made it; no file where that is not known."""

    dtype: str
    file: str
    line: int

    def __str__(self) -> str:
        if not self.file:
            # JAX keeps no lines of a custom rule's backward pass, only that of the call.
            return "in a rule of its own"
        text = linecache.getline(self.file, self.line).strip()
        return f"{Path(self.file).name}:{self.line}" + (f", `{text}`" if text else "")


def narrowest(program: ClosedJaxpr) -> Cast | None:
    """The conversion from float64 to the narrowest type in a program traced in float64; None where there is none.

    A constant of a narrower type that a function closes over counts, where it is widened: it is known no better.
    """
    return min(_casts(program.jaxpr), key=lambda cast: -float(jnp.finfo(cast.dtype).eps), default=None)


def _casts(program: Any) -> Iterator[Cast]:
    for eqn in program.eqns:
        for body in jax_seam.inner(eqn):
            yield from _casts(body)
        if jax_seam.name(eqn) != "convert_element_type":
            continue
        types = [getattr(eqn.invars[0].aval, "dtype", None), eqn.outvars[0].aval.dtype]
        if not all(dtype is not None and jnp.issubdtype(dtype, jnp.inexact) for dtype in types):
            continue
        narrow = max(types, key=lambda dtype: float(jnp.finfo(dtype).eps))
        if float(jnp.finfo(narrow).eps) > 2.0**-50:
            frames = [frame for frame in jax_seam.frames(eqn) if not frame.file.startswith(_OURS)]
            file, line = (frames[0].file, frames[0].line) if frames else ("", 0)
            yield Cast(str(jnp.finfo(narrow).dtype), file, line)


def holds(program: Any, names: Sequence[str]) -> bool:
    """Whether a program, or one inside it, has a primitive of one of these names."""
    return any(
        jax_seam.name(eqn) in names or any(holds(body, names) for body in jax_seam.inner(eqn)) for eqn in program.eqns
    )


def has_custom_jvp(program: ClosedJaxpr) -> bool:
    """Whether a forward program has a rule of `jax.custom_jvp` in it, and so a forward mode of its own."""
    return holds(program, _CUSTOM_JVP)


def has_custom_vjp(program: ClosedJaxpr) -> bool:
    """Whether a forward program has a rule of `jax.custom_vjp` in it, which has no forward mode."""
    return holds(program, _CUSTOM_VJP)
