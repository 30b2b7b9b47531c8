"""The recurrent model's forward pass cut into named nodes, in plain `jax.numpy`."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxgrad.models.gru.params import Params
from jaxgrad.models.gru.sizes import Sizes
from jaxgrad.models.sequence_nodes import Mark, Nodes, affine, check_length, cross_entropy, dropped, recorder
from jaxgrad.models.sequences import Batch
from jaxgrad.ops import GruWeights

# What nodes of a time step are called outside of it, where those of all steps are stacked along the first axis.
PREFIX = "step."


def loss(
    params: Params,
    batch: Batch,
    sizes: Sizes,
    key: PRNGKeyArray | None = None,
    taps: Nodes | None = None,
) -> Float[Array, ""]:
    """The mean cross-entropy in nats of the targets that count; 0 where none does. It takes what `forward` does."""
    return forward(params, batch, sizes, key, taps)["loss"]


def forward(
    params: Params,
    batch: Batch,
    sizes: Sizes,
    key: PRNGKeyArray | None = None,
    taps: Nodes | None = None,
) -> Nodes:
    r"""Every node of the forward pass by name, those of the time steps stacked.

    With an embedding $x_t$, $u_t = x_t W + b$ and $v_t = h_{t-1} W' + b'$, each in three parts,
    $$r = \sigma(u_r + v_r), \quad z = \sigma(u_z + v_z), \quad c = \tanh(u_c + r v_c), \quad
      h_t = (1-z)\,c + z\,h_{t-1} .$$
    It is a `jaxgrad.models.sequence_nodes.Forward`, which says what it takes and raises.
    """
    check_length(batch.X, sizes.block)
    taps = {} if taps is None else taps
    nodes, mark = recorder(taps)
    emb = mark("emb", embedded(params, batch.X))
    u = mark("u", affine(emb, params.gru.of_x, params.gru.bias_x))
    inside = {name.removeprefix(PREFIX): zeros for name, zeros in taps.items() if name.startswith(PREFIX)}

    def step(h: Array, given: tuple[Array, Nodes]) -> tuple[Array, Nodes]:
        u, step_taps = given
        found, mark_inside = recorder(step_taps, PREFIX)
        return step_forward(params.gru, u, h, mark_inside), found

    _, stacked = jax.lax.scan(step, start_of(params, batch.X), (u, inside))
    nodes |= {PREFIX + name: values for name, values in stacked.items()}
    states = mark("states", stacked["h"].swapaxes(0, 1))
    logits = mark("logits", affine(dropped(states, key, sizes.dropout), params.head, params.head_bias))
    cross_entropy(logits, batch.Y, mark)
    return nodes


def embedded(params: Params, X: Int[Array, "b t"]) -> Float[Array, "t b d"]:
    """The rows of the symbols, time first."""
    return params.tokens.at[X.T].get(mode="fill")


def start_of(params: Params, X: Int[Array, "b t"]) -> Float[Array, "b n"]:
    """The state before the first symbol, the same for every sequence."""
    return jnp.broadcast_to(params.start, (X.shape[0], params.start.size))


def step_forward(
    weights: GruWeights, u: Float[Array, "b 3n"], h: Float[Array, "b n"], mark: Mark
) -> Float[Array, "b n"]:
    """One time step's nodes, from the state before it to the state after it."""
    v = mark("v", affine(h, weights.of_h, weights.bias_h))
    (u_r, u_z, u_c), (v_r, v_z, v_c) = thirds(u), thirds(v)
    r = mark("r", jax.lax.logistic(mark("r_sum", u_r + v_r)))
    z = mark("z", jax.lax.logistic(mark("z_sum", u_z + v_z)))
    c = mark("c", jnp.tanh(mark("c_sum", u_c + r * v_c)))
    return mark("h", (1 - z) * c + z * h)


def thirds(x: Float[Array, "*b 3n"]) -> tuple[Float[Array, "*b n"], Float[Array, "*b n"], Float[Array, "*b n"]]:
    """The parts of the reset gate, the update gate and the candidate."""
    n = x.shape[-1] // 3
    return x[..., :n], x[..., n : 2 * n], x[..., 2 * n :]
