"""Kullback-Leibler divergence of two rows of logits."""

from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgrad.ops.log_softmax import log_softmax_fwd
from jaxgrad.ops.precision import widen

Pair: TypeAlias = tuple[Float[Array, "*batch v"], Float[Array, "*batch v"]]


@jax.custom_vjp
def kl_div(logits_p: Float[Array, "*batch v"], logits_q: Float[Array, "*batch v"]) -> Float[Array, "*batch"]:
    r"""`sum(p * log(p / q))` of each row, in nats, with p and q the softmaxes of logits.

    With $K = \sum_k p_k \ell_k$, $\ell = \log p - \log q$, and $\partial p_k/\partial a_j = p_k ([k = j] - p_j)$ for
    the logits $a$ of $p$, and $b$ of $q$,
    $$da_j = dK\,p_j\,(\ell_j - K), \qquad db_j = dK\,(q_j - p_j):$$
    through $\log p$ itself nothing comes, because $\sum_k p_k\,\partial \log p_k = \sum_k \partial p_k = 0$.

    The result is float32 at least. Residuals: both logits.
    Source: Kullback & Leibler 1951; derivation ours.
    """
    return kl_div_fwd(logits_p, logits_q)[0]


def kl_div_fwd(
    logits_p: Float[Array, "*batch v"], logits_q: Float[Array, "*batch v"]
) -> tuple[Float[Array, "*batch"], Pair]:
    """The divergences and the residuals, both logits."""
    log_p, log_q = log_softmax_fwd(widen(logits_p))[0], log_softmax_fwd(widen(logits_q))[0]
    return (jnp.exp(log_p) * (log_p - log_q)).sum(-1), (logits_p, logits_q)


def kl_div_bwd(residuals: Pair, dkl: Float[Array, "*batch"]) -> Pair:
    """Cotangents of both logits."""
    logits_p, logits_q = residuals
    log_p, log_q = log_softmax_fwd(widen(logits_p))[0], log_softmax_fwd(widen(logits_q))[0]
    p, ratio, wide = jnp.exp(log_p), log_p - log_q, widen(dkl)[..., None]
    dp = wide * p * (ratio - (p * ratio).sum(-1, keepdims=True))
    return dp.astype(logits_p.dtype), (wide * (jnp.exp(log_q) - p)).astype(logits_q.dtype)


kl_div.defvjp(kl_div_fwd, kl_div_bwd)
