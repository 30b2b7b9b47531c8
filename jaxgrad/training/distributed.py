"""Several processes as one run: all take every step; process 0 leads, and alone touches the run's folder."""

import importlib.metadata
import json
import platform
import re
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxgrad.errors import JaxgradError

Tree = TypeVar("Tree")
Made = TypeVar("Made")

# Two processes that differ in one of these compute other numbers, or wait for each other for ever.
PACKAGES = ("jaxgrad", "jax", "jaxlib", "numpy", "optax")
SETTINGS = ("jax_default_matmul_precision", "jax_enable_x64", "jax_default_prng_impl", "jax_threefry_partitionable")

# A process that is gone is noticed by its connections at once, and by its silence after so many seconds.
HEARTBEAT_SECONDS = 30
JOIN_SECONDS = 120


def join(coordinator: str | None, processes: int | None, process_id: int | None) -> None:
    """Make this process one of a run's; before anything else asks JAX for devices.

    `coordinator` is HOST:PORT of process 0. What is None is found in the environment of a cluster that JAX knows
    (Slurm, Open MPI, Kubernetes, Cloud TPU). Raises `JaxgradError` where it is not, or where others do not come.
    """
    try:
        jax.distributed.initialize(
            coordinator, processes, process_id,
            initialization_timeout=JOIN_SECONDS, heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )  # fmt: skip
    except (ValueError, RuntimeError) as error:
        raise JaxgradError(
            f"the processes of this run did not come together ({str(error).splitlines()[0][:200]}); give each the same"
            " --coordinator HOST:PORT and --processes N, and its own --process-id from 0 to N - 1"
        ) from None


def leads() -> bool:
    """Whether this process is the one that reads and writes."""
    return jax.process_index() == 0


def any_of_us(wish: bool) -> bool:
    """Whether any process wishes so; all must ask at the same time."""
    if jax.process_count() == 1:
        return wish
    return bool(np.any(multihost_utils.process_allgather(np.array(wish))))


def prepared(make: Callable[[], Made]) -> Made:
    """What `make` returns, where it succeeds in every process; all must ask at the same time.

    Raises `JaxgradError` in all of them where it does in one: its own error there, and in the others which it was.
    """
    if jax.process_count() == 1:
        return make()
    failed: JaxgradError | None = None
    try:
        made = make()
    except JaxgradError as error:
        failed = error
    others = _texts("" if failed is None else str(failed))
    if failed is not None:
        raise failed
    if (first := next((k for k, text in enumerate(others) if text), None)) is not None:
        raise JaxgradError(f"process {first} could not begin, and this one ends with it: {others[first]}")
    return made


def compare(told: dict[str, Any]) -> None:
    """Raise `JaxgradError`, in every process, where they were not told the same or do not run the same.

    `told` has what JSON has; versions, and settings of JAX that change numbers, are added. All must ask at the same
    time. The error names each thing that differs, with its values.
    """
    if jax.process_count() == 1:
        return
    runs = {name: importlib.metadata.version(name) for name in PACKAGES}
    runs |= {"python": platform.python_version(), "platform": jax.default_backend()}
    runs |= {name: getattr(jax.config, name) for name in SETTINGS}
    everyones = [json.loads(text) for text in _texts(json.dumps({**told, **runs}, default=str))]
    names = list(dict.fromkeys(name for one in everyones for name in one))
    apart = [name for name in names if any(one.get(name) != everyones[0].get(name) for one in everyones)]
    if apart:
        values = "; ".join(f"{name} is {_by_process([one.get(name) for one in everyones])}" for name in apart)
        raise JaxgradError(
            f"the processes of this run differ in {', '.join(apart)}: {values}; give all of them the same options and"
            " the same installation"
        )


def _by_process(values: list[Any]) -> str:
    """`0.1 in process 0, 0.5 in process 1`: each value with the first process that has it."""
    first: dict[str, int] = {}
    for process, value in enumerate(values):
        first.setdefault(json.dumps(value), process)
    return ", ".join(f"{text[:40]} in process {process}" for text, process in first.items())


def _texts(mine: str) -> list[str]:
    """A text of every process, in their order; all must ask at the same time."""
    data = np.frombuffer(mine.encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.array(len(data), np.int32)))
    # Arrays that are gathered must have one shape.
    padded = np.zeros(max(int(sizes.max()), 1), np.uint8)
    padded[: len(data)] = data
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]


def from_leader(make: Callable[[], Tree], like: Tree) -> Tree:
    """What `make` returns in process 0, in all of them; `like` has its structure, shapes and types.

    Raises what `make` raises in process 0, and `JaxgradError` in the others.
    """
    if jax.process_count() == 1:
        return make()
    made, failed = like, None
    if leads():
        try:
            made = make()
        except JaxgradError as error:
            failed = error
    # Told, and not left to be guessed from a silence.
    if multihost_utils.broadcast_one_to_all(np.array(failed is not None)):
        raise failed or JaxgradError("process 0 could not go on, and says why; this one ends with it")
    return multihost_utils.broadcast_one_to_all(jax.tree.map(np.asarray, made))


def whole(tree: Tree) -> Tree:
    """NumPy copies of arrays that may be split over the devices of all processes, each of which must call this."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def lost(error: Exception) -> str | None:
    """The sentence for an error that came out of talking to a process that is gone; None for any other error."""
    first = str(error).splitlines()[0] if str(error) else ""
    # The runtime's errors have no type of their own everywhere: what they begin with is a status of gRPC.
    if not re.match(r"(UNKNOWN|UNAVAILABLE|INTERNAL|ABORTED|DEADLINE_EXCEEDED|FAILED_PRECONDITION): ", first):
        return None
    return (
        f"process {jax.process_index()}: another process of this run is gone ({first[:160]});"
        " start all of them again with --resume and the run's folder"
    )
