"""Dropout whose backward draws the mask again."""

import functools
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxgrad.errors import JaxgradError

Residuals: TypeAlias = Key[Array, ""]


def dropout(x: Float[Array, "*shape"], key: Key[Array, ""], rate: float) -> Float[Array, "*shape"]:
    r"""`x / (1 - rate)` where a mask drawn from the key keeps it, 0 elsewhere.

    With $M_i = 1$ where a number is kept, of probability $1-\rho$, and $y = M x / (1-\rho)$, which has the mean $x$,
    $$dx = M \odot dy / (1-\rho) .$$

    `rate` is static. Residuals: the key; the backward draws the same mask from it, where autodiff keeps the mask.
    Raises `JaxgradError` for a rate outside of `[0, 1)`.
    Source: Srivastava et al. 2014; derivation ours.
    """
    if not 0 <= rate < 1:
        raise JaxgradError(f"rate is {rate}; it is a probability below 1")
    return _dropout(x, key, rate)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dropout(x: Float[Array, "*shape"], key: Key[Array, ""], rate: float) -> Float[Array, "*shape"]:
    return dropout_fwd(x, key, rate)[0]


def dropout_fwd(
    x: Float[Array, "*shape"], key: Key[Array, ""], rate: float
) -> tuple[Float[Array, "*shape"], Residuals]:
    """The output and the residual, the key."""
    return _masked(x, key, rate), key


def dropout_bwd(rate: float, key: Residuals, dy: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], None]:
    """Cotangent of `x`; a key has none."""
    return _masked(dy, key, rate), None


def _masked(x: Float[Array, "*shape"], key: Key[Array, ""], rate: float) -> Float[Array, "*shape"]:
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


_dropout.defvjp(dropout_fwd, dropout_bwd)
