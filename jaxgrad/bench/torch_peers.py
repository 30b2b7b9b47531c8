"""PyTorch's competitors, fed the rows that JAX draws."""

import contextlib
import dataclasses
import importlib
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from jaxgrad.bench.peers import Place, Ready, module_of
from jaxgrad.bench.task import Task, rows
from jaxgrad.errors import JaxgradError
from jaxgrad.models.model import named
from jaxgrad.parity.engines import torch_device

# Rows of this many batches are kept; a longer run begins with the first again.
KEPT_BATCHES = 128


class TooLong(BaseException):
    """A time limit has passed. No `Exception`, because compilers catch those and go on another way."""


def training(way: str, task: Task, place: Place, n_steps: int) -> Ready:
    """A Python loop over the step of the model's module in `torchref`; rows are drawn beforehand, in no one's time.

    Raises `JaxgradError` for a model that is not written so, for a device that PyTorch does not have, and where
    `torch.compile` fails or takes too long.
    """
    import torch

    steps = importlib.import_module(f"torchref.{module_of(task, 'torch')}")
    if not hasattr(steps, way):
        raise JaxgradError(f"the model {task.model.name} is not written in torch {way.replace('_', ' ')}")
    device = torch_device(place.torch_device)
    params = {name: torch.tensor(p, device=device) for name, p in named(task.params).items()}
    X, Y = (torch.tensor(symbols, dtype=torch.int64, device=device) for symbols in task.examples)
    drawn = torch.tensor(rows(task, KEPT_BATCHES), dtype=torch.int64, device=device)
    sizes = dataclasses.asdict(task.size.sizes)
    step, parameters = getattr(steps, way)(params, task.learning_rate, **sizes)
    initial = [p.detach().clone() for p in parameters]

    def begin() -> int:
        with torch.no_grad():
            for p, value in zip(parameters, initial, strict=True):
                p.copy_(value)
        return 0

    def advance(first: int) -> tuple[int, Any]:
        losses = []
        for at in range(first, first + n_steps):
            ix = drawn[at % KEPT_BATCHES]
            losses.append(step(X[ix], Y[ix]))
        # Copied to the host, so that a device's work is waited for.
        return first + n_steps, torch.stack(losses).cpu().numpy()

    def once() -> None:
        step(X[drawn[0]], Y[drawn[0]]).cpu()

    seconds = None
    if way == "compiled":
        began = time.perf_counter()
        compile_within(place.compile_limit, once)
        seconds = time.perf_counter() - began
    return Ready(begin, advance, seconds, _temp_bytes(once, device))


def compile_within(limit: float, once: Callable[[], None]) -> None:
    """Call what compiles; raises `JaxgradError` with the reason where it fails or takes more than `limit` seconds."""
    try:
        # Inductor and what it imports warn of their own affairs.
        with warnings.catch_warnings(action="ignore"), time_limit(limit):
            once()
    except (Exception, TooLong) as error:
        reason = next(iter(str(error).strip().splitlines()), "")[:200]
        raise JaxgradError(f"torch.compile failed: {type(error).__name__}: {reason}") from None


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TooLong` in the main thread, the only one that a signal reaches, after so many seconds.

    It is raised again every 10 seconds, should it have been lost in a destructor or a callback.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(signum: int, frame: Any) -> None:
        raise TooLong(f"not compiled after {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 10.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _temp_bytes(once: Callable[[], None], device: Any) -> int | None:
    """The most memory that a step takes beyond what was held before; PyTorch counts it on CUDA devices alone."""
    import torch

    if device.type != "cuda":
        return None
    once()
    torch.cuda.synchronize(device)
    held = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    once()
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device) - held)
