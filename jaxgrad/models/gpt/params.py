"""The GPT's sizes and its trainable arrays.

In comments and types: `b` sequences of a batch, `t` places in each, `d` the width, `h` heads of `e = d / h` numbers,
`vocab` symbols, `l` layers.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgrad.errors import JaxgradError
from jaxgrad.models.gpt.sizes import Sizes

# Of every layer norm, as in GPT-2.
EPS = 1e-5
# The standard deviation that GPT-2 draws its weights with.
INIT_STD = 0.02
# Wavelengths of rotary positions run from 2 pi to 2 pi times this.
ROPE_BASE = 10_000.0


class Block(NamedTuple):
    """The arrays of one block; in `Params` those of all layers, stacked along a first axis `l`."""

    ln1_gain: Float[Array, "*l d"]
    ln1_bias: Float[Array, "*l d"]
    qkv_w: Float[Array, "*l d 3d"]  # columns of the queries, the keys and the values
    qkv_b: Float[Array, "*l 3d"]
    proj_w: Float[Array, "*l d d"]
    proj_b: Float[Array, "*l d"]
    ln2_gain: Float[Array, "*l d"]
    ln2_bias: Float[Array, "*l d"]
    fc_w: Float[Array, "*l d 4d"]
    fc_b: Float[Array, "*l 4d"]
    out_w: Float[Array, "*l 4d d"]
    out_b: Float[Array, "*l d"]


class Params(NamedTuple):
    """Trainable arrays; a cotangent of the parameters has the same form.

    `positions` is None with rotary positions, and `head` where it is `tokens` transposed.
    """

    tokens: Float[Array, "vocab d"]
    positions: Float[Array, "block d"] | None
    blocks: Block
    ln_gain: Float[Array, " d"]
    ln_bias: Float[Array, " d"]
    head: Float[Array, "d vocab"] | None


def shapes(sizes: Sizes, vocab_size: int) -> Params:
    """The shape of every array, a tuple in its place in the form of the parameters."""
    n, d = sizes.layers, sizes.width
    block: dict[str, Any] = {
        "ln1_gain": (n, d), "ln1_bias": (n, d), "qkv_w": (n, d, 3 * d), "qkv_b": (n, 3 * d), "proj_w": (n, d, d),
        "proj_b": (n, d), "ln2_gain": (n, d), "ln2_bias": (n, d), "fc_w": (n, d, 4 * d), "fc_b": (n, 4 * d),
        "out_w": (n, 4 * d, d), "out_b": (n, d),
    }  # fmt: skip
    arrays: dict[str, Any] = {
        "tokens": (vocab_size, d), "positions": None if sizes.rope else (sizes.block, d), "blocks": Block(**block),
        "ln_gain": (d,), "ln_bias": (d,), "head": None if sizes.tied else (d, vocab_size),
    }  # fmt: skip
    return Params(**arrays)


def init(key: PRNGKeyArray, sizes: Sizes, vocab_size: int, dtype: Any = jnp.float32) -> Params:
    """GPT-2's initialisation: weights and embeddings 0.02 times standard normal draws, biases 0, gains 1.

    What is added to the residual stream, `proj_w` and `out_w`, is smaller by `sqrt(2 * layers)`, the root of the
    number of such sums, so that the stream's size at the end does not depend on the depth.
    Source: Radford et al. 2019, section 2.3. Raises `JaxgradError` for a vocabulary without symbols.
    """

    def value(name: str, draw: Array) -> Array:
        if name.endswith(("_bias", "_b")):
            return jnp.zeros_like(draw)
        if name.endswith("_gain"):
            return jnp.ones_like(draw)
        return draw * (INIT_STD / math.sqrt(2 * sizes.layers) if name in ("proj_w", "out_w") else INIT_STD)

    return _drawn(key, sizes, vocab_size, dtype, value)


def nowhere_zero(key: PRNGKeyArray, sizes: Sizes, vocab_size: int, dtype: Any = jnp.float32) -> Params:
    """Parameters for parity, none of them 0 or 1, so that no term of a backward vanishes unseen.

    Matrices are standard normal draws over the root of their fan-in, so that attention is far from even and logits are
    of size 1; biases and embeddings of positions 0.1 times such draws, gains 1 and the same. Raises as `init` does.
    """

    def value(name: str, draw: Array) -> Array:
        if name.endswith("_gain"):
            return 1 + 0.1 * draw
        if name.endswith("_w") or name == "head":
            return draw / math.sqrt(draw.shape[-2])
        # A tied head reads the table along its rows.
        return draw / math.sqrt(sizes.width) if name == "tokens" else 0.1 * draw

    return _drawn(key, sizes, vocab_size, dtype, value)


def _drawn(key: PRNGKeyArray, sizes: Sizes, vocab_size: int, dtype: Any, value: Any) -> Params:
    """`value(name, draw)` of a standard normal draw for every array."""
    if vocab_size < 1:
        raise JaxgradError(f"vocab_size is {vocab_size}; it must be at least 1")
    paths, structure = jax.tree.flatten_with_path(shapes(sizes, vocab_size), is_leaf=_is_shape)
    keys = jax.random.split(key, len(paths))
    drawn = [
        value(path[-1].name, jax.random.normal(key, shape, dtype))
        for key, (path, shape) in zip(keys, paths, strict=True)
    ]
    return jax.tree.unflatten(structure, drawn)


def _is_shape(node: Any) -> bool:
    return type(node) is tuple


def rope_tables(sizes: Sizes, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of `place * 10,000 ** (-2 i / e)`, of shape `(count, e / 2)`, in float64.

    They are constants of the program: every engine has the same ones, whatever its own cosine is.
    """
    frequencies = ROPE_BASE ** (-np.arange(0, sizes.head_size, 2) / sizes.head_size)
    angles = np.arange(count)[:, None] * frequencies
    return np.cos(angles), np.sin(angles)
