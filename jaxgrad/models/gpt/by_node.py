r"""The GPT's backward by hand, a derivative for every node.

Written `dx` is the cotangent of `x`, the derivative of the loss with respect to it, of `x`'s own shape. Two rules do
most of the work. A node that is used twice receives the sum of its uses' cotangents; and where forward spread an array
over an axis, backward sums over that axis.

The residual stream is used twice by every half of a block: once by the half's layer norm and once by the sum that the
half ends with. So its cotangent reaches the first block as it is, plus what each half adds,
$$dx = dmid + J_{att}^\top dmid, \qquad dmid = dy + J_{mlp}^\top dy,$$
and no product of many derivatives stands alone. Layers are a scan in the forward, whose carry is the stream; its
reverse is the same scan from the last layer to the first, whose carry is the stream's cotangent.
"""

import jax
import jax.numpy as jnp
from jax.lax import broadcast_to_rank
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgrad.models.gpt import forward as model
from jaxgrad.models.gpt.forward import PREFIX
from jaxgrad.models.gpt.params import EPS, Block, Params
from jaxgrad.models.gpt.sizes import Sizes
from jaxgrad.models.sequence_nodes import Nodes, affine_bwd, cross_entropy_bwd, dropped, rows
from jaxgrad.models.sequences import Batch
from jaxgrad.ops.gelu import CUBIC
from jaxgrad.ops.precision import widen

SQRT_2_OVER_PI = (2 / jnp.pi) ** 0.5


def nodes_by_node(
    params: Params, batch: Batch, sizes: Sizes, key: PRNGKeyArray | None = None
) -> tuple[Float[Array, ""], Params, Nodes]:
    """Loss, cotangents of the parameters and those of all nodes by name. Raises as `forward` does."""
    nodes = model.forward(params, batch, sizes, key)
    dparams, dnodes = backward(params, batch, nodes, sizes, key)
    return nodes["loss"], dparams, dnodes


def backward(
    params: Params, batch: Batch, nodes: Nodes, sizes: Sizes, key: PRNGKeyArray | None = None
) -> tuple[Params, Nodes]:
    """Cotangents of the parameters and of the nodes, from the nodes that `forward` gave."""
    keys = model.dropout_keys(key, sizes)
    dnodes = cross_entropy_bwd(batch.Y, nodes)

    # logits_v = sum_c ln_c head_cv: a row of ln is spread over the symbols, so its cotangent is summed over them.
    dln = dnodes["logits"] @ model.head_of(params).T
    dhead = rows(nodes["ln"]).T @ rows(dnodes["logits"])
    dstream, dln_gain, dln_bias, dnorm = norm_backward(nodes, params.ln_gain, dln, "ln")
    dnodes |= {**dnorm, "stream": dstream}

    stacked = {name.removeprefix(PREFIX): value for name, value in nodes.items() if name.startswith(PREFIX)}

    def layer(dy: Array, given: tuple[Block, Nodes, PRNGKeyArray | None]) -> tuple[Array, tuple[Block, Nodes]]:
        dx, dblock, found = block_backward(*given[:2], dy, sizes, given[2])
        return dx, (dblock, found)

    # Forward's carry went from layer to layer and its cotangent goes back the same way.
    dx, (dblocks, found) = jax.lax.scan(layer, dstream, (params.blocks, stacked, keys and keys.blocks), reverse=True)
    dnodes |= {PREFIX + name: value for name, value in found.items()}

    # The embedding was multiplied by its mask of dropout, and so is its cotangent.
    demb = dropped(dx, keys and keys.embedding, sizes.dropout)
    dnodes["token_emb"] = demb
    dpositions = None
    if params.positions is not None:
        # emb_it = token_emb_it + positions_t: a place's row was spread over the sequences. Places after the last one
        # were not used.
        dnodes["emb"] = demb
        dpositions = jnp.zeros_like(params.positions).at[: demb.shape[1]].set(demb.sum(0))

    # token_emb_it = tokens[X_it]: a row is used once for every place that names it, and these cotangents add up.
    dtokens = jnp.zeros_like(params.tokens).at[batch.X].add(demb)
    if params.head is None:
        # A tied head is the second use of the table of embeddings, transposed.
        return Params(dtokens + dhead.T, dpositions, dblocks, dln_gain, dln_bias, None), dnodes
    return Params(dtokens, dpositions, dblocks, dln_gain, dln_bias, dhead), dnodes


def block_backward(
    block: Block, nodes: Nodes, dy: Float[Array, "b t d"], sizes: Sizes, keys: PRNGKeyArray | None = None
) -> tuple[Float[Array, "b t d"], Block, Nodes]:
    """Cotangents of one block's input, arrays and nodes, from that of its output."""
    attention_key, mlp_key = (None, None) if keys is None else (keys[0], keys[1])

    # y = mid + mask * out: this is the first use of mid, where the derivative is 1.
    dout = dropped(dy, mlp_key, sizes.dropout)
    dact, dout_w, dout_b = affine_bwd(nodes["act"], block.out_w, dout)
    dfc = gelu_backward(nodes["fc"], dact)
    dln2, dfc_w, dfc_b = affine_bwd(nodes["ln2"], block.fc_w, dfc)
    dmid_by_norm, dln2_gain, dln2_bias, dnorm2 = norm_backward(nodes, block.ln2_gain, dln2, "ln2")
    # The second use of mid was in its norm: on the residual path cotangents add up.
    dmid = dy + dmid_by_norm

    # mid = x + mask * proj: this is the first use of x.
    dproj = dropped(dmid, attention_key, sizes.dropout)
    dln1, dattention, dblock = attention_backward(block, nodes, dproj, sizes)
    dx_by_norm, dln1_gain, dln1_bias, dnorm1 = norm_backward(nodes, block.ln1_gain, dln1, "ln1")
    # The second use of x was in its norm.
    dx = dmid + dx_by_norm

    dblock |= {
        "ln1_gain": dln1_gain, "ln1_bias": dln1_bias, "ln2_gain": dln2_gain, "ln2_bias": dln2_bias,
        "fc_w": dfc_w, "fc_b": dfc_b, "out_w": dout_w, "out_b": dout_b,
    }  # fmt: skip
    dnodes = {
        **dattention, **dnorm1, **dnorm2,
        "out": dout, "act": dact, "fc": dfc, "mid": dmid, "proj": dproj, "x": dx,
    }  # fmt: skip
    return dx, Block(**dblock), dnodes


def attention_backward(
    block: Block, nodes: Nodes, dproj: Float[Array, "b t d"], sizes: Sizes
) -> tuple[Float[Array, "b t d"], Nodes, dict[str, Array]]:
    """The cotangents of attention's input, of its nodes and of its arrays."""
    b, t, d = dproj.shape
    q, k = (nodes[f"{name}_turned" if sizes.rope else name] for name in "qk")
    scale = model.score_scale(sizes)

    # The heads' results are joined, side by side, before the projection: the same numbers in another shape.
    djoined, dproj_w, dproj_b = affine_bwd(nodes["mix"].reshape(b, t, d), block.proj_w, dproj)
    dmix = djoined.reshape(nodes["mix"].shape)

    # mix_i = sum_j att_ij v_j, for each head: att_ij meets v_j in every number of the head, v_j every query i.
    datt = jnp.einsum("bihe,bjhe->bhij", dmix, nodes["v"])
    dv = jnp.einsum("bhij,bihe->bjhe", nodes["att"], dmix)

    # att_ij = exps_ij / exps_sum_i: the sum was spread over the keys, and d(1/s)/ds = -1/s^2.
    dexps_by_att = datt / nodes["exps_sum"]
    dexps_sum = -(datt * nodes["att"]).sum(-1, keepdims=True) / nodes["exps_sum"]

    # exps_sum_i = sum_j exps_ij. This is the second use of exps; the first was in att.
    dexps = dexps_by_att + dexps_sum

    # exps_ij = exp(scores_ij - max_i) where the key is seen, and 0, whose derivative is 0, where it is not.
    dscores = dexps * nodes["exps"]

    # scores_ij = scale * q_i . k_j: a query meets every key, a key every query.
    dq_turned = jnp.einsum("bhij,bjhe->bihe", dscores, k) * scale
    dk_turned = jnp.einsum("bhij,bihe->bjhe", dscores, q) * scale
    dturned = {"q_turned": dq_turned, "k_turned": dk_turned} if sizes.rope else {}

    # A rotation's transpose is the rotation back.
    dq, dk = (model.turned(x, sizes, back=True) if sizes.rope else x for x in (dq_turned, dk_turned))

    # q, k and v are three parts of qkv: their cotangents lie beside each other.
    dqkv = jnp.stack((dq, dk, dv), 2).reshape(nodes["qkv"].shape)
    dln1, dqkv_w, dqkv_b = affine_bwd(nodes["ln1"], block.qkv_w, dqkv)

    dnodes = {
        "mix": dmix, "att": datt, "v": dv, "exps_sum": dexps_sum, "exps": dexps, "scores": dscores,
        **dturned, "q": dq, "k": dk, "qkv": dqkv,
    }  # fmt: skip
    return dln1, dnodes, {"qkv_w": dqkv_w, "qkv_b": dqkv_b, "proj_w": dproj_w, "proj_b": dproj_b}


def gelu_backward(fc: Float[Array, "b t n"], dact: Float[Array, "b t n"]) -> Float[Array, "b t n"]:
    r"""The cotangent of GELU's input.

    $act = \frac12 x (1 + T)$ with $T = \tanh u$ and $u = \sqrt{2/\pi}\,(x + c x^3)$. The product's first factor has
    the derivative $\frac12 (1 + T)$; through the second come $1 - T^2$ and $u' = \sqrt{2/\pi}\,(1 + 3 c x^2)$.
    """
    x = widen(fc)
    tanh = jnp.tanh(SQRT_2_OVER_PI * (x + CUBIC * x**3))
    slope = SQRT_2_OVER_PI * (1 + 3 * CUBIC * x**2)
    return (widen(dact) * (0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * slope)).astype(fc.dtype)


def norm_backward(
    nodes: Nodes, gain: Float[Array, " d"], dy: Float[Array, "b t d"], name: str
) -> tuple[Float[Array, "b t d"], Float[Array, " d"], Float[Array, " d"], Nodes]:
    """Cotangents of a layer norm's input by its norm alone, of gain and bias, and of its nodes."""
    diff, var, var_inv, hat = (nodes[f"{name}_{part}"] for part in ("diff", "var", "var_inv", "hat"))
    size = dy.shape[-1]

    # y_ic = gain_c * hat_ic + bias_c: gain and bias were spread over all places.
    dgain = (dy * hat).sum((0, 1))
    dbias = dy.sum((0, 1))
    dhat = broadcast_to_rank(gain, 3) * dy

    # hat_ic = diff_ic * var_inv_i: the inverse root was spread over the row.
    dvar_inv = (diff * dhat).sum(-1, keepdims=True)
    ddiff_by_hat = var_inv * dhat

    # var_inv = (var + eps)^(-1/2), and d v^(-1/2)/dv = -1/2 v^(-3/2).
    dvar = -0.5 * (var + EPS) ** -1.5 * dvar_inv

    # var_i = 1/d sum_c diff_sq_ic: every number of the row receives the same cotangent over d.
    ddiff_sq = jnp.broadcast_to(dvar / size, diff.shape)

    # diff_sq = diff^2, and d x^2/dx = 2x. This is the second use of diff; the first was in hat.
    ddiff = ddiff_by_hat + 2 * diff * ddiff_sq

    # diff_ic = x_ic - mean_i: the mean was spread over the row, with the sign -1.
    dmean = -ddiff.sum(-1, keepdims=True)

    # mean_i = 1/d sum_c x_ic: every number of the row receives the mean's cotangent over d.
    # This is the norm's second use of x; the first was in diff, where the derivative is 1.
    dx = ddiff + dmean / size

    dnodes = {
        name: dy, f"{name}_hat": dhat, f"{name}_var_inv": dvar_inv, f"{name}_var": dvar,
        f"{name}_diff_sq": ddiff_sq, f"{name}_diff": ddiff, f"{name}_mean": dmean,
    }  # fmt: skip
    return dx, dgain, dbias, dnodes
