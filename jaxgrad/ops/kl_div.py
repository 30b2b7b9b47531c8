"""Kullback-Leibler divergence of two rows of logits."""

from typing import NamedTuple, TypeAlias

import jax
from jaxtyping import Array, Float

from jaxgrad.ops._shards import summed
from jaxgrad.ops.log_softmax import Statistics, distribution, statistics
from jaxgrad.ops.precision import widen

Pair: TypeAlias = tuple[Float[Array, "*batch v"], Float[Array, "*batch v"]]


class Residuals(NamedTuple):
    """Both logits with what makes distributions from them, and the divergence of each row."""

    logits_p: Float[Array, "*batch v"]
    logits_q: Float[Array, "*batch v"]
    statistics_p: Statistics
    statistics_q: Statistics
    kl: Float[Array, "*batch"]


@jax.custom_vjp
def kl_div(logits_p: Float[Array, "*batch v"], logits_q: Float[Array, "*batch v"]) -> Float[Array, "*batch"]:
    r"""`sum(p * log(p / q))` of each row, in nats, with p and q the softmaxes of logits.

    With $K = \sum_k p_k \ell_k$, $\ell = \log p - \log q$, and $\partial p_k/\partial a_j = p_k ([k = j] - p_j)$ for
    the logits $a$ of $p$, and $b$ of $q$,
    $$da_j = dK\,p_j\,(\ell_j - K), \qquad db_j = dK\,(q_j - p_j):$$
    through $\log p$ itself nothing comes, because $\sum_k p_k\,\partial \log p_k = \sum_k \partial p_k = 0$.

    The result is float32 at least. Residuals: both logits, the result and four
    numbers a row; the backward sums nothing.
    Source: Kullback & Leibler 1951; derivation ours.
    """
    return kl_div_fwd(logits_p, logits_q)[0]


def kl_div_fwd(
    logits_p: Float[Array, "*batch v"], logits_q: Float[Array, "*batch v"]
) -> tuple[Float[Array, "*batch"], Residuals]:
    """The divergences and the residuals."""
    of_rows = statistics(logits_p), statistics(logits_q)
    (p, log_p), (_, log_q) = distribution(logits_p, of_rows[0]), distribution(logits_q, of_rows[1])
    kl = (p * (log_p - log_q)).sum(-1)
    return kl, Residuals(logits_p, logits_q, *of_rows, kl)


def kl_div_bwd(residuals: Residuals, dkl: Float[Array, "*batch"]) -> Pair:
    """Cotangents of both logits."""
    logits_p, logits_q, of_p, of_q, kl = residuals
    (p, log_p), (q, log_q) = distribution(logits_p, of_p), distribution(logits_q, of_q)
    wide = widen(dkl)[..., None]
    dp = wide * p * (log_p - log_q - kl[..., None])
    return summed(dp, logits_p), summed(wide * (q - p), logits_q)


kl_div.defvjp(kl_div_fwd, kl_div_bwd)
