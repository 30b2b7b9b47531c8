"""Cross-entropy of a linear map's outputs, which are never whole in memory."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgrad.errors import JaxgradError
from jaxgrad.ops import _linear_cross_entropy_kernels
from jaxgrad.ops._kernels import Implementation, platform_of, power_of_two
from jaxgrad.ops._shards import together, zeros
from jaxgrad.ops.cross_entropy import (
    Options,
    Reduction,
    Statistics,
    as_columns,
    capped,
    checked,
    logits_cotangent,
    reduced,
    row_losses,
    rows_of,
    scaled,
    weights_cotangent,
)
from jaxgrad.ops.precision import accumulation_dtype, widen

# A block of 256 x 2,048 logits is 2 MiB in float32, what a core's own cache holds. Of rows whose logits are computed
# twice there are more in a block, because each block of rows reads the whole map and adds to all of its cotangent.
ROW_BLOCK, ROW_BLOCK_TWICE, COLUMN_BLOCK = 256, 1024, 2048
KEPT_BYTES = 64 * 2**20


class Blocks(NamedTuple):
    """How the logits are walked: rows and columns of a block, and whether a row's are kept for the second walk.

    `kernel` is the platform of the Pallas form, None for XLA's.
    """

    rows: int
    columns: int
    kept: bool
    kernel: str | None = None


class Rows(NamedTuple):
    """Rows of the input with what belongs to them; `counted` is each one's factor in the loss but for its weight."""

    x: Float[Array, "*n d"]
    targets: Int[Array, "*n"]
    counted: Float[Array, "*n"]
    weights: Float[Array, "*n"] | None


class Map(NamedTuple):
    """The linear map."""

    w: Float[Array, "d v"]
    bias: Float[Array, " v"] | None


class Found(NamedTuple):
    """What the first walk finds of each row: its statistics, and less its maximum the target's logit and the mean."""

    statistics: Statistics
    picked: Float[Array, "*n"]
    smooth: Float[Array, "*n"] | None


class Residuals(NamedTuple):
    """What the backward recomputes logits from, or else the cotangents for a loss whose own cotangent is 1.

    `losses` are kept where `weights` have a cotangent, `statistics` where logits are recomputed.
    """

    rows: Rows
    linear: Map
    statistics: Statistics | None
    losses: Float[Array, " n"] | None
    cotangents: tuple[Float[Array, "n d"], Map] | None


def linear_cross_entropy(
    x: Float[Array, "*batch d"],
    w: Float[Array, "d v"],
    targets: Int[Array, "*batch"],
    bias: Float[Array, " v"] | None = None,
    weights: Float[Array, "*batch"] | None = None,
    *,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    soft_cap: float | None = None,
    reduction: Reduction = "mean",
    row_block: int | None = None,
    column_block: int | None = None,
    kept_bytes: int = KEPT_BYTES,
    implementation: Implementation = "xla",
) -> Float[Array, "..."]:
    r"""`cross_entropy(x @ w + bias, targets)` without an array of the logits.

    With the cotangent $dz$ of the logits from `cross_entropy`,
    $$dx_i = \sum_j dz_{ij}\,w_j, \qquad dw_j = \sum_i dz_{ij}\,x_i, \qquad db_j = \sum_i dz_{ij} .$$
    A row's $dz$ needs the sum $e^{S_i}$ of all its exponentials, so blocks of columns are walked twice. The first walk
    has the largest logit $m$ so far and the sum $q$ of exponentials less that; after a block with maximum $m'$,
    $$m \leftarrow \max(m, m'), \qquad q \leftarrow q\,e^{m_{old} - m} + \textstyle\sum_j e^{l_{ij} - m}.$$
    The second walk has the block's logits again, kept or recomputed, and adds its part of each sum above; no sum needs
    another block. In a mean or a sum $dz$ is the loss's cotangent times what is known at once. So where the logits of
    a few rows fit into memory, both walks are in the forward, those logits are computed once, and the backward is one
    multiplication. Where they do not fit, the second walk is in the backward and computes them again.

    Products accumulate in float32 at least. Targets must lie in `range(v)`: one that does not makes the loss NaN.
    Residuals: the cotangents of `x`, `w` and `bias`; or, where logits are computed again, two numbers a row.
    Source: Wijmans et al. 2024, arXiv:2411.09009, for the two walks; derivation ours.

    Args:
        x: one row of `d` numbers for each target.
        w: the linear map; a table of embeddings of shape `(v, d)` is given as `table.T`.
        targets: integers of any type.
        bias: added to the logits.
        weights: a factor of each row's loss; they have a cotangent.
        ignore_index: rows with this target have no loss and no cotangent, and do not count in the mean.
        label_smoothing: the share of the target that is spread over all classes.
        z_loss: the factor of the square of the log-sum-exp.
        soft_cap: bounds the logits by `soft_cap * tanh(logits / soft_cap)`.
        reduction: "mean" over the weights, which is 0 where they sum to 0; "sum"; or "none", a loss for each row.
        row_block: rows of a block; by default at most 256, or 1,024 where logits are computed again.
        column_block: columns of a block; by default at most 2,048.
        kept_bytes: the most that the logits of a block of rows may take to be kept between the walks. With 0 they are
            computed again, as they always are with "none".
        implementation: "xla" everywhere; "pallas" for kernels on a GPU or a TPU, which compute logits again and have no
            second derivatives; or "interpret" for those kernels as slow programs of any platform, to check them.

    Raises:
        JaxgradError: shapes that do not fit, or an option that is out of its range.

    Examples:
        >>> import jax.numpy as jnp
        >>> x, w = jnp.ones((6, 4)), jnp.ones((4, 1000))
        >>> round(float(linear_cross_entropy(x, w, jnp.arange(6))), 4)
        6.9078
    """
    options = checked(Options(ignore_index, label_smoothing, z_loss, soft_cap, reduction))
    _check_shapes(x, w, targets, bias, weights)
    blocks = _blocks(targets.size, w.shape[1], accumulation_dtype(x, w), options, row_block, column_block, kept_bytes)
    kernel = platform_of(implementation, "linear_cross_entropy")
    if kernel is not None:
        blocks = Blocks(power_of_two(blocks.rows), power_of_two(blocks.columns), False, kernel)
    of_rows = None if weights is None else weights.reshape(-1)
    rows = together(x.reshape(-1, x.shape[-1]), w, targets.reshape(-1), bias, of_rows)
    loss = _linear_cross_entropy(*rows, options, blocks)
    return loss.reshape(targets.shape) if reduction == "none" else loss


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _linear_cross_entropy(
    x: Float[Array, "n d"],
    w: Float[Array, "d v"],
    targets: Int[Array, " n"],
    bias: Float[Array, " v"] | None,
    weights: Float[Array, " n"] | None,
    options: Options,
    blocks: Blocks,
) -> Float[Array, "..."]:
    # Without a backward nothing is kept.
    return linear_cross_entropy_fwd(x, w, targets, bias, weights, options, blocks._replace(kept=False))[0]


def linear_cross_entropy_fwd(
    x: Float[Array, "n d"],
    w: Float[Array, "d v"],
    targets: Int[Array, " n"],
    bias: Float[Array, " v"] | None,
    weights: Float[Array, " n"] | None,
    options: Options,
    blocks: Blocks,
) -> tuple[Float[Array, "..."], Residuals]:
    """The loss and the residuals, of arguments with one batch axis."""
    counted, row_targets = rows_of(targets, weights, options, accumulation_dtype(x, w))
    rows, linear = Rows(x, row_targets, counted, weights), Map(w, bias)
    found, cotangents = _walk(rows, linear, options, blocks)
    losses = row_losses(found.statistics, found.picked, found.smooth, options)
    statistics = found.statistics if cotangents is None else None
    residuals = Residuals(rows, linear, statistics, None if weights is None else losses, cotangents)
    return reduced(losses, scaled(counted, weights), options), residuals


def linear_cross_entropy_bwd(
    options: Options, blocks: Blocks, residuals: Residuals, dloss: Float[Array, "..."]
) -> tuple[Array, Array, None, Array | None, Array | None]:
    """Cotangents of `x`, `w`, `bias` and `weights` (None where there is none); integer targets have none."""
    rows, linear, statistics, losses, cotangents = residuals
    if statistics is None:
        dx, (dw, dbias) = jax.tree.map(lambda leaf: (widen(leaf) * dloss).astype(leaf.dtype), cotangents)
    else:
        dlosses = dloss * scaled(rows.counted, rows.weights)
        dx, (dw, dbias) = _walk_again(rows, linear, statistics, dlosses, options, blocks)
    return dx, dw, None, dbias, weights_cotangent(losses, rows.weights, rows.counted, dloss, options)


_linear_cross_entropy.defvjp(linear_cross_entropy_fwd, linear_cross_entropy_bwd)


def _walk(rows: Rows, linear: Map, options: Options, blocks: Blocks) -> tuple[Found, tuple[Array, Map] | None]:
    """What the first walk finds; where logits are kept, also the cotangents for a loss whose own cotangent is 1."""
    if blocks.kernel is not None:
        static = _static(rows, linear, options, blocks)
        statistics, picked, total = _linear_cross_entropy_kernels.forward(rows.x, *linear, rows.targets, static)
        return _found(statistics, picked, total, linear, options), None

    def first(sums: tuple[()], block: Rows) -> tuple[tuple[()], Found]:
        return sums, _first_walk(block, linear, options, blocks)[0]

    def both(sums: Map, block: Rows) -> tuple[Map, tuple[Found, Array]]:
        found, kept = _first_walk(block, linear, options, blocks)
        dlosses = scaled(block.counted, block.weights)
        dx, sums = _second_walk(block, linear, found.statistics, dlosses, kept, sums, options, blocks)
        return sums, (found, dx)

    if not blocks.kept:
        return _by_rows(first, (), rows, blocks)[1], None
    sums, (found, dx) = _by_rows(both, _zeros(linear, rows, blocks), rows, blocks)
    return found, (dx, jax.tree.map(lambda total, of: total.astype(of.dtype), sums, linear))


def _walk_again(
    rows: Rows,
    linear: Map,
    statistics: Statistics,
    dlosses: Float[Array, " n"],
    options: Options,
    blocks: Blocks,
) -> tuple[Array, Map]:
    """Cotangents of the rows and of the map from logits that are all computed again."""
    if blocks.kernel is not None:
        static = _static(rows, linear, options, blocks)
        dx, dw, dbias = _linear_cross_entropy_kernels.cotangents(
            rows.x, *linear, rows.targets, statistics, dlosses, static
        )
        sums = Map(dw, None if linear.bias is None else dbias)
        return dx.astype(rows.x.dtype), jax.tree.map(lambda total, of: total.astype(of.dtype), sums, linear)

    def step(sums: Map, block: tuple[Rows, Statistics, Array]) -> tuple[Map, Array]:
        dx, sums = _second_walk(block[0], linear, block[1], block[2], None, sums, options, blocks)
        return sums, dx

    sums, dx = _by_rows(step, _zeros(linear, rows, blocks), (rows, statistics, dlosses), blocks)
    return dx, jax.tree.map(lambda total, of: total.astype(of.dtype), sums, linear)


def _by_rows(step: Callable[[Any, Any], tuple[Any, Any]], sums: Any, rows: Any, blocks: Blocks) -> tuple[Any, Any]:
    """Scan blocks of rows: `step(sums, block) -> (sums, results)`; results are of all rows.

    Rows that are missing in the last block are zeros, whose cotangents are 0, as their factor in the loss is.
    """
    n = jax.tree.leaves(rows)[0].shape[0]
    count = -(-n // blocks.rows)
    if count <= 1:
        return step(sums, rows)

    def split(leaf: Array) -> Array:
        padded = jnp.pad(leaf, [(0, count * blocks.rows - n)] + [(0, 0)] * (leaf.ndim - 1))
        return padded.reshape(count, blocks.rows, *leaf.shape[1:])

    sums, results = jax.lax.scan(step, sums, jax.tree.map(split, rows))
    return sums, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:n], results)


def _first_walk(rows: Rows, linear: Map, options: Options, blocks: Blocks) -> tuple[Found, Array | None]:
    """What is found of a block of rows, and its logits, block by block, if they are kept."""
    acc = rows.counted.dtype

    def step(carried: tuple[Array, Array, Array], number: Array) -> tuple[tuple[Array, Array, Array], Array | None]:
        maximum, total, plain = carried
        logits, fresh, _ = _logits(rows.x, linear, number, options, blocks)
        # Like the maximum of a whole row, the one so far is a shift without a derivative.
        new = jnp.maximum(maximum, jax.lax.stop_gradient(jnp.where(fresh, logits, -jnp.inf).max(-1)))
        # 0 as long as every class has the logit -inf.
        shift = jnp.where(new == -jnp.inf, 0, new)
        exps = jnp.where(fresh, jnp.exp(logits - shift[:, None]), 0)
        total = total * jnp.exp(maximum - shift) + exps.sum(-1)
        if options.label_smoothing:
            plain = plain + jnp.where(fresh, logits, 0).sum(-1)
        return (new, total, plain), logits if blocks.kept else None

    v, none = linear.w.shape[1], zeros(rows.targets.shape, acc, rows.x)
    (maximum, total, plain), kept = jax.lax.scan(step, (none - jnp.inf, none, none), _numbers(v, blocks))
    # The target's logit by itself, from its column of the map; a target that is out of range picks NaN.
    columns = linear.w.T.at[rows.targets].get(mode="fill", wrap_negative_indices=False)
    picked = jnp.einsum("nd,nd->n", rows.x, columns, preferred_element_type=acc)
    if linear.bias is not None:
        picked = picked + widen(linear.bias).at[rows.targets].get(mode="fill", wrap_negative_indices=False)
    statistics = Statistics(maximum, jnp.log(total))
    return _found(statistics, capped(picked, options), plain, linear, options), kept


def _found(
    statistics: Statistics, picked: Float[Array, "*n"], total: Float[Array, "*n"], linear: Map, options: Options
) -> Found:
    """From the statistics of rows, their targets' logits and the sums of all their logits."""
    smooth = total / linear.w.shape[1] - statistics.maximum if options.label_smoothing else None
    return Found(statistics, picked - statistics.maximum, smooth)


def _second_walk(
    rows: Rows,
    linear: Map,
    statistics: Statistics,
    dlosses: Float[Array, " n"],
    kept: Float[Array, "k n c"] | None,
    sums: Map,
    options: Options,
    blocks: Blocks,
) -> tuple[Array, Map]:
    """The cotangent of a block of rows, and the sums with the map's cotangents added."""
    acc, v = rows.counted.dtype, linear.w.shape[1]
    by_row = as_columns(statistics), as_columns(dlosses)

    def step(carried: tuple[Array, Map], xs: tuple[Array, Array | None]) -> tuple[tuple[Array, Map], None]:
        (dx, sums), (number, given) = carried, xs
        logits, fresh, start = _logits(rows.x, linear, number, options, blocks, given)
        columns = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1) + start
        hit = columns.astype(rows.targets.dtype) == rows.targets[:, None]
        dlogits = logits_cotangent(logits, hit, *by_row, v, options)
        dlogits = jnp.where(fresh, dlogits, 0)
        narrow = dlogits.astype(rows.x.dtype)
        dx = dx + jnp.matmul(narrow, _columns(linear.w, start, blocks).T, preferred_element_type=acc)
        dw = jnp.matmul(rows.x.T, narrow, preferred_element_type=acc)
        dbias = None if linear.bias is None else dlogits.sum(0)
        return (dx, jax.tree.map(lambda total, part: _added(total, part, start), sums, Map(dw, dbias))), None

    start = zeros(rows.x.shape, acc, rows.x), sums
    (dx, sums), _ = jax.lax.scan(step, start, (_numbers(v, blocks), kept))
    return dx.astype(rows.x.dtype), sums


def _logits(
    x: Float[Array, "n d"],
    linear: Map,
    number: Array,
    options: Options,
    blocks: Blocks,
    given: Float[Array, "n c"] | None = None,
) -> tuple[Float[Array, "n c"], Array, Array]:
    """A block of logits, unless they are given; which of its columns no block before had; and its first column.

    The last block ends where the map does and so may begin in the one before.
    """
    start = jnp.minimum(number * blocks.columns, linear.w.shape[1] - blocks.columns)
    fresh = jnp.arange(blocks.columns, dtype=jnp.int32) + start >= number * blocks.columns
    if given is None:
        given = jnp.matmul(x, _columns(linear.w, start, blocks), preferred_element_type=accumulation_dtype(x, linear.w))
        if linear.bias is not None:
            given = given + _columns(linear.bias, start, blocks).astype(given.dtype)[None]
        given = capped(given, options)
    return given, fresh[None], start


def _numbers(v: int, blocks: Blocks) -> Int[Array, " k"]:
    return jnp.arange(-(-v // blocks.columns), dtype=jnp.int32)


def _columns(array: Float[Array, "*d v"], start: Array, blocks: Blocks) -> Float[Array, "*d c"]:
    return jax.lax.dynamic_slice_in_dim(array, start, blocks.columns, array.ndim - 1)


def _added(total: Float[Array, "*d v"], part: Float[Array, "*d c"], start: Array) -> Float[Array, "*d v"]:
    """`total` with `part` added to its columns from `start`."""
    axis = total.ndim - 1
    before = jax.lax.dynamic_slice_in_dim(total, start, part.shape[-1], axis)
    return jax.lax.dynamic_update_slice_in_dim(total, (widen(before) + part).astype(total.dtype), start, axis)


def _static(rows: Rows, linear: Map, options: Options, blocks: Blocks) -> _linear_cross_entropy_kernels.Static:
    return _linear_cross_entropy_kernels.static_of(
        rows.x, linear.w, options, blocks.rows, blocks.columns, str(blocks.kernel)
    )


def _zeros(linear: Map, rows: Rows, blocks: Blocks) -> Map:
    """The map's cotangents before the first block: in the wide type where several blocks of rows add to them."""
    several = rows.x.shape[0] > blocks.rows
    return jax.tree.map(lambda leaf: zeros(leaf.shape, rows.counted.dtype if several else leaf.dtype, rows.x), linear)


def _blocks(
    n: int, v: int, dtype: jnp.dtype, options: Options, rows: int | None, columns: int | None, kept_bytes: int
) -> Blocks:
    """Blocks of nearly the same size; the logits of a block of rows are kept if they fit into what may be."""
    for name, given in (("row_block", rows), ("column_block", columns)):
        if given is not None and given < 1:
            raise JaxgradError(f"{name} is {given}; give at least 1, or None for the default")
    by_columns = min(columns, v) if columns else _balanced(v, COLUMN_BLOCK, 16)
    in_all = -(-v // by_columns) * by_columns * dtype.itemsize
    by_rows = _balanced(n, rows or ROW_BLOCK, 1)
    if options.reduction != "none" and by_rows * in_all <= kept_bytes:
        return Blocks(by_rows, by_columns, True)
    return Blocks(_balanced(n, rows or ROW_BLOCK_TWICE, 1), by_columns, False)


def _balanced(size: int, most: int, multiple: int) -> int:
    """The size of a block, of at most about `most`, for as few blocks of the same size as that allows."""
    if size <= most:
        return max(size, 1)
    each = -(-size // -(-size // most))
    return -(-each // multiple) * multiple


def _check_shapes(x: Array, w: Array, targets: Array, bias: Array | None, weights: Array | None) -> None:
    if w.ndim != 2 or x.ndim < 1 or x.shape[-1] != w.shape[0]:
        raise JaxgradError(f"x has shape {x.shape} and w {w.shape}; x is (*batch, d) and w (d, v)")
    for name, array, shape in (
        ("targets", targets, x.shape[:-1]),
        ("bias", bias, w.shape[1:]),
        ("weights", weights, x.shape[:-1]),
    ):
        if array is not None and array.shape != shape:
            raise JaxgradError(f"{name} has shape {array.shape}; with x {x.shape} and w {w.shape} it is {shape}")
