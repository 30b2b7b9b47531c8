"""How a step's work, memory and messages grow with batch, sizes and devices: counted, and as compiled."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from jaxgrad.bench.task import Size, named_size, of_ones_own, sizes_of
from jaxgrad.models.model import Model, PerDevice
from jaxgrad.training import mesh as meshes

# Symbols of a corpus of lower-case names.
VOCAB_SIZE = 27


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


# What is shown of a size where no mesh is asked for.
MESHES = ("data=1", "data=2", "data=4", "data=8", "data=4,model=2", "model=8")


def size_of(model: Model, name: str | None = None, batch: int | None = None, hidden: int | None = None) -> Size:
    """The size of that name, or the largest that is timed, with another batch and hidden size where they are given."""
    size = list(sizes_of(model).values())[-1] if name is None else named_size(model, name)
    own = getattr(size.sizes, str(model.swept)) if hidden is None else hidden
    return size if batch is hidden is None else of_ones_own(model, size, batch or size.batch, own)


def dividing(size: Size, split: Mapping[str, int]) -> list[str]:
    """Those of `MESHES` by which the batch divides, and along `model` all that is `split` there."""
    found = ((text, meshes.parse(text)) for text in MESHES)
    return [
        text
        for text, axes in found
        if size.batch % axes["data"] == 0 and all(n % axes["model"] == 0 for n in split.values())
    ]


def counted(model: Model, size: Size, data: int, model_axis: int) -> PerDevice | None:
    """A step on a mesh of `data` × `model_axis` devices, as the model's record counts it; None where it does not."""
    if model.per_device is None:
        return None
    return model.per_device(size.sizes, VOCAB_SIZE, size.batch, data, model_axis)


def compiled(model: Model, size: Size, mesh: Mesh) -> PerDevice:
    """The same figures of the program that XLA makes of one step on the mesh; nothing is run.

    Of the body of a loop, as over layers or time, XLA counts the operations of one turn.
    """
    optimizer, way = optax.sgd(0.1), next(iter(model.gradients.values()))

    def step(params: Any, batch: Any) -> tuple[Any, Float[Array, ""]]:
        loss, grads = way(params, batch, size.sizes)
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        return optax.apply_updates(params, updates), loss

    def lying(shapes: Any, shardings: Any) -> Any:
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)

    rows = NamedSharding(mesh, PartitionSpec("data"))
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), size.sizes, VOCAB_SIZE, jnp.float32))
    of_x, of_y = (jax.ShapeDtypeStruct((size.batch, *shape), jnp.int32) for shape in model.shapes(size.sizes))
    examples = model.batch(of_x, of_y)
    lowered = jax.jit(step).lower(
        lying(params, meshes.of_params(mesh, model, params)), lying(examples, jax.tree.map(lambda _: rows, examples))
    )
    program: Any = lowered.compile()
    sent = list(messages(program.as_text()))
    return PerDevice(
        float(program.cost_analysis()["flops"]),
        float(program.memory_analysis().temp_size_in_bytes),
        sum(times for _, times in sent),
        float(sum(size * times for size, times in sent)),
    )


def messages(hlo: str) -> Iterator[tuple[int, int]]:
    """The all-reduces of a compiled program: the bytes of each, and how often it is run.

    Those in the body of a loop run as often as the compiler knows that the body does.
    """
    bodies: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in hlo.splitlines():
        if head := re.match(r"(?:ENTRY )?%(\S+) .*\{$", line):
            lines = bodies.setdefault("ENTRY" if line.startswith("ENTRY") else head[1], [])
        lines.append(line)

    def walked(name: str, times: int) -> Iterator[tuple[int, int]]:
        for line in bodies.get(name, ()):
            if reduced := re.search(r"= (.*?) all-reduce(?:-start)?\(", line):
                yield _bytes(reduced[1]), times
            if inner := re.search(r" (?:while|call)\(.*(?:body|to_apply)=%([^,\s]+)", line):
                turns = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
                yield from walked(inner[1], times * (int(turns[1]) if turns else 1))

    return walked("ENTRY", 1)


def seconds(counted: PerDevice, torus: tuple[int, ...], chip: Chip = V5E) -> dict[str, float]:
    """The least that a step can take, its batch split over all devices of a torus, by each thing that could bound it.

    Work: operations over the chip's best. Memory: the temporary arrays five times over, read or written, which is what
    the step's fusions add up to. Bytes: a ring all-reduce sends each byte nearly twice. Messages: all-reduces wait for
    each other, and one goes along each axis of the torus and back, a neighbour at a time.
    """
    devices = math.prod(torus)
    return {
        "work": counted.flops / chip.flops,
        "memory": 5 * counted.temporary_bytes / chip.memory,
        "bytes": 2 * (devices - 1) / devices * counted.reduced_bytes / chip.link,
        "messages": counted.all_reduces * sum(2 * (side - 1) for side in torus) * chip.hop,
    }


def _bytes(shapes: str) -> int:
    """Of `f32[30,200]{1,0}`, or of several such in parentheses."""
    return sum(
        jnp.dtype(jnp.float32).itemsize * math.prod(int(size) for size in sizes.split(",") if size)
        for sizes in re.findall(r"f32\[([\d,]*)\]", shapes)
    )
