r"""The definition of a derivative as a test: how fast Taylor's remainder falls tells a right gradient from a wrong one.

$$R(h) = \bigl|f(x + hv) - f(x) - h\,\langle g, v\rangle\bigr|$$
falls with $h^2$ where $g = \nabla f(x)$ and with $h$ where it is not. The rate is measured over many h at once, so
no step size has to be chosen and no tolerance guessed.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgrad.parity.rounding import accumulated

# Halvings of h from 2^-1: enough for the remainder to reach the rounding of f in float64 from any starting size.
_HALVINGS = 40


def remainder_order(f: Callable[[Any], Float[Array, ""]], x: Any, gradient: Any, direction: Any) -> float:
    """The power of h with which Taylor's remainder of `f` at `x` falls along `direction`: 2 or more, or 1.

    `x`, `gradient` and `direction` are trees of float64 arrays of the same shapes; `f` is traceable by JAX. Only
    remainders well above the rounding of f count, the smallest of them most; where there are none, f is linear
    along `direction` up to rounding with just this gradient, and the order is infinite.
    Raises `ValueError` where x is not float64: in float32 rounding buries the remainder before it shows its rate.
    """
    if any(leaf.dtype != np.float64 for leaf in jax.tree.leaves(x)):
        raise ValueError("Taylor's remainder needs float64; convert x, and enable 64-bit types in JAX")
    steps = 2.0 ** -np.arange(1, _HALVINGS + 1)

    def along(h: Float[Array, ""]) -> Float[Array, ""]:
        return f(jax.tree.map(lambda leaf, v: leaf + h * v, x, direction))

    values = np.asarray(jax.jit(jax.vmap(along))(jnp.asarray(steps)))
    at_x, variance = (float(out) for out in accumulated(f, x))
    slope = sum(float(np.vdot(g, v)) for g, v in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
    remainders = np.abs(values - at_x - steps * slope)
    # Below four standard deviations of the rounding error of f, twice, a remainder is noise.
    noise = 8 * np.finfo(np.float64).eps * (np.sqrt(variance) + np.abs(values - at_x) + steps * abs(slope))
    above = np.flatnonzero(remainders > noise)
    # A rate needs a run of neighbouring steps; a lone one above the noise is noise too.
    if len(above) < 4:
        return float("inf")
    last = above[-4:]
    return float(np.polyfit(np.log2(steps[last]), np.log2(remainders[last]), 1)[0])


def random_direction(key: PRNGKeyArray, like: Any) -> Any:
    """A tree of standard normal arrays of the shapes and types of `like`."""
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    drawn = [jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)
