"""The notebook's model as a user of Flax NNX and optax would write it."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxgrad.models.mlp.forward import EPS, Batch, Params
from jaxgrad.models.mlp.sizes import Sizes


class BatchNorm(nnx.Module):
    """Batch norm with the unbiased variance of the batch; `nnx.BatchNorm` has the biased one."""

    def __init__(self, size: int) -> None:
        self.scale = nnx.Param(jnp.ones(size))
        self.bias = nnx.Param(jnp.zeros(size))

    def __call__(self, x: Float[Array, "batch size"]) -> Float[Array, "batch size"]:
        """Normalise with the statistics of this batch."""
        return self.scale * (x - x.mean(0)) * jax.lax.rsqrt(x.var(0, ddof=1) + EPS) + self.bias


class MLP(nnx.Module):
    """Embedding, linear, batch norm, tanh, linear."""

    def __init__(self, vocab_size: int, n: int, emb_size: int, h_size: int, rngs: nnx.Rngs) -> None:
        self.embedding = nnx.Embed(vocab_size, emb_size, rngs=rngs)
        self.hidden = nnx.Linear(n * emb_size, h_size, use_bias=False, rngs=rngs)
        self.norm = BatchNorm(h_size)
        self.output = nnx.Linear(h_size, vocab_size, rngs=rngs)

    def __call__(self, X: Int[Array, "batch n"]) -> Float[Array, "batch vocab"]:
        """Logits of the next symbol."""
        emb = self.embedding(X).reshape(X.shape[0], -1)
        return self.output(jnp.tanh(self.norm(self.hidden(emb))))


def loss(model: MLP, batch: Batch) -> Float[Array, ""]:
    """Mean cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(model(batch.X), batch.Y).mean()


def make(given: Params, sizes: Sizes) -> MLP:
    """The module with these parameters."""
    params = jax.tree.map(jnp.array, given)
    vocab_size, emb_size = params.C.shape
    n_emb, h_size = params.W1.shape
    model = MLP(vocab_size, n_emb // emb_size, emb_size, h_size, nnx.Rngs(0))
    model.embedding.embedding[...] = params.C
    model.hidden.kernel[...] = params.W1
    model.norm.scale[...] = params.bn_gain[0]
    model.norm.bias[...] = params.bn_bias[0]
    model.output.kernel[...] = params.W2
    # A linear layer without a bias has None there; this one has one.
    assert model.output.bias is not None
    model.output.bias[...] = params.b2
    return model
