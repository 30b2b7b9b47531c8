"""The model's arrays as a kernel holds them: neurons in blocks, every side a power of two, filled up with zeros."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxgrad.models.mlp.forward import Batch, Params

# The least side of a matrix product in Triton, and a whole number of a TPU's sublanes.
LEAST = 16
# The symbol of a row that fills a batch up: it names no row of C, so its one-hot column is zero.
NOBODY = -1


class Sizes(NamedTuple):
    """The sizes of model and batch, and of a block of neurons: hashable, so that they can be static arguments."""

    batch: int
    n: int
    vocab: int
    emb_size: int
    h_size: int
    block: int

    @property
    def blocks(self) -> int:
        """How many blocks hold all neurons."""
        return -(-self.h_size // self.block)


def sizes(params: Params, batch: int, block: int) -> Sizes:
    """The sizes of unpadded `params` (with or without leading axes) and of batches of `batch` rows."""
    vocab, emb_size = params.C.shape[-2:]
    n_emb, h_size = params.W1.shape[-2:]
    return Sizes(batch, n_emb // emb_size, vocab, emb_size, h_size, block)


def padded(size: int) -> int:
    """The least power of two that holds `size`, and at least `LEAST`."""
    return max(LEAST, 1 << (size - 1).bit_length())


def pad_params(params: Params, size: Sizes) -> Params:
    """Parameters with a leading axis of models, padded by zeros; v, e are `padded` sizes, hb is `size.block`.

    C (models, v, e) · W1 (models, blocks, n, e, hb), an axis for the characters of context because the numbers of
    each are padded · W2 (models, blocks, hb, v) · b2 (models, 1, v) · bn_gain, bn_bias (models, blocks, 1, hb).
    """
    models, v, e = len(params.C), padded(size.vocab), padded(size.emb_size)
    h = size.blocks * size.block
    W1 = _fill(params.W1.reshape(models, size.n, size.emb_size, -1), (models, size.n, e, h))
    return Params(
        C=_fill(params.C, (models, v, e)),
        W1=W1.reshape(models, size.n, e, size.blocks, -1).transpose(0, 3, 1, 2, 4),
        W2=_fill(params.W2, (models, h, v)).reshape(models, size.blocks, -1, v),
        b2=_fill(params.b2[:, None], (models, 1, v)),
        bn_gain=_fill(params.bn_gain, (models, 1, h)).reshape(models, size.blocks, 1, -1),
        bn_bias=_fill(params.bn_bias, (models, 1, h)).reshape(models, size.blocks, 1, -1),
    )


def cut_params(params: Params, size: Sizes) -> Params:
    """The inverse of `pad_params`: blocks joined, and what was padded cut off."""
    models, (v, e, h) = len(params.C), (size.vocab, size.emb_size, size.h_size)
    W1 = params.W1.transpose(0, 2, 3, 1, 4)[:, :, :e].reshape(models, size.n * e, -1)
    return Params(
        C=params.C[:, :v, :e],
        W1=W1[:, :, :h],
        W2=params.W2.reshape(models, -1, params.W2.shape[-1])[:, :h, :v],
        b2=params.b2[:, 0, :v],
        bn_gain=params.bn_gain.reshape(models, 1, -1)[:, :, :h],
        bn_bias=params.bn_bias.reshape(models, 1, -1)[:, :, :h],
    )


def pad_batches(batches: Batch) -> Int[Array, "models n_and_1 steps b"]:
    """All symbols of all steps: the n of context and then the target, each a row as long as the padded batch.

    Rows of the batch come last, because then the symbols that a step needs lie side by side on any platform.
    """
    symbols = jnp.concatenate([batches.X, batches.Y[..., None]], axis=-1).astype(jnp.int32)
    models, steps, batch, n_and_1 = symbols.shape
    return _fill(symbols.transpose(0, 3, 1, 2), (models, n_and_1, steps, padded(batch)), NOBODY)


def _fill(x: Array, shape: tuple[int, ...], value: int = 0) -> Array:
    after = [(0, to - size) for to, size in zip(shape, x.shape, strict=True)]
    return jnp.pad(x, after, constant_values=value)
