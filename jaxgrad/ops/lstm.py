"""Long short-term memory over a sequence, with backpropagation through time by hand."""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgrad.ops._sequences import in_chunks, whole
from jaxgrad.ops._shards import together, zeros
from jaxgrad.ops.precision import accumulation_dtype, widen


class LstmWeights(NamedTuple):
    """Columns are those of the input gate, the forget gate, the candidate and the output gate, in this order."""

    of_x: Float[Array, "d 4n"]
    of_h: Float[Array, "n 4n"]
    bias: Float[Array, " 4n"]


class Gates(NamedTuple):
    """Of one step or of many: input, forget, candidate and output."""

    i: Float[Array, "*t b n"]
    f: Float[Array, "*t b n"]
    g: Float[Array, "*t b n"]
    o: Float[Array, "*t b n"]


Outputs: TypeAlias = tuple[Float[Array, "t b n"], Float[Array, "b n"]]
Residuals: TypeAlias = tuple[
    Float[Array, "t b d"], Float[Array, "b n"], Float[Array, "b n"], LstmWeights, Array, Float[Array, "t b n"], Gates
]


def lstm(x: Float[Array, "t b d"], h: Float[Array, "b n"], c: Float[Array, "b n"], weights: LstmWeights) -> Outputs:
    r"""The states of an LSTM after each of `t` steps and its last cell, from the state `h` and the cell `c`.

    With $u = x_t W + h W' + b$ split in four and $\sigma$ the logistic function,
    $$i = \sigma(u_i), \quad f = \sigma(u_f), \quad g = \tanh u_g, \quad o = \sigma(u_o), \qquad
      c' = f c + i g, \qquad h' = o \tanh c' .$$
    Back in time, with $dh'$ and $dc'$ what comes from the outputs and from the step after, and $\tau = \tanh c'$,
    $$\gamma = dc' + dh'\,o\,(1-\tau^2), \quad du_o = dh'\,\tau\,o(1-o), \quad du_i = \gamma\,g\,i(1-i), \quad
      du_f = \gamma\,c\,f(1-f),$$
    $$du_g = \gamma\,i\,(1-g^2), \qquad dc = \gamma f, \qquad dh = du\,W'^\top,$$
    and $dW = \sum_t x_t^\top du$, $dW' = \sum_t h^\top du$, $dx_t = du\,W^\top$, $db = \sum_t du$.

    Only $dh$ and $dc$ go through time. What inputs and weights take part in is worked out for some steps at once,
    outside of the loop over them, forward and backward. Autodiff adds to the weights' cotangents in each step, and
    keeps twelve arrays of the output's size. To make the gates again took longer, by two products of eight. Products
    accumulate in float32 at least.
    Residuals: the arguments, the states, the cells and the four gates of each step.
    Source: Hochreiter & Schmidhuber 1997 with Gers et al. 2000, as in PyTorch; derivation ours.
    """
    arrays = together(x, h, c, *weights)
    return _lstm(arrays[0], arrays[1], arrays[2], LstmWeights(*arrays[3:]))  # type: ignore[arg-type]


@jax.custom_vjp
def _lstm(x: Float[Array, "t b d"], h: Float[Array, "b n"], c: Float[Array, "b n"], weights: LstmWeights) -> Outputs:
    return lstm_fwd(x, h, c, weights)[0]


def lstm_fwd(
    x: Float[Array, "t b d"], h: Float[Array, "b n"], c: Float[Array, "b n"], weights: LstmWeights
) -> tuple[Outputs, Residuals]:
    """The states with the last cell, and the residuals."""

    def step(carried: tuple[Array, Array], u: Array) -> tuple[tuple[Array, Array], tuple[Array, Array, Gates]]:
        h, c = carried
        i, f, g, o = gates = _gates(u + _product(h, weights.of_h))
        new = f * c + i * g
        state = (o * jnp.tanh(new)).astype(h.dtype)
        return (state, new), (state, new, gates)

    def of_chunk(carried: tuple[Array, Array], x: Array) -> tuple[tuple[Array, Array], tuple[Array, Array, Gates]]:
        bias = jax.lax.broadcast_to_rank(widen(weights.bias), x.ndim)
        return jax.lax.scan(step, carried, _product(x, weights.of_x) + bias)

    # Cells are kept in the wide type: they are sums over time.
    (_, last), kept = jax.lax.scan(of_chunk, (h, widen(c)), in_chunks(x))
    states, cells, gates = jax.tree.map(whole, kept)
    return (states, last.astype(c.dtype)), (x, h, c, weights, states, cells, gates)


def lstm_bwd(
    residuals: Residuals, cotangents: Outputs
) -> tuple[Float[Array, "t b d"], Float[Array, "b n"], Float[Array, "b n"], LstmWeights]:
    """Cotangents of `x`, `h`, `c` and the weights."""
    x, h, c, weights, states, cells, gates = residuals
    dstates, dlast = cotangents
    before, cells_before = jnp.concatenate((h[None], states[:-1])), jnp.concatenate((widen(c)[None], cells[:-1]))

    def step(carried: tuple[Array, Array], at: tuple[Array, Gates, Array, Array]) -> tuple[tuple[Array, Array], Array]:
        (dh, dc), (dstate, (i, f, g, o), cell, cell_before) = carried, at
        dnew, tanh = dh + widen(dstate), jnp.tanh(cell)
        dcell = dc + dnew * o * (1 - tanh * tanh)
        du_i, du_f = dcell * g * i * (1 - i), dcell * cell_before * f * (1 - f)
        du_g, du_o = dcell * i * (1 - g * g), dnew * tanh * o * (1 - o)
        du = jnp.concatenate((du_i, du_f, du_g, du_o), -1)
        return (du @ widen(weights.of_h).T, dcell * f), du

    def of_chunk(
        carried: tuple[tuple[Array, Array], LstmWeights], at: tuple[Array, Array, Array, Gates, Array, Array]
    ) -> tuple[tuple[tuple[Array, Array], LstmWeights], Array]:
        (back, sums), (x, before, dstates, gates, cells, cells_before) = carried, at
        back, du = jax.lax.scan(step, back, (dstates, gates, cells, cells_before), reverse=True)
        rows = du.reshape(-1, du.shape[-1])
        of_x, of_h = (widen(a).reshape(-1, a.shape[-1]).T @ rows for a in (x, before))
        parts = LstmWeights(of_x, of_h, rows.sum(0))
        return (back, jax.tree.map(jnp.add, sums, parts)), (du @ widen(weights.of_x).T).astype(x.dtype)

    acc = accumulation_dtype(x, h, c, *weights)
    start = jax.tree.map(lambda array: zeros(array.shape, acc, x), (h, weights))
    along = jax.tree.map(in_chunks, (x, before, dstates, gates, cells, cells_before))
    ((dh, dc), dweights), dx = jax.lax.scan(of_chunk, ((start[0], widen(dlast)), start[1]), along, reverse=True)
    dx = whole(dx)
    narrow = jax.tree.map(lambda d, w: d.astype(w.dtype), dweights, weights)
    return dx, dh.astype(h.dtype), dc.astype(c.dtype), narrow


def _product(x: Float[Array, "*b d"], w: Float[Array, "d n"]) -> Float[Array, "*b n"]:
    return jnp.matmul(x, w, preferred_element_type=accumulation_dtype(x, w))


def _gates(u: Float[Array, "b 4n"]) -> Gates:
    n = u.shape[-1] // 4
    i, f, g, o = (u[..., k * n : (k + 1) * n] for k in range(4))
    return Gates(jax.lax.logistic(i), jax.lax.logistic(f), jnp.tanh(g), jax.lax.logistic(o))


_lstm.defvjp(lstm_fwd, lstm_bwd)
