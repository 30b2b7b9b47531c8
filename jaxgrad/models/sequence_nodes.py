"""What models of sequences share: named nodes, and the derivatives of their affine maps, dropout and loss by node."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp
from jax.lax import broadcast_to_rank
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxgrad import ops
from jaxgrad.errors import JaxgradError
from jaxgrad.jaxprs.taps import tap
from jaxgrad.models.sequences import IGNORED, Batch
from jaxgrad.ops.precision import widen

# Values by the nodes' names.
Nodes: TypeAlias = dict[str, Array]
# `mark(name, value)` gives the node's value, with a zero added to it where its cotangent is asked for.
Mark: TypeAlias = Callable[[str, Array], Array]


class Forward(Protocol):
    """The forward pass of a model of sequences, cut into named nodes."""

    def __call__(
        self, params: Any, batch: Batch, sizes: Any, key: PRNGKeyArray | None = None, taps: Nodes | None = None
    ) -> Nodes:
        """Every node by name.

        Symbols must lie in `range(vocab)`: others give NaN. The loss and its nodes are in float32 at least, all others
        in the type of `params`. Raises `JaxgradError` for sequences that are longer than a block.

        Args:
            params: the model's arrays.
            batch: sequences and what follows each of their places, or `IGNORED`.
            sizes: the model's.
            key: draws dropout; without one nothing is dropped, as in evaluation.
            taps: of `zero_taps`; the gradient with respect to one is that node's cotangent.
        """


def zero_taps(forward: Forward, params: Any, batch: Batch, sizes: Any) -> Nodes:
    """Zero arrays of the nodes' shapes and types, to differentiate a loss with respect to."""
    found = jax.eval_shape(lambda params, batch: forward(params, batch, sizes), params, batch)
    return {name: jnp.zeros(node.shape, node.dtype) for name, node in found.items()}


def recorder(taps: Mapping[str, Array], prefix: str = "") -> tuple[Nodes, Mark]:
    """A dict, and the `mark` that adds a node's tap to it, if it has one, and keeps it there by its name."""
    nodes: Nodes = {}

    def mark(name: str, value: Array) -> Array:
        nodes[name] = tap(prefix + name, value + taps[name] if name in taps else value)
        return nodes[name]

    return nodes, mark


def check_length(X: Int[Array, "b t"], block: int) -> None:
    """Raise `JaxgradError` for sequences that are longer than a block."""
    if X.shape[-1] > block:
        raise JaxgradError(f"sequences of {X.shape[-1]} symbols; this model's block is {block}, give at most that")


def dropped(x: Float[Array, "..."], key: PRNGKeyArray | None, rate: float) -> Float[Array, "..."]:
    """`x` with the share `rate` of it at zero and the rest enlarged; `x` itself without a key.

    It is linear in `x`, with one factor for each number: a cotangent goes through the same function.
    """
    return x if key is None or not rate else ops.dropout(x, key, rate)


def affine(x: Float[Array, "*b n"], w: Float[Array, "n m"], bias: Float[Array, " m"]) -> Float[Array, "*b m"]:
    """`x @ w + bias`."""
    return x @ w + broadcast_to_rank(bias, x.ndim)


def affine_bwd(
    x: Float[Array, "*b n"], w: Float[Array, "n m"], dy: Float[Array, "*b m"]
) -> tuple[Float[Array, "*b n"], Float[Array, "n m"], Float[Array, " m"]]:
    """Cotangents of `x`, `w` and `bias` in `x @ w + bias`, which spread `w` and `bias` over all places.

    y_im = sum_n x_in w_nm + bias_m, so dx_in = sum_m dy_im w_nm, dw_nm = sum_i x_in dy_im and dbias_m = sum_i dy_im.
    """
    return dy @ w.T, rows(x).T @ rows(dy), dy.sum(tuple(range(dy.ndim - 1)))


def rows(x: Float[Array, "*b n"]) -> Float[Array, "rows n"]:
    """All places of all sequences, one after another."""
    return x.reshape(-1, x.shape[-1])


def cross_entropy(logits: Float[Array, "b t vocab"], Y: Int[Array, "b t"], mark: Mark) -> Float[Array, ""]:
    """The nodes from logits to the mean loss of the targets that count."""
    wide = widen(logits)
    # As in attention, a shift for range that moves no value.
    norm_logits = mark("norm_logits", wide - jax.lax.stop_gradient(wide.max(-1, keepdims=True)))
    counts = mark("counts", jnp.exp(norm_logits))
    counts_sum = mark("counts_sum", counts.sum(-1, keepdims=True))
    log_probs = mark("log_probs", norm_logits - jnp.log(counts_sum))
    return mark("loss", -(target_weights(Y, logits.shape[-1], wide.dtype) * log_probs).sum())


def target_weights(Y: Int[Array, "b t"], vocab_size: int, dtype: Any) -> Float[Array, "b t vocab"]:
    """How much each log-probability counts in the loss: at a target one over their number, elsewhere 0.

    A target that is neither a symbol nor `IGNORED` has NaN.
    """
    counted = Y != IGNORED
    share = counted.astype(dtype) / jnp.maximum(counted.sum(), 1).astype(dtype)
    known = ~counted | ((Y >= 0) & (vocab_size > Y))
    # A choice and no product with NaN, because XLA makes a product with 0 or 1 a choice that gives 0.
    return jnp.where(known[..., None], jax.nn.one_hot(Y, vocab_size, dtype=dtype) * share[..., None], jnp.nan)


def cross_entropy_bwd(Y: Int[Array, "b t"], nodes: Nodes) -> Nodes:
    """Cotangents from the loss to the logits."""
    dloss = jnp.ones_like(nodes["loss"])

    # loss = -sum_iv weights_iv log_probs_iv, where a target's weight is one over their number and all others are 0.
    weights = target_weights(Y, nodes["logits"].shape[-1], nodes["log_probs"].dtype)
    dlog_probs = -dloss * weights

    # log_probs_iv = norm_logits_iv - log(counts_sum_i): the sum was spread over the symbols, with the sign -1,
    # and d log(s)/ds = 1/s.
    dcounts_sum = -dlog_probs.sum(-1, keepdims=True) / nodes["counts_sum"]

    # counts_sum_i = sum_v counts_iv: every count of the row receives the row's cotangent.
    dcounts = jnp.broadcast_to(dcounts_sum, nodes["counts"].shape)

    # counts = exp(norm_logits), and d exp(x)/dx = exp(x) = counts.
    # This is the second use of norm_logits; the first was in log_probs, where the derivative is 1.
    dnorm_logits = dlog_probs + nodes["counts"] * dcounts

    # norm_logits_iv = logits_iv - max_i, and a shift of a whole row moves no log_probs: the maximum has no part.
    dlogits = dnorm_logits.astype(nodes["logits"].dtype)

    return {
        "loss": dloss, "log_probs": dlog_probs, "counts_sum": dcounts_sum, "counts": dcounts,
        "norm_logits": dnorm_logits, "logits": dlogits,
    }  # fmt: skip
