"""One step over several devices: the batch split over a mesh's axis `data`, what a model says over `model`.

The compiler does the rest: sums over the batch, batch norm's included, become all-reduces over `data`, so that
statistics are those of the whole batch; the MLP's sum over hidden neurons becomes one over `model`.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgrad.errors import JaxgradError
from jaxgrad.models.model import Model, named, renamed
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


def build(sizes: dict[str, int], devices: Sequence[jax.Device], batch_size: int, split: Mapping[str, int]) -> Mesh:
    """A mesh of the first of `devices`, over whose axis `model` is split what `split` names, with its size.

    Raises `JaxgradError` where they are too few, and for a batch or something named that does not divide into
    equal parts: parts of two sizes would need two programs.
    """
    needed = math.prod(sizes.values())
    if needed > len(devices):
        raise JaxgradError(
            f"the mesh has {needed} devices and JAX {len(devices)} ({devices[0].platform});"
            " give a smaller mesh, or on a CPU set JAX_NUM_CPU_DEVICES"
        )
    if sizes["model"] > 1 and not split:
        raise JaxgradError("nothing of this model is split over the axis model; give data=N alone")
    for what, value, axis in (("batch", batch_size, "data"), *((what, n, "model") for what, n in split.items())):
        if value % sizes[axis]:
            raise JaxgradError(
                f"a {what} of {value} does not divide by {axis}={sizes[axis]}; give a multiple of it, or another mesh"
            )
    return Mesh(np.array(devices[:needed]).reshape([sizes[axis] for axis in AXES]), AXES)


def of_params(mesh: Mesh, model: Model, params: Any) -> Any:
    """The sharding of each parameter: what the model splits over `model`, or a whole copy on every device."""
    return renamed(
        params, {name: NamedSharding(mesh, PartitionSpec(*model.axes.get(name, ()))) for name in named(params)}
    )


def of_state(mesh: Mesh, model: Model, optimizer: optax.GradientTransformation, state: State) -> State:
    """The sharding of each array of a state, or of its shapes: an optimizer's moments lie where their parameters do."""
    everywhere: Any = replicated(mesh)
    own = of_params(mesh, model, state.params)
    opt_state = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        state.opt_state,
        own,
        transform_non_params=lambda _: everywhere,
    )
    return state._replace(params=own, opt_state=opt_state, step=everywhere)


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_rows(mesh: Mesh, batches: Any) -> Any:
    """Inside jit: batches of shape `(steps, batch, ...)` with their rows split over `data`."""
    return jax.lax.with_sharding_constraint(batches, NamedSharding(mesh, PartitionSpec(None, "data")))
