"""The GPT's backward by hand, composed of the halves of `jaxgrad.ops`, with little kept from the forward.

Of a block are kept its input, the queries, keys and values, what attention found with one number a query and head, the
stream in its middle, and the input of its GELU: `10 d` numbers a place. Norms and GELUs cost a few operations a number
and are computed again; products with a matrix are not. No array of all scores is made, and none of all logits.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgrad import ops
from jaxgrad.models.gpt import forward as model
from jaxgrad.models.gpt.forward import PREFIX
from jaxgrad.models.gpt.params import EPS, Block, Params
from jaxgrad.models.gpt.sizes import Sizes
from jaxgrad.models.sequence_nodes import Nodes, check_length, dropped
from jaxgrad.models.sequences import IGNORED, Batch
from jaxgrad.ops.attention import BLOCK, Data, Options, Residuals, attention_bwd, attention_fwd


class Kept(NamedTuple):
    """What the backward of a block needs; `attention` are the residuals of its attention."""

    x: Float[Array, "b t d"]
    attention: Residuals
    mid: Float[Array, "b t d"]
    fc: Float[Array, "b t 4d"]


def fused(
    params: Params, batch: Batch, sizes: Sizes, key: PRNGKeyArray | None = None
) -> tuple[Float[Array, ""], Params]:
    """Loss and cotangents of the parameters. Same results as `by_node` up to rounding. Raises as `forward` does."""
    loss, dparams, _ = _gradients(params, batch, sizes, key, with_nodes=False)
    return loss, dparams


def nodes_fused(
    params: Params, batch: Batch, sizes: Sizes, key: PRNGKeyArray | None = None
) -> tuple[Float[Array, ""], Params, Nodes]:
    """`fused` with the cotangents of the nodes between its operations; those inside of one are never formed."""
    return _gradients(params, batch, sizes, key, with_nodes=True)


def _gradients(
    params: Params, batch: Batch, sizes: Sizes, key: PRNGKeyArray | None, with_nodes: bool
) -> tuple[Float[Array, ""], Params, Nodes]:
    check_length(batch.X, sizes.block)
    keys = model.dropout_keys(key, sizes)
    emb = model.embedded(params, batch.X, lambda name, value: value)

    def layer(x: Array, given: tuple[Block, PRNGKeyArray | None]) -> tuple[Array, Kept]:
        return block_forward(given[0], x, sizes, given[1])

    of_blocks = params.blocks, keys and keys.blocks
    stream, kept = jax.lax.scan(layer, dropped(emb, keys and keys.embedding, sizes.dropout), of_blocks)
    ln, ln_residuals = ops.layer_norm_fwd(stream, params.ln_gain, params.ln_bias, EPS)
    # The op walks blocks of logits forward and backward at once, so its rule is asked for and not its two halves.
    loss, of_loss = jax.vjp(
        lambda ln, head: ops.linear_cross_entropy(ln, head, batch.Y, ignore_index=IGNORED), ln, model.head_of(params)
    )

    dloss = jnp.ones_like(loss)
    dln, dhead = of_loss(dloss)
    dstream, dln_gain, dln_bias = ops.layer_norm_bwd(EPS, ln_residuals, dln)

    def layer_back(dy: Array, given: tuple[Block, PRNGKeyArray | None, Kept]) -> tuple[Array, tuple[Block, Nodes]]:
        dx, dblock, dnodes = block_backward(given[0], given[2], dy, sizes, given[1])
        return dx, (dblock, dnodes if with_nodes else {})

    dx, (dblocks, found) = jax.lax.scan(layer_back, dstream, (*of_blocks, kept), reverse=True)

    demb = dropped(dx, keys and keys.embedding, sizes.dropout)
    dpositions = None
    if params.positions is not None:
        dpositions = jnp.zeros_like(params.positions).at[: demb.shape[1]].set(demb.sum(0))
    dtokens, _ = ops.embedding_bwd(None, (params.tokens[:, :0], batch.X), demb)
    tied = params.head is None
    dparams = Params(
        dtokens + dhead.T if tied else dtokens, dpositions, dblocks, dln_gain, dln_bias, None if tied else dhead
    )
    dnodes = {"loss": dloss, "ln": dln, "stream": dstream, "token_emb": demb}
    if params.positions is not None:
        dnodes["emb"] = demb
    return loss, dparams, dnodes | {PREFIX + name: values for name, values in found.items()}


def block_forward(
    block: Block, x: Float[Array, "b t d"], sizes: Sizes, keys: PRNGKeyArray | None = None
) -> tuple[Float[Array, "b t d"], Kept]:
    """One block's output and what its backward needs."""
    attention_key, mlp_key = (None, None) if keys is None else (keys[0], keys[1])
    ln1, _ = ops.layer_norm_fwd(x, block.ln1_gain, block.ln1_bias, EPS)
    qkv, _ = ops.linear_fwd(ln1, block.qkv_w, block.qkv_b)
    q, k, v = model.by_heads(qkv, sizes)
    if sizes.rope:
        q, k = model.turned(q, sizes), model.turned(k, sizes)
    mix, found = attention_fwd(q, k, v, Data(None, None, None, None), _causal(sizes))
    proj, _ = ops.linear_fwd(mix.reshape(x.shape), block.proj_w, block.proj_b)
    mid = x + dropped(proj, attention_key, sizes.dropout)

    ln2, _ = ops.layer_norm_fwd(mid, block.ln2_gain, block.ln2_bias, EPS)
    fc, _ = ops.linear_fwd(ln2, block.fc_w, block.fc_b)
    act, _ = ops.gelu_fwd(fc, True)
    out, _ = ops.linear_fwd(act, block.out_w, block.out_b)
    return mid + dropped(out, mlp_key, sizes.dropout), Kept(x, found, mid, fc)


def block_backward(
    block: Block, kept: Kept, dy: Float[Array, "b t d"], sizes: Sizes, keys: PRNGKeyArray | None = None
) -> tuple[Float[Array, "b t d"], Block, Nodes]:
    """Cotangents of one block's input, arrays and nodes, from that of its output.

    The stream goes around each half, so its cotangent `dy` reaches `mid` and `x` as it is, and what comes through the
    half is added to it.
    """
    attention_key, mlp_key = (None, None) if keys is None else (keys[0], keys[1])
    dout = dropped(dy, mlp_key, sizes.dropout)
    act, _ = ops.gelu_fwd(kept.fc, True)
    dact, dout_w, dout_b = _linear_bwd(act, block.out_w, block.out_b, dout)
    (dfc,) = ops.gelu_bwd(True, kept.fc, dact)
    ln2, ln2_residuals = ops.layer_norm_fwd(kept.mid, block.ln2_gain, block.ln2_bias, EPS)
    dln2, dfc_w, dfc_b = _linear_bwd(ln2, block.fc_w, block.fc_b, dfc)
    dmid_by_norm, dln2_gain, dln2_bias = ops.layer_norm_bwd(EPS, ln2_residuals, dln2)
    dmid = dy + dmid_by_norm

    dproj = dropped(dmid, attention_key, sizes.dropout)
    mix = kept.attention.out
    dmix, dproj_w, dproj_b = _linear_bwd(mix.reshape(dy.shape), block.proj_w, block.proj_b, dproj)
    dq_turned, dk_turned, dv, _ = attention_bwd(_causal(sizes), kept.attention, dmix.reshape(mix.shape))
    dq, dk = (model.turned(x, sizes, back=True) if sizes.rope else x for x in (dq_turned, dk_turned))
    dqkv = jnp.stack((dq, dk, dv), 2).reshape(*dy.shape[:2], -1)
    ln1, ln1_residuals = ops.layer_norm_fwd(kept.x, block.ln1_gain, block.ln1_bias, EPS)
    dln1, dqkv_w, dqkv_b = _linear_bwd(ln1, block.qkv_w, block.qkv_b, dqkv)
    dx_by_norm, dln1_gain, dln1_bias = ops.layer_norm_bwd(EPS, ln1_residuals, dln1)
    dx = dmid + dx_by_norm

    dblock = Block(
        ln1_gain=dln1_gain, ln1_bias=dln1_bias, qkv_w=dqkv_w, qkv_b=dqkv_b, proj_w=dproj_w, proj_b=dproj_b,
        ln2_gain=dln2_gain, ln2_bias=dln2_bias, fc_w=dfc_w, fc_b=dfc_b, out_w=dout_w, out_b=dout_b,
    )  # fmt: skip
    dturned = {"q_turned": dq_turned, "k_turned": dk_turned} if sizes.rope else {}
    dnodes = {
        "out": dout, "act": dact, "fc": dfc, "ln2": dln2, "mid": dmid, "proj": dproj, "mix": dmix.reshape(mix.shape),
        **dturned, "q": dq, "k": dk, "v": dv, "qkv": dqkv, "ln1": dln1, "x": dx,
    }  # fmt: skip
    return dx, dblock, dnodes


def _linear_bwd(
    x: Float[Array, "b t n"], w: Float[Array, "n m"], bias: Float[Array, " m"], dy: Float[Array, "b t m"]
) -> tuple[Float[Array, "b t n"], Float[Array, "n m"], Float[Array, " m"]]:
    dx, dw, dbias = ops.linear_bwd((x, w, bias[:0]), dy)
    assert dbias is not None  # there is a bias
    return dx, dw, dbias


def _causal(sizes: Sizes) -> Options:
    return Options(left=None, right=0, scale=model.score_scale(sizes), soft_cap=None, block=BLOCK)
