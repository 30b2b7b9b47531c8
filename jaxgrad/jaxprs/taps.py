"""Mark a value inside a function, so that its cotangent can be compared and the first wrong node named."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxgrad.errors import JaxgradError
from jaxgrad.jax_seam import ClosedJaxpr, Literal, jaxpr_as_fun

_PREFIX = "jaxgrad.tap:"

# PyTorch runs eagerly, so a torch reference's taps can only be caught while it runs; JAX's are found in its jaxpr.
_torch_taps: contextvars.ContextVar[dict[str, Any] | None] = contextvars.ContextVar("torch_taps", default=None)


def tap(name: str, x: Any) -> Any:
    """`x` itself, marked as the node `name`: a JAX array, or a PyTorch tensor in a torch reference.

    Outside of a check it does nothing. In a check, mark the same nodes under the same names in the function and
    in its references. Taps inside `scan`, `while_loop`, `cond` or a custom rule are not seen.
    """
    if isinstance(x, (jax.Array, jax.core.Tracer)):
        return checkpoint_name(x, _PREFIX + name)
    collected = _torch_taps.get()
    if collected is not None and getattr(x, "requires_grad", False):
        if name in collected:
            raise JaxgradError(f"the tap {name!r} is set twice; give every node a name of its own")
        collected[name] = x
    return x


@contextlib.contextmanager
def collecting_torch_taps() -> Iterator[dict[str, Any]]:
    """While open, tensors that pass through `tap` are kept by name."""
    collected: dict[str, Any] = {}
    token = _torch_taps.set(collected)
    try:
        yield collected
    finally:
        _torch_taps.reset(token)


def tapped(fn: Callable[..., Any], *args: Any) -> tuple[Callable[..., Any], dict[str, jax.Array]]:
    """`fn` with an array added at each of its taps, as `g(taps, *args)`, and zero taps by name, in forward order.

    The gradient with respect to a tap is its node's cotangent. `g` holds for arguments of these shapes and types.
    Raises `JaxgradError` for a name that is set twice.
    """
    closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
    zeros: dict[str, jax.Array] = {}
    for name, aval in _taps_in(closed):
        if name in zeros:
            raise JaxgradError(f"the tap {name!r} is set twice; give every node a name of its own")
        zeros[name] = jnp.zeros(aval.shape, aval.dtype)
    if not zeros:
        return lambda taps, *args: fn(*args), zeros
    structure = jax.tree.structure(shapes)

    def with_taps(taps: dict[str, jax.Array], *args: Any) -> Any:
        return jax.tree.unflatten(structure, _run(closed, jax.tree.leaves(args), taps))

    return with_taps, zeros


def _tap_name(eqn: Any) -> str | None:
    name = eqn.params.get("name") if eqn.primitive.name == "name" else None
    return name.removeprefix(_PREFIX) if isinstance(name, str) and name.startswith(_PREFIX) else None


def _inlined(eqn: Any) -> ClosedJaxpr | None:
    """The body of a nested jit, which taps are seen through."""
    inner = eqn.params.get("jaxpr")
    return inner if eqn.primitive.name in ("jit", "pjit") and isinstance(inner, ClosedJaxpr) else None


def _taps_in(closed: ClosedJaxpr) -> Iterator[tuple[str, Any]]:
    for eqn in closed.jaxpr.eqns:
        name, inner = _tap_name(eqn), _inlined(eqn)
        if name is not None:
            yield name, eqn.outvars[0].aval
        elif inner is not None:
            yield from _taps_in(inner)


def _run(closed: ClosedJaxpr, args: list[Any], taps: dict[str, jax.Array]) -> list[Any]:
    jaxpr = closed.jaxpr
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *args), strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else known[atom]

    for eqn in jaxpr.eqns:
        name, inner = _tap_name(eqn), _inlined(eqn)
        if name is not None:
            outs = [read(eqn.invars[0]) + taps[name]]
        elif inner is not None:
            outs = _run(inner, [read(atom) for atom in eqn.invars], taps)
        else:
            # A program of this one equation: run so, an operation keeps its custom rules.
            inputs = list(dict.fromkeys(atom for atom in eqn.invars if not isinstance(atom, Literal)))
            alone = jaxpr.replace(constvars=[], invars=inputs, outvars=eqn.outvars, eqns=[eqn])
            outs = jaxpr_as_fun(ClosedJaxpr(alone, []))(*(known[var] for var in inputs))
        known.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]
