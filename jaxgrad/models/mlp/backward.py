"""The seed's backward pass by hand, a derivative for every node.

Written `dx` here is the cotangent of `x`, the derivative of the loss with respect to it, of `x`'s own shape.
Two rules do most of the work. A node used twice receives the sum of its uses' cotangents; and broadcasting is
a use per copy, so where forward spread an array over an axis, backward sums over that axis.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgrad.models.mlp.forward import EPS, Batch, Gradients, Nodes, Params


def by_node(params: Params, batch: Batch, nodes: Nodes) -> Gradients:
    """Cotangents of all 20 nodes and 6 parameters, from the values that `forward` returned.

    Shapes and types are those of `params` and `nodes`. Source: the notebook's forward; derivations ours.
    """
    dloss = jnp.ones_like(nodes.loss)
    cross_entropy = _cross_entropy(batch, nodes, dloss)
    layer2 = _layer2(params, nodes, cross_entropy["logits"])
    batch_norm = _batch_norm(params, nodes, layer2["h_norm"])
    layer1 = _layer1(params, batch, nodes, batch_norm["h_prenorm"])
    cotangents = {"loss": dloss, **cross_entropy, **layer2, **batch_norm, **layer1}
    return Gradients(
        nodes.loss,
        Params(*(cotangents[name] for name in Params._fields)),
        Nodes(*(cotangents[name] for name in Nodes._fields)),
    )


def _cross_entropy(batch: Batch, nodes: Nodes, dloss: Float[Array, ""]) -> dict[str, Array]:
    batch_size, vocab_size = nodes.logits.shape
    target = jax.nn.one_hot(batch.Y, vocab_size, dtype=nodes.logits.dtype)

    # loss = -1/n sum_i log_probs[i, Y_i]: only the targets are used, each with weight -1/n.
    dlog_probs = -dloss / batch_size * target

    # log_probs = log(probs), and d log(p)/dp = 1/p.
    dprobs = dlog_probs / nodes.probs

    # probs_ij = counts_ij * counts_sum_inv_i: the inverse was spread over j, so its cotangent is summed over j.
    dcounts_sum_inv = (nodes.counts * dprobs).sum(1, keepdims=True)
    dcounts_by_probs = nodes.counts_sum_inv * dprobs

    # counts_sum_inv = counts_sum^-1, and d(s^-1)/ds = -s^-2.
    dcounts_sum = -(nodes.counts_sum**-2) * dcounts_sum_inv

    # counts_sum_i = sum_j counts_ij: every count of the row receives the row's cotangent.
    # This is the second use of counts; the first was in probs.
    dcounts = dcounts_by_probs + jnp.broadcast_to(dcounts_sum, nodes.counts.shape)

    # counts = exp(norm_logits), and d exp(x)/dx = exp(x) = counts.
    dnorm_logits = nodes.counts * dcounts

    # norm_logits_ij = logits_ij - logit_maxes_i: the maximum was spread over j, with the sign -1.
    # Shifting a row moves no probability, so the terms of this sum cancel.
    dlogit_maxes = -dnorm_logits.sum(1, keepdims=True)

    # logit_maxes_i = logits[i, argmax_i]: the cotangent goes to the first maximum alone, as PyTorch's max(dim) has it.
    # This is the second use of logits; the first was in norm_logits, where the derivative is 1.
    argmax = jax.nn.one_hot(nodes.logits.argmax(1), vocab_size, dtype=nodes.logits.dtype)
    dlogits = dnorm_logits + argmax * dlogit_maxes

    return {
        "log_probs": dlog_probs, "probs": dprobs, "counts_sum_inv": dcounts_sum_inv, "counts_sum": dcounts_sum,
        "counts": dcounts, "norm_logits": dnorm_logits, "logit_maxes": dlogit_maxes, "logits": dlogits,
    }  # fmt: skip


def _layer2(params: Params, nodes: Nodes, dlogits: Float[Array, "batch vocab"]) -> dict[str, Array]:
    # logits_ij = sum_k h_ik W2_kj + b2_j, so dh_ik = sum_j dlogits_ij W2_kj and dW2_kj = sum_i h_ik dlogits_ij;
    # b2 was spread over the batch, so its cotangent is summed over it.
    dh = dlogits @ params.W2.T
    dW2 = nodes.h.T @ dlogits
    db2 = dlogits.sum(0)

    # h = tanh(h_norm) = sinh/cosh, and d(sinh/cosh) = (cosh^2 - sinh^2)/cosh^2 = 1 - h^2.
    dh_norm = dh * (1 - nodes.h**2)

    return {"h": dh, "W2": dW2, "b2": db2, "h_norm": dh_norm}


def _batch_norm(params: Params, nodes: Nodes, dh_norm: Float[Array, "batch h_size"]) -> dict[str, Array]:
    batch_size = dh_norm.shape[0]

    # h_norm_ij = bn_gain_j * bn_raw_ij + bn_bias_j: gain and bias were spread over the batch.
    dbn_gain = (nodes.bn_raw * dh_norm).sum(0, keepdims=True)
    dbn_bias = dh_norm.sum(0, keepdims=True)
    dbn_raw = params.bn_gain * dh_norm

    # bn_raw_ij = bn_diff_ij * bn_var_inv_j: the inverse root was spread over the batch.
    dbn_var_inv = (nodes.bn_diff * dbn_raw).sum(0, keepdims=True)
    dbn_diff_by_raw = nodes.bn_var_inv * dbn_raw

    # bn_var_inv = (bn_var + eps)^(-1/2), and d v^(-1/2)/dv = -1/2 v^(-3/2).
    dbn_var = -0.5 * (nodes.bn_var + EPS) ** -1.5 * dbn_var_inv

    # bn_var_j = 1/(n-1) sum_i bn_diff_sq_ij: every row receives the same cotangent over n - 1 (Bessel).
    dbn_diff_sq = jnp.broadcast_to(1 / (batch_size - 1) * dbn_var, nodes.bn_diff_sq.shape)

    # bn_diff_sq = bn_diff^2, and d x^2/dx = 2x. This is the second use of bn_diff; the first was in bn_raw.
    dbn_diff = dbn_diff_by_raw + 2 * nodes.bn_diff * dbn_diff_sq

    # bn_diff_ij = h_prenorm_ij - bnmean_j: the mean was spread over the batch, with the sign -1.
    dbnmean = -dbn_diff.sum(0, keepdims=True)

    # bnmean_j = 1/n sum_i h_prenorm_ij: every row receives the mean's cotangent over n.
    # This is the second use of h_prenorm; the first was in bn_diff, where the derivative is 1.
    dh_prenorm = dbn_diff + jnp.broadcast_to(1 / batch_size * dbnmean, dbn_diff.shape)

    return {
        "bn_gain": dbn_gain, "bn_bias": dbn_bias, "bn_raw": dbn_raw, "bn_var_inv": dbn_var_inv, "bn_var": dbn_var,
        "bn_diff_sq": dbn_diff_sq, "bn_diff": dbn_diff, "bnmean": dbnmean, "h_prenorm": dh_prenorm,
    }  # fmt: skip


def _layer1(params: Params, batch: Batch, nodes: Nodes, dh_prenorm: Float[Array, "batch h_size"]) -> dict[str, Array]:
    # h_prenorm_ij = sum_k embcat_ik W1_kj, so dembcat_ik = sum_j dh_prenorm_ij W1_kj
    # and dW1_kj = sum_i embcat_ik dh_prenorm_ij.
    dembcat = dh_prenorm @ params.W1.T
    dW1 = nodes.embcat.T @ dh_prenorm

    # embcat is emb with its last two axes joined: the same numbers in another shape.
    demb = dembcat.reshape(nodes.emb.shape)

    # emb_ik = C[X_ik]: a row of C is used once for every place that names it, and the cotangents of its uses add up.
    dC = jnp.zeros_like(params.C).at[batch.X].add(demb)

    return {"embcat": dembcat, "W1": dW1, "emb": demb, "C": dC}
