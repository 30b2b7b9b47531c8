"""The recurrent model's sizes and its trainable arrays.

In comments and types: `b` sequences of a batch, `t` time steps, `d` numbers of an embedding, `n` of a state, `vocab`
symbols.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgrad.errors import JaxgradError
from jaxgrad.models.gru.sizes import Sizes
from jaxgrad.ops import GruWeights


class Params(NamedTuple):
    """Trainable arrays; a cotangent of the parameters has the same form. `start` is the state before a sequence."""

    tokens: Float[Array, "vocab d"]
    start: Float[Array, " n"]
    gru: GruWeights
    head: Float[Array, "n vocab"]
    head_bias: Float[Array, " vocab"]


def init(key: PRNGKeyArray, sizes: Sizes, vocab_size: int, dtype: Any = jnp.float32) -> Params:
    """PyTorch's initialisation: embeddings standard normal, all of the layer and the head uniform.

    The bounds are one over the root of the size of the state; the state before a sequence is 0.
    Source: `torch.nn.Embedding`, `GRU` and `Linear`. Raises `JaxgradError` for a vocabulary without symbols.
    """
    bound = 1 / math.sqrt(sizes.hidden)

    def draw(name: str, key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
        if name == "start":
            return jnp.zeros(shape, dtype)
        if name == "tokens":
            return jax.random.normal(key, shape, dtype)
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return _drawn(key, sizes, vocab_size, draw)


def nowhere_zero(key: PRNGKeyArray, sizes: Sizes, vocab_size: int, dtype: Any = jnp.float32) -> Params:
    """Parameters for parity, standard normal draws over the root of the fan-in, none of them 0. Raises as `init`."""

    def draw(name: str, key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
        return jax.random.normal(key, shape, dtype) / math.sqrt(shape[0] if len(shape) > 1 and name != "tokens" else 1)

    return _drawn(key, sizes, vocab_size, draw)


def _drawn(key: PRNGKeyArray, sizes: Sizes, vocab_size: int, draw: Any) -> Params:
    if vocab_size < 1:
        raise JaxgradError(f"vocab_size is {vocab_size}; it must be at least 1")
    d, n = sizes.embedding, sizes.hidden
    shapes = {
        "tokens": (vocab_size, d), "start": (n,), "of_x": (d, 3 * n), "of_h": (n, 3 * n), "bias_x": (3 * n,),
        "bias_h": (3 * n,), "head": (n, vocab_size), "head_bias": (vocab_size,),
    }  # fmt: skip
    keys = jax.random.split(key, len(shapes))
    made = {name: draw(name, key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=True)}
    gru = GruWeights(*(made.pop(name) for name in GruWeights._fields))
    return Params(gru=gru, **made)
