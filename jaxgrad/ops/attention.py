"""Scaled dot-product attention in blocks, with an online softmax: no array of all scores."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxgrad.errors import JaxgradError
from jaxgrad.ops import _attention_kernels
from jaxgrad.ops._kernels import Implementation, platform_of, power_of_two
from jaxgrad.ops._shards import together, zeros
from jaxgrad.ops.precision import accumulation_dtype, widen

# The scores of 256 queries and 256 keys are 256 KiB a head in float32: they stay in a core's cache, and products of
# that size run near their peak. Blocks of 512 were no faster.
BLOCK = 256
# Of the kernels, the width of a TPU's register.
KERNEL_BLOCK = 128


class Options(NamedTuple):
    """What is static. A query at i sees keys from i - left to i + right, where these are given.

    `kernel` is the platform of the Pallas form, None for XLA's.
    """

    left: int | None
    right: int | None
    scale: float
    soft_cap: float | None
    block: int
    kernel: str | None = None


class Data(NamedTuple):
    """What is added to scores and what hides keys, each None where it is not asked for."""

    bias: Float[Array, "#b #h #s #t"] | None
    query_segments: Int[Array, "b s"] | None
    key_segments: Int[Array, "b t"] | None
    key_mask: Bool[Array, "b t"] | None


class Residuals(NamedTuple):
    """`log_sums` are of the exponentials of each query's scores, 0 for a query without a key."""

    q: Float[Array, "b s h d"]
    k: Float[Array, "b t g d"]
    v: Float[Array, "b t g e"]
    data: Data
    out: Float[Array, "b s h e"]
    log_sums: Float[Array, "b g r s"] | Float[Array, "b h s"]


class Blocked(NamedTuple):
    """A sequence of arrays with its axis padded to a whole number of blocks: size of a block, how many, true length."""

    size: int
    number: int
    length: int


def attention(
    q: Float[Array, "b s h d"],
    k: Float[Array, "b t g d"],
    v: Float[Array, "b t g e"],
    bias: Float[Array, "#b #h #s #t"] | None = None,
    segment_ids: Int[Array, "b s"] | None = None,
    key_segment_ids: Int[Array, "b t"] | None = None,
    key_mask: Bool[Array, "b t"] | None = None,
    *,
    causal: bool = False,
    window: int | tuple[int, int] | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    block: int = BLOCK,
    implementation: Implementation = "xla",
) -> Float[Array, "b s h e"]:
    r"""`softmax(scale * q @ k.T + bias) @ v` for each head, over the keys that a query may see.

    For one head, with $z_{ij} = \sigma\,q_i \cdot k_j$, $s_{ij} = c \tanh(z_{ij}/c) + b_{ij}$ for a cap $c$ (else
    $z_{ij} + b_{ij}$), $S_i = \log\sum_j e^{s_{ij}}$ and $p_{ij} = e^{s_{ij} - S_i}$, the output is
    $o_i = \sum_j p_{ij} v_j$. From its cotangent,
    $$dv_j = \sum_i p_{ij}\,do_i, \qquad dp_{ij} = do_i \cdot v_j, \qquad
      ds_{ij} = p_{ij}\,(dp_{ij} - \delta_i), \quad \delta_i = \sum_k p_{ik}\,dp_{ik} = do_i \cdot o_i,$$
    $$db_{ij} = ds_{ij}, \qquad dz_{ij} = ds_{ij}\,\bigl(1 - (\tanh(z_{ij}/c))^2\bigr), \qquad
      dq_i = \sigma \sum_j dz_{ij}\,k_j, \qquad dk_j = \sigma \sum_i dz_{ij}\,q_i .$$
    Each of these is a sum over blocks that $S_i$ and $\delta_i$, one number a query, make independent of one another.
    The forward finds $S_i$ as it goes: with a larger maximum, what was summed so far is scaled down.

    Blocks of queries and keys that can see one another are listed when the program is made, so a causal mask halves
    the work, a window makes it linear, and only blocks on an edge of the mask are masked. The list is walked by
    `scan`, forward and backward, adding to all queries' arrays in place; so second derivatives are JAX's own, of both
    walks, at the memory of plain attention.

    A query that sees no key has output 0 and cotangent 0. Products accumulate in float32 at least.
    Residuals: the arguments, the output and one number a query and head. Autodiff would keep arrays `(s, t)` a head.
    Source: Dao et al. 2022, arXiv:2205.14135, appendix B; Rabe & Staats 2021, arXiv:2112.05682; derivation ours.

    Args:
        q: queries.
        k: keys. Their heads divide those of the queries, `h // g` of which share a head of keys and values.
        v: values.
        bias: added to the scores after the cap; each size may be 1. It has a cotangent.
        segment_ids: queries see keys of the same number only.
        key_segment_ids: those of the keys; by default those of the queries.
        key_mask: False for keys that no query sees, such as padding.
        causal: a query at i sees keys up to i, counted from the start of both.
        window: how many keys before its own place a query sees, and how many after it; one number for both.
        scale: of the products; by default `d ** -0.5`.
        soft_cap: bounds the scaled products by `soft_cap * tanh(z / soft_cap)`.
        block: at most so many queries and keys in a block.
        implementation: "xla" everywhere; "pallas" for kernels on a GPU or a TPU, which have no bias and no second
            derivatives; or "interpret" for those kernels as slow programs of any platform, to check them.

    Raises:
        JaxgradError: shapes that do not fit, or an option that is out of its range.

    Examples:
        >>> import jax.numpy as jnp
        >>> x = jnp.arange(12.0).reshape(1, 3, 2, 2)
        >>> attention(x, x, x, causal=True)[0, 0].tolist() == x[0, 0].tolist()
        True
    """
    _check(q, k, v, bias, soft_cap, block)
    kernel = _kernel(implementation, bias)
    keys = segment_ids if key_segment_ids is None else key_segment_ids
    left, right = (window, window) if window is None or isinstance(window, int) else window
    if causal:
        right = 0 if right is None else min(right, 0)
    options = Options(left, right, q.shape[-1] ** -0.5 if scale is None else scale, soft_cap, block, kernel)
    arrays: Any = together(q, k, v, bias, segment_ids, keys, key_mask)
    return _attention(*arrays[:3], Data(*arrays[3:]), options)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(
    q: Float[Array, "b s h d"], k: Float[Array, "b t g d"], v: Float[Array, "b t g e"], data: Data, options: Options
) -> Float[Array, "b s h e"]:
    return attention_fwd(q, k, v, data, options)[0]


def attention_fwd(
    q: Float[Array, "b s h d"], k: Float[Array, "b t g d"], v: Float[Array, "b t g e"], data: Data, options: Options
) -> tuple[Float[Array, "b s h e"], Residuals]:
    """The output and the residuals."""
    if options.kernel is not None:
        y, log_sums = _attention_kernels.forward(q, k, v, *_ids(q, k, data), _static(q, k, options))
        return y, Residuals(q, k, v, data, y, log_sums)
    queries, keys = _blocked(q.shape[1], options), _blocked(k.shape[1], options)
    arrays = _by_heads(q, queries, k.shape[2]), _by_heads(k, keys), _by_heads(v, keys)
    acc, blocks = accumulation_dtype(q, k, v), _data_blocks(data, queries, keys, k.shape[2])
    *shape, _ = arrays[0].shape
    carried = (
        zeros((*shape, v.shape[-1]), acc, q),
        zeros(tuple(shape), acc, q) - jnp.inf,
        zeros(tuple(shape), acc, q),
    )

    def step(masked: bool, carried: tuple[Array, ...], pair: tuple[Array, Array]) -> tuple[tuple[Array, ...], None]:
        i, j = pair
        (q_i, k_j, v_j), (out, maximum, total) = _at(arrays, i, j, queries, keys), carried
        scores = _scores(q_i, k_j, i, j, blocks, options, queries, keys, masked)[0]
        old = _rows(maximum, i, queries)
        # A shift that cancels has no derivative, of any order. It is 0 for a query that has seen no key.
        new = jnp.maximum(old, jax.lax.stop_gradient(scores.max(-1)))
        shift = jnp.where(new == -jnp.inf, 0, new)
        exps, shrunk = jnp.exp(scores - shift[..., None]), jnp.exp(old - shift)
        part = jnp.einsum("bgrqk,bgke->bgrqe", exps.astype(v_j.dtype), v_j, preferred_element_type=acc)
        return (
            _put(out, _rows(out, i, queries, 1) * shrunk[..., None] + part, i, queries, 1),
            _put(maximum, new, i, queries),
            _put(total, _rows(total, i, queries) * shrunk + exps.sum(-1), i, queries),
        ), None

    out, maximum, total = _over_pairs(step, carried, options, queries, keys)
    # A query without a key has the sum 0 of no exponentials.
    total = jnp.where(total == 0, 1, total)
    log_sums = jnp.where(maximum == -jnp.inf, 0, maximum) + jnp.log(total)
    y = _from_heads(out / total[..., None], queries).astype(v.dtype)
    return y, Residuals(q, k, v, data, y, log_sums)


def attention_bwd(
    options: Options, residuals: Residuals, dout: Float[Array, "b s h e"]
) -> tuple[Float[Array, "b s h d"], Float[Array, "b t g d"], Float[Array, "b t g e"], Data]:
    """Cotangents of `q`, `k`, `v` and `bias`; integers and masks have none."""
    q, k, v, data, out, log_sums = residuals
    if options.kernel is not None:
        of_arrays = _attention_kernels.cotangents(
            q, k, v, *_ids(q, k, data), out, log_sums, dout, _static(q, k, options)
        )
        return *of_arrays, Data(None, None, None, None)
    queries, keys = _blocked(q.shape[1], options), _blocked(k.shape[1], options)
    acc, groups = accumulation_dtype(q, k, v), k.shape[2]
    arrays = _by_heads(q, queries, groups), _by_heads(k, keys), _by_heads(v, keys)
    dout_heads = _by_heads(dout, queries, groups)
    delta = (widen(dout_heads) * widen(_by_heads(out, queries, groups))).sum(-1)
    blocks = _data_blocks(data, queries, keys, groups)
    dbias = None if blocks.bias is None else zeros(blocks.bias.shape, acc, q)

    def step(masked: bool, carried: tuple[Any, ...], pair: tuple[Array, Array]) -> tuple[tuple[Any, ...], None]:
        i, j = pair
        (q_i, k_j, v_j), (dq, dk, dv, dbias) = _at(arrays, i, j, queries, keys), carried
        scores, slope = _scores(q_i, k_j, i, j, blocks, options, queries, keys, masked)
        dout_i = _rows(dout_heads, i, queries, 1)
        probs = jnp.exp(scores - _rows(log_sums, i, queries)[..., None])
        dprobs = jnp.einsum("bgrqe,bgke->bgrqk", dout_i, v_j, preferred_element_type=acc)
        dscores = probs * (dprobs - _rows(delta, i, queries)[..., None])
        dproducts = (options.scale * (dscores if slope is None else dscores * slope)).astype(q.dtype)
        dq_i = jnp.einsum("bgrqk,bgkd->bgrqd", dproducts, k_j, preferred_element_type=acc)
        dk_j = jnp.einsum("bgrqk,bgrqd->bgkd", dproducts, q_i, preferred_element_type=acc)
        dv_j = jnp.einsum("bgrqk,bgrqe->bgke", probs.astype(v.dtype), dout_i, preferred_element_type=acc)
        return (
            _put(dq, _rows(dq, i, queries, 1) + dq_i, i, queries, 1),
            _put(dk, _rows(dk, j, keys, 1) + dk_j, j, keys, 1),
            _put(dv, _rows(dv, j, keys, 1) + dv_j, j, keys, 1),
            None if dbias is None else _bias_added(dbias, dscores, i, j, queries, keys),
        ), None

    carried = (*(zeros(array.shape, acc, q) for array in arrays), dbias)
    dq, dk, dv, dbias = _over_pairs(step, carried, options, queries, keys)
    return (
        _from_heads(dq, queries).astype(q.dtype),
        _from_heads(dk[:, :, None], keys).astype(k.dtype),
        _from_heads(dv[:, :, None], keys).astype(v.dtype),
        Data(None if data.bias is None else _bias_whole(dbias, data.bias), None, None, None),
    )


_attention.defvjp(attention_fwd, attention_bwd)


def _over_pairs(
    step: Callable[[bool, Any, tuple[Array, Array]], Any],
    carried: Any,
    options: Options,
    queries: Blocked,
    keys: Blocked,
) -> Any:
    """Every pair of blocks that see one another: first those that see all, then those that a mask's edge crosses."""
    for masked in (False, True):
        pairs = [(i, j) for i, j, crossed in _pairs(options, queries, keys) if crossed is masked]
        if pairs:
            numbers = np.asarray(pairs, np.int32)
            carried, _ = jax.lax.scan(functools.partial(step, masked), carried, tuple(numbers.T))
    return carried


def _pairs(options: Options, queries: Blocked, keys: Blocked) -> Iterator[tuple[int, int, bool]]:
    """Blocks of keys with each block of queries that sees one of them, and whether it does not see all."""
    left = math.inf if options.left is None else options.left
    right = math.inf if options.right is None else options.right
    for j in range(keys.number):
        first_key, last_key = j * keys.size, min((j + 1) * keys.size, keys.length) - 1
        for i in range(queries.number):
            first, last = i * queries.size, min((i + 1) * queries.size, queries.length) - 1
            if first_key <= last + right and last_key >= first - left:
                padded = (j + 1) * keys.size > keys.length
                yield i, j, padded or last_key > first + right or first_key < last - left


def _scores(
    q: Float[Array, "b g r q d"],
    k: Float[Array, "b g k d"],
    i: Array,
    j: Array,
    data: Data,
    options: Options,
    queries: Blocked,
    keys: Blocked,
    masked: bool,
) -> tuple[Float[Array, "b g r q k"], Float[Array, "b g r q k"] | None]:
    """A block of scores, -inf where a query does not see the key; and the slope of the cap, None without one."""
    products = jnp.einsum("bgrqd,bgkd->bgrqk", q, k, preferred_element_type=accumulation_dtype(q, k))
    scores, slope = products * options.scale, None
    if options.soft_cap is not None:
        inside = jnp.tanh(scores / options.soft_cap)
        scores, slope = options.soft_cap * inside, 1 - inside * inside
    if data.bias is not None:
        scores = scores + _bias_block(data.bias, i, j, queries, keys).astype(scores.dtype)
    for seen in _seen(i, j, data, options, queries, keys, masked):
        scores = jnp.where(seen, scores, -jnp.inf)
    return scores, slope


def _seen(
    i: Array, j: Array, data: Data, options: Options, queries: Blocked, keys: Blocked, masked: bool
) -> Iterator[Array]:
    """Masks of a block, to be broadcast against its scores."""
    if masked:
        key = jnp.arange(keys.size, dtype=jnp.int32)[None] + j * keys.size
        ahead = key - (jnp.arange(queries.size, dtype=jnp.int32)[:, None] + i * queries.size)
        seen = key < keys.length
        if options.left is not None:
            seen = seen & (ahead >= -options.left)
        if options.right is not None:
            seen = seen & (ahead <= options.right)
        yield seen[None, None, None]
    if data.query_segments is not None and data.key_segments is not None:
        own, theirs = _rows(data.query_segments, i, queries), _rows(data.key_segments, j, keys)
        yield (own[:, :, None] == theirs[:, None])[:, None, None]
    if data.key_mask is not None:
        yield _rows(data.key_mask, j, keys)[:, None, None, None]


def _at(
    arrays: tuple[Array, Array, Array], i: Array, j: Array, queries: Blocked, keys: Blocked
) -> tuple[Array, Array, Array]:
    """A block of queries, and one of keys and values."""
    q, k, v = arrays
    return _rows(q, i, queries, 1), _rows(k, j, keys, 1), _rows(v, j, keys, 1)


def _blocked(length: int, options: Options) -> Blocked:
    """The fewest blocks of at most the wanted size, all of one size, so that little is padded."""
    count = max(-(-length // options.block), 1)
    return Blocked(max(-(-length // count), 1), count, length)


def _padded(array: Array, axis: int, blocked: Blocked) -> Array:
    missing = blocked.size * blocked.number - blocked.length
    if not missing:
        return array
    return jnp.pad(array, [(0, missing if number == axis else 0) for number in range(array.ndim)])


def _by_heads(array: Float[Array, "b s h d"], blocked: Blocked, groups: int | None = None) -> Float[Array, "..."]:
    """`(b, h, s, d)`, or `(b, g, r, s, d)` with the heads that share keys together; padded."""
    heads_first = _padded(array, 1, blocked).transpose(0, 2, 1, 3)
    if groups is None:
        return heads_first
    b, h, s, d = heads_first.shape
    return heads_first.reshape(b, groups, h // groups, s, d)


def _from_heads(array: Float[Array, "b g r s d"], blocked: Blocked) -> Float[Array, "b s h d"]:
    b, g, r, s, d = array.shape
    return array.reshape(b, g * r, s, d).transpose(0, 2, 1, 3)[:, : blocked.length]


def _rows(array: Array, number: Array, blocked: Blocked, after: int = 0) -> Array:
    """A block of an array along its last axis but `after`."""
    return jax.lax.dynamic_slice_in_dim(array, number * blocked.size, blocked.size, array.ndim - 1 - after)


def _put(array: Array, block: Array, number: Array, blocked: Blocked, after: int = 0) -> Array:
    axis = array.ndim - 1 - after
    return jax.lax.dynamic_update_slice_in_dim(array, block, number * blocked.size, axis)


def _data_blocks(data: Data, queries: Blocked, keys: Blocked, groups: int) -> Data:
    """All of it padded to whole blocks, and the bias by heads that share keys: `(#b, #g, #r, #s, #t)`."""
    bias = data.bias
    if bias is not None:
        b, h, s, t = bias.shape
        bias = bias.reshape(b, 1, 1, s, t) if h == 1 else bias.reshape(b, groups, h // groups, s, t)
        bias = bias if s != queries.length else _padded(bias, 3, queries)
        bias = bias if t != keys.length else _padded(bias, 4, keys)
    own, theirs, mask = data.query_segments, data.key_segments, data.key_mask
    return Data(
        bias,
        None if own is None else _padded(own, 1, queries),
        None if theirs is None else _padded(theirs, 1, keys),
        None if mask is None else _padded(mask, 1, keys),
    )


def _bias_block(bias: Float[Array, "#b #g #r #s #t"], i: Array, j: Array, queries: Blocked, keys: Blocked) -> Array:
    of_queries = _rows(bias, i, queries, 1) if _is_whole(bias.shape[3], queries) else bias
    return _rows(of_queries, j, keys) if _is_whole(bias.shape[4], keys) else of_queries


def _bias_added(
    dbias: Float[Array, "#b #g #r #s #t"],
    dscores: Float[Array, "b g r q k"],
    i: Array,
    j: Array,
    queries: Blocked,
    keys: Blocked,
) -> Float[Array, "#b #g #r #s #t"]:
    """The bias's cotangent with a block's scores added, summed over the axes along which the bias was spread."""
    spread = tuple(axis for axis, size in enumerate(dbias.shape) if size == 1)
    part = _bias_block(dbias, i, j, queries, keys) + dscores.sum(spread, keepdims=True)
    none = jnp.zeros_like(i)
    row = i * queries.size if _is_whole(dbias.shape[3], queries) else none
    column = j * keys.size if _is_whole(dbias.shape[4], keys) else none
    return jax.lax.dynamic_update_slice(dbias, part, (none, none, none, row, column))


def _is_whole(size: int, blocked: Blocked) -> bool:
    return size == blocked.size * blocked.number


def _bias_whole(dbias: Float[Array, "#b #g #r #s #t"], bias: Float[Array, "#b #h #s #t"]) -> Float[Array, "..."]:
    b, h, s, t = bias.shape
    return dbias[..., :s, :t].reshape(b, h, s, t).astype(bias.dtype)


def _kernel(implementation: Implementation, bias: Array | None) -> str | None:
    """The platform of the kernels, None for XLA's form."""
    platform = platform_of(implementation, "attention")
    if platform is not None and bias is not None:
        raise JaxgradError("the kernels of attention have no bias; use implementation='xla' with one")
    return platform


def _static(q: Array, k: Array, options: Options) -> _attention_kernels.Static:
    """Blocks of the kernels are powers of two."""
    block = power_of_two(min(options.block, KERNEL_BLOCK))
    left, right, scale, soft_cap, _, platform = options
    return _attention_kernels.Static(left, right, scale, soft_cap, q.shape[2] // k.shape[2], block, str(platform))


def _ids(q: Array, k: Array, data: Data) -> tuple[Int[Array, "b s"], Int[Array, "b t"]]:
    """Segments of queries and keys, one that no query has for keys that are masked."""
    own, theirs = data.query_segments, data.key_segments
    own = zeros(q.shape[:2], jnp.int32, q) if own is None else own.astype(jnp.int32)
    theirs = zeros(k.shape[:2], jnp.int32, k) if theirs is None else theirs.astype(jnp.int32)
    return own, theirs if data.key_mask is None else jnp.where(data.key_mask, theirs, _attention_kernels.NONE)


def _check(q: Array, k: Array, v: Array, bias: Array | None, soft_cap: float | None, block: int) -> None:
    if q.ndim != 4 or k.ndim != 4 or k.shape[:3] != v.shape[:3] or q.shape[::3] != k.shape[::3]:
        raise JaxgradError(
            f"q, k and v have shapes {q.shape}, {k.shape} and {v.shape}; they are (b, s, h, d), (b, t, g, d) and"
            " (b, t, g, e)"
        )
    if k.shape[2] == 0 or q.shape[2] % k.shape[2]:
        raise JaxgradError(f"{q.shape[2]} heads of queries cannot share {k.shape[2]} of keys; the latter must divide")
    whole = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    if bias is not None and (bias.ndim != 4 or any(n not in (1, m) for n, m in zip(bias.shape, whole, strict=True))):
        raise JaxgradError(f"bias has shape {bias.shape}; each of its four sizes is 1 or that of {whole}")
    if soft_cap is not None and not soft_cap > 0:
        raise JaxgradError(f"soft_cap is {soft_cap}; give a number above 0, or None for scores without a bound")
    if block < 1:
        raise JaxgradError(f"block is {block}; give at least 1")
