"""How a step's work, memory and messages grow with batch, hidden size and devices: counted, and as compiled."""

import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from jaxgrad.models.mlp.forward import Batch, Params, init
from jaxgrad.models.mlp.kernel.padding import Sizes
from jaxgrad.models.mlp.kernel.roofline import counts
from jaxgrad.models.mlp.record import MODEL, fused
from jaxgrad.models.mlp.sizes import Sizes as ModelSizes
from jaxgrad.training import mesh as meshes

N, EMB_SIZE, VOCAB = 3, 10, 27
ITEMSIZE = 4


class PerDevice(NamedTuple):
    """Of a step, on each device: operations, bytes of temporary arrays, all-reduces and the bytes given to them."""

    flops: float
    temporary_bytes: float
    all_reduces: int
    reduced_bytes: float


class Chip(NamedTuple):
    """What a device can do at best, a second: operations, bytes of its memory, bytes sent over one of its links.
    `hop` is an assumption: the seconds that a small message takes to a neighbour.
    """

    flops: float
    memory: float
    link: float
    hop: float


# bfloat16 operations, memory, and a direction of one of four links, from the maker's page of the system.
V5E = Chip(flops=197e12, memory=819e9, link=50e9, hop=1e-6)


def predicted(batch: int, hidden: int, data: int, model: int) -> PerDevice:
    r"""The closed forms' step by counting, in float32, for the notebook's context, embedding and vocabulary.

    With b = batch/data rows and k = hidden/model neurons on a device, $K = n \cdot emb$ and $V$ symbols:
    operations are those of `kernels.roofline.counts` at (b, k), some $6\,b\,k\,(K+V)$. Four arrays of (b, k) are alive
    at once: x_hat, tanh's output, a cotangent and what it becomes. Over `data` go batch norm's mean (k), its variance
    (k), two sums of its backward (2k), and once all other gradients and the loss
    ($V\,emb + (K+V)\,k + V + 1$); over `model` go logits (b V) and embcat's cotangent (b K).
    """
    b, k = batch // data, hidden // model
    n_emb = N * EMB_SIZE
    size = Sizes(batch=b, n=N, vocab=VOCAB, emb_size=EMB_SIZE, h_size=k, block=k)
    over_data = 4 * k + VOCAB * EMB_SIZE + (n_emb + VOCAB) * k + VOCAB + 1
    over_model = b * (VOCAB + n_emb)
    return PerDevice(
        counts(size, steps=1).flops,
        4 * b * k * ITEMSIZE,
        4 * (data > 1) + 2 * (model > 1),
        ITEMSIZE * (over_data * (data > 1) + over_model * (model > 1)),
    )


def compiled(batch: int, hidden: int, mesh: Mesh) -> PerDevice:
    """The same figures of the program that XLA makes of one step on the mesh; nothing is run."""
    optimizer, sizes = optax.sgd(0.1), ModelSizes(hidden, N, EMB_SIZE)

    def step(params: Params, batch: Batch) -> tuple[Params, Float[Array, ""]]:
        loss, grads = fused(params, batch, sizes)
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        return optax.apply_updates(params, updates), loss

    def lying(shapes: Any, shardings: Any) -> Any:
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)

    rows = NamedSharding(mesh, PartitionSpec("data"))
    params = jax.eval_shape(lambda: init(jax.random.key(0), VOCAB, N, EMB_SIZE, hidden))
    examples = jax.eval_shape(lambda: Batch(jnp.zeros((batch, N), jnp.int32), jnp.zeros(batch, jnp.int32)))
    lowered = jax.jit(step).lower(
        lying(params, meshes.of_params(mesh, MODEL, params)), lying(examples, jax.tree.map(lambda _: rows, examples))
    )
    program: Any = lowered.compile()
    reduced = re.findall(r"= (.*?) all-reduce(?:-start)?\(", program.as_text())
    return PerDevice(
        float(program.cost_analysis()["flops"]),
        float(program.memory_analysis().temp_size_in_bytes),
        len(reduced),
        float(sum(_bytes(shapes) for shapes in reduced)),
    )


def seconds(batch: int, hidden: int, torus: tuple[int, ...], chip: Chip = V5E) -> dict[str, float]:
    """The least that a step can take, its batch split over all devices of a torus, by each thing that could bound it.

    Work: operations over the chip's best. Memory: 20 passes, of reading or writing, over an array of (rows of a
    device, hidden), which is what the step's fusions add up to. Bytes: a ring all-reduce sends each byte nearly twice.
    Messages: all-reduces wait for each other, and one goes along each axis of the torus and back, a neighbour at a
    time.
    """
    devices = math.prod(torus)
    counted = predicted(batch, hidden, devices, 1)
    return {
        "work": counted.flops / chip.flops,
        "memory": 20 * (batch // devices) * hidden * ITEMSIZE / chip.memory,
        "bytes": 2 * (devices - 1) / devices * counted.reduced_bytes / chip.link,
        "messages": counted.all_reduces * sum(2 * (side - 1) for side in torus) * chip.hop,
    }


def _bytes(shapes: str) -> int:
    """Of `f32[30,200]{1,0}`, or of several such in parentheses."""
    return sum(
        ITEMSIZE * math.prod(int(size) for size in sizes.split(",") if size)
        for sizes in re.findall(r"f32\[([\d,]*)\]", shapes)
    )
