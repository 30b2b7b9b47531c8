"""The notebook's model as a user of Equinox and optax would write it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxgrad.models.mlp.forward import EPS, Batch, Params
from jaxgrad.models.mlp.sizes import Sizes


class BatchNorm(eqx.Module):
    """Batch norm with the unbiased variance of the batch; `eqx.nn.BatchNorm` has the biased one."""

    weight: Float[Array, " size"]
    bias: Float[Array, " size"]

    def __call__(self, x: Float[Array, "batch size"]) -> Float[Array, "batch size"]:
        """Normalise with the statistics of this batch."""
        return self.weight * (x - x.mean(0)) * jax.lax.rsqrt(x.var(0, ddof=1) + EPS) + self.bias


class MLP(eqx.Module):
    """Embedding, linear, batch norm, tanh, linear."""

    embedding: eqx.nn.Embedding
    hidden: eqx.nn.Linear
    norm: BatchNorm
    output: eqx.nn.Linear

    def __call__(self, X: Int[Array, "batch n"]) -> Float[Array, "batch vocab"]:
        """Logits of the next symbol."""
        emb = jax.vmap(jax.vmap(self.embedding))(X).reshape(X.shape[0], -1)
        h = jnp.tanh(self.norm(jax.vmap(self.hidden)(emb)))
        return jax.vmap(self.output)(h)


def loss(model: MLP, batch: Batch) -> Float[Array, ""]:
    """Mean cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(model(batch.X), batch.Y).mean()


def make(given: Params, sizes: Sizes) -> MLP:
    """The module with these parameters."""
    params = jax.tree.map(jnp.array, given)
    (n_emb, h_size), vocab_size = params.W1.shape, params.C.shape[0]
    first, second = jax.random.split(jax.random.key(0))
    hidden = eqx.nn.Linear(n_emb, h_size, use_bias=False, key=first)
    output = eqx.nn.Linear(h_size, vocab_size, key=second)
    return MLP(
        eqx.nn.Embedding(weight=params.C),
        eqx.tree_at(lambda layer: layer.weight, hidden, params.W1.T),
        BatchNorm(params.bn_gain[0], params.bn_bias[0]),
        eqx.tree_at(lambda layer: (layer.weight, layer.bias), output, (params.W2.T, params.b2)),
    )
