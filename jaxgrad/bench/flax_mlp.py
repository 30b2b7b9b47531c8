"""The same model as a user of Flax NNX and optax would write it."""

import time

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxgrad.batches import indices
from jaxgrad.bench.jax_peers import temp_bytes
from jaxgrad.bench.peers import Place, Ready
from jaxgrad.bench.task import Task
from jaxgrad.bench.task import examples as examples_of
from jaxgrad.models.mlp.forward import EPS, Batch


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


def loss_fn(model: MLP, batch: Batch) -> Float[Array, ""]:
    """Mean cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(model(batch.X), batch.Y).mean()


def training(task: Task, place: Place, n_steps: int) -> Ready:
    """A Python loop over an `nnx.jit` step that draws its batch."""
    key, examples = task.key, examples_of(task)

    @nnx.jit
    def train_step(model: MLP, optimizer: nnx.Optimizer, key: PRNGKeyArray, examples: Batch) -> Float[Array, ""]:
        rows = indices(key, optimizer.step[...].astype(jnp.int32), task.size.batch, len(examples.Y))
        loss, grads = nnx.value_and_grad(loss_fn)(model, Batch(examples.X[rows], examples.Y[rows]))
        optimizer.update(model, grads)
        return loss

    def begin() -> tuple[MLP, nnx.Optimizer]:
        model = _with_params(task)
        return model, nnx.Optimizer(model, optax.sgd(task.learning_rate), wrt=nnx.Param)

    def advance(state: tuple[MLP, nnx.Optimizer]) -> tuple[tuple[MLP, nnx.Optimizer], list[Array]]:
        return state, [train_step(*state, key, examples) for _ in range(n_steps)]

    began = time.perf_counter()
    program = train_step.lower(*begin(), key, examples).compile()
    return Ready(begin, advance, time.perf_counter() - began, temp_bytes(program))


def _with_params(task: Task) -> MLP:
    params = jax.tree.map(jnp.array, task.params)
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
