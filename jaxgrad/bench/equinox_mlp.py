"""The same model as a user of Equinox and optax would write it."""

import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxgrad.batches import indices
from jaxgrad.bench.jax_peers import temp_bytes
from jaxgrad.bench.peers import Place, Ready
from jaxgrad.bench.task import Task
from jaxgrad.bench.task import examples as examples_of
from jaxgrad.models.mlp.forward import EPS, Batch


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


def loss_fn(model: MLP, batch: Batch) -> Float[Array, ""]:
    """Mean cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(model(batch.X), batch.Y).mean()


def training(task: Task, place: Place, n_steps: int) -> Ready:
    """A Python loop over an `eqx.filter_jit` step that draws its batch."""
    key, examples = task.key, examples_of(task)
    optimizer = optax.sgd(task.learning_rate)

    def train_step(
        fixed: tuple[PRNGKeyArray, Batch], model: MLP, opt_state: Any, step: Array
    ) -> tuple[MLP, Any, Array, Float[Array, ""]]:
        key, examples = fixed
        rows = indices(key, step, task.size.batch, len(examples.Y))
        batch = Batch(examples.X[rows], examples.Y[rows])
        loss, grads = eqx.filter_value_and_grad(loss_fn)(model, batch)
        updates, opt_state = optimizer.update(grads, opt_state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), opt_state, step + 1, loss

    # Typed as the plain function it is called like, it also has `lower`.
    jitted: Any = eqx.filter_jit(train_step, donate="all-except-first")

    def begin() -> tuple[MLP, Any, Array]:
        model = _with_params(task)
        return model, optimizer.init(eqx.filter(model, eqx.is_inexact_array)), jnp.zeros((), jnp.int32)

    def advance(state: tuple[MLP, Any, Array]) -> tuple[tuple[MLP, Any, Array], list[Array]]:
        losses = []
        for _ in range(n_steps):
            model, opt_state, step, loss = jitted((key, examples), *state)
            state = (model, opt_state, step)
            losses.append(loss)
        return state, losses

    began = time.perf_counter()
    program = jitted.lower((key, examples), *begin()).compile()
    return Ready(begin, advance, time.perf_counter() - began, temp_bytes(program.compiled))


def _with_params(task: Task) -> MLP:
    params = jax.tree.map(jnp.array, task.params)
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
