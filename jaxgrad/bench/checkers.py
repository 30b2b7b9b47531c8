"""`jaxgrad.check` beside other gradient checkers, on forty right and forty faulty functions.

Every checker is given the same function, the same shapes and, where it does not draw its own, the same numbers. Each
is used as its documentation says, with its own tolerances. JAX's checkers are run in float32 and in float64. PyTorch's
`gradcheck` and `gradgradcheck` need float64, and see the function through a `torch.autograd.Function`, whose backward
pass is the function's own pullback (`bridged`).

An alarm is whatever a user would notice: an assertion, a False or an exception. A place is the argument whose
cotangent the checker says is wrong.
"""

import contextlib
import functools
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import files
from jaxgrad.bench import report
from jaxgrad.bench.checker_cases import CASES, Case, by_tangents
from jaxgrad.bench.peers import Place
from jaxgrad.checking import domains
from jaxgrad.checking.findings import GradientMismatch
from jaxgrad.checking.report import version
from jaxgrad.checking.three_way import check
from jaxgrad.errors import JaxgradError

SCHEMA = "jaxgrad.bench.checkers/1"
OURS = "jaxgrad.check"


class Alarm(NamedTuple):
    """What a checker said against a function: its first line, and the argument it names, empty where it names none."""

    said: str
    place: str


class Row(NamedTuple):
    """One checker on one function. `alarm` is None where it had nothing to say; `seconds` are of processor time."""

    case: str
    faulty: bool
    checker: str
    alarm: Alarm | None
    seconds: float


class Given(NamedTuple):
    """What a checker is given: the case, the function under test, and that function of its float arguments alone."""

    case: Case
    fn: Callable[..., Any]
    of_floats: Callable[..., Any]
    plain_of_floats: Callable[..., Any]
    floats: Mapping[str, np.ndarray]

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes that the function can be differentiated in: a `custom_vjp` has no forward mode."""
        return ("fwd", "rev") if self.case.build is by_tangents else ("rev",)


def given(case: Case, faulty: bool) -> Given:
    """A function of a case and its arguments, drawn as `check` draws its first ones."""
    names = list(case.shapes)
    args = [
        domains.draw(case.domains.get(name, "normal"), leaf, 0, number, name)
        for number, (name, leaf) in enumerate(zip(names, case.args(), strict=True))
    ]
    floats = {name: arg for name, arg in zip(names, args, strict=True) if arg.dtype.kind == "f"}
    whole = {name: arg for name, arg in zip(names, args, strict=True) if name not in floats}

    def of_floats(fn: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any) -> Any:
            by_name = {**whole, **dict(zip(floats, given, strict=True))}
            return fn(*(by_name[name] for name in names))

        return run

    fn = case.function(faulty)
    return Given(case, fn, of_floats(fn), of_floats(case.plain), floats)


def _arrays(of: Given, dtype: str) -> list[jax.Array]:
    return [jnp.asarray(value, dtype) for value in of.floats.values()]


def _in(dtype: str) -> contextlib.AbstractContextManager[Any]:
    return jax.enable_x64(dtype == "float64")


def by_check_grads(of: Given, dtype: str) -> Alarm | None:
    """`jax.test_util.check_grads`, first and second order; it says by how much and not for which argument."""
    from jax.test_util import check_grads

    with _in(dtype):
        check_grads(of.of_floats, tuple(_arrays(of, dtype)), order=of.case.order, modes=of.modes)
    return None


def by_chex(of: Given, dtype: str) -> Alarm | None:
    """`chex.assert_numerical_grads`, which is `check_grads` with a wider tolerance."""
    import chex

    with _in(dtype):
        chex.assert_numerical_grads(of.of_floats, tuple(_arrays(of, dtype)), order=of.case.order, modes=of.modes)
    return None


def by_allclose(of: Given, dtype: str) -> Alarm | None:
    """`numpy.allclose` of every cotangent and that of `jax.grad` through the plain function."""
    with _in(dtype):
        args = _arrays(of, dtype)
        out = jax.eval_shape(of.plain_of_floats, *args)
        dy = jnp.asarray(np.random.default_rng(1).standard_normal(out.shape), dtype)
        pulled = [
            jax.jit(lambda args, dy, fn=fn: jax.vjp(fn, *args)[1](dy))(args, dy)
            for fn in (of.plain_of_floats, of.of_floats)
        ]
    for name, expected, actual in zip(of.floats, *pulled, strict=True):
        if not np.allclose(actual, expected):
            return Alarm("not close", name)
    return None


def bridged(fn: Callable[..., tuple[Any, ...]], inputs: int) -> Callable[..., tuple[Any, ...]]:
    """A JAX function of so many float64 arrays as one of torch tensors, with its own pullback as the backward pass.

    `fn` returns a tuple. The pullback is bridged in its turn, so that torch can differentiate it again.
    """
    import torch

    run = jax.jit(fn)

    def pullback(*args: Any) -> tuple[Any, ...]:
        return jax.vjp(fn, *args[:inputs])[1](args[inputs:])

    of_pullback = functools.cache(lambda outputs: bridged(pullback, inputs + outputs))

    class Bridge(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, *tensors: Any) -> tuple[Any, ...]:
            ctx.save_for_backward(*tensors)
            # A copy each way: neither library may write into the other's memory.
            outs = run(*(jnp.asarray(t.detach().numpy().copy()) for t in tensors))
            return tuple(torch.from_numpy(np.array(out)) for out in outs)

        @staticmethod
        def backward(ctx: Any, *dys: Any) -> tuple[Any, ...]:
            return of_pullback(len(dys))(*ctx.saved_tensors, *dys)

    return Bridge.apply


def by_gradcheck(of: Given) -> Alarm | None:
    """`torch.autograd.gradcheck` and then `gradgradcheck`, in float64; the message names an input by its number."""
    import torch

    with _in("float64"):
        fn = bridged(lambda *args: (of.of_floats(*args),), len(of.floats))
        tensors = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in of.floats.values()]
        torch.autograd.gradcheck(fn, tensors)
        if of.case.order == 2:
            torch.autograd.gradgradcheck(fn, tensors)
    return None


def by_check(of: Given) -> Alarm | None:
    """`jaxgrad.check` as it is, given the plain function as reference."""
    case = of.case
    try:
        check(of.fn, *case.args(), reference=case.plain, domains=case.domains, name=case.name)
    except GradientMismatch as error:
        failed = next((f for f in error.report.findings if not f.passed), None)
        # Such as "x (only x batched)": the setting is not part of the argument's name.
        first, _, _ = ((failed.first if failed else None) or "").partition(" (")
        return Alarm(_first_line(error), first)
    return None


CHECKERS: Mapping[str, tuple[str, Callable[[Given], Alarm | None]]] = {
    OURS: ("jaxgrad", by_check),
    "check_grads, float32": ("jax", functools.partial(by_check_grads, dtype="float32")),
    "check_grads, float64": ("jax", functools.partial(by_check_grads, dtype="float64")),
    "gradcheck and gradgradcheck, float64": ("torch", by_gradcheck),
    "assert_numerical_grads, float32": ("chex", functools.partial(by_chex, dtype="float32")),
    "assert_numerical_grads, float64": ("chex", functools.partial(by_chex, dtype="float64")),
    "allclose to jax.grad, float32": ("numpy", functools.partial(by_allclose, dtype="float32")),
    "allclose to jax.grad, float64": ("numpy", functools.partial(by_allclose, dtype="float64")),
}


def installed() -> tuple[str, ...]:
    """The checkers whose package is there."""
    return tuple(name for name, (package, _) in CHECKERS.items() if version(package) is not None)


def tried(case: Case, faulty: bool, checker: str) -> Row:
    """One checker on one function, which is compiled anew. Raises `JaxgradError` for a checker that does not exist."""
    if checker not in CHECKERS:
        raise JaxgradError(f"there is no checker {checker!r}; choose from {', '.join(CHECKERS)}")
    _, run = CHECKERS[checker]
    jax.clear_caches()
    of = given(case, faulty)
    began = time.process_time()
    try:
        alarm = run(of)
    except Exception as error:
        alarm = Alarm(_first_line(error), _named(str(error), list(of.floats)))
    return Row(case.name, faulty, checker, alarm, time.process_time() - began)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]


def _named(said: str, names: Sequence[str]) -> str:
    """The argument that torch's message names by its number."""
    found = re.search(r"with respect to input (\d+)", said)
    number = int(found[1]) if found else len(names)
    return names[number] if number < len(names) else ""


def run(
    cases: Sequence[Case] = CASES, checkers: Sequence[str] | None = None,
    update: Callable[[int, str], None] = lambda done, note: None,
) -> Iterator[Row]:  # fmt: skip
    """Every checker on the right and the faulty function of each case, one after another."""
    chosen = installed() if checkers is None else checkers
    numbers = 0
    for checker in chosen:
        # What is imported and set up once is not a function's time.
        tried(cases[0], False, checker)
        for case in cases:
            for faulty in (False, True):
                update(numbers, f"{case.name}, {checker}")
                yield tried(case, faulty, checker)
                numbers += 1


def to_json(rows: Sequence[Row]) -> dict[str, Any]:
    """A run as one JSON object of the schema `jaxgrad.bench.checkers/1`.

    `environment` is that of `jaxgrad.bench/1` with chex's version. A row has case, faulty, checker, seconds of the
    processor, and `alarm`: null, or what was said and the argument that was named.
    """
    found = [{**row._asdict(), "alarm": None if row.alarm is None else row.alarm._asdict()} for row in rows]
    return {"schema": SCHEMA, "environment": {**report.environment(Place()), "chex": version("chex")},
            "rows": found}  # fmt: skip


def load(path: Path) -> dict[str, Any]:
    """A run that was written as JSON. Raises `JaxgradError` for a file that is not one."""
    run = files.read_json(
        path, dict[str, Any], "a comparison of checkers", "give a file of jaxgrad bench checkers --json"
    )
    if run.get("schema") != SCHEMA:
        raise JaxgradError(
            f"{path}: has the schema {run.get('schema')!r}; give a file of jaxgrad bench checkers --json"
        )
    return run


class Summary(NamedTuple):
    """A checker over all functions: faults found, right functions accused, places named rightly, seconds in all."""

    checker: str
    found: int
    faulty: int
    false_alarms: int
    right: int
    placed: int
    seconds: float


def summary(run: dict[str, Any]) -> list[Summary]:
    """A line for each checker of a run, in its order."""
    where = {case.name: case.where for case in CASES}
    made = []
    for checker in dict.fromkeys(row["checker"] for row in run["rows"]):
        of = [row for row in run["rows"] if row["checker"] == checker]
        faulty, right = [row for row in of if row["faulty"]], [row for row in of if not row["faulty"]]
        made.append(
            Summary(
                checker,
                sum(row["alarm"] is not None for row in faulty),
                len(faulty),
                sum(row["alarm"] is not None for row in right),
                len(right),
                sum(row["alarm"] is not None and row["alarm"]["place"] == where[row["case"]] for row in faulty),
                sum(row["seconds"] for row in of),
            )
        )
    return made


def mistaken(run: dict[str, Any]) -> dict[str, list[str]]:
    """By each case that not all checkers were right about, who missed its fault, and who accused the right function."""
    told: dict[str, list[str]] = {}
    for row in run["rows"]:
        if row["faulty"] is (row["alarm"] is None):
            told.setdefault(f"{row['case']}, {'faulty' if row['faulty'] else 'right'}", []).append(row["checker"])
    return told


def markdown(run: dict[str, Any]) -> str:
    """The table of the page, and below it each function that some checker was wrong about."""
    lines = [
        "| checker | faults found | false alarms | named the argument | CPU seconds a function |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for of in summary(run):
        each = of.seconds / (of.faulty + of.right)
        name = f"**`{of.checker}`**" if of.checker == OURS else of.checker
        lines.append(
            f"| {name} | {of.found} of {of.faulty} | {of.false_alarms} of {of.right} | {of.placed} | {each:.2f} |"
        )
    said = {case.name: case.what for case in CASES}
    lines += ["", "| function | what is wrong | who did not notice |", "| --- | --- | --- |"]
    for name, checkers in mistaken(run).items():
        case, _, kind = name.rpartition(", ")
        if kind == "faulty":
            lines.append(f"| {case} | {said[case]} | {'; '.join(checkers)} |")
    accused = {name: checkers for name, checkers in mistaken(run).items() if name.endswith(", right")}
    lines += ["", "| right function | who accused it |", "| --- | --- |"] if accused else []
    lines += [f"| {name.rpartition(', ')[0]} | {'; '.join(checkers)} |" for name, checkers in accused.items()]
    return "\n".join(lines) + "\n"
