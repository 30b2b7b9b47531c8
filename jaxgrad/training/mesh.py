"""One step over several devices: the batch split over a mesh's axis `data`, the hidden neurons over its axis `model`.

The compiler does the rest: sums over the batch, batch norm's included, become all-reduces over `data`, so that
statistics are those of the whole batch; the second layer's sum over hidden neurons becomes one over `model`.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgrad.errors import JaxgradError
from jaxgrad.models.mlp.forward import Batch, Params
from jaxgrad.training.state import State

AXES = ("data", "model")


def parse(text: str) -> dict[str, int]:
    """`"data=4,model=2"` as sizes by axis, 1 where an axis is not named; raises `JaxgradError` for other text."""
    sizes = dict.fromkeys(AXES, 1)
    for part in text.split(","):
        name, _, size = part.strip().partition("=")
        if name not in AXES or not re.fullmatch("[1-9][0-9]{0,8}", size):
            raise JaxgradError(f"mesh is {text[:80]!r}; give data=N, model=N or both, such as data=4,model=2")
        sizes[name] = int(size)
    return sizes


def build(sizes: dict[str, int], devices: Sequence[jax.Device], batch_size: int, hidden: int) -> Mesh:
    """A mesh of the first of `devices`.

    Raises `JaxgradError` where they are too few, and for a batch or a hidden layer that does not divide into
    equal parts: parts of two sizes would need two programs.
    """
    needed = math.prod(sizes.values())
    if needed > len(devices):
        raise JaxgradError(
            f"the mesh has {needed} devices and JAX {len(devices)} ({devices[0].platform});"
            " give a smaller mesh, or on a CPU set JAX_NUM_CPU_DEVICES"
        )
    for what, value, axis in (("batch", batch_size, "data"), ("hidden layer", hidden, "model")):
        if value % sizes[axis]:
            raise JaxgradError(
                f"a {what} of {value} does not divide by {axis}={sizes[axis]}; give a multiple of it, or another mesh"
            )
    return Mesh(np.array(devices[:needed]).reshape([sizes[axis] for axis in AXES]), AXES)


def of_params(mesh: Mesh) -> Params:
    """The sharding of each parameter: what has hidden neurons is split over `model`, the rest is on every device."""
    split: dict[str, PartitionSpec] = {
        "W1": PartitionSpec(None, "model"),
        "bn_gain": PartitionSpec(None, "model"),
        "bn_bias": PartitionSpec(None, "model"),
        "W2": PartitionSpec("model"),
    }
    shardings: Any = (NamedSharding(mesh, split.get(name, PartitionSpec())) for name in Params._fields)
    return Params(*shardings)


def of_state(mesh: Mesh, optimizer: optax.GradientTransformation, state: State) -> State:
    """The sharding of each array of a state, or of its shapes: an optimizer's moments lie where their parameters do."""
    everywhere: Any = replicated(mesh)
    opt_state = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        state.opt_state,
        of_params(mesh),
        transform_non_params=lambda _: everywhere,
    )
    return state._replace(params=of_params(mesh), opt_state=opt_state, step=everywhere)


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_rows(mesh: Mesh, batches: Batch) -> Batch:
    """Inside jit: batches of shape `(steps, batch, ...)` with their rows split over `data`."""
    return jax.lax.with_sharding_constraint(batches, NamedSharding(mesh, PartitionSpec(None, "data")))
