"""The GPT's forward pass cut into named nodes, in plain `jax.numpy`: what both backward passes are judged against."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import broadcast_to_rank
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxgrad import ops
from jaxgrad.models.gpt.params import EPS, Block, Params, rope_tables
from jaxgrad.models.gpt.sizes import Sizes
from jaxgrad.models.sequence_nodes import Mark, Nodes, affine, check_length, cross_entropy, dropped, recorder
from jaxgrad.models.sequences import Batch
from jaxgrad.ops.precision import widen

# What nodes of a block are called outside of it, where those of all layers are stacked along the first axis.
PREFIX = "block."


class Keys(NamedTuple):
    """What dropout is drawn from: the embedding's key, and two for each layer."""

    embedding: PRNGKeyArray
    blocks: PRNGKeyArray  # (l, 2)


def dropout_keys(key: PRNGKeyArray | None, sizes: Sizes) -> Keys | None:
    """The keys of a step; None without a key, or where nothing is dropped."""
    if key is None or not sizes.dropout:
        return None
    embedding, blocks = jax.random.split(key)
    return Keys(embedding, jax.random.split(blocks, (sizes.layers, 2)))


def loss(
    params: Params,
    batch: Batch,
    sizes: Sizes,
    key: PRNGKeyArray | None = None,
    taps: Nodes | None = None,
) -> Float[Array, ""]:
    """The mean cross-entropy in nats of the targets that count; 0 where none does. It takes what `forward` does."""
    return forward(params, batch, sizes, key, taps)["loss"]


def forward(
    params: Params,
    batch: Batch,
    sizes: Sizes,
    key: PRNGKeyArray | None = None,
    taps: Nodes | None = None,
) -> Nodes:
    """Every node of the forward pass by name, those of the blocks stacked over layers.

    It is a `jaxgrad.models.sequence_nodes.Forward`, which says what it takes and raises.
    """
    check_length(batch.X, sizes.block)
    taps = {} if taps is None else taps
    keys = dropout_keys(key, sizes)
    nodes, mark = recorder(taps)
    x = dropped(embedded(params, batch.X, mark), keys and keys.embedding, sizes.dropout)

    inside = {name.removeprefix(PREFIX): zeros for name, zeros in taps.items() if name.startswith(PREFIX)}

    def layer(x: Array, given: tuple[Block, Any, Any]) -> tuple[Array, Nodes]:
        block, block_keys, block_taps = given
        found, mark_inside = recorder(block_taps, PREFIX)
        y = block_forward(block, x, sizes, block_keys, mark_inside)
        return y, found

    x, stacked = jax.lax.scan(layer, x, (params.blocks, keys and keys.blocks, inside))
    nodes |= {PREFIX + name: values for name, values in stacked.items()}
    x = mark("stream", x)
    normed = norm_forward(x, params.ln_gain, params.ln_bias, "ln", mark)
    logits = mark("logits", normed @ head_of(params))
    cross_entropy(logits, batch.Y, mark)
    return nodes


def embedded(params: Params, X: Int[Array, "b t"], mark: Mark) -> Float[Array, "b t d"]:
    """The rows of the symbols and, without rotary positions, those of the places."""
    emb = mark("token_emb", params.tokens.at[X].get(mode="fill"))
    if params.positions is None:
        return emb
    return mark("emb", emb + params.positions[None, : X.shape[1]])


def head_of(params: Params) -> Float[Array, "d vocab"]:
    """The map from the stream to logits."""
    return params.tokens.T if params.head is None else params.head


def block_forward(
    block: Block, x: Float[Array, "b t d"], sizes: Sizes, keys: PRNGKeyArray | None, mark: Mark
) -> Float[Array, "b t d"]:
    """One block's nodes, from its input to its output: each half adds to the stream what it makes of its norm."""
    attention_key, mlp_key = (None, None) if keys is None else (keys[0], keys[1])
    x = mark("x", x)
    ln1 = norm_forward(x, block.ln1_gain, block.ln1_bias, "ln1", mark)
    proj = attention_forward(block, ln1, sizes, mark)
    mid = mark("mid", x + dropped(proj, attention_key, sizes.dropout))

    ln2 = norm_forward(mid, block.ln2_gain, block.ln2_bias, "ln2", mark)
    fc = mark("fc", affine(ln2, block.fc_w, block.fc_b))
    # GPT-2's GELU, in tanh's approximation.
    act = mark("act", ops.gelu_fwd(fc, True)[0])
    out = mark("out", affine(act, block.out_w, block.out_b))
    return mid + dropped(out, mlp_key, sizes.dropout)


def attention_forward(block: Block, ln1: Float[Array, "b t d"], sizes: Sizes, mark: Mark) -> Float[Array, "b t d"]:
    """Causal attention with all its scores, and the projection of what the heads found."""
    b, t, d = ln1.shape
    qkv = mark("qkv", affine(ln1, block.qkv_w, block.qkv_b))
    q, k, v = (mark(name, part) for name, part in zip("qkv", by_heads(qkv, sizes), strict=True))
    if sizes.rope:
        q, k = (mark(f"{name}_turned", turned(x, sizes)) for name, x in (("q", q), ("k", k)))
    scores = mark("scores", jnp.einsum("bihe,bjhe->bhij", q, k) * score_scale(sizes))
    seen = broadcast_to_rank(causal(t), 4)
    # The row's largest score is subtracted for range. It moves no value, so it is no node.
    largest = jax.lax.stop_gradient(jnp.where(seen, scores, -jnp.inf).max(-1, keepdims=True))
    exps = mark("exps", jnp.where(seen, jnp.exp(jnp.where(seen, scores - largest, 0)), 0))
    exps_sum = mark("exps_sum", exps.sum(-1, keepdims=True))
    att = mark("att", exps / exps_sum)
    mix = mark("mix", jnp.einsum("bhij,bjhe->bihe", att, v))
    return mark("proj", affine(mix.reshape(b, t, d), block.proj_w, block.proj_b))


def by_heads(qkv: Float[Array, "b t 3d"], sizes: Sizes) -> tuple[Array, Array, Array]:
    """Queries, keys and values, each `(b, t, h, e)`."""
    b, t, _ = qkv.shape
    parts = qkv.reshape(b, t, 3, sizes.heads, sizes.head_size)
    return parts[:, :, 0], parts[:, :, 1], parts[:, :, 2]


def turned(x: Float[Array, "b t h e"], sizes: Sizes, back: bool = False) -> Float[Array, "b t h e"]:
    """Heads rotated by the angle of their place; `back` by the opposite angle."""
    cos, sin = rope_of(x, sizes, x.shape[1])
    return ops.rope(x, cos, -sin if back else sin)


def rope_of(x: Float[Array, "..."], sizes: Sizes, count: int) -> tuple[Float[Array, "t e/2"], Float[Array, "t e/2"]]:
    """The cosines and sines of the first `count` places, in the type that `x` is turned in."""
    cos, sin = (jnp.asarray(table, widen(x).dtype) for table in rope_tables(sizes, count))
    return cos, sin


def score_scale(sizes: Sizes) -> float:
    """The factor that gives scores of independent queries and keys the variance of one product."""
    return 1 / math.sqrt(sizes.head_size)


def causal(t: int) -> Bool[Array, "t t"]:
    """Whether the query of a row sees the key of a column: its own place and those before."""
    return jnp.tril(jnp.ones((t, t), bool))


def norm_forward(
    x: Float[Array, "b t d"], gain: Float[Array, " d"], bias: Float[Array, " d"], name: str, mark: Mark
) -> Float[Array, "b t d"]:
    """A layer norm's nodes, whose names begin with its own."""
    mean = mark(f"{name}_mean", x.sum(-1, keepdims=True) / x.shape[-1])
    diff = mark(f"{name}_diff", x - mean)
    diff_sq = mark(f"{name}_diff_sq", diff**2)
    var = mark(f"{name}_var", diff_sq.sum(-1, keepdims=True) / x.shape[-1])
    var_inv = mark(f"{name}_var_inv", (var + EPS) ** -0.5)
    hat = mark(f"{name}_hat", diff * var_inv)
    return mark(name, broadcast_to_rank(gain, 3) * hat + broadcast_to_rank(bias, 3))
