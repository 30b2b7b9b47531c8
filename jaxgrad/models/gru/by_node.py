r"""The recurrent model's backward through time by hand, a derivative for every node of every step.

Written `dx` is the cotangent of `x`. The state after a step is used by the head, by the next step's gates and by the
next step's sum: its cotangent is the sum of all three, and the last two come from later in time. So the steps are
walked from the last to the first, with the cotangent of the state before a step as the carry. The weights are used by
every step; their cotangents are carried along and added to at each.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgrad.models.gru.forward import PREFIX, forward, start_of, thirds
from jaxgrad.models.gru.params import Params
from jaxgrad.models.gru.sizes import Sizes
from jaxgrad.models.sequence_nodes import Nodes, affine_bwd, cross_entropy_bwd, dropped
from jaxgrad.models.sequences import Batch
from jaxgrad.ops import GruWeights


def nodes_by_node(
    params: Params, batch: Batch, sizes: Sizes, key: PRNGKeyArray | None = None
) -> tuple[Float[Array, ""], Params, Nodes]:
    """Loss, cotangents of the parameters and those of all nodes by name. Raises as `forward` does."""
    nodes = forward(params, batch, sizes, key)
    dparams, dnodes = backward(params, batch, nodes, sizes, key)
    return nodes["loss"], dparams, dnodes


def backward(
    params: Params, batch: Batch, nodes: Nodes, sizes: Sizes, key: PRNGKeyArray | None = None
) -> tuple[Params, Nodes]:
    """Cotangents of the parameters and of the nodes, from the nodes that `forward` gave."""
    dnodes = cross_entropy_bwd(batch.Y, nodes)
    read = dropped(nodes["states"], key, sizes.dropout)
    dread, dhead, dhead_bias = affine_bwd(read, params.head, dnodes["logits"])
    dstates = dropped(dread, key, sizes.dropout)

    used = {name: nodes[PREFIX + name] for name in ("v", "r", "z", "c")}
    start = start_of(params, batch.X)
    before = jnp.concatenate((start[None], nodes[PREFIX + "h"][:-1]))
    none = jnp.zeros_like(params.gru.of_h), jnp.zeros_like(params.gru.bias_h)

    def step(carried: tuple[Array, Array, Array], given: tuple[Array, Array, Nodes]) -> Any:
        dh, dof_h, dbias_h = carried
        dstate, h, values = given
        # The head's use of the state, and the two of the next step, which were carried here.
        dh, du, from_step, found = step_backward(params.gru, values, h, dstate + dh)
        return (dh, dof_h + from_step[0], dbias_h + from_step[1]), (du, found)

    (dstart, dof_h, dbias_h), (du, found) = jax.lax.scan(
        step, (jnp.zeros_like(start), *none), (dstates.swapaxes(0, 1), before, used), reverse=True
    )
    demb, dof_x, dbias_x = affine_bwd(nodes["emb"], params.gru.of_x, du)

    # emb_ti = tokens[X_it]: a row is used once for every place that names it, and these cotangents add up.
    dtokens = jnp.zeros_like(params.tokens).at[batch.X.T].add(demb)
    dnodes |= {"states": dstates, "u": du, "emb": demb} | {PREFIX + name: value for name, value in found.items()}
    # The first state was spread over the sequences.
    weights = GruWeights(dof_x, dof_h, dbias_x, dbias_h)
    return Params(dtokens, dstart.sum(0), weights, dhead, dhead_bias), dnodes


def step_backward(
    weights: GruWeights, nodes: Nodes, h: Float[Array, "b n"], dnew: Float[Array, "b n"]
) -> tuple[Float[Array, "b n"], Float[Array, "b 3n"], tuple[Array, Array], Nodes]:
    """From the cotangent of the state after a step: those of the state `h` before it, of `u`, and of the nodes.

    Between them what the step adds to the cotangents of `of_h` and `bias_h`.
    """
    r, z, c = nodes["r"], nodes["z"], nodes["c"]
    _, _, v_c = thirds(nodes["v"])

    # new = (1 - z) c + z h: the gate weighs the candidate against the state before.
    dc = dnew * (1 - z)
    dz = dnew * (h - c)
    dh_by_sum = dnew * z

    # c = tanh(c_sum), and d tanh(x)/dx = 1 - tanh(x)^2.
    dc_sum = dc * (1 - c**2)

    # c_sum = u_c + r v_c.
    dr = dc_sum * v_c
    dv_c = dc_sum * r

    # r = sigma(r_sum) and z = sigma(z_sum), and d sigma(x)/dx = sigma(x) (1 - sigma(x)).
    dr_sum = dr * r * (1 - r)
    dz_sum = dz * z * (1 - z)

    # r_sum = u_r + v_r and z_sum = u_z + v_z; u_c was added to c_sum as it is.
    du = jnp.concatenate((dr_sum, dz_sum, dc_sum), -1)
    dv = jnp.concatenate((dr_sum, dz_sum, dv_c), -1)

    # v = h of_h + bias_h: the second use of the state before, the first was in the sum.
    dh_by_v, dof_h, dbias_h = affine_bwd(h, weights.of_h, dv)
    dh = dh_by_sum + dh_by_v

    dnodes = {
        "h": dnew, "c": dc, "c_sum": dc_sum, "z": dz, "z_sum": dz_sum, "r": dr, "r_sum": dr_sum, "v": dv,
    }  # fmt: skip
    return dh, du, (dof_h, dbias_h), dnodes
