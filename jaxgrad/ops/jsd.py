"""Jensen-Shannon divergence of two rows of logits."""

import functools
import math
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgrad.errors import JaxgradError
from jaxgrad.ops.log_softmax import log_softmax_fwd
from jaxgrad.ops.precision import widen

Pair: TypeAlias = tuple[Float[Array, "*batch v"], Float[Array, "*batch v"]]


def jsd(
    logits_p: Float[Array, "*batch v"], logits_q: Float[Array, "*batch v"], beta: float = 0.5
) -> Float[Array, "*batch"]:
    r"""`beta * KL(p, m) + (1 - beta) * KL(q, m)` of each row, with `m = beta * p + (1 - beta) * q`.

    With $\ell = \log p - \log m$, $J = \sum_k \beta\,p_k \log(p_k/m_k) + (1-\beta)\,q_k \log(q_k/m_k)$ depends on $m$
    by $-\sum_k m_k \log m_k$ alone, so $\partial J/\partial p_k = \beta\,\ell_k$ up to a constant, which a softmax's
    derivative sends to 0. For the logits $a$ of $p$, and likewise for those of $q$ with $1-\beta$,
    $$da_j = dJ\,\beta\,p_j\,\Bigl(\ell_j - \sum_k p_k\,\ell_k\Bigr) .$$

    `beta` is static. The result is float32 at least. Residuals: both logits.
    Raises `JaxgradError` for a share outside of (0, 1). Source: Lin 1991, generalised by its weights; derivation ours.
    """
    if not 0 < beta < 1:
        raise JaxgradError(f"beta is {beta}; it is a share between 0 and 1, without these; for them use kl_div")
    return _jsd(logits_p, logits_q, beta)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _jsd(logits_p: Float[Array, "*batch v"], logits_q: Float[Array, "*batch v"], beta: float) -> Float[Array, "*batch"]:
    return jsd_fwd(logits_p, logits_q, beta)[0]


def jsd_fwd(
    logits_p: Float[Array, "*batch v"], logits_q: Float[Array, "*batch v"], beta: float
) -> tuple[Float[Array, "*batch"], Pair]:
    """The divergences and the residuals, both logits."""
    p, of_p, q, of_q = _to_mixture(logits_p, logits_q, beta)
    return (beta * p * of_p + (1 - beta) * q * of_q).sum(-1), (logits_p, logits_q)


def jsd_bwd(beta: float, residuals: Pair, djsd: Float[Array, "*batch"]) -> Pair:
    """Cotangents of both logits."""
    p, of_p, q, of_q = _to_mixture(*residuals, beta)
    wide = widen(djsd)[..., None]
    dp = wide * beta * p * (of_p - (p * of_p).sum(-1, keepdims=True))
    dq = wide * (1 - beta) * q * (of_q - (q * of_q).sum(-1, keepdims=True))
    return dp.astype(residuals[0].dtype), dq.astype(residuals[1].dtype)


def _to_mixture(logits_p: Array, logits_q: Array, beta: float) -> tuple[Array, Array, Array, Array]:
    """Each distribution with the logarithm of its ratio to the mixture."""
    log_p, log_q = log_softmax_fwd(widen(logits_p))[0], log_softmax_fwd(widen(logits_q))[0]
    log_m = jnp.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    return jnp.exp(log_p), log_p - log_m, jnp.exp(log_q), log_q - log_m


_jsd.defvjp(jsd_fwd, jsd_bwd)
