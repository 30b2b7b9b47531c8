"""Division of a row by its Euclidean norm."""

import functools
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgrad.ops.precision import widen

Residuals: TypeAlias = tuple[Float[Array, "*batch d"], Float[Array, "*batch 1"]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def l2_normalize(x: Float[Array, "*batch d"], eps: float = 1e-12) -> Float[Array, "*batch d"]:
    r"""`x / max(norm(x), eps)` over the last axis.

    With $r = 1/\max(\|x\|, \varepsilon)$ and $y = r x$: where the norm is larger, $\partial r/\partial x_j = -r^3 x_j$,
    $$dx = r\,\Bigl(dy - y \sum_j dy_j\,y_j\Bigr),$$
    and elsewhere $r$ is constant and $dx = r\,dy$. So a row of zeros gives zeros, and finite cotangents, where
    autodiff through the root has NaN.

    Computed in float32 at least; `eps` is static. Residuals: `x` and one number a row, `r`.
    Source: `torch.nn.functional.normalize`; derivation ours.
    """
    return l2_normalize_fwd(x, eps)[0]


def l2_normalize_fwd(x: Float[Array, "*batch d"], eps: float = 1e-12) -> tuple[Float[Array, "*batch d"], Residuals]:
    """The output and the residuals `(x, r)`."""
    wide = widen(x)
    squares = (wide * wide).sum(-1, keepdims=True)
    large = squares > eps * eps
    # The root of a sum that is 0 has no derivative: second derivatives pass through this line.
    scale = jnp.where(large, jax.lax.rsqrt(jnp.where(large, squares, 1)), 1 / eps)
    return (wide * scale).astype(x.dtype), (x, scale)


def l2_normalize_bwd(eps: float, residuals: Residuals, dy: Float[Array, "*batch d"]) -> tuple[Float[Array, "*batch d"]]:
    """Cotangent of `x`."""
    x, scale = residuals
    wide, y = widen(dy), widen(x) * scale
    along = jnp.where(scale < 1 / eps, (wide * y).sum(-1, keepdims=True), 0)
    return ((scale * (wide - y * along)).astype(x.dtype),)


l2_normalize.defvjp(l2_normalize_fwd, l2_normalize_bwd)
