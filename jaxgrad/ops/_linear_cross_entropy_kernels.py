"""Cross-entropy of a linear map's outputs as Pallas kernels: one for what is found of the rows, two for cotangents.

The sums are those of `linear_cross_entropy`. A program has the logits of a block of rows and a block of columns at a
time, from products of some of their `d` numbers after others. The first kernel has a program for each pair of blocks,
whose statistics are put together after. In the others a program owns a block of the cotangent, and adds to it what
each block of the other side gives, with the logits computed again; no two programs add to the same numbers.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from jaxgrad.ops._kernels import INTERPRET, LEAST, compiler_params, dot
from jaxgrad.ops._shards import struct, zeros
from jaxgrad.ops.cross_entropy import Options, Statistics, capped, logits_cotangent
from jaxgrad.ops.precision import accumulation_dtype

# The width of a TPU's register, which the last axis of a block has there. A GPU has less room for a product's operands.
LANES, DEPTH = 128, 32
# Of each row: its statistics, the logit of its target (NaN for one that is out of range), and the sum of its logits.
Found: TypeAlias = tuple[Statistics, Float[Array, " n"], Float[Array, " n"]]


class Static(NamedTuple):
    """Rows and columns without those of padding; rows, columns and numbers of `d` in a block; and the platform."""

    options: Options
    n: int
    v: int
    rows: int
    columns: int
    depth: int
    platform: str


class OfColumns(NamedTuple):
    """The map in padded arrays, or in a kernel the references to them."""

    w: Float[Array, "d v"]
    bias: Float[Array, "1 v"]


class OfRows(NamedTuple):
    """What belongs to rows in padded arrays, or in a kernel the references to them."""

    x: Float[Array, "n d"]
    targets: Int[Array, "n 1"]
    maximum: Float[Array, "n 1"]
    log_sum: Float[Array, "n 1"]
    dlosses: Float[Array, "n 1"]


def static_of(
    x: Float[Array, "n d"], w: Float[Array, "d v"], options: Options, rows: int, columns: int, platform: str
) -> Static:
    """With blocks of at most so many rows and columns, as far as the platform leaves a choice; powers of two."""
    if platform == "tpu":
        return Static(options, x.shape[0], w.shape[1], min(rows, LANES), LANES, LANES, platform)
    depth = min(DEPTH, max(LEAST, 1 << (w.shape[0] - 1).bit_length()))
    return Static(options, x.shape[0], w.shape[1], min(rows, LANES), min(columns, LANES), depth, platform)


def forward(
    x: Float[Array, "n d"],
    w: Float[Array, "d v"],
    bias: Float[Array, " v"] | None,
    targets: Int[Array, " n"],
    static: Static,
) -> Found:
    """What is found of each row."""
    acc = accumulation_dtype(x, w)
    of_rows, columns = (_padded_rows(x, static), _column(targets, static)), _columns(w, bias, acc, static)
    blocks = columns.w.shape[1] // static.columns
    shape = struct((blocks, of_rows[0].shape[0], 1), acc, x)
    found = pl.pallas_call(
        functools.partial(_forward, static),
        out_shape=(shape,) * 4,
        grid=(shape.shape[1] // static.rows, blocks),
        in_specs=[
            *(pl.BlockSpec((static.rows, array.shape[1]), lambda i, j: (i, 0)) for array in of_rows),
            *(pl.BlockSpec((array.shape[0], static.columns), lambda i, j: (0, j)) for array in columns),
        ],
        out_specs=(pl.BlockSpec((None, static.rows, 1), lambda i, j: (j, i, 0)),) * 4,
        compiler_params=compiler_params(static.platform),
        interpret=static.platform == INTERPRET,
    )(*of_rows, *columns)
    maxima, sums, picked, totals = (array[:, : static.n, 0] for array in found)
    maximum = maxima.max(0)
    log_sum = jnp.log((sums * jnp.exp(maxima - maximum)).sum(0))
    in_range = (targets >= 0) & (targets < static.v)
    return Statistics(maximum, log_sum), jnp.where(in_range, picked.sum(0), jnp.nan), totals.sum(0)


def cotangents(
    x: Float[Array, "n d"],
    w: Float[Array, "d v"],
    bias: Float[Array, " v"] | None,
    targets: Int[Array, " n"],
    statistics: Statistics,
    dlosses: Float[Array, " n"],
    static: Static,
) -> tuple[Float[Array, "n d"], Float[Array, "d v"], Float[Array, " v"]]:
    """Cotangents of `x`, `w` and the bias, in the type in which they were added up."""
    acc = accumulation_dtype(x, w)
    columns = _columns(w, bias, acc, static)
    rows = OfRows(_padded_rows(x, static), *(_column(array, static) for array in (targets, *statistics, dlosses)))
    (dx,) = _launch(_rows_backward, rows, columns, (struct(rows.x.shape, acc, x),), static)
    shapes = struct(columns.w.shape, acc, x), struct(columns.bias.shape, acc, x)
    dw, dbias = _launch(_columns_backward, columns, rows, shapes, static)
    d = x.shape[1]
    return dx[: static.n, :d], dw[:d, : static.v], dbias[0, : static.v]


def _forward(
    static: Static, x_ref: Any, targets_ref: Any, w_ref: Any, bias_ref: Any,
    maximum_ref: Any, sum_ref: Any, picked_ref: Any, total_ref: Any,
) -> None:  # fmt: skip
    logits = _logits(x_ref, OfColumns(w_ref, bias_ref), slice(None), slice(None), static)
    column = _places(logits, 1, pl.program_id(1) * static.columns)
    inside = jnp.where(column < static.v, logits, -jnp.inf)
    maximum = inside.max(-1, keepdims=True)
    # 0 where every class has the logit -inf.
    shift = jnp.where(maximum == -jnp.inf, 0.0, maximum)
    maximum_ref[...] = maximum
    sum_ref[...] = jnp.exp(inside - shift).sum(-1, keepdims=True)
    picked_ref[...] = jnp.where(column == targets_ref[...], logits, 0.0).sum(-1, keepdims=True)
    total_ref[...] = jnp.where(column < static.v, logits, 0.0).sum(-1, keepdims=True)


def _rows_backward(static: Static, *refs: Any) -> None:
    rows, columns, dx_ref = OfRows(*refs[:5]), OfColumns(*refs[5:7]), refs[7]
    own, everything = pl.program_id(0), slice(None)

    def zero() -> None:
        def clear(at: Any) -> None:
            dx_ref[:, at] = jnp.zeros((static.rows, static.depth), dx_ref.dtype)

        _each_depth(clear, dx_ref.shape[1], static)

    def step(number: Array, at_columns: Any) -> None:
        dlogits = _dlogits(rows, columns, (own, everything), (number, at_columns), static).astype(rows.x.dtype)

        def add(at: Any) -> None:
            dx_ref[:, at] += dot(dlogits, columns.w[at, at_columns].T)

        _each_depth(add, dx_ref.shape[1], static)

    _walk(zero, step, columns.w.shape[1], static.columns, static)


def _columns_backward(static: Static, *refs: Any) -> None:
    columns, rows, (dw_ref, dbias_ref) = OfColumns(*refs[:2]), OfRows(*refs[2:7]), refs[7:]
    own, everything = pl.program_id(0), slice(None)

    def zero() -> None:
        def clear(at: Any) -> None:
            dw_ref[at, :] = jnp.zeros((static.depth, static.columns), dw_ref.dtype)

        _each_depth(clear, dw_ref.shape[0], static)
        dbias_ref[...] = jnp.zeros(dbias_ref.shape, dbias_ref.dtype)

    def step(number: Array, at_rows: Any) -> None:
        dlogits = _dlogits(rows, columns, (number, at_rows), (own, everything), static)
        dbias_ref[...] += dlogits.sum(0, keepdims=True)
        narrow = dlogits.astype(rows.x.dtype)

        def add(at: Any) -> None:
            dw_ref[at, :] += dot(rows.x[at_rows, at].T, narrow)

        _each_depth(add, dw_ref.shape[0], static)

    _walk(zero, step, rows.x.shape[0], static.rows, static)


def _dlogits(
    rows: OfRows, columns: OfColumns, row: tuple[Array, Any], column: tuple[Array, Any], static: Static
) -> Float[Array, "r c"]:
    """The cotangent of a block of logits, 0 in what is padding; of each side the block's number and place."""
    (i, at_rows), (j, at_columns) = row, column
    targets, maximum, log_sum, dlosses = (ref[at_rows, :] for ref in rows[1:])
    logits = _logits(rows.x, columns, at_rows, at_columns, static)
    row_number, column_number = _places(logits, 0, i * static.rows), _places(logits, 1, j * static.columns)
    statistics, hit = Statistics(maximum, log_sum), column_number == targets
    dlogits = logits_cotangent(logits, hit, statistics, dlosses, static.v, static.options)
    within = (row_number < static.n) & (column_number < static.v)
    return jnp.where(within, dlogits, 0.0)


def _logits(x_ref: Any, columns: OfColumns, at_rows: Any, at_columns: Any, static: Static) -> Float[Array, "r c"]:
    bias = columns.bias[:, at_columns]

    def add(at: Any, total: Array) -> Array:
        return total + dot(x_ref[at_rows, at], columns.w[at, at_columns])

    none = jnp.zeros((static.rows, static.columns), bias.dtype)
    return capped(_over_depth(add, x_ref.shape[1], none, static) + bias, static.options)


def _places(logits: Float[Array, "r c"], axis: int, start: Array) -> Int[Array, "r c"]:
    return jax.lax.broadcasted_iota(jnp.int32, logits.shape, axis) + start


def _walk(zero: Callable[[], None], step: Callable[[Array, Any], None], length: int, size: int, static: Static) -> None:
    """`step(number, place)` for each block of the other side, after `zero`.

    A TPU takes the programs of a grid in their order, so the blocks are the grid's last axis, which it fetches while it
    computes. A GPU runs them at once, so there a program loops over the blocks.
    """
    if static.platform == "tpu":
        number = pl.program_id(1)
        pl.when(number == 0)(zero)
        step(number, slice(None))
        return

    def turn(number: Array, done: int) -> int:
        _wait(static)
        step(number, pl.ds(pl.multiple_of(number * size, size), size))
        return done

    zero()
    jax.lax.fori_loop(0, length // size, turn, 0)


def _wait(static: Static) -> None:
    """Until all threads of a GPU's program have written, because others may read it back."""
    if static.platform == "gpu":
        from jax.experimental.pallas import triton

        triton.debug_barrier()


def _each_depth(step: Callable[[Any], None], d: int, static: Static) -> None:
    def turn(at: Any, done: int) -> int:
        step(at)
        return done

    _over_depth(turn, d, 0, static)


def _over_depth(step: Callable[[Any, Any], Any], d: int, start: Any, static: Static) -> Any:
    """`step(place, carried) -> carried` for each part of the `d` numbers of a row."""

    def turn(number: Array, carried: Any) -> Any:
        return step(pl.ds(pl.multiple_of(number * static.depth, static.depth), static.depth), carried)

    return jax.lax.fori_loop(0, d // static.depth, turn, start)


def _launch(
    kernel: Callable[..., None],
    own: OfRows | OfColumns,
    other: OfRows | OfColumns,
    outs: tuple[Any, ...],
    static: Static,
) -> Any:
    """A program for each block of `own` and of the outputs, on a TPU and block of `other`, of which others see all."""
    by_grid = static.platform == "tpu"

    def spec(array: Any, axis: int, size: int, place: int | None) -> pl.BlockSpec:
        shape = list(array.shape)
        shape[axis] = size if place is not None else shape[axis]

        def at(*numbers: Array) -> tuple[Array | int, ...]:
            block: list[Array | int] = [0, 0]
            if place is not None:
                block[axis] = numbers[place]
            return tuple(block)

        return pl.BlockSpec(tuple(shape), at)

    axis, size = _blocked(own, static)
    other_axis, other_size = _blocked(other, static)
    grid = (own[0].shape[axis] // size, *((other[0].shape[other_axis] // other_size,) if by_grid else ()))
    return pl.pallas_call(
        functools.partial(kernel, static),
        out_shape=outs,
        grid=grid,
        in_specs=[
            *(spec(array, axis, size, 0) for array in own),
            *(spec(array, other_axis, other_size, 1 if by_grid else None) for array in other),
        ],
        out_specs=tuple(spec(out, axis, size, 0) for out in outs),
        compiler_params=compiler_params(static.platform),
        interpret=static.platform == INTERPRET,
    )(*own, *other)


def _blocked(side: OfRows | OfColumns, static: Static) -> tuple[int, int]:
    """The axis that is in blocks, and their size."""
    return (0, static.rows) if isinstance(side, OfRows) else (1, static.columns)


def _padded_rows(x: Float[Array, "n d"], static: Static) -> Float[Array, "p q"]:
    return jnp.pad(x, ((0, -x.shape[0] % static.rows), (0, -x.shape[1] % static.depth)))


def _column(array: Array, static: Static) -> Array:
    """An array of a number for each row, of 32 bits if it is an integer; padded."""
    narrow = array.astype(jnp.int32) if jnp.issubdtype(array.dtype, jnp.integer) else array
    return jnp.pad(narrow, (0, -array.shape[0] % static.rows))[:, None]


def _columns(w: Float[Array, "d v"], bias: Float[Array, " v"] | None, acc: jnp.dtype, static: Static) -> OfColumns:
    """The map and its bias, zeros where there is none; padded, the bias in the type of the logits."""
    d, v = w.shape
    missing = 0, -v % static.columns
    wide = zeros((v,), acc, w) if bias is None else bias.astype(acc)
    return OfColumns(jnp.pad(w, ((0, -d % static.depth), missing)), jnp.pad(wide, missing)[None])
