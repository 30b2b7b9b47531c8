"""A function's outputs, and the cotangents of its inputs and taps: what every engine gives, and how JAX makes it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxgrad.checking.question import numbers_of
from jaxgrad.errors import JaxgradError
from jaxgrad.jaxprs.taps import tapped


class Pulled(NamedTuple):
    """What a pullback gives: outputs, cotangents of tapped nodes in backward order, cotangents of inputs."""

    outputs: list[Any]
    nodes: list[Any]
    inputs: list[Any]


def pull(
    fn: Callable[[list[Any], list[Any]], Any],
    inputs: list[Any],
    carried: list[Any],
    dys: list[Any],
    wrap: Callable[..., Any] = lambda fn: fn,
) -> Pulled:
    """Outputs, and the cotangents for the cotangents `dys` of the float and complex outputs, in order of the leaves.

    `fn` is a function of two lists, as `question.applied` makes it. `wrap` transforms it together with its taps,
    which hide from the outside of a transformation. Raises `JaxgradError` where the outputs have not the shapes of
    `dys`, and what JAX raises.
    """
    with_taps, zeros = tapped(fn, inputs, carried, in_scans=True)

    def of_inputs(inputs: list[Any], taps: dict[str, Any]) -> tuple[list[Any], Any]:
        out = wrap(with_taps)(taps, inputs, carried)
        return numbers_of(out), out

    ys, vjp, out = jax.vjp(of_inputs, inputs, zeros, has_aux=True)
    given, own = [dy.shape for dy in dys], [y.shape for y in ys]
    if own != given:
        raise JaxgradError(
            f"the reference has float outputs of shapes {own}, and the function {given}; make them equal"
        )
    dinputs, dtaps = vjp([jnp.asarray(dy, y.dtype) for dy, y in zip(dys, ys, strict=True)])
    # A backward pass forms the cotangents of the last nodes first.
    return Pulled(jax.tree.leaves(out), [dtaps[name] for name in reversed(zeros)], dinputs)


def pull_again(
    fn: Callable[[list[Any], list[Any]], Any],
    inputs: list[Any],
    carried: list[Any],
    dys: list[Any],
    directions: list[Any],
) -> Pulled:
    """Second order: the pullback of the inner product of the first cotangents with `directions`."""
    slope, vjp = jax.vjp(lambda inputs: inner_product(directions, pull(fn, inputs, carried, dys).inputs), inputs)
    return Pulled([], [], vjp(jnp.ones((), slope.dtype))[0])


def inner_product(a: list[Any], b: list[Any]) -> Any:
    """The real part of the sum of all products, JAX's pairing of a tangent and a cotangent: without a conjugate."""
    return sum(jnp.real(jnp.vdot(jnp.conj(x.astype(y.dtype)), y)) for x, y in zip(a, b, strict=True))
