"""A run's arrays on disk, through Orbax: parameters, optimizer state, step, random key, batch-norm statistics."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from jaxtyping import Array, UInt32

from jaxgrad.errors import JaxgradError
from jaxgrad.models.mlp import Statistics
from jaxgrad.training.step import State


class Checkpoint(NamedTuple):
    """All that a run's arrays are: `key` is the data of the random key that batches are drawn with."""

    state: State
    key: UInt32[Array, " words"]
    statistics: Statistics


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint as `folder`, which appears only when it is whole.

    Raises `JaxgradError` where it cannot be written.
    """
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder.absolute(), checkpoint)
    except (OSError, ValueError) as error:
        raise JaxgradError(f"{folder}: the checkpoint cannot be written ({error})") from None


def restore(folder: Path, like: Checkpoint) -> Checkpoint:
    """Read a checkpoint into the structure, shapes and types of `like`, which may hold `jax.ShapeDtypeStruct`.

    Raises `JaxgradError` for a checkpoint that is missing, damaged, or of another shape.
    """
    if not folder.is_dir():
        raise JaxgradError(f"{folder}: there is no checkpoint; was the run stopped before its end? Train it again")
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), like)
    wanted = _described(jax.tree_util.tree_leaves_with_path(target))
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            # Compared before anything is read: a restore that fails half-way leaves tasks that complain at exit.
            held = checkpointer.metadata(folder.absolute()).item_metadata.tree
            apart = set(wanted) ^ set(_described(jax.tree_util.tree_leaves_with_path(held)))
            if not apart:
                return checkpointer.restore(folder.absolute(), target)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise JaxgradError(f"{folder}: the checkpoint is damaged or of another model ({reason[:200]})") from None
    raise JaxgradError(f"{folder}: the checkpoint is of another model: it and the config differ in {min(apart)}")


def _described(leaves: list[tuple[Any, Any]]) -> list[str]:
    """Each leaf's path, in words alone, its shape and its type: trees that Orbax keeps as dicts are the same so."""
    paths = (".".join(re.findall(r"\w+", jax.tree_util.keystr(path))) for path, _ in leaves)
    return [f"{path} {leaf.shape} {leaf.dtype}" for path, (_, leaf) in zip(paths, leaves, strict=True)]
