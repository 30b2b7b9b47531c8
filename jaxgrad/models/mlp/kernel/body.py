"""The kernels: forward and backward over references to one model's arrays, and what is done with the gradients."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from jaxgrad.models.mlp.forward import Params
from jaxgrad.models.mlp.kernel import maths
from jaxgrad.models.mlp.kernel.maths import Between, Block, Embedded, Kept
from jaxgrad.models.mlp.kernel.padding import Sizes
from jaxgrad.ops.precision import accumulation_dtype

Barrier = Callable[[], None]


class Ends(NamedTuple):
    """The loss, and the cotangents of all that is not a block's."""

    loss: Float[Array, "1 1"]
    C: Float[Array, "v e"]
    b2: Float[Array, "1 v"]
    emb: Embedded
    logits: Float[Array, "b v"]


def differentiate(
    C: Float[Array, "v e"],
    b2: Float[Array, "1 v"],
    read: Callable[[Any], Block],
    write: Callable[[Any, Block, Between], None],
    kept: Kept,
    symbols: list[Int[Array, "1 b"]],
    *,
    size: Sizes,
    precision: jax.lax.Precision,
    barrier: Barrier,
) -> Ends:
    """Loss and gradients of one batch: `read(i)` gives the i-th block, `write(i, gradients, nodes)` takes its.

    `kept` are references to room for the residuals of all blocks. `read` of a block comes before its `write`.
    The types of gradients are those of `C` and of what `read` returns.
    """
    dtype, wide = C.dtype, accumulation_dtype(C)
    picks = [maths.one_hot(of_place, C) for of_place in symbols]
    context, target = picks[:-1], picks[-1]
    emb = maths.embed(C, context, precision)

    def forward_of(i: Any, logits: Float[Array, "b v"]) -> Float[Array, "b v"]:
        block = read(i)
        of_block = maths.block_forward(emb, block, size, precision)
        for ref, value in zip(kept, of_block, strict=True):
            ref[i] = value
        return logits + maths.dot(of_block.h, block.W2, (1, 0), precision)

    def backward_of(i: Any, demb: Embedded) -> Embedded:
        of_block = Kept(*(ref[i] for ref in kept))
        grads, de, nodes = maths.block_backward(emb, read(i), of_block, dlogits, size, precision)
        write(i, grads, nodes)
        return tuple(a + b for a, b in zip(demb, de, strict=True))

    logits = jax.lax.fori_loop(0, size.blocks, forward_of, jnp.zeros((emb[0].shape[0], C.shape[0]), wide))
    loss, dlogits = maths.cross_entropy(logits.astype(dtype) + b2, target, size)
    barrier()
    zeros = tuple(jnp.zeros(e.shape, wide) for e in emb)
    demb = tuple(de.astype(dtype) for de in jax.lax.fori_loop(0, size.blocks, backward_of, zeros))
    barrier()
    dC = [maths.dot(pick, de, (1, 0), precision) for pick, de in zip(context, demb, strict=True)]
    db2 = dlogits.astype(wide).sum(0, keepdims=True)
    return Ends(loss, sum(dC[1:], dC[0]).astype(dtype), db2.astype(dtype), demb, dlogits)


def run(
    params: Params, symbols: Any, rates: Any, trained: Params, losses: Any, kept: Kept,
    *, size: Sizes, dtype: jnp.dtype, precision: jax.lax.Precision, barrier: Barrier,
) -> None:  # fmt: skip
    """K steps of one model. Blocks of neurons live in `trained`, which nothing but this program sees meanwhile."""
    C, b2 = params.C[...], params.b2[...]

    def copy(i: Any, nothing: Any) -> Any:
        _write_block(trained, i, _read_block(params, i, size))
        return nothing

    jax.lax.fori_loop(0, size.blocks, copy, 0)
    barrier()

    def narrow(tree: Any) -> Any:
        return jax.tree.map(lambda p: p.astype(dtype), tree)

    def step(k: Any, carried: tuple[Array, Array]) -> tuple[Array, Array]:
        rate = rates[pl.ds(k, 1), :]

        def descend(p: Array, gradient: Array) -> Array:
            return p - rate * gradient.astype(p.dtype)

        def read(i: Any) -> Block:
            return narrow(_read_block(trained, i, size))

        def write(i: Any, grads: Block, _: Between) -> None:
            block = jax.tree.map(descend, _read_block(trained, i, size), grads)
            # Not before every thread has read what is written over.
            barrier()
            _write_block(trained, i, block)

        C, b2 = carried
        of_step = [symbols[place, pl.ds(k, 1), :] for place in range(size.n + 1)]
        ends = differentiate(
            narrow(C), narrow(b2), read, write, kept, of_step, size=size, precision=precision, barrier=barrier
        )
        losses[pl.ds(k, 1), :] = ends.loss
        return descend(C, ends.C), descend(b2, ends.b2)

    trained.C[...], trained.b2[...] = jax.lax.fori_loop(0, rates.shape[0], step, (C, b2))


def gradients(
    params: Params, symbols: Any, loss: Any, grads: Params, dlogits: Any, between: Between, demb: Any, kept: Kept,
    *, size: Sizes, precision: jax.lax.Precision, barrier: Barrier,
) -> None:  # fmt: skip
    """One batch's gradients, and the cotangents of the nodes that the closed forms pass through."""

    def write(i: Any, of_block: Block, nodes: Between) -> None:
        _write_block(grads, i, of_block)
        for ref, value in zip(between, nodes, strict=True):
            ref[i] = value

    of_step = [symbols[place] for place in range(size.n + 1)]
    ends = differentiate(
        params.C[...], params.b2[...], lambda i: _read_block(params, i, size), write, kept, of_step,
        size=size, precision=precision, barrier=barrier,
    )  # fmt: skip
    loss[...], grads.C[...], grads.b2[...], dlogits[...] = ends.loss, ends.C, ends.b2, ends.logits
    for place, value in enumerate(ends.emb):
        demb[place] = value


def _read_block(refs: Params, i: Any, size: Sizes) -> Block:
    W1 = tuple(refs.W1[i, place] for place in range(size.n))
    return Block(W1, refs.W2[i], refs.bn_gain[i], refs.bn_bias[i])


def _write_block(refs: Params, i: Any, block: Block) -> None:
    for place, of_place in enumerate(block.W1):
        refs.W1[i, place] = of_place
    refs.W2[i], refs.bn_gain[i], refs.bn_bias[i] = block.W2, block.bn_gain, block.bn_bias
