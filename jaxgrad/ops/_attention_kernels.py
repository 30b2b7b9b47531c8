"""Attention as Pallas kernels: a program for each block of queries, and in the backward for each block of keys too.

The sums are those of `attention`. A program's loop runs over the blocks that it can see, which depend on its number:
the bounds of the loop are known to the program alone, where XLA's form lists pairs when it is made.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from jaxgrad.ops._kernels import INTERPRET, LEAST, compiler_params, dot
from jaxgrad.ops._shards import struct
from jaxgrad.ops.precision import accumulation_dtype, widen

# Keys that no query sees, such as padding, have this segment.
NONE = -(2**31)


class Static(NamedTuple):
    """`left` and `right` as in `attention.Options`; `shared` heads of queries have one of keys; rows of a block."""

    left: int | None
    right: int | None
    scale: float
    soft_cap: float | None
    shared: int
    block: int
    platform: str


class Heads(NamedTuple):
    """Arrays by heads, padded: queries and their ids, keys, values and their ids."""

    q: Float[Array, "bh s d"]
    k: Float[Array, "bg t d"]
    v: Float[Array, "bg t e"]
    own: Int[Array, "bh s 1"]
    theirs: Int[Array, "bg 1 t"]


def forward(
    q: Float[Array, "b s h d"],
    k: Float[Array, "b t g d"],
    v: Float[Array, "b t g e"],
    own: Int[Array, "b s"],
    theirs: Int[Array, "b t"],
    static: Static,
) -> tuple[Float[Array, "b s h e"], Float[Array, "b h s"]]:
    """The output, and the logarithm of each query's sum of exponentials, 0 where it sees no key."""
    heads, acc = _heads(q, k, v, own, theirs, static), accumulation_dtype(q, k, v)
    rows, width = heads.q.shape[:2], heads.v.shape[-1]
    shapes = struct((*rows, width), v.dtype, q), struct((*rows, 1), acc, q)
    ins = [("block", heads.q), ("shared", heads.k), ("shared", heads.v), ("block", heads.own), ("shared", heads.theirs)]
    out, log_sums = _launch(_forward, ins, shapes, static)
    return _by_place(out, q.shape, v.shape[-1]), log_sums[:, : q.shape[1], 0].reshape(q.shape[0], q.shape[2], -1)


def cotangents(
    q: Float[Array, "b s h d"],
    k: Float[Array, "b t g d"],
    v: Float[Array, "b t g e"],
    own: Int[Array, "b s"],
    theirs: Int[Array, "b t"],
    out: Float[Array, "b s h e"],
    log_sums: Float[Array, "b h s"],
    dout: Float[Array, "b s h e"],
    static: Static,
) -> tuple[Float[Array, "b s h d"], Float[Array, "b t g d"], Float[Array, "b t g e"]]:
    """Cotangents of `q`, `k` and `v`."""
    heads, acc = _heads(q, k, v, own, theirs, static), accumulation_dtype(q, k, v)
    b, s, h, _ = q.shape
    rows, keys = heads.q.shape[1], heads.k.shape[1]
    delta = (widen(dout) * widen(out)).sum(-1).transpose(0, 2, 1)
    by_row = [jnp.pad(array.reshape(b * h, s, 1), ((0, 0), (0, rows - s), (0, 0))) for array in (log_sums, delta)]
    of_queries = [heads.q, heads.own, _by_heads(dout, static), *by_row]
    of_keys = [heads.k, heads.v, heads.theirs]
    ins = [*(("block", x) for x in of_queries), *(("shared", x) for x in of_keys)]
    (dq,) = _launch(_queries_backward, ins, (struct(heads.q.shape, acc, q),), static)
    # Heads that share keys would add to the same cotangent at once: each has its own, and they are added after.
    dkv = tuple(struct((b * h, keys, x.shape[-1]), acc, q) for x in (heads.k, heads.v))
    ins = [*(("whole", x) for x in of_queries), *(("shared block", x) for x in of_keys)]
    dk, dv = _launch(_keys_backward, ins, dkv, static)
    return (
        _by_place(dq, q.shape, q.shape[-1]).astype(q.dtype),
        _of_groups(dk, k, static).astype(k.dtype),
        _of_groups(dv, v, static).astype(v.dtype),
    )


def _forward(
    static: Static, q_ref: Any, k_ref: Any, v_ref: Any, own_ref: Any, theirs_ref: Any, out_ref: Any, log_sums_ref: Any
) -> None:
    i, q, own = pl.program_id(1), q_ref[...], own_ref[...]

    def step(j: Array, carried: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        (out, maximum, total), at = carried, _at(j, static)
        scores, _ = _scores(q, k_ref[at, :], own, theirs_ref[:, at], i, j, static)
        new = jnp.maximum(maximum, scores.max(-1, keepdims=True))
        # 0 for a query that has seen no key.
        shift = jnp.where(new == -jnp.inf, 0.0, new)
        exps, shrunk = jnp.exp(scores - shift), jnp.exp(maximum - shift)
        v = v_ref[at, :]
        return out * shrunk + dot(exps.astype(v.dtype), v), new, total * shrunk + exps.sum(-1, keepdims=True)

    acc, rows = log_sums_ref.dtype, own.shape[0]
    start = jnp.zeros((rows, v_ref.shape[-1]), acc), jnp.full((rows, 1), -jnp.inf, acc), jnp.zeros((rows, 1), acc)
    blocks = k_ref.shape[0] // static.block
    out, maximum, total = jax.lax.fori_loop(*_seen(i, static.left, static.right, blocks, static), step, start)
    total = jnp.where(total == 0, 1.0, total)
    out_ref[...] = (out / total).astype(out_ref.dtype)
    log_sums_ref[...] = jnp.where(maximum == -jnp.inf, 0.0, maximum) + jnp.log(total)


def _queries_backward(
    static: Static, q_ref: Any, own_ref: Any, dout_ref: Any, log_sums_ref: Any, delta_ref: Any,
    k_ref: Any, v_ref: Any, theirs_ref: Any, dq_ref: Any,
) -> None:  # fmt: skip
    i = pl.program_id(1)
    rows = q_ref[...], own_ref[...], dout_ref[...], log_sums_ref[...], delta_ref[...]

    def step(j: Array, dq: Array) -> Array:
        at = _at(j, static)
        k = k_ref[at, :]
        _, dproducts = _cotangents(rows, (k, v_ref[at, :], theirs_ref[:, at]), i, j, static)
        return dq + dot(dproducts.astype(k.dtype), k)

    blocks = k_ref.shape[0] // static.block
    bounds = _seen(i, static.left, static.right, blocks, static)
    dq_ref[...] = jax.lax.fori_loop(*bounds, step, jnp.zeros(dq_ref.shape, dq_ref.dtype))


def _keys_backward(
    static: Static, q_ref: Any, own_ref: Any, dout_ref: Any, log_sums_ref: Any, delta_ref: Any,
    k_ref: Any, v_ref: Any, theirs_ref: Any, dk_ref: Any, dv_ref: Any,
) -> None:  # fmt: skip
    j = pl.program_id(1)
    keys = k_ref[...], v_ref[...], theirs_ref[...]

    def step(i: Array, carried: tuple[Array, Array]) -> tuple[Array, Array]:
        (dk, dv), at = carried, _at(i, static)
        rows = tuple(ref[at, :] for ref in (q_ref, own_ref, dout_ref, log_sums_ref, delta_ref))
        q, _, dout, _, _ = rows
        probs, dproducts = _cotangents(rows, keys, i, j, static)
        return dk + dot(dproducts.T.astype(q.dtype), q), dv + dot(probs.T.astype(dout.dtype), dout)

    blocks = q_ref.shape[0] // static.block
    # What a query sees to its left, a key is seen from to its right.
    bounds = _seen(j, static.right, static.left, blocks, static)
    start = jnp.zeros(dk_ref.shape, dk_ref.dtype), jnp.zeros(dv_ref.shape, dv_ref.dtype)
    dk_ref[...], dv_ref[...] = jax.lax.fori_loop(*bounds, step, start)


def _cotangents(
    rows: tuple[Array, ...], keys: tuple[Array, ...], i: Array, j: Array, static: Static
) -> tuple[Float[Array, "q k"], Float[Array, "q k"]]:
    """A block of weights, and the cotangent of its products `q @ k.T`."""
    (q, own, dout, log_sums, delta), (k, v, theirs) = rows, keys
    scores, slope = _scores(q, k, own, theirs, i, j, static)
    probs = jnp.exp(scores - log_sums)
    dscores = probs * (dot(dout, v.T) - delta)
    return probs, static.scale * (dscores if slope is None else dscores * slope)


def _scores(
    q: Array, k: Array, own: Array, theirs: Array, i: Array, j: Array, static: Static
) -> tuple[Float[Array, "q k"], Float[Array, "q k"] | None]:
    """A block of scores, -inf where a query does not see the key; and the slope of the cap, None without one."""
    scores, slope = dot(q, k.T) * static.scale, None
    if static.soft_cap is not None:
        inside = jnp.tanh(scores / static.soft_cap)
        scores, slope = static.soft_cap * inside, 1 - inside * inside
    row, column = (jax.lax.broadcasted_iota(jnp.int32, scores.shape, axis) for axis in (0, 1))
    ahead = column - row + (j - i) * static.block
    seen = own == theirs
    if static.left is not None:
        seen = seen & (ahead >= -static.left)
    if static.right is not None:
        seen = seen & (ahead <= static.right)
    return jnp.where(seen, scores, -jnp.inf), slope


def _seen(
    i: Array, left: int | None, right: int | None, blocks: int, static: Static
) -> tuple[Array | int, Array | int]:
    """The first block that block `i` sees, and the one after the last."""
    first: Array | int = 0
    last: Array | int = blocks
    if left is not None:
        first = jax.lax.div(jnp.maximum(i * static.block - left, 0), jnp.int32(static.block))
    if right is not None:
        after = jnp.maximum((i + 1) * static.block - 1 + right, -1)
        last = jnp.minimum(jax.lax.div(after + static.block, jnp.int32(static.block)), blocks)
    return first, last


def _at(number: Array, static: Static) -> Any:
    return pl.ds(pl.multiple_of(number * static.block, static.block), static.block)


def _launch(kernel: Callable[..., None], ins: list[tuple[str, Array]], outs: tuple[Any, ...], static: Static) -> Any:
    """A program for each head of queries and block of the outputs. Of an input it sees its own block or all, of its
    own head or of the one that it shares.
    """
    block, shared = static.block, static.shared

    def spec(kind: str, array: Any) -> pl.BlockSpec:
        _, rows, columns = array.shape
        shape = [rows, columns]
        # Ids of keys lie along the lanes.
        along = 1 if rows == 1 else 0
        if "block" in kind:
            shape[along] = block

        def at(head: Array, number: Array) -> tuple[Array | int, ...]:
            # Not //, whose care for signs a TPU's compiler cannot express without knowing its device.
            own = jax.lax.div(head, jnp.int32(shared)) if "shared" in kind else head
            place: list[Array | int] = [0, 0]
            if "block" in kind:
                place[along] = number
            return own, *place

        return pl.BlockSpec((None, *shape), at)

    call = pl.pallas_call(
        functools.partial(kernel, static),
        out_shape=outs,
        grid=(outs[0].shape[0], outs[0].shape[1] // block),
        in_specs=[spec(kind, array) for kind, array in ins],
        out_specs=tuple(spec("block", out) for out in outs),
        compiler_params=compiler_params(static.platform),
        interpret=static.platform == INTERPRET,
    )
    return call(*(array for _, array in ins))


def _heads(q: Array, k: Array, v: Array, own: Array, theirs: Array, static: Static) -> Heads:
    of_q, of_k, of_v = (_by_heads(array, static) for array in (q, k, v))
    rows, keys = of_q.shape[1], of_k.shape[1]
    own = jnp.repeat(jnp.pad(own, ((0, 0), (0, rows - own.shape[1]))), q.shape[2], 0)[..., None]
    # Padded keys are of no segment.
    theirs = jnp.pad(theirs, ((0, 0), (0, keys - theirs.shape[1])), constant_values=NONE)
    return Heads(of_q, of_k, of_v, own, jnp.repeat(theirs, k.shape[2], 0)[:, None])


def _by_heads(array: Float[Array, "b s h d"], static: Static) -> Float[Array, "bh p w"]:
    """Heads first, places padded to whole blocks, and a head's numbers to a power of two."""
    b, s, h, d = array.shape
    width = max(LEAST, 1 << (d - 1).bit_length())
    padded = jnp.pad(array, ((0, 0), (0, -s % static.block), (0, 0), (0, width - d)))
    return padded.transpose(0, 2, 1, 3).reshape(b * h, -1, width)


def _by_place(array: Float[Array, "bh p w"], shape: tuple[int, ...], d: int) -> Float[Array, "b s h d"]:
    b, s, h, _ = shape
    return array.reshape(b, h, *array.shape[1:]).transpose(0, 2, 1, 3)[:, :s, :, :d]


def _of_groups(dx: Float[Array, "bh p w"], x: Float[Array, "b t g d"], static: Static) -> Float[Array, "b t g d"]:
    """Added over the heads of queries that share a head of keys."""
    b, t, g, d = x.shape
    summed = dx.reshape(b * g, static.shared, *dx.shape[1:]).sum(1)
    return _by_place(summed, (b, t, g, d), d)
