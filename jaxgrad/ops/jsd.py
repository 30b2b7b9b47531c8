"""Jensen-Shannon divergence of two rows of logits."""

import functools
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgrad.errors import JaxgradError
from jaxgrad.ops._shards import summed
from jaxgrad.ops.log_softmax import Statistics, distribution, statistics
from jaxgrad.ops.precision import widen

Pair: TypeAlias = tuple[Float[Array, "*batch v"], Float[Array, "*batch v"]]


class Residuals(NamedTuple):
    """`of_p` and `statistics_p` are of each row: KL(p, m), and what makes p from its logits; likewise for q."""

    logits_p: Float[Array, "*batch v"]
    logits_q: Float[Array, "*batch v"]
    statistics_p: Statistics
    statistics_q: Statistics
    of_p: Float[Array, "*batch 1"]
    of_q: Float[Array, "*batch 1"]


def jsd(
    logits_p: Float[Array, "*batch v"], logits_q: Float[Array, "*batch v"], beta: float = 0.5
) -> Float[Array, "*batch"]:
    r"""`beta * KL(p, m) + (1 - beta) * KL(q, m)` of each row, with `m = beta * p + (1 - beta) * q`.

    With $\ell = \log p - \log m$, $J = \sum_k \beta\,p_k \log(p_k/m_k) + (1-\beta)\,q_k \log(q_k/m_k)$ depends on $m$
    by $-\sum_k m_k \log m_k$ alone, so $\partial J/\partial p_k = \beta\,\ell_k$ up to a constant, which a softmax's
    derivative sends to 0. For the logits $a$ of $p$, and likewise for those of $q$ with $1-\beta$,
    $$da_j = dJ\,\beta\,p_j\,\Bigl(\ell_j - \sum_k p_k\,\ell_k\Bigr) .$$
    The sum is the divergence of $p$ from $m$, which the forward has: the backward sums nothing.

    `beta` is static. The result is float32 at least. Residuals: both logits and six numbers a row.
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
) -> tuple[Float[Array, "*batch"], Residuals]:
    """The divergences and the residuals."""
    of_rows = statistics(logits_p), statistics(logits_q)
    p, to_p, q, to_q = _to_mixture(logits_p, logits_q, *of_rows, beta)
    of_p, of_q = (p * to_p).sum(-1, keepdims=True), (q * to_q).sum(-1, keepdims=True)
    return (beta * of_p + (1 - beta) * of_q)[..., 0], Residuals(logits_p, logits_q, *of_rows, of_p, of_q)


def jsd_bwd(beta: float, residuals: Residuals, djsd: Float[Array, "*batch"]) -> Pair:
    """Cotangents of both logits."""
    logits_p, logits_q, statistics_p, statistics_q, of_p, of_q = residuals
    p, to_p, q, to_q = _to_mixture(logits_p, logits_q, statistics_p, statistics_q, beta)
    wide = widen(djsd)[..., None]
    dp, dq = wide * beta * p * (to_p - of_p), wide * (1 - beta) * q * (to_q - of_q)
    return summed(dp, logits_p), summed(dq, logits_q)


def _to_mixture(
    logits_p: Array, logits_q: Array, of_p: Statistics, of_q: Statistics, beta: float
) -> tuple[Array, Array, Array, Array]:
    """Each distribution with the logarithm of its ratio to the mixture."""
    (p, log_p), (q, log_q) = distribution(logits_p, of_p), distribution(logits_q, of_q)
    mixture = beta * p + (1 - beta) * q
    # Where both are 0 in their type, so is what the logarithm is multiplied with; it need only be finite.
    log_m = jnp.log(jnp.maximum(mixture, jnp.finfo(mixture.dtype).tiny))
    return p, log_p - log_m, q, log_q - log_m


_jsd.defvjp(jsd_fwd, jsd_bwd)
