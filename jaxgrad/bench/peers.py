"""Who takes part: a name, a library, and the function that makes it ready for a task."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from jaxgrad.bench.task import Task, benchmark
from jaxgrad.errors import JaxgradError, not_installed


class Place(NamedTuple):
    """Where each library runs, in its own words, and the seconds that `torch.compile` may take."""

    jax_device: str = "cpu"
    torch_device: str = "cpu"
    compile_limit: float = 300.0


class Ready(NamedTuple):
    """A competitor that is compiled: `advance` takes the state it had and returns the next and the steps' losses.

    The state that was given is used up. Losses are those before each update, an array or a list of scalars.
    `temp_bytes` is the most that one call needs beside arguments and results; None where nobody counts it.
    """

    start: Callable[[], Any]
    advance: Callable[[Any], tuple[Any, Any]]
    compile_seconds: float | None
    temp_bytes: int | None


Prepare: TypeAlias = Callable[[Task, Place, int], Ready]


class Peer(NamedTuple):
    """A competitor. `prepare(task, place, n_steps)` raises `JaxgradError` with the reason why it cannot run."""

    name: str
    library: str
    prepare: Prepare


def module_of(task: Task, library: str) -> str:
    """The module that has the task's model in a library; raises `JaxgradError` where it is not written."""
    module = benchmark(task.model).peers.get(library)
    if module is None:
        raise JaxgradError(f"the model {task.model.name} is not written in {library}")
    return module


def _lazy(module: str, function: str, *args: Any) -> Prepare:
    """`module.function(*args, task, place, n_steps)`, its library imported only when it is called."""

    def prepare(task: Task, place: Place, n_steps: int) -> Ready:
        try:
            build = getattr(importlib.import_module(f"jaxgrad.bench.{module}"), function)
            return build(*args, task, place, n_steps)
        except ModuleNotFoundError as error:
            raise (not_installed(error) or error) from None

    return prepare


REFERENCE, TORCH = "jax.grad/scan", "torch"

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        *(
            Peer(f"{shown}/{way}", "jax", _lazy("jax_peers", "training", gradients, way == "scan"))
            for gradients, shown in (("by-node", "by-node"), ("fused", "fused"), ("jax-grad", "jax.grad"))
            for way in ("scan", "step")
        ),
        Peer("kernel", "jax", _lazy("jax_peers", "kernel")),
        Peer("flax", "jax", _lazy("flax_peer", "training")),
        Peer("equinox", "jax", _lazy("equinox_peer", "training")),
        Peer("torch", "torch", _lazy("torch_peers", "training", "autograd")),
        Peer("torch-by-hand", "torch", _lazy("torch_peers", "training", "by_hand")),
        Peer("torch.compile", "torch", _lazy("torch_peers", "training", "compiled")),
    )
}


def chosen(names: str | None) -> tuple[Peer, ...]:
    """The peers of a list such as "fused/scan,torch", in the order of `PEERS`; all without one.

    Raises `JaxgradError` for a name that is not there.
    """
    if names is None:
        return tuple(PEERS.values())
    wanted = {name.strip() for name in names.split(",")}
    for name in sorted(wanted - set(PEERS)):
        raise JaxgradError(f"there is no competitor {name!r}; choose from {', '.join(PEERS)}")
    return tuple(peer for name, peer in PEERS.items() if name in wanted)
