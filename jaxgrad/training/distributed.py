"""Several processes as one run: all take every step; process 0 leads, and alone touches the run's folder."""

import re
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxgrad.errors import JaxgradError

Tree = TypeVar("Tree")

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
