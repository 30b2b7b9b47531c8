"""Kernel launches: K training steps of many models at once, and one batch's gradients.

On a GPU the compiler is Triton. Mosaic GPU was tried: it has no rule for `dot_general`, its own product takes float32
only as TF32, and it stages every block of an array in shared memory, where the batches of many steps have no room.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float

from jaxgrad.errors import JaxgradError
from jaxgrad.models.mlp.forward import Batch, Gradients, Nodes, Params
from jaxgrad.models.mlp.kernel import body
from jaxgrad.models.mlp.kernel.maths import Between, Kept
from jaxgrad.models.mlp.kernel.padding import Sizes, cut_params, pad_batches, pad_params, padded, sizes
from jaxgrad.ops.precision import accumulation_dtype

INTERPRET = "interpret"
# Neurons of a block: on a TPU the width of a register, on a GPU as many as fit in registers with little padding. At the
# seed's sizes, compiled for sm_90a, 32 and 64 spill nothing and pad 200 neurons to 224 and 256; all in one block spill
# 2.6 KB a thread, and 8.9 KB when the loop carries the whole state in registers.
BLOCK = {"gpu": 32, "tpu": 128, INTERPRET: 32}
WARPS = 8
# Shared memory that one program of an H100 may have, in bytes.
SHARED = 227 * 1024
HIGHEST = jax.lax.Precision.HIGHEST


def require_support(platform: str) -> None:
    """Raise `JaxgradError` for a platform (such as `jax.default_backend()`) that the kernel is not compiled for."""
    if platform not in BLOCK:
        raise JaxgradError(
            f"the one-kernel step compiles for gpu and tpu, and this is {platform}; use --gradients fused"
            " (a CPU can only interpret the kernel, which serves to check it)"
        )


@functools.partial(jax.jit, static_argnames=("platform", "dtype", "precision"), donate_argnames=("params",))
def run_models(
    params: Params,
    batches: Batch,
    learning_rates: Float[Array, "models steps"],
    *,
    platform: str,
    dtype: str | None = None,
    precision: jax.lax.Precision = HIGHEST,
) -> tuple[Params, Float[Array, "models steps"]]:
    """All steps of all models in one launch: the parameters after them, and each step's loss before its update.

    A step is plain SGD, `p - rate * gradient`. Models do not meet: each is a program of its own on a multiprocessor
    of its own, near which its parameters stay from the first step to the last.

    `params` have a leading axis of models and are donated; `batches.X` is (models, steps, batch, n) and `batches.Y`
    (models, steps, batch). `platform` is "gpu" (Triton), "tpu" (Mosaic) or "interpret" (any device, for checks).
    `dtype`, by default that of `params`, is what losses and gradients are computed in; they are applied in the
    parameters' own. `precision` is that of matrix products: only a lower one lets TF32 or bfloat16 into float32.
    A symbol outside the vocabulary makes its step's loss NaN, and all parameters from then on.

    Raises `JaxgradError` for a platform without support, a batch of one row, and sizes that a GPU has no room for.
    """
    narrow = jnp.dtype(dtype or params.C.dtype)
    size = _checked_sizes(params, batches.X.shape[2], narrow, platform)
    outside = _outside(batches, size).any(-1)
    rates = jnp.where(outside, jnp.nan, learning_rates).astype(params.C.dtype)[..., None]
    state, symbols = pad_params(params, size), pad_batches(batches)
    losses = _room(rates.shape, _wide(narrow))
    kernel = functools.partial(body.run, size=size, dtype=narrow, precision=precision)
    outs = (state, losses, _kept(len(rates), narrow, size))
    trained, losses, _ = _launch(kernel, (state, symbols, rates), outs, platform, in_place=len(state))
    return cut_params(trained, size), jnp.where(outside, jnp.nan, losses[..., 0])


@functools.partial(jax.jit, static_argnames=("platform", "precision"))
def gradients(params: Params, batch: Batch, *, platform: str, precision: jax.lax.Precision = HIGHEST) -> Gradients:
    """Loss and cotangents of one batch, from the code that `run_models` steps with.

    Shapes and types as in `jaxgrad.models.mlp.forward`; nodes inside an operation are None. `platform`, `precision` and
    what is raised are those of `run_models`; a symbol outside the vocabulary makes everything NaN.
    """
    size = _checked_sizes(params, len(batch.Y), params.C.dtype, platform)
    state = pad_params(jax.tree.map(lambda p: p[None], params), size)
    symbols = pad_batches(jax.tree.map(lambda a: a[None, None], batch))
    dtype, b = params.C.dtype, padded(size.batch)
    loss, logits = _room((1, 1, 1), _wide(dtype)), _room((1, b, padded(size.vocab)), dtype)
    between = Between(*(_room((1, size.blocks, b, size.block), dtype) for _ in Between._fields))
    emb = _room((1, size.n, b, padded(size.emb_size)), dtype)
    kernel = functools.partial(body.gradients, size=size, precision=precision)
    outs = (loss, state, logits, between, emb, _kept(1, dtype, size))
    *found, _ = _launch(kernel, (state, symbols), outs, platform)
    outside = _outside(batch, size).any()
    loss, dstate, dlogits, dbetween, demb = jax.tree.map(
        lambda x: jnp.where(outside, jnp.nan, x).astype(x.dtype), found
    )
    dparams = jax.tree.map(lambda p: p[0], cut_params(dstate, size))
    return Gradients(loss[0, 0, 0], dparams, _cut_nodes(dlogits[0], dbetween, demb[0], size))


def _launch(kernel: Callable[..., None], ins: Any, outs: Any, platform: str, in_place: int = 0) -> Any:
    """One program for each model, which sees its part of every array; the first `in_place` may be written over."""

    def of_model(array: Any) -> pl.BlockSpec:
        rest = array.shape[1:]
        return pl.BlockSpec((None, *rest), lambda model: (model, *(0 for _ in rest)))

    barrier, compiler_params = _of_platform(platform)
    call = pl.pallas_call(
        functools.partial(kernel, barrier=barrier),
        out_shape=jax.tree.map(lambda x: _room(x.shape, x.dtype), outs),
        grid=(len(jax.tree.leaves(ins)[0]),),
        in_specs=jax.tree.map(of_model, ins),
        out_specs=jax.tree.map(of_model, outs),
        input_output_aliases={i: i for i in range(in_place)},
        compiler_params=compiler_params,
        interpret=platform == INTERPRET,
    )
    return call(*ins)


def _of_platform(platform: str) -> tuple[Callable[[], None], Any]:
    """What waits for all threads of a program, and the compiler's settings."""
    if platform != "gpu":
        return lambda: None, None
    # Imported only where a GPU is meant, because not every build of JAX has Triton.
    from jax.experimental.pallas import triton

    # Threads read from memory what others wrote to it.
    return triton.debug_barrier, triton.CompilerParams(num_warps=WARPS, num_stages=1)


def _checked_sizes(params: Params, batch: int, dtype: Any, platform: str) -> Sizes:
    require_support(platform)
    if batch < 2:
        raise JaxgradError(f"a batch of {batch}: Bessel's correction divides by n - 1; give at least 2 rows")
    if platform == "tpu" and dtype == jnp.float64:
        raise JaxgradError("dtype is float64, which no kernel has on a TPU; use float32, or --gradients fused")
    size = sizes(params, batch, BLOCK[platform])
    working_set = _working_set(size) * dtype.itemsize
    if platform == "gpu" and working_set > SHARED:
        raise JaxgradError(
            f"a step on batches of {size.batch}, {size.n} characters of context and {size.vocab} symbols works on"
            f" {working_set // 1024} KB at a time, and a multiprocessor holds {SHARED // 1024};"
            " use smaller batches, or --gradients fused"
        )
    return size


def _working_set(size: Sizes) -> int:
    """Numbers that a program works on at a time: one-hot matrices, characters and their cotangents, two blocks.

    Of that, what Triton allocated was 0.77 to 1.0 when compiled for an H100 at five sizes.
    """
    b, v, e = padded(size.batch), padded(size.vocab), padded(size.emb_size)
    return b * ((size.n + 1) * v + 2 * size.n * e + 2 * max(v, size.block))


def _wide(dtype: Any) -> jnp.dtype:
    return accumulation_dtype(jnp.zeros((), dtype))


def _room(shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


def _kept(models: int, dtype: Any, size: Sizes) -> Kept:
    rows, one = ((models, size.blocks, b, size.block) for b in (padded(size.batch), 1))
    return Kept(_room(rows, dtype), _room(rows, dtype), _room(one, _wide(dtype)))


def _outside(batch: Batch, size: Sizes) -> Bool[Array, "*steps batch"]:
    """Rows that have a symbol outside the vocabulary, in context or target."""
    symbols = jnp.concatenate([batch.X, batch.Y[..., None]], axis=-1)
    return ((symbols < 0) | (symbols >= size.vocab)).any(-1)


def _cut_nodes(dlogits: Array, between: Between, demb: Array, size: Sizes) -> Nodes:
    rows = size.batch
    emb = demb[:, :rows, : size.emb_size].transpose(1, 0, 2)
    joined = {
        name: of_blocks[0].transpose(1, 0, 2).reshape(of_blocks.shape[2], -1)[:rows, : size.h_size]
        for name, of_blocks in between._asdict().items()
    }
    known = {
        "loss": jnp.ones((), _wide(emb.dtype)), "logits": dlogits[:rows, : size.vocab], **joined,
        "embcat": emb.reshape(rows, -1), "emb": emb,
    }  # fmt: skip
    return Nodes(*(known.get(name) for name in Nodes._fields))
