"""The seed's backward pass by hand, in closed forms: the halves of `jaxgrad.ops` one after another."""

import jax.numpy as jnp

from jaxgrad import ops
from jaxgrad.models.mlp.forward import EPS, Batch, Gradients, Nodes, Params
from jaxgrad.ops.cross_entropy import Options


def fused(params: Params, batch: Batch) -> Gradients:
    """Loss and cotangents in closed forms, forward included; no node is kept that its backward does not need.

    Composed of the forward and backward halves of `jaxgrad.ops`: cross-entropy and batch norm are one step
    each, so only the nodes between operations get a cotangent, and the others are None. Same results as
    `by_node` up to rounding. Raises `ValueError` for a batch of one row.
    """
    C, W1, W2, b2, bn_gain, bn_bias = params
    emb, emb_residuals = ops.embedding_fwd(C, batch.X)
    h_prenorm, layer1_residuals = ops.linear_fwd(emb.reshape(emb.shape[0], -1), W1)
    h_norm, norm_residuals = ops.batch_norm_fwd(h_prenorm, bn_gain, bn_bias, EPS)
    h, tanh_residuals = ops.tanh_fwd(h_norm)
    logits, layer2_residuals = ops.linear_fwd(h, W2, b2)
    loss, loss_residuals = ops.cross_entropy_fwd(logits, batch.Y)

    dloss = jnp.ones_like(loss)
    dlogits, _, _ = ops.cross_entropy_bwd(Options(), loss_residuals, dloss)
    dh, dW2, db2 = ops.linear_bwd(layer2_residuals, dlogits)
    assert db2 is not None  # this layer has a bias
    (dh_norm,) = ops.tanh_bwd(tanh_residuals, dh)
    dh_prenorm, dbn_gain, dbn_bias = ops.batch_norm_bwd(EPS, norm_residuals, dh_norm)
    dembcat, dW1, _ = ops.linear_bwd(layer1_residuals, dh_prenorm)
    demb = dembcat.reshape(emb.shape)
    dC, _ = ops.embedding_bwd(None, emb_residuals, demb)

    between = {
        "loss": dloss, "logits": dlogits, "h": dh, "h_norm": dh_norm, "h_prenorm": dh_prenorm, "embcat": dembcat,
        "emb": demb,
    }  # fmt: skip
    return Gradients(
        loss, Params(dC, dW1, dW2, db2, dbn_gain, dbn_bias), Nodes(*(between.get(name) for name in Nodes._fields))
    )
