r"""The definition of a derivative as a test: how fast Taylor's remainder falls tells a right gradient from a wrong one.

$$R(h) = \bigl|f(x + hv) - f(x) - h\,\langle g, v\rangle\bigr|$$
falls with $h^2$ where $g = \nabla f(x)$ and with $h$ where it is not. The rate is measured over many h at once, so
no step size has to be chosen and no tolerance guessed.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgrad.jaxprs.rounding import accumulated

# Halvings of h from 2^-1: enough for the remainder to reach the rounding of f in float64 from any starting size.
_HALVINGS = 40


def remainder_orders(
    f: Callable[[Any], Float[Array, ""]], x: Any, gradients: Mapping[str, Any], directions: list[Any]
) -> dict[str, list[float]]:
    """The power of h with which Taylor's remainder of `f` at `x` falls: 2 or more, or 1; of each gradient, by name,
    along each direction.

    `x`, gradients and directions are trees of float64 arrays of the same shapes; `f` is traceable by JAX. Only
    remainders well above the rounding of f count, the smallest of them most; where there are none, f is linear
    along the direction up to rounding with just this gradient, and the order is infinite.
    Raises `ValueError` where x is not float64: in float32 rounding buries the remainder before it shows its rate.
    """
    if any(leaf.dtype != np.float64 for leaf in jax.tree.leaves(x)):
        raise ValueError("Taylor's remainder needs float64; convert x, and enable 64-bit types in JAX")
    steps = 2.0 ** -np.arange(1, _HALVINGS + 1)

    def along(direction: Any, h: Float[Array, ""]) -> Float[Array, ""]:
        return f(jax.tree.map(lambda leaf, v: leaf + h * v, x, direction))

    at_x, variance = (float(out) for out in accumulated(f, x))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *directions)
    values = jax.jit(jax.vmap(jax.vmap(along, (None, 0)), (0, None)))(stacked, jnp.asarray(steps))
    return {
        name: [
            _order(np.asarray(of_h), at_x, variance, steps, _inner_product(gradient, direction))
            for of_h, direction in zip(values, directions, strict=True)
        ]
        for name, gradient in gradients.items()
    }


def _inner_product(a: Any, b: Any) -> float:
    return sum(float(np.vdot(x, y)) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def _order(values: np.ndarray, at_x: float, variance: float, steps: np.ndarray, slope: float) -> float:
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
