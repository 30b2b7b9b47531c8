"""Where a program computes in a narrower type than it was given."""

import linecache
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

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
    """Where a program traced in float64 computes in the narrowest type; None where it does in float64 alone.

    A conversion counts, and an operation that is asked for results in a narrower type. A constant of a narrower type
    that a function closes over does where it is widened: it is known no better.
    """
    return min(_casts(program.jaxpr), key=lambda cast: -float(jnp.finfo(cast.dtype).eps), default=None)


def _casts(program: Any) -> Iterator[Cast]:
    for eqn in program.eqns:
        for body in jax_seam.inner(eqn):
            yield from _casts(body)
        given = [dtype for atom in eqn.invars if (dtype := _float_of(atom)) is not None]
        made = [dtype for var in eqn.outvars if (dtype := _float_of(var)) is not None]
        converts = jax_seam.name(eqn) == "convert_element_type"
        if not given or not made or not (converts or _eps(min(given, key=_eps)) < _eps(max(made, key=_eps))):
            continue
        narrow = max((*given, *made), key=_eps)
        if _eps(narrow) > 2.0**-50:
            yield _cast(narrow, eqn)


def _float_of(atom: Any) -> Any:
    """The float or complex type of an operand or result; None for what has no such type."""
    dtype = getattr(atom.aval, "dtype", None)
    return dtype if dtype is not None and jnp.issubdtype(dtype, jnp.inexact) else None


def _eps(dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps)


def _cast(dtype: Any, eqn: Any) -> Cast:
    frames = [frame for frame in jax_seam.frames(eqn) if not frame.file.startswith(_OURS)]
    file, line = (frames[0].file, frames[0].line) if frames else ("", 0)
    return Cast(str(jnp.finfo(dtype).dtype), file, line)


def written_in_float32(program: ClosedJaxpr) -> Cast | None:
    """The first number in a program traced in float64 that was rounded to float32; None where there is none.

    `x * jnp.float32(0.1)` is such a program. A number of few digits, such as 0.5, may be exact.
    """
    return next(_written(program.jaxpr), None)


def _written(program: Any) -> Iterator[Cast]:
    for eqn in program.eqns:
        for body in jax_seam.inner(eqn):
            yield from _written(body)
        for atom in eqn.invars:
            if not jax_seam.literal(atom) or _float_of(atom) != np.float64:
                continue
            value = np.float64(atom.val)
            with np.errstate(over="ignore"):
                narrow, few_digits = value.astype(np.float32), value.astype(jnp.bfloat16)
            if value == narrow and value != few_digits:
                yield _cast(np.float32, eqn)


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
