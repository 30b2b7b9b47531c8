"""The GPT as a user of Equinox and optax would write it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxgrad.models.gpt.params import EPS, Params
from jaxgrad.models.gpt.params import Block as Arrays
from jaxgrad.models.gpt.sizes import Sizes
from jaxgrad.models.sequences import IGNORED, Batch


class Block(eqx.Module):
    """Attention and an MLP, each behind its layer norm, on one sequence."""

    ln1: eqx.nn.LayerNorm
    qkv: eqx.nn.Linear
    proj: eqx.nn.Linear
    ln2: eqx.nn.LayerNorm
    fc: eqx.nn.Linear
    out: eqx.nn.Linear
    heads: int = eqx.field(static=True)

    def __call__(self, x: Float[Array, "t d"]) -> Float[Array, "t d"]:
        """The stream after the block."""
        t, d = x.shape
        qkv = jax.vmap(self.qkv)(jax.vmap(self.ln1)(x))
        q, k, v = (part.reshape(t, self.heads, -1) for part in jnp.split(qkv, 3, -1))
        mix = jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(t, d)
        x = x + jax.vmap(self.proj)(mix)
        fc = jax.vmap(self.fc)(jax.vmap(self.ln2)(x))
        return x + jax.vmap(self.out)(jax.nn.gelu(fc, approximate=True))


class GPT(eqx.Module):
    """Embeddings of symbols and places, blocks, a norm, and the table of symbols for a head."""

    tokens: eqx.nn.Embedding
    positions: eqx.nn.Embedding
    blocks: list[Block]
    ln: eqx.nn.LayerNorm

    def __call__(self, X: Int[Array, " t"]) -> Float[Array, "t vocab"]:
        """Logits of the next symbol at every place of one sequence."""
        x = jax.vmap(self.tokens)(X) + jax.vmap(self.positions)(jnp.arange(len(X)))
        for block in self.blocks:
            x = block(x)
        return jax.vmap(self.ln)(x) @ self.tokens.weight.T


def loss(model: GPT, batch: Batch) -> Float[Array, ""]:
    """Mean cross-entropy of the targets that count."""
    logits = jax.vmap(model)(batch.X)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(batch.Y, 0))
    return losses.mean(where=batch.Y != IGNORED)


def make(given: Params, sizes: Sizes) -> GPT:
    """The module with these parameters, of a GPT with learned positions and a tied head."""
    params = jax.tree.map(jnp.array, given)
    layers = [jax.tree.map(lambda leaf, k=k: leaf[k], params.blocks) for k in range(sizes.layers)]
    return GPT(
        eqx.nn.Embedding(weight=params.tokens),
        eqx.nn.Embedding(weight=params.positions),
        [_block(own, sizes) for own in layers],
        _norm(params.ln_gain, params.ln_bias),
    )


def _block(own: Arrays, sizes: Sizes) -> Block:
    return Block(
        _norm(own.ln1_gain, own.ln1_bias),
        _linear(own.qkv_w, own.qkv_b),
        _linear(own.proj_w, own.proj_b),
        _norm(own.ln2_gain, own.ln2_bias),
        _linear(own.fc_w, own.fc_b),
        _linear(own.out_w, own.out_b),
        sizes.heads,
    )


def _norm(gain: Array, bias: Array) -> eqx.nn.LayerNorm:
    norm = eqx.nn.LayerNorm(gain.shape, eps=EPS)
    return eqx.tree_at(lambda layer: (layer.weight, layer.bias), norm, (gain, bias))


def _linear(w: Array, b: Array) -> eqx.nn.Linear:
    inputs, outputs = w.shape
    layer = eqx.nn.Linear(inputs, outputs, key=jax.random.key(0))
    return eqx.tree_at(lambda layer: (layer.weight, layer.bias), layer, (w.T, b))
