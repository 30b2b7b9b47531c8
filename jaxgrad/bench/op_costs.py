"""What an operation with its gradient costs beside the same in other libraries: time, memory, compilation."""

import gc
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxgrad.bench.jax_peers import compiled
from jaxgrad.bench.op_cases import TORCH, Case
from jaxgrad.bench.timing import rounds_of
from jaxgrad.errors import JaxgradError

# A form whose program needs more than this is compiled, which tells its memory, and not run.
MOST_BYTES = 2 * 2**30
# Of a tensor's norm: float32 forms of one formula differ by some 1e-6 at these sizes, and a wrong one by far more.
TOLERANCE = 1e-4
# A call that takes longer than this is timed in `LONG_ROUNDS` rounds.
LONG_SECONDS, LONG_ROUNDS = 3.0, 3
SEED = 0


class Cost(NamedTuple):
    """Of one form. `seconds` has one number a round, of a forward with its gradient; None with the `reason` why not.

    `kept_bytes` are what stays between forward and backward beside arguments and output, where they are two programs;
    `difference` is the largest distance from the first form of any tensor, relative to its norm.
    """

    form: str
    seconds: list[float] | None
    reason: str | None
    difference: float | None
    temp_bytes: int | None
    kept_bytes: int | None
    compile_seconds: float | None


class Costs(NamedTuple):
    """A case's forms, in its order, and how many calls each round of it made."""

    case: Case
    calls: int
    forms: list[Cost]


class Arrays(NamedTuple):
    """What a function is given, as host arrays: differentiated, ids and constants, and the output's cotangent."""

    args: tuple[np.ndarray, ...]
    others: tuple[np.ndarray, ...]
    dy: np.ndarray


class Running(NamedTuple):
    """A form that is ready: a call gives its output and cotangents."""

    call: Callable[[], Any]
    temp_bytes: int | None
    kept_bytes: int | None
    compile_seconds: float | None


def measure(case: Case, rounds: int, seconds: float, most_bytes: int = MOST_BYTES) -> Costs:
    """Every form that there is, held against the first that runs, then timed in turns.

    A round of a form is as many calls as the fastest one makes in `seconds`. What is missing, needs more than
    `most_bytes` or has other values is not timed: its cost has the reason.
    """
    arrays = drawn(case)
    running: dict[str, Running] = {}
    reasons: dict[str, str] = {}
    expected: list[np.ndarray] | None = None
    differences: dict[str, float] = {}
    estimates: dict[str, float] = {}
    for name in case.forms:
        try:
            ready = running[name] = _ready(case, name, arrays)
            if ready.temp_bytes is not None and ready.temp_bytes > most_bytes:
                raise JaxgradError(f"needs {ready.temp_bytes / 2**30:.1f} GiB: compiled, not run")
            began = time.perf_counter()
            actual = _on_host(ready.call())
            estimates[name] = time.perf_counter() - began
            if estimates[name] < LONG_SECONDS:
                # The first call of all allocates.
                estimates[name] = _seconds(ready.call)
            expected = actual if expected is None else expected
            differences[name] = _difference(expected, actual)
            if not differences[name] <= TOLERANCE:
                raise JaxgradError(f"differs from {case.name} by {differences[name]:.1e} of a tensor's norm: not timed")
        except JaxgradError as error:
            reasons[name] = str(error)
    calls = {name: ready.call for name, ready in running.items() if name not in reasons}
    estimate = min((estimates[name] for name in calls), default=math.inf)
    number = max(1, round(seconds / estimate))
    taken = rounds_of(
        {name: _several(call, number) for name, call in calls.items()},
        min(rounds, LONG_ROUNDS) if estimate > LONG_SECONDS else rounds,
        pause=0.02,
    )
    found = []
    for name in case.forms:
        of = running.get(name)
        per_call = [s / number for s in taken[name]] if name in taken else None
        of_program = (None, None, None) if of is None else of[1:]
        found.append(Cost(name, per_call, reasons.get(name), differences.get(name), *of_program))
    # The next case's programs and arrays would come on top.
    running.clear()
    jax.clear_caches()
    gc.collect()
    return Costs(case, number, found)


def drawn(case: Case) -> Arrays:
    """Normal numbers, and ids below their bounds, by a fixed seed; the cotangent of a loss is 1."""
    rng = np.random.default_rng(SEED)
    args = tuple(rng.standard_normal(shape, np.float32) for shape in case.shapes)
    # Products of many terms stay of the order of 1, as in a model.
    args = tuple(a / math.sqrt(a.shape[0]) if _is_weight(case, n) else a for n, a in enumerate(args))
    ids = tuple(rng.integers(0, below, shape, np.int32) for shape, below in case.integers)
    others = (*ids, *(rng.standard_normal(shape, np.float32) for shape in case.constants))
    out = jax.eval_shape(next(iter(case.forms.values()))(), *args, *others)
    dy = rng.standard_normal(out.shape, np.float32) if out.shape else np.ones((), np.float32)
    return Arrays(args, others, np.asarray(dy))


def kept_bytes(fn: Callable[..., Any], args: Sequence[Any], others: Sequence[Any]) -> int:
    """Bytes of what `jax.vjp` keeps for the backward, but for arguments and output; shapes and types are enough."""

    def forward(args: Any, others: Any) -> Any:
        return jax.vjp(lambda *args: fn(*args, *others), *args)

    jaxpr = jax.make_jaxpr(forward)(tuple(args), tuple(others)).jaxpr
    known = {jaxpr.outvars[0], *jaxpr.invars}
    # A literal is a number in the program itself.
    kept = {var for var in jaxpr.outvars[1:] if type(var) is type(jaxpr.outvars[0]) and var not in known}
    return sum(math.prod(var.aval.shape) * var.aval.dtype.itemsize for var in kept)


def _is_weight(case: Case, n: int) -> bool:
    """Whether this argument is a matrix that others are multiplied with."""
    return n > 0 and len(case.shapes[n]) > 1 and case.op in ("linear_cross_entropy", "linear", "conv", "gru", "lstm")


def _ready(case: Case, name: str, arrays: Arrays) -> Running:
    fn = case.forms[name]()
    if name == TORCH:
        return Running(_torch_call(fn, arrays), None, None, None)
    args, others, dy = jax.device_put(tuple(arrays))

    def pull(dy: Any, others: Any, *args: Any) -> Any:
        y, pullback = jax.vjp(lambda *args: fn(*args, *others), *args)
        return y, pullback(dy)

    program, seconds, temp = compiled(jax.jit(pull), dy, others, *args)
    return Running(lambda: program(dy, others, *args), temp, kept_bytes(fn, args, others), seconds)


def _torch_call(fn: Callable[..., Any], arrays: Arrays) -> Callable[[], Any]:
    import torch

    leaves = [torch.tensor(a, requires_grad=True) for a in arrays.args]
    others = [torch.tensor(a).long() if a.dtype == np.int32 else torch.tensor(a) for a in arrays.others]
    dy = torch.tensor(arrays.dy)

    def call() -> Any:
        y = fn(*leaves, *others)
        return y.detach(), torch.autograd.grad(y, leaves, dy)

    return call


def _on_host(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def _difference(expected: list[np.ndarray], actual: list[np.ndarray]) -> float:
    """The largest distance of any tensor, relative to its norm."""
    found = [_relative(e, a) for e, a in zip(expected, actual, strict=True)]
    return max(found)


def _relative(expected: np.ndarray, actual: np.ndarray) -> float:
    size = np.linalg.norm(expected)
    return float(np.linalg.norm(expected - actual) / (size if size else 1))


def _several(call: Callable[[], Any], number: int) -> Callable[[], Any]:
    def calls() -> Any:
        for _ in range(number - 1):
            jax.block_until_ready(call())
        return call()

    return calls


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began
