"""One run of the benchmark: competitors made ready, checked against each other, and timed in turns."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxgrad.bench import agreement, jax_peers, peak
from jaxgrad.bench.agreement import Judged
from jaxgrad.bench.peak import Peak
from jaxgrad.bench.peers import Peer, Place, Ready
from jaxgrad.bench.task import Size, Task, benchmark
from jaxgrad.bench.task import task as task_of
from jaxgrad.bench.timing import rounds_of
from jaxgrad.corpus import Corpus
from jaxgrad.errors import JaxgradError
from jaxgrad.models.model import Model
from jaxgrad.parity.engines import jax_device, torch_device

# A check of all steps that would take a competitor longer than so many seconds is cut down to fit, but not below
# the least number of steps.
CHECK_STEPS, CHECK_SECONDS, LEAST_CHECK_STEPS = 100, 15.0, 10
# After a round, threads of a library that wait for more work by spinning do so for some milliseconds.
PAUSE = 0.02
MOST_STEPS = 10_000
# What a step's noise takes to measure grows with the numbers in it. A size of more than so many is given the trial's
# tolerances, and a margin: noise of a mean falls with its terms, and grows with depth by less than so much. A wrong
# gradient was seen at the trial, and moves a loss by far more.
MEASURED_NUMBERS, MARGIN = 50_000_000, 8.0


class Row(NamedTuple):
    """A competitor's result: seconds per step, one for each round, or None with the reason why it was not timed."""

    peer: Peer
    seconds: list[float] | None
    reason: str | None
    judged: Judged | None
    compile_seconds: float | None
    temp_bytes: int | None


class Result(NamedTuple):
    """A size's rows. Losses were checked over `steps_checked` steps; at the last one they had to lie within
    `tolerance` of the median of all.
    """

    task: Task
    steps_per_round: int
    steps_checked: int
    tolerance: float
    rows: list[Row]


def peaks(place: Place) -> list[Peak]:
    """The rate of a large product in each library that is installed and has its device."""
    with _on(place):
        found = [peak.jax_peak(place)]
    with contextlib.suppress(ModuleNotFoundError, JaxgradError):
        torch_device(place.torch_device)
        found.append(peak.torch_peak(place))
    return found


def run(
    model: Model,
    sizes: list[Size],
    read: Callable[[Any], Corpus],
    peers: tuple[Peer, ...],
    place: Place,
    rounds: int,
    seconds: float,
    check_steps: int | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Result]:
    """Check and time the peers at each size, from the smallest batch to the largest, as `measure` does.

    Who is wrong on a small batch is timed on none: where no batch is small, a trial is held first. `read(sizes)` is the
    corpus as the model has it in these sizes.
    """
    results: list[Result] = []
    ordered = sorted(sizes, key=lambda size: size.batch)
    with _on(place):
        trial = task_of(model, trial_of(model), read)
        wrong = {} if telling(model, ordered) else _trial(trial, peers, place, progress)
        for size in ordered:
            task = task_of(model, size, read)
            results.append(measure(task, peers, place, rounds, seconds, check_steps, progress, wrong, trial))
            found = {row.peer.name: row for row in results[-1].rows if row.judged is not None and row.judged.worst > 1}
            wrong |= {name: f"at size {size.name} {row.reason}" for name, row in found.items()}
    return results


def trial_of(model: Model) -> Size:
    """The size at which a wrong gradient of the model shows."""
    return Size("trial", *benchmark(model).trial)


def telling(model: Model, sizes: list[Size]) -> bool:
    """Whether a mistake shows at one of the sizes, so that no trial need be held."""
    return min(size.batch for size in sizes) <= benchmark(model).telling_rows


def pieces(model: Model, sizes: list[Size], peers: tuple[Peer, ...], rounds: int) -> int:
    """How many pieces of work `run` tells of, if every competitor can be timed."""
    trial = 0 if telling(model, sizes) else len(peers)
    return trial + len(sizes) * (2 + len(peers) + rounds + 1)


def measure(
    task: Task,
    peers: tuple[Peer, ...],
    place: Place,
    rounds: int,
    seconds: float,
    check_steps: int | None = None,
    progress: Callable[[str], None] = lambda text: None,
    known_wrong: Mapping[str, str] = MappingProxyType({}),
    trial: Task | None = None,
) -> Result:
    """Check and time the peers on a task, but for those that are known to be wrong, by name with the reason.

    Tolerances are measured on the task, or where that is too large on the `trial`, if there is one.
    A round is as many steps for each competitor as `jax.grad`, one step at a time, does in `seconds`. Without
    `check_steps`, 100 are checked, or fewer where that takes too long. `progress` is told what comes next. A peer
    that is not there, cannot be compiled, or has other losses than most, is not timed: its row has the reason.
    Raises `JaxgradError` where JAX has no such device.
    """
    with _on(place):
        name = task.size.name
        progress(f"{name}: how long a step takes")
        estimate = _seconds_per_step(task, place)
        n_steps = max(1, min(MOST_STEPS, round(seconds / estimate)))
        steps = check_steps or max(LEAST_CHECK_STEPS, min(CHECK_STEPS, int(CHECK_SECONDS / estimate)))
        progress(f"{name}: what rounding explains")
        limits = _tolerances(task, trial, steps)
        unknown = tuple(peer for peer in peers if peer.name not in known_wrong)
        running, judged, reasons = _held_together(unknown, task, place, n_steps, limits, progress)
        calls = {name: _caller(*ready) for name, ready in running.items() if name not in reasons}

        def tell(at: int) -> None:
            progress(f"{name}: round {at} of {rounds}")

        taken = rounds_of(calls, rounds, PAUSE, tell) if calls else {}
    table = []
    for peer in peers:
        of_peer = judged.get(peer.name)
        if peer.name in taken:
            ready, per_step = running[peer.name][0], [s / n_steps for s in taken[peer.name]]
            table.append(Row(peer, per_step, None, of_peer, ready.compile_seconds, ready.temp_bytes))
        else:
            table.append(Row(peer, None, (reasons | dict(known_wrong))[peer.name], of_peer, None, None))
    return Result(task, n_steps, steps, float(limits[-1]), table)


def _tolerances(task: Task, trial: Task | None, steps: int) -> np.ndarray:
    large = task.model.numbers(task.size.sizes, task.vocab_size, task.size.batch) > MEASURED_NUMBERS
    if trial is None or not large:
        return agreement.tolerances(task, steps)
    return MARGIN * agreement.tolerances(trial, steps)


def _trial(task: Task, peers: tuple[Peer, ...], place: Place, progress: Callable[[str], None]) -> dict[str, str]:
    """Who is wrong on a small batch, and why; those that cannot run say so again at every size."""
    limits = agreement.tolerances(task, CHECK_STEPS)
    _, judged, reasons = _held_together(peers, task, place, CHECK_STEPS, limits, progress)
    return {name: f"on batches of {task.size.batch} {reasons[name]}" for name, j in judged.items() if j.worst > 1}


def _held_together(
    peers: tuple[Peer, ...],
    task: Task,
    place: Place,
    n_steps: int,
    limits: np.ndarray,
    progress: Callable[[str], None],
) -> tuple[dict[str, tuple[Ready, Any]], dict[str, Judged], dict[str, str]]:
    """Peers that run, ready with their state; how their losses compare; and the reasons of those not to be timed."""
    running: dict[str, tuple[Ready, Any]] = {}
    losses: dict[str, np.ndarray] = {}
    reasons: dict[str, str] = {}
    for peer in peers:
        progress(f"{task.size.name}: {peer.name}: compiling, {len(limits) - 1} steps to check")
        try:
            running[peer.name], losses[peer.name] = _checked(peer, task, place, n_steps, len(limits) - 1)
        except JaxgradError as error:
            reasons[peer.name] = str(error)
    judged = agreement.judge(losses, limits) if losses else {}
    return running, judged, reasons | {n: _wrong(j, limits, len(losses)) for n, j in judged.items() if j.worst > 1}


def _checked(peer: Peer, task: Task, place: Place, n_steps: int, steps: int) -> tuple[tuple[Ready, Any], np.ndarray]:
    """The peer, ready to be timed, and the losses before the first `steps` updates and after the last.

    Where products at the default precision are not float32's, the same functions are checked at the highest, because
    the coarser one would hide a wrong formula. On a CPU both are one program.
    """
    ready = peer.prepare(task, place, n_steps)
    if place.jax_device == "cpu" or peer.library != "jax":
        state, losses = _losses(ready, steps + 1)
        return (ready, state), losses
    with jax.default_matmul_precision("highest"):
        _, losses = _losses(peer.prepare(task, place, n_steps), steps + 1)
    return (ready, ready.start()), losses


def _losses(ready: Ready, n: int) -> tuple[Any, np.ndarray]:
    """At least `n` steps from the start: the state then, and the first `n` losses."""
    state, found = ready.start(), np.empty(0)
    while len(found) < n:
        state, losses = ready.advance(state)
        flat = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(jax.device_get(losses))]
        found = np.concatenate([found, *flat])
    return state, found[:n]


def _caller(ready: Ready, state: Any) -> Callable[[], Any]:
    """Each call goes on from where the last one ended, because a state that was given is used up."""

    def call() -> Any:
        nonlocal state
        state, losses = ready.advance(state)
        return losses

    return call


def _seconds_per_step(task: Task, place: Place, steps: int = 3) -> float:
    ready = jax_peers.training("jax-grad", False, task, place, 1)
    state, taken = ready.start(), []
    for _ in range(steps + 1):
        began = time.perf_counter()
        state, losses = ready.advance(state)
        jax.block_until_ready(losses)
        taken.append(time.perf_counter() - began)
    return min(taken[1:])


def _wrong(judged: Judged, limits: np.ndarray, n_peers: int) -> str:
    if n_peers == 2:
        return f"the two that run differ by more than rounding explains, from step {judged.at}: one is wrong"
    return (
        f"wrong: before step {judged.at} its loss is {judged.worst:.3g} tolerances ({limits[judged.at]:.1e}) from the"
        " median of all"
    )


@contextlib.contextmanager
def _on(place: Place) -> Iterator[None]:
    with jax.default_device(jax_device(place.jax_device)):
        yield
