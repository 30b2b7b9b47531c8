"""Gated recurrent unit over a sequence, with backpropagation through time by hand."""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgrad.ops._sequences import in_chunks, whole
from jaxgrad.ops._shards import together, zeros
from jaxgrad.ops.precision import accumulation_dtype, widen


class GruWeights(NamedTuple):
    """Columns are those of the reset gate, the update gate and the candidate, in this order."""

    of_x: Float[Array, "d 3n"]
    of_h: Float[Array, "n 3n"]
    bias_x: Float[Array, " 3n"]
    bias_h: Float[Array, " 3n"]


class Gates(NamedTuple):
    """Of one step or of many: reset, update, candidate, and the product that the reset gate multiplies."""

    r: Float[Array, "*t b n"]
    z: Float[Array, "*t b n"]
    c: Float[Array, "*t b n"]
    v_c: Float[Array, "*t b n"]


Residuals: TypeAlias = tuple[Float[Array, "t b d"], Float[Array, "b n"], GruWeights, Float[Array, "t b n"], Gates]


def gru(x: Float[Array, "t b d"], h: Float[Array, "b n"], weights: GruWeights) -> Float[Array, "t b n"]:
    r"""The states of a GRU after each of `t` steps, from the state `h`.

    With $u = x_t W + b$ and $v = h W' + b'$, split in three, $\sigma$ the logistic function and $h$ the state before,
    $$r = \sigma(u_r + v_r), \quad z = \sigma(u_z + v_z), \quad c = \tanh(u_c + r\,v_c), \quad h' = (1-z)\,c + z\,h .$$
    Back in time, with $dh'$ what comes from the output at $t$ and from the step after,
    $$dc = dh'\,(1-z), \quad du_c = dc\,(1 - c^2), \quad dv_c = du_c\,r, \quad du_r = dv_r = du_c\,v_c\,r\,(1-r),$$
    $$du_z = dv_z = dh'\,(h - c)\,z\,(1-z), \qquad dh = dh'\,z + dv\,W'^\top,$$
    and $dW = \sum_t x_t^\top du$, $dW' = \sum_t h^\top dv$, $dx_t = du\,W^\top$, biases summing $du$ and $dv$.

    Only $dh$ goes through time. What inputs and weights take part in is worked out for some steps at once, outside of
    the loop over them, forward and backward. Autodiff adds to the weights' cotangents in each step, and keeps nine
    arrays of the output's size. To make the gates again took longer, by two products of eight. Products accumulate in
    float32 at least.
    Residuals: the arguments, the output, and of each step three gates and the product that the reset gate multiplies.
    Source: Cho et al. 2014, arXiv:1406.1078, in PyTorch's and cuDNN's form; derivation ours.
    """
    arrays = together(x, h, *weights)
    return _gru(arrays[0], arrays[1], GruWeights(*arrays[2:]))  # type: ignore[arg-type]


@jax.custom_vjp
def _gru(x: Float[Array, "t b d"], h: Float[Array, "b n"], weights: GruWeights) -> Float[Array, "t b n"]:
    return gru_fwd(x, h, weights)[0]


def gru_fwd(
    x: Float[Array, "t b d"], h: Float[Array, "b n"], weights: GruWeights
) -> tuple[Float[Array, "t b n"], Residuals]:
    """The states and the residuals."""

    def step(h: Array, u: Array) -> tuple[Array, tuple[Array, Gates]]:
        gates = _gates(u, _affine(h, weights.of_h, weights.bias_h))
        new = ((1 - gates.z) * gates.c + gates.z * widen(h)).astype(h.dtype)
        return new, (new, gates)

    def of_chunk(h: Array, x: Array) -> tuple[Array, tuple[Array, Gates]]:
        return jax.lax.scan(step, h, _affine(x, weights.of_x, weights.bias_x))

    states, gates = jax.tree.map(whole, jax.lax.scan(of_chunk, h, in_chunks(x))[1])
    return states, (x, h, weights, states, gates)


def gru_bwd(
    residuals: Residuals, dstates: Float[Array, "t b n"]
) -> tuple[Float[Array, "t b d"], Float[Array, "b n"], GruWeights]:
    """Cotangents of `x`, `h` and the weights."""
    x, h, weights, states, gates = residuals
    before = jnp.concatenate((h[None], states[:-1]))

    def step(dh: Array, at: tuple[Array, Gates, Array]) -> tuple[Array, tuple[Array, Array]]:
        dstate, (r, z, c, v_c), h = at
        dnew = dh + widen(dstate)
        du_c = dnew * (1 - z) * (1 - c * c)
        du_r = du_c * v_c * r * (1 - r)
        du_z = dnew * (widen(h) - c) * z * (1 - z)
        dv = jnp.concatenate((du_r, du_z, du_c * r), -1)
        return dnew * z + dv @ widen(weights.of_h).T, (jnp.concatenate((du_r, du_z, du_c), -1), dv)

    def of_chunk(
        carried: tuple[Array, GruWeights], at: tuple[Array, Array, Array, Gates]
    ) -> tuple[tuple[Array, GruWeights], Array]:
        (dh, sums), (x, before, dstates, gates) = carried, at
        dh, (du, dv) = jax.lax.scan(step, dh, (dstates, gates, before), reverse=True)
        parts = GruWeights(_product(x, du), _product(before, dv), du.sum((0, 1)), dv.sum((0, 1)))
        return (dh, jax.tree.map(jnp.add, sums, parts)), (du @ widen(weights.of_x).T).astype(x.dtype)

    acc = accumulation_dtype(x, h, *weights)
    start = jax.tree.map(lambda array: zeros(array.shape, acc, x), (h, weights))
    along = jax.tree.map(in_chunks, (x, before, dstates, gates))
    (dh, dweights), dx = jax.lax.scan(of_chunk, start, along, reverse=True)
    return whole(dx), dh.astype(h.dtype), jax.tree.map(lambda d, w: d.astype(w.dtype), dweights, weights)


def _affine(x: Float[Array, "*b d"], w: Float[Array, "d n"], bias: Float[Array, " n"]) -> Float[Array, "*b n"]:
    y = jnp.matmul(x, w, preferred_element_type=accumulation_dtype(x, w))
    return y + jax.lax.broadcast_to_rank(widen(bias), y.ndim)


def _product(x: Float[Array, "t b d"], du: Float[Array, "t b n"]) -> Float[Array, "d n"]:
    """Summed over steps and rows."""
    return jnp.matmul(widen(x).reshape(-1, x.shape[-1]).T, du.reshape(-1, du.shape[-1]))


def _gates(u: Float[Array, "b 3n"], v: Float[Array, "b 3n"]) -> Gates:
    (u_r, u_z, u_c), (v_r, v_z, v_c) = (_thirds(array) for array in (u, v))
    r, z = jax.lax.logistic(u_r + v_r), jax.lax.logistic(u_z + v_z)
    return Gates(r, z, jnp.tanh(u_c + r * v_c), v_c)


def _thirds(array: Float[Array, "*b 3n"]) -> tuple[Array, Array, Array]:
    n = array.shape[-1] // 3
    return array[..., :n], array[..., n : 2 * n], array[..., 2 * n :]


_gru.defvjp(gru_fwd, gru_bwd)
