"""Checkpoints on disk, arrays through Orbax: each a folder that appears under its name only when it is whole.

`checkpoints/STEP/` holds `arrays/`, `notes.json` and `sha256`, the hashes of all the others, which `sha256sum -c`
reads too: Orbax reads numbers that were altered without a word. Nothing is pickled, and reading one runs no code of it.
"""

import logging
import os
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jaxtyping import Array, UInt32

from jaxgrad import files, memory
from jaxgrad.errors import JaxgradError
from jaxgrad.training.state import State

CHECKSUMS = "sha256"
# Its name on disk stays: scripts of others open it.
METADATA = "notes.json"

Record = TypeVar("Record")

logger = logging.getLogger(__name__)


class Checkpoint(NamedTuple):
    """All that a run's arrays are: `key` is the data of the random key that batches are drawn with.

    `statistics` are what predictions take beside the parameters.
    """

    state: State
    key: UInt32[Array, " words"]
    statistics: Any


class Metadata(NamedTuple):
    """What a run must know beside its arrays to go on: `dev_loss` is None where it is not finite.

    `waiting` are the losses, by step, that no metrics line holds yet; the metrics file had `metrics_bytes` bytes
    of hash `metrics_sha256`; `corpus_sha256` is the hash of the examples. `config` is all of the run's config that its
    numbers hang on (`training.config.deciding`). `losses` are those of the three splits, at the end of a run.
    """

    dev_loss: float | None
    waiting: tuple[float, ...]
    metrics_bytes: int
    metrics_sha256: str
    corpus_sha256: str
    config: dict[str, Any]
    losses: tuple[float, float, float] | None = None


def begin(folder: Path, checkpoint: Any, metadata: Any) -> Callable[[], None]:
    """Start to write a checkpoint; the function that is returned waits until it is whole, from any thread.

    `checkpoint` is any tree of arrays, `metadata` a NamedTuple of what JSON has, which `metadata_of` reads.
    The arrays may be donated or changed as soon as this returns. Both raise `JaxgradError` where the checkpoint
    exists already or cannot be written; what is then left has a dot before its name.
    """
    if folder.exists():
        raise JaxgradError(f"{folder}: the checkpoint exists already; remove it first")
    unfinished = folder.with_name(f".{folder.name}.unfinished").absolute()
    # Compressed arrays and a dozen small files beside them, in blocks of the disk.
    files.check_room(unfinished, sum(leaf.nbytes for leaf in jax.tree.leaves(checkpoint)) * 5 // 4 + 2**18)
    # A folder made later and in the background, which fails, would keep the process alive for minutes.
    checkpointer = _checkpointer(async_options=ocp.AsyncOptions(create_directories_asynchronously=False))
    try:
        plain = jax.tree.map(_plain, checkpoint)
        # Of several processes' arrays Orbax would take one on this process's device for a part of a whole.
        checkpointer.save(unfinished / "arrays", plain if jax.process_count() == 1 else jax.device_get(plain))
    except (OSError, ValueError) as error:
        raise _unwritable(folder, error) from None

    def finish() -> None:
        try:
            checkpointer.wait_until_finished()
            checkpointer.close()
        except (OSError, ValueError) as error:
            raise _unwritable(folder, error) from None
        files.write_json(unfinished / METADATA, metadata._asdict())
        try:
            files.write_bytes(unfinished / CHECKSUMS, _hashes(unfinished).encode())
            unfinished.rename(folder)
        except OSError as error:
            raise _unwritable(folder, error) from None
        files.sync_folder(folder.parent)

    return finish


def restore(folder: Path, like: Record) -> Record:
    """Read a checkpoint into the structure, shapes, types and shardings of `like`, of arrays or `ShapeDtypeStruct`s.

    A leaf of `like` without a sharding goes to the first device. Raises `JaxgradError` for a checkpoint that is
    missing, damaged, or of another shape.
    """
    if not folder.is_dir():
        raise JaxgradError(f"{folder}: there is no checkpoint; train the run again")
    if not is_valid(folder):
        raise JaxgradError(f"{folder}: the checkpoint is damaged: its files do not have the sha256 in {CHECKSUMS}")
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or device),
        jax.tree.map(lambda x: jax.eval_shape(_plain, x) if _is_key(x) else x, like),
    )
    wanted = _described(jax.tree_util.tree_leaves_with_path(target))
    arrays = folder.absolute() / "arrays"
    try:
        with _checkpointer() as checkpointer:
            # Compared before arrays are read: a restore that fails half-way leaves tasks that complain at exit.
            # Orbax 0.11 gives those of the arrays themselves, 0.12 those of the whole checkpoint.
            described = checkpointer.metadata(arrays)
            held = getattr(described, "item_metadata", described).tree
            apart = set(wanted) ^ set(_described(jax.tree_util.tree_leaves_with_path(held)))
            if not apart:
                read = checkpointer.restore(arrays, target)
                return jax.tree.map(lambda x, to: jax.random.wrap_key_data(x) if _is_key(to) else x, read, like)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise JaxgradError(f"{folder}: the checkpoint cannot be read ({str(error)[:200]})") from None
    raise JaxgradError(f"{folder}: the checkpoint is of another model: it and the config differ in {min(apart)}")


def metadata(folder: Path) -> Metadata:
    """The metadata of a run's checkpoint; raises as `metadata_of` does."""
    return metadata_of(folder, Metadata)


def metadata_of(folder: Path, kind: type[Record]) -> Record:
    """The metadata of a checkpoint, which must be valid: nothing is read of one that is not.

    Raises `JaxgradError` where it is damaged, or its metadata are of another kind.
    """
    if not is_valid(folder):
        raise JaxgradError(f"{folder}: the checkpoint is damaged: its files do not have the sha256 in {CHECKSUMS}")
    return files.read_json(folder / METADATA, kind, "metadata of a checkpoint", "train the run again")


def is_valid(folder: Path) -> bool:
    """Whether every file of the checkpoint is as it was written, and nothing else is in it: no link, pipe or folder."""
    checksums = folder / CHECKSUMS
    try:
        if not stat.S_ISDIR(folder.lstat().st_mode):
            return False
        expected = files.read_bytes(checksums, files.LARGEST_JSON).decode("ascii", errors="replace")
        return expected == _hashes(folder)
    except (OSError, JaxgradError):
        return False


def saved(run: Path) -> list[Path]:
    """The checkpoints of a run folder, whole or not, oldest first."""
    found = [path for path in (run / "checkpoints").glob("*") if re.fullmatch("[0-9]{1,18}", path.name)]
    return sorted(found, key=lambda path: int(path.name))


def latest_valid(paths: list[Path]) -> tuple[Path | None, list[Path]]:
    """The last of these checkpoints that is valid, if one is, and the damaged ones after it."""
    damaged: list[Path] = []
    for path in reversed(paths):
        if is_valid(path):
            return path, damaged
        damaged.append(path)
    return None, damaged


def best(paths: list[Path]) -> Path | None:
    """The checkpoint of the lowest dev loss, the earliest of equals; None where none has one.

    A damaged one decides nothing: it is passed over, and logged.
    """
    losses: dict[Path, float] = {}
    for path in paths:
        if not is_valid(path):
            logger.warning("%s: the checkpoint is damaged, so it is passed over", path)
        elif (loss := metadata(path).dev_loss) is not None:
            losses[path] = loss
    return min(losses, key=lambda path: losses[path], default=None)


def tidy(run: Path, keep: int, stays: Callable[[list[Path]], Path | None] = best) -> None:
    """Remove all checkpoints of a run but the last `keep` and the one that `stays`, of all of them.

    Raises `JaxgradError` where one cannot be removed.
    """
    paths = saved(run)
    if len(paths) <= keep:
        return
    for path in set(paths[:-keep]) - {stays(paths)}:
        # Half-removed under its own name it would pass for one that was damaged.
        _remove(_renamed(path, path.with_name(f".{path.name}.removed")))


def remove_partial(run: Path) -> None:
    """Remove what a killed process was writing or removing; raises `JaxgradError` where it cannot be."""
    left = (*run.glob("checkpoints/.*.unfinished"), *run.glob("checkpoints/.*.removed"), *run.glob(".*.tmp"))
    for path in left:
        _remove(path)


def set_aside(folder: Path) -> Path:
    """Rename a damaged checkpoint, so that a whole one can have its name; returns the new path."""
    names = (folder.with_name(f"{folder.name}.damaged{n or ''}") for n in range(1000))
    return _renamed(folder, next(path for path in names if not os.path.lexists(path)))


def _renamed(path: Path, to: Path) -> Path:
    try:
        return path.rename(to)
    except OSError as error:
        raise files.unwritable(path, error) from None


def _remove(path: Path) -> None:
    try:
        if stat.S_ISDIR(path.lstat().st_mode):
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        raise JaxgradError(f"{path}: cannot be removed ({error.strerror}); remove it by hand") from None


def _is_key(leaf: Any) -> bool:
    """Whether a leaf is a random key, which some of optax's states hold: of a type that no file format has."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _checkpointer(**options: Any) -> ocp.StandardCheckpointer:
    """Orbax's, of this process alone: of several that are one run, only one reads and writes, and waits for none."""
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
    )
    return ocp.StandardCheckpointer(multiprocessing_options=alone, **options)


def _unwritable(folder: Path, error: Exception) -> JaxgradError:
    return JaxgradError(f"{folder}: the checkpoint cannot be written ({str(error)[:200]}); is the disk full?")


def _hashes(folder: Path) -> str:
    """The sha256 and the name of every file of a checkpoint but `CHECKSUMS`, a line each, as `sha256sum` writes them.

    Raises `OSError` for what is in no checkpoint: links, pipes, folders without a file, and files that are larger
    than memory, which need not be read to be known as none of ours.
    """
    lines = []
    for path in sorted(folder.rglob("*")):
        found = path.lstat()
        if stat.S_ISDIR(found.st_mode):
            if not any(path.iterdir()):
                raise OSError(f"{path}: is a folder without a file")
        elif not stat.S_ISREG(found.st_mode) or found.st_size > memory.total():
            raise OSError(f"{path}: is no file that a checkpoint has")
        elif path != folder / CHECKSUMS:
            lines.append(f"{files.sha256(path)}  {path.relative_to(folder).as_posix()}\n")
    return "".join(lines)


def _described(leaves: list[tuple[Any, Any]]) -> list[str]:
    """Each leaf's path, in words alone, its shape and its type: trees that Orbax keeps as dicts are the same so."""
    paths = (".".join(re.findall(r"\w+", jax.tree_util.keystr(path))) for path, _ in leaves)
    return [f"{path} {leaf.shape} {leaf.dtype}" for path, (_, leaf) in zip(paths, leaves, strict=True)]
