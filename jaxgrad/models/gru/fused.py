"""The recurrent model's backward by hand, composed of the halves of `jaxgrad.ops`.

Of each step the layer keeps its state, its gates and one product; the weights' cotangents come from products of several
steps, outside of the walk through time. No array of all logits is made.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgrad import ops
from jaxgrad.models.gru.forward import embedded, start_of
from jaxgrad.models.gru.params import Params
from jaxgrad.models.gru.sizes import Sizes
from jaxgrad.models.sequence_nodes import Nodes, check_length, dropped
from jaxgrad.models.sequences import IGNORED, Batch


def nodes_fused(
    params: Params, batch: Batch, sizes: Sizes, key: PRNGKeyArray | None = None
) -> tuple[Float[Array, ""], Params, Nodes]:
    """Loss, cotangents of the parameters and of the nodes between operations; those inside of one are never formed.

    Same results as by node, up to rounding. Raises as `forward` does.
    """
    check_length(batch.X, sizes.block)
    emb, start = embedded(params, batch.X), start_of(params, batch.X)
    steps, residuals = ops.gru_fwd(emb, start, params.gru)
    states = steps.swapaxes(0, 1)
    # The op walks blocks of logits forward and backward at once, so its rule is asked for and not its two halves.
    loss, of_loss = jax.vjp(
        lambda x, head, bias: ops.linear_cross_entropy(x, head, batch.Y, bias, ignore_index=IGNORED),
        dropped(states, key, sizes.dropout),
        params.head,
        params.head_bias,
    )

    dloss = jnp.ones_like(loss)
    dread, dhead, dhead_bias = of_loss(dloss)
    dstates = dropped(dread, key, sizes.dropout)
    demb, dstart, dweights = ops.gru_bwd(residuals, dstates.swapaxes(0, 1))
    dtokens, _ = ops.embedding_bwd(None, (params.tokens[:, :0], batch.X.T), demb)
    dparams = Params(dtokens, dstart.sum(0), dweights, dhead, dhead_bias)
    return loss, dparams, {"loss": dloss, "states": dstates, "emb": demb}
