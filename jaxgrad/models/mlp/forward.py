"""The seed's model: embedding, linear, batch norm, tanh, linear, cross-entropy, cut into 20 named nodes.

Sizes follow from the arrays. In comments and types: `batch` rows, `n` characters of context, `vocab` symbols,
`emb_size` numbers a symbol, `n_emb = n * emb_size`, `h_size` hidden neurons.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import broadcast_to_rank
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxgrad.jaxprs.taps import tap

EPS = 1e-5


class Params(NamedTuple):
    """Trainable arrays, with the seed's names; a cotangent of the parameters has the same form."""

    C: Float[Array, "vocab emb_size"]
    W1: Float[Array, "n_emb h_size"]
    W2: Float[Array, "h_size vocab"]
    b2: Float[Array, " vocab"]
    bn_gain: Float[Array, "1 h_size"]
    bn_bias: Float[Array, "1 h_size"]


class Nodes(NamedTuple):
    """What forward computes, in order; a backward returns the nodes' cotangents under the same names.

    A backward that never forms a node's cotangent leaves None in its place.
    """

    emb: Any  # (batch, n, emb_size)
    embcat: Any  # (batch, n_emb)
    h_prenorm: Any  # (batch, h_size)
    bnmean: Any  # (1, h_size)
    bn_diff: Any  # (batch, h_size)
    bn_diff_sq: Any  # (batch, h_size)
    bn_var: Any  # (1, h_size)
    bn_var_inv: Any  # (1, h_size)
    bn_raw: Any  # (batch, h_size)
    h_norm: Any  # (batch, h_size)
    h: Any  # (batch, h_size)
    logits: Any  # (batch, vocab)
    logit_maxes: Any  # (batch, 1)
    norm_logits: Any  # (batch, vocab)
    counts: Any  # (batch, vocab)
    counts_sum: Any  # (batch, 1)
    counts_sum_inv: Any  # (batch, 1)
    probs: Any  # (batch, vocab)
    log_probs: Any  # (batch, vocab)
    loss: Any  # ()


class Batch(NamedTuple):
    """Contexts and the symbols that follow them."""

    X: Int[Array, "batch n"]
    Y: Int[Array, " batch"]


class Gradients(NamedTuple):
    """What every backward of this model returns."""

    loss: Float[Array, ""]
    params: Params
    nodes: Nodes


def init(
    key: PRNGKeyArray, vocab_size: int, n: int = 3, emb_size: int = 10, h_size: int = 200, dtype: Any = jnp.float32
) -> Params:
    """The seed's initialisation, standard normal draws times a scale.

    C: 1 · W1: (5/3)/sqrt(n * emb_size), tanh's gain over the root of the fan-in · W2, b2, bn_bias: 0.1 ·
    bn_gain: 1 + 0.1 * normal. The last four are small but nowhere 0 or 1, so that no term of a backward vanishes
    unseen. Raises `ValueError` for a size below 1.
    """
    sizes = {"vocab_size": vocab_size, "n": n, "emb_size": emb_size, "h_size": h_size}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is {size}; it must be at least 1")
    n_emb = n * emb_size
    draws = {
        "C": ((vocab_size, emb_size), 1.0),
        "W1": ((n_emb, h_size), (5 / 3) / n_emb**0.5),
        "W2": ((h_size, vocab_size), 0.1),
        "b2": ((vocab_size,), 0.1),
        "bn_gain": ((1, h_size), 0.1),
        "bn_bias": ((1, h_size), 0.1),
    }
    keys = jax.random.split(key, len(draws))
    params = Params(
        **{
            name: scale * jax.random.normal(key, shape, dtype)
            for key, (name, (shape, scale)) in zip(keys, draws.items(), strict=True)
        }
    )
    return params._replace(bn_gain=1.0 + params.bn_gain)


def zero_taps(params: Params, batch: Batch) -> Nodes:
    """Zero arrays of the nodes' shapes and types, to differentiate `forward` with respect to."""
    shapes = jax.eval_shape(forward, params, batch)
    return jax.tree.map(lambda node: jnp.zeros(node.shape, node.dtype), shapes)


def forward(params: Params, batch: Batch, taps: Nodes | None = None) -> Nodes:
    """Every node of the seed's forward pass, in the seed's arithmetic, each marked by its name.

    `taps` are zero arrays that are added one to each node: the gradient of the loss with respect to a tap is
    that node's cotangent. The cotangent of `logit_maxes` goes to the first maximum of a row, as in PyTorch's
    `max(dim)`, and not in equal parts to all, as in `jnp.max`.

    Shapes as in `Params`, `Batch` and `Nodes`; all floats have the type of `params`. Symbols must lie in
    `range(vocab)`: others give NaN. Raises `ValueError` for a batch of one row (Bessel's correction).
    """
    batch_size = batch.X.shape[0]
    if batch_size < 2:
        raise ValueError(f"a batch of {batch_size}: Bessel's correction divides by n - 1; give at least 2 rows")
    C, W1, W2, b2, bn_gain, bn_bias = params

    def tapped(name: str, node: Float[Array, "..."]) -> Float[Array, "..."]:
        return tap(name, node if taps is None else node + getattr(taps, name))

    emb = tapped("emb", C.at[batch.X].get(mode="fill"))
    embcat = tapped("embcat", emb.reshape(batch_size, -1))
    h_prenorm = tapped("h_prenorm", embcat @ W1)

    bnmean = tapped("bnmean", 1 / batch_size * h_prenorm.sum(0, keepdims=True))
    bn_diff = tapped("bn_diff", h_prenorm - bnmean)
    bn_diff_sq = tapped("bn_diff_sq", bn_diff**2)
    bn_var = tapped("bn_var", 1 / (batch_size - 1) * bn_diff_sq.sum(0, keepdims=True))
    bn_var_inv = tapped("bn_var_inv", (bn_var + EPS) ** -0.5)
    bn_raw = tapped("bn_raw", bn_diff * bn_var_inv)
    h_norm = tapped("h_norm", bn_gain * bn_raw + bn_bias)

    h = tapped("h", jnp.tanh(h_norm))
    # b2 is given the product's rank here, because jax_numpy_rank_promotion="raise" forbids it to be left to jnp.
    logits = tapped("logits", h @ W2 + broadcast_to_rank(b2, 2))

    argmax = logits.argmax(1, keepdims=True)
    logit_maxes = tapped("logit_maxes", jnp.take_along_axis(logits, argmax, axis=1))
    norm_logits = tapped("norm_logits", logits - logit_maxes)
    counts = tapped("counts", jnp.exp(norm_logits))
    counts_sum = tapped("counts_sum", counts.sum(1, keepdims=True))
    counts_sum_inv = tapped("counts_sum_inv", counts_sum**-1)
    probs = tapped("probs", counts * counts_sum_inv)
    log_probs = tapped("log_probs", jnp.log(probs))
    picked = jnp.take_along_axis(log_probs, batch.Y[:, None].astype(jnp.int32), axis=1, mode="fill")
    loss = tapped("loss", -picked.mean())
    return Nodes(
        emb, embcat, h_prenorm, bnmean, bn_diff, bn_diff_sq, bn_var, bn_var_inv, bn_raw, h_norm, h, logits,
        logit_maxes, norm_logits, counts, counts_sum, counts_sum_inv, probs, log_probs, loss,
    )  # fmt: skip


class Statistics(NamedTuple):
    """Mean and unbiased variance of `h_prenorm` over a whole split, for predictions that depend on no batch."""

    mean: Float[Array, "1 h_size"]
    var: Float[Array, "1 h_size"]


def prenorm(params: Params, X: Int[Array, "batch n"]) -> Float[Array, "batch h_size"]:
    """The node `h_prenorm` of contexts X."""
    return params.C.at[X].get(mode="fill").reshape(X.shape[0], -1) @ params.W1


def predict(params: Params, statistics: Statistics, X: Int[Array, "batch n"]) -> Float[Array, "batch vocab"]:
    """Logits of contexts X, normalised with fixed statistics: a row's logits depend on that row alone."""
    bn_raw = (prenorm(params, X) - statistics.mean) * (statistics.var + EPS) ** -0.5
    return jnp.tanh(params.bn_gain * bn_raw + params.bn_bias) @ params.W2 + broadcast_to_rank(params.b2, 2)
