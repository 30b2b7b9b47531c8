"""The GPT as a user of Flax NNX and optax would write it."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxgrad.models.gpt.params import EPS, Params
from jaxgrad.models.gpt.sizes import Sizes
from jaxgrad.models.sequences import IGNORED, Batch


class Block(nnx.Module):
    """Attention and an MLP, each behind its layer norm."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.ln1 = nnx.LayerNorm(width, epsilon=EPS, rngs=rngs)
        self.qkv = nnx.Linear(width, 3 * width, rngs=rngs)
        self.proj = nnx.Linear(width, width, rngs=rngs)
        self.ln2 = nnx.LayerNorm(width, epsilon=EPS, rngs=rngs)
        self.fc = nnx.Linear(width, 4 * width, rngs=rngs)
        self.out = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """The stream after the block."""
        b, t, d = x.shape
        q, k, v = (part.reshape(b, t, self.heads, -1) for part in jnp.split(self.qkv(self.ln1(x)), 3, -1))
        x = x + self.proj(jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(b, t, d))
        return x + self.out(jax.nn.gelu(self.fc(self.ln2(x)), approximate=True))


class GPT(nnx.Module):
    """Embeddings of symbols and places, blocks, a norm, and the table of symbols for a head."""

    def __init__(self, vocab_size: int, sizes: Sizes, rngs: nnx.Rngs) -> None:
        self.tokens = nnx.Embed(vocab_size, sizes.width, rngs=rngs)
        self.positions = nnx.Embed(sizes.block, sizes.width, rngs=rngs)
        self.blocks = nnx.List([Block(sizes.width, sizes.heads, rngs) for _ in range(sizes.layers)])
        self.ln = nnx.LayerNorm(sizes.width, epsilon=EPS, rngs=rngs)

    def __call__(self, X: Int[Array, "b t"]) -> Float[Array, "b t vocab"]:
        """Logits of the next symbol at every place."""
        x = self.tokens(X) + self.positions(jnp.arange(X.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.tokens.attend(self.ln(x))


def loss(model: GPT, batch: Batch) -> Float[Array, ""]:
    """Mean cross-entropy of the targets that count."""
    losses = optax.softmax_cross_entropy_with_integer_labels(model(batch.X), jnp.maximum(batch.Y, 0))
    return losses.mean(where=batch.Y != IGNORED)


def make(given: Params, sizes: Sizes) -> GPT:
    """The module with these parameters, of a GPT with learned positions and a tied head."""
    params = jax.tree.map(jnp.array, given)
    model = GPT(params.tokens.shape[0], sizes, nnx.Rngs(0))
    model.tokens.embedding[...] = params.tokens
    model.positions.embedding[...] = params.positions
    _set_norm(model.ln, params.ln_gain, params.ln_bias)
    for number, block in enumerate(model.blocks):
        own = jax.tree.map(lambda leaf, number=number: leaf[number], params.blocks)
        _set_norm(block.ln1, own.ln1_gain, own.ln1_bias)
        _set_norm(block.ln2, own.ln2_gain, own.ln2_bias)
        for name in ("qkv", "proj", "fc", "out"):
            getattr(block, name).kernel[...] = getattr(own, f"{name}_w")
            getattr(block, name).bias[...] = getattr(own, f"{name}_b")
    return model


def _set_norm(norm: Any, gain: Array, bias: Array) -> None:
    norm.scale[...], norm.bias[...] = gain, bias
