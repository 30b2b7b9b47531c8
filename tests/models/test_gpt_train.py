"""A thousand AdamW steps in float64 by hand, by jax.grad and by PyTorch stay together."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from jaxgrad import port
from jaxgrad.models.gpt.forward import loss
from jaxgrad.models.gpt.fused import fused
from jaxgrad.models.gpt.params import Params, nowhere_zero
from jaxgrad.models.gpt.sizes import Sizes
from jaxgrad.models.model import named
from jaxgrad.models.sequences import Batch, of_words
from jaxgrad.port import gpt2
from torchref import gpt2 as twin

DRAWN = jax.jit(nowhere_zero, static_argnums=(1, 2, 3))
SIZES = Sizes(layers=1, heads=2, width=8, block=6, dropout=0.0)
WORDS = ["ada", "edda", "dade", "ed", "adela", "della", "lee", "al"]
VOCABULARY = (".", *"adel")
STEPS, ROWS, RATE, DECAY = 1000, 4, 1e-3, 0.1


def rows_of_steps() -> np.ndarray:
    return np.random.default_rng(0).integers(0, len(WORDS), (STEPS, ROWS))


def in_jax(gradients: Any, params: Params) -> tuple[Params, jax.Array]:
    batches = jax.tree.map(lambda x: jnp.asarray(x[rows_of_steps()]), of_words(WORDS, VOCABULARY, SIZES.block))
    optimizer = optax.adamw(RATE, b1=0.9, b2=0.99, weight_decay=DECAY)

    def step(carried: Any, batch: Batch) -> Any:
        params, state = carried
        value, grads = gradients(params, batch)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    (params, _), losses = jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), batches))(params)
    return params, losses


def in_torch(params: Params) -> tuple[Params, list[float]]:
    """The module that holds the parameters under GPT-2's names, trained by PyTorch's own optimizer."""
    model = twin.GPT2LMHeadModel(len(VOCABULARY), SIZES.layers, SIZES.heads, SIZES.width, SIZES.block).double()
    mapping = gpt2.mapping(SIZES, len(VOCABULARY))
    given = named(params)
    with torch.no_grad():
        for entry in mapping.entries:
            leaf = given[entry.path.removeprefix(".")]
            for number, source in enumerate(entry.rule.sources):
                part = leaf[number] if entry.rule.join == "stack" else leaf
                model.get_parameter(source).copy_(torch.from_numpy(np.array(part)))
    optimizer = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.99), weight_decay=DECAY)
    X, Y = (torch.from_numpy(x) for x in of_words(WORDS, VOCABULARY, SIZES.block))
    losses = []
    for rows in rows_of_steps():
        optimizer.zero_grad()
        value = twin.loss(model, X[rows], Y[rows])
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return port.load(params, model.state_dict(), mapping), losses


def apart(a: Params, b: Params) -> tuple[float, float]:
    """The largest relative 2-norm of a difference, among all arrays but the biases of attention, and among these."""
    gaps = {
        name: float(jnp.linalg.norm((x - named(b)[name]).ravel()) / jnp.linalg.norm(x)) for name, x in named(a).items()
    }
    biases = gaps.pop("blocks.qkv_b")
    return max(gaps.values()), biases


@pytest.fixture(autouse=True)
def one_thread():
    """Arrays as small as these are computed faster without others to wait for."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_thousand_steps_stay_together():
    with jax.enable_x64(True):
        start = DRAWN(jax.random.key(0), SIZES, len(VOCABULARY), jnp.float64)
        by_hand, losses = in_jax(lambda p, batch: fused(p, batch, SIZES), start)
        by_grad, _ = in_jax(jax.value_and_grad(lambda p, batch: loss(p, batch, SIZES)), start)
        by_torch, of_torch = in_torch(start)
        # It has learned something: from about the logarithm of 5 symbols or more to far less.
        assert losses[:10].mean() > 1.6 and losses[-100:].mean() < 0.7
        for other in (by_grad, by_torch):
            all_others, biases = apart(by_hand, other)
            assert all_others <= 1e-12
            # The bias of the keys adds one number to all scores of a query, which moves no probability: its gradient is
            # rounding alone, some 1e-17, and that is what AdamW divides by its own size and 1e-8.
            assert biases <= 1e-9
        np.testing.assert_allclose(losses, of_torch, rtol=1e-12)
