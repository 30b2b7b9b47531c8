"""Logits without a loss, and symbols drawn from them one after another, with a cache of keys and values."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import broadcast_to_rank
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxgrad import ops
from jaxgrad.models.gpt import forward as model
from jaxgrad.models.gpt.fused import block_forward
from jaxgrad.models.gpt.params import EPS, Block, Params
from jaxgrad.models.gpt.sizes import Sizes
from jaxgrad.models.sequence_nodes import check_length
from jaxgrad.models.sequence_sampling import checked_draw, draw


class Cache(NamedTuple):
    """Keys and values of every layer at the places up to `length`, and zeros after them."""

    k: Float[Array, "l b block h e"]
    v: Float[Array, "l b block h e"]
    length: Int[Array, ""]


def predict(params: Params, X: Int[Array, "b t"], sizes: Sizes) -> Float[Array, "b t vocab"]:
    """Logits of the symbol after each place, without dropout. Raises as `forward` does."""
    check_length(X, sizes.block)
    x = model.embedded(params, X, lambda name, value: value)
    x, _ = jax.lax.scan(lambda x, block: (block_forward(block, x, sizes)[0], None), x, params.blocks)
    return _logits(params, x)


def empty_cache(params: Params, rows: int, sizes: Sizes) -> Cache:
    """A cache before the first symbol."""
    zeros = jnp.zeros((sizes.layers, rows, sizes.block, sizes.heads, sizes.head_size), params.tokens.dtype)
    return Cache(zeros, zeros, jnp.zeros((), jnp.int32))


def extend(
    params: Params, cache: Cache, symbols: Int[Array, "b n"], sizes: Sizes
) -> tuple[Float[Array, "b n vocab"], Cache]:
    """Logits after each of the next `n` symbols, at the cost of those alone, and the cache with them in it.

    The same as `predict` of the whole sequences up to rounding. Symbols past the block's end are a mistake that a
    jitted function cannot refuse: `sample` never gives them.
    """
    places = cache.length + jnp.arange(symbols.shape[1], dtype=jnp.int32)
    x = params.tokens.at[symbols].get(mode="fill")
    if params.positions is not None:
        x = x + params.positions.at[places].get(mode="fill")[None]

    def layer(x: Array, given: tuple[Block, Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        block, k, v = given
        ln1 = ops.layer_norm(x, block.ln1_gain, block.ln1_bias, EPS)
        q, new_k, new_v = model.by_heads(ops.linear(ln1, block.qkv_w, block.qkv_b), sizes)
        if sizes.rope:
            q, new_k = _turned(q, places, sizes), _turned(new_k, places, sizes)
        k, v = (jax.lax.dynamic_update_slice_in_dim(old, new, cache.length, 1) for old, new in ((k, new_k), (v, new_v)))
        mid = x + ops.linear(_mixed(q, k, v, places, sizes).reshape(x.shape), block.proj_w, block.proj_b)
        ln2 = ops.layer_norm(mid, block.ln2_gain, block.ln2_bias, EPS)
        act = ops.gelu(ops.linear(ln2, block.fc_w, block.fc_b), True)
        return mid + ops.linear(act, block.out_w, block.out_b), (k, v)

    x, (k, v) = jax.lax.scan(layer, x, (params.blocks, cache.k, cache.v))
    return _logits(params, x), Cache(k, v, cache.length + symbols.shape[1])


def _mixed(
    q: Float[Array, "b n h e"],
    k: Float[Array, "b block h e"],
    v: Float[Array, "b block h e"],
    places: Int[Array, " n"],
    sizes: Sizes,
) -> Float[Array, "b n h e"]:
    """Values by attention, where a query at a place sees the keys up to it."""
    scores = jnp.einsum("bihe,bjhe->bhij", q, k) * model.score_scale(sizes)
    seen = jnp.arange(sizes.block, dtype=jnp.int32)[None] <= places[:, None]
    att = ops.softmax(jnp.where(broadcast_to_rank(seen, 4), scores, -jnp.inf))
    return jnp.einsum("bhij,bjhe->bihe", att, v)


def _turned(x: Float[Array, "b n h e"], places: Int[Array, " n"], sizes: Sizes) -> Float[Array, "b n h e"]:
    cos, sin = (table[places] for table in model.rope_of(x, sizes, sizes.block))
    return ops.rope(x, cos, sin)


def _logits(params: Params, x: Float[Array, "b t d"]) -> Float[Array, "b t vocab"]:
    return ops.linear(ops.layer_norm(x, params.ln_gain, params.ln_bias, EPS), model.head_of(params))


def sample(
    params: Params,
    key: PRNGKeyArray,
    prompts: Int[Array, "b n"],
    count: int,
    sizes: Sizes,
    temperature: float | Float[Array, ""] = 1.0,
    top_k: int | None = None,
) -> Int[Array, "b count"]:
    """`count` symbols after each prompt, each drawn from the logits of all before it.

    A sequence that fills the block goes on from its last half, of which the cache is made anew. A model of words has
    the boundary, symbol 0, before a word and after it: what follows the boundary there is another draw's.

    Args:
        params: the arrays.
        key: decides what is drawn.
        prompts: one or more symbols each, all of one length.
        count: how many symbols.
        sizes: the model's.
        temperature: divides the logits; 0 takes the likeliest symbol always.
        top_k: draw among so many of the likeliest symbols only.

    Raises:
        JaxgradError: an empty prompt, no count, a temperature below 0, or a `top_k` below 1.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jaxgrad.models.gpt.params import init
        >>> sizes = Sizes(layers=1, heads=1, width=4, block=4)
        >>> params = init(jax.random.key(0), sizes, vocab_size=5)
        >>> prompts = jnp.zeros((2, 1), jnp.int32)
        >>> sample(params, jax.random.key(1), prompts, 6, sizes, temperature=0.8, top_k=3).shape
        (2, 6)
    """
    checked_draw(prompts, count, temperature, top_k)
    drawn: list[Array] = []
    context, left = prompts[:, -_half(sizes) if prompts.shape[1] > sizes.block else 0 :], count
    while left:
        # The last symbol of a block has a logit too, so one more is drawn than has a place.
        steps = min(left, sizes.block - context.shape[1] + 1)
        key, own = jax.random.split(key)
        new = _from_context(params, own, context, steps, sizes, temperature, top_k)
        drawn.append(new)
        context, left = jnp.concatenate((context, new), 1)[:, -_half(sizes) :], left - steps
    return jnp.concatenate(drawn, 1)


def _half(sizes: Sizes) -> int:
    return max(sizes.block // 2, 1)


def _from_context(
    params: Params,
    key: PRNGKeyArray,
    context: Int[Array, "b n"],
    steps: int,
    sizes: Sizes,
    temperature: float | Float[Array, ""],
    top_k: int | None,
) -> Int[Array, "b steps"]:
    """Symbols drawn until the block is full: the context in one go, and then one symbol at a time."""
    logits, cache = extend(params, empty_cache(params, context.shape[0], sizes), context, sizes)
    keys = jax.random.split(key, steps)
    first = draw(keys[0], logits[:, -1], temperature, top_k)

    def step(carried: tuple[Array, Cache], key: PRNGKeyArray) -> tuple[tuple[Array, Cache], Array]:
        symbols, cache = carried
        logits, cache = extend(params, cache, symbols[:, None], sizes)
        new = draw(key, logits[:, -1], temperature, top_k)
        return (new, cache), new

    _, rest = jax.lax.scan(step, (first, cache), keys[1:])
    return jnp.concatenate((first[:, None], rest.T), 1)
