"""A run's arrays on disk, through Orbax: parameters, optimizer state, step, random key, batch-norm statistics."""

import hashlib
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from jaxtyping import Array, UInt32

from jaxgrad import files
from jaxgrad.errors import JaxgradError
from jaxgrad.models.mlp import Statistics
from jaxgrad.training.step import State


class Checkpoint(NamedTuple):
    """All that a run's arrays are: `key` is the data of the random key that batches are drawn with."""

    state: State
    key: UInt32[Array, " words"]
    statistics: Statistics


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint as `folder`, which appears only when it is whole, and its sha256 beside it.

    Raises `JaxgradError` where it cannot be written.
    """
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder.absolute(), checkpoint)
    except (OSError, ValueError) as error:
        raise JaxgradError(f"{folder}: the checkpoint cannot be written ({error})") from None
    files.write_bytes(_seal(folder), _sha256(folder).encode())


def restore(folder: Path, like: Checkpoint) -> Checkpoint:
    """Read a checkpoint into the structure, shapes and types of `like`, which may hold `jax.ShapeDtypeStruct`.

    Raises `JaxgradError` for a checkpoint that is missing, damaged, or of another shape.
    """
    if not folder.is_dir():
        raise JaxgradError(f"{folder}: there is no checkpoint; was the run stopped before its end? Train it again")
    # Orbax reads numbers that were altered without a word, and fails at others in ways that no caller can quiet.
    if not _seal(folder).is_file() or _seal(folder).read_text(encoding="ascii", errors="replace") != _sha256(folder):
        raise JaxgradError(
            f"{folder}: the checkpoint is damaged: it has not the sha256 in {_seal(folder)}; train again"
        )
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), like)
    wanted = _described(jax.tree_util.tree_leaves_with_path(target))
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            # Compared before arrays are read: a restore that fails half-way leaves tasks that complain at exit.
            held = checkpointer.metadata(folder.absolute()).item_metadata.tree
            apart = set(wanted) ^ set(_described(jax.tree_util.tree_leaves_with_path(held)))
            if not apart:
                return checkpointer.restore(folder.absolute(), target)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise JaxgradError(f"{folder}: the checkpoint cannot be read ({str(error)[:200]})") from None
    raise JaxgradError(f"{folder}: the checkpoint is of another model: it and the config differ in {min(apart)}")


def _seal(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.sha256")


def _sha256(folder: Path) -> str:
    """Of the names and bytes of all files below the folder."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _described(leaves: list[tuple[Any, Any]]) -> list[str]:
    """Each leaf's path, in words alone, its shape and its type: trees that Orbax keeps as dicts are the same so."""
    paths = (".".join(re.findall(r"\w+", jax.tree_util.keystr(path))) for path, _ in leaves)
    return [f"{path} {leaf.shape} {leaf.dtype}" for path, (_, leaf) in zip(paths, leaves, strict=True)]
