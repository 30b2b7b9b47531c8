"""Mean cross-entropy of logits against integer targets."""

import math
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgrad.ops.precision import widen

Residuals: TypeAlias = tuple[Float[Array, "*batch v"], Int[Array, "*batch"]]


@jax.custom_vjp
def cross_entropy(logits: Float[Array, "*batch v"], targets: Int[Array, "*batch"]) -> Float[Array, ""]:
    r"""`-mean(log_softmax(logits)[targets])`, in nats.

    With $p_{ij} = e^{l_{ij}} / \sum_k e^{l_{ik}}$ and $L = -\frac1n\sum_i \log p_{i t_i}$,
    $$\frac{\partial}{\partial l_{ij}}\Bigl(\log\sum_k e^{l_{ik}} - l_{i t_i}\Bigr) = p_{ij} - [j = t_i], \qquad
      dl_{ij} = \frac{dL}{n}\,\bigl(p_{ij} - [j = t_i]\bigr).$$
    The row's maximum is subtracted for range; it moves no value, so it has no part in the cotangent.

    The loss is float32 at least. Targets must lie in `range(v)`: one that does not makes the loss NaN.
    Residuals: the probabilities and the targets; the logits are not kept.
    Source: the seed notebook's loss; derivation ours.
    """
    return cross_entropy_fwd(logits, targets)[0]


def cross_entropy_fwd(
    logits: Float[Array, "*batch v"], targets: Int[Array, "*batch"]
) -> tuple[Float[Array, ""], Residuals]:
    """The loss and the residuals `(probs, targets)`."""
    wide = widen(logits)
    norm_logits = wide - wide.max(-1, keepdims=True)
    counts = jnp.exp(norm_logits)
    counts_sum = counts.sum(-1, keepdims=True)
    picked = jnp.take_along_axis(norm_logits, targets[..., None], axis=-1, mode="fill")
    loss = jnp.mean(jnp.log(counts_sum) - picked)
    return loss, ((counts / counts_sum).astype(logits.dtype), targets)


def cross_entropy_bwd(residuals: Residuals, dloss: Float[Array, ""]) -> tuple[Float[Array, "*batch v"], None]:
    """Cotangent of `logits`; integer targets have none."""
    probs, targets = residuals
    one_hot = jax.nn.one_hot(targets, probs.shape[-1], dtype=probs.dtype)
    dlogits = widen(probs - one_hot) * (dloss / math.prod(targets.shape))
    return dlogits.astype(probs.dtype), None


cross_entropy.defvjp(cross_entropy_fwd, cross_entropy_bwd)
