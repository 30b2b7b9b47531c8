"""The embedding's gradient as scatter-add against the product with a one-hot matrix: why the op does the former."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgrad.bench.timing import Timing, interleaved
from jaxgrad.ops.embedding import scatter_rows
from jaxgrad.ops.precision import accumulation_dtype


class Size(NamedTuple):
    """`n` looked-up rows of `d` numbers, out of a table of `rows`."""

    n: int
    d: int
    rows: int


SIZES = (Size(96, 10, 27), Size(3072, 10, 27), Size(24576, 10, 27), Size(3072, 64, 1000))


def one_hot_rows(ids: Int[Array, " n"], dy: Float[Array, "n d"], rows: int) -> Float[Array, "rows d"]:
    """What `scatter_rows` returns, as the product of the transposed one-hot matrix with `dy`."""
    one_hot = jax.nn.one_hot(ids, rows, dtype=dy.dtype)
    return jnp.matmul(one_hot.T, dy, preferred_element_type=accumulation_dtype(dy))


def compare(size: Size, rounds: int = 9) -> dict[str, Timing]:
    """Seconds per gradient of both ways, inside a compiled loop that is long enough to be timed."""
    repeats = max(4, 200_000 // (size.n * max(size.rows // 27, 1)))
    ids = jax.random.randint(jax.random.key(0), (repeats, size.n), 0, size.rows)
    dy = jax.random.normal(jax.random.key(1), (size.n, size.d))
    ways = {"scatter-add": scatter_rows, "one-hot product": one_hot_rows}
    calls = {name: functools.partial(_loop, way, ids, dy, size.rows) for name, way in ways.items()}
    timings = interleaved(calls, rounds)
    return {name: Timing(*(seconds / repeats for seconds in timing)) for name, timing in timings.items()}


@functools.partial(jax.jit, static_argnums=(0, 3))
def _loop(
    way: Callable[..., Array], ids: Int[Array, "repeats n"], dy: Float[Array, "n d"], rows: int
) -> Float[Array, "rows d"]:
    def once(total: Array, ids: Array) -> tuple[Array, None]:
        # A cotangent that depends on the last result keeps the compiler from taking the work out of the loop.
        return total + way(ids, dy + 1e-9 * total[0], rows), None

    return jax.lax.scan(once, jnp.zeros((rows, dy.shape[1])), ids)[0]
