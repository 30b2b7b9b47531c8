"""The pytest plugin: fixtures `seeded_case` and `three_way`, for this suite and for users' own."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from jaxgrad.checking.findings import Report, Setting
    from jaxgrad.parity.cases import Case

_reports = pytest.StashKey[list["Report"]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Two options of the fixture `three_way`."""
    group = parser.getgroup("jaxgrad", "three-way gradient checks")
    group.addoption("--three-way-only", metavar="DTYPE/TRANSFORM/SEED", help="run each check in this one setting")
    group.addoption("--three-way-report", metavar="FILE", type=Path, help="write all checks as one HTML page")


def pytest_configure(config: pytest.Config) -> None:
    """Reports of a session are kept in its own config.

    Raises `pytest.UsageError` for a report under pytest-xdist, where no process sees the checks of the others.
    """
    if config.getoption("--three-way-report") is not None and config.getoption("numprocesses", None):
        raise pytest.UsageError("--three-way-report gathers the checks of one process; run it without --numprocesses")
    config.stash[_reports] = []


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the page that was asked for."""
    target = session.config.getoption("--three-way-report")
    if target is not None:
        from jaxgrad import files
        from jaxgrad.parity import page

        files.write_bytes(target, page.html(page.of_reports(session.config.stash[_reports])).encode())


@pytest.fixture(scope="session")
def seeded_case() -> "Callable[..., Case]":
    """The one source of parameters and batches in parity tests: the same seed and sizes give the same arrays.

    `seeded_case()` is the seed notebook's batch; `seeded_case(seed=7, batch_size=5, h_size=11, ...)` is one of
    the sizes asked for (see `jaxgrad.parity.cases.random_case`).
    """
    from jaxgrad.parity import cases

    def make(**sizes: int) -> cases.Case:
        return cases.random_case(**{"seed": 0, **sizes}) if sizes else cases.seed_case()

    return make


@pytest.fixture
def three_way(request: pytest.FixtureRequest) -> "Iterator[Callable[..., Report]]":
    """`jaxgrad.parity.check`, named after the test, whose failure message has the command that repeats it.

    `--three-way-only float32/vmap/1` runs that one setting, `--three-way-report FILE` gathers a session's checks.
    """
    from jaxgrad.checking.findings import GradientMismatch
    from jaxgrad.checking.three_way import check

    only = request.config.getoption("--three-way-only")
    kept = request.config.stash[_reports]

    @functools.wraps(check)
    def checked(fn: Callable[..., Any], *args: Any, **options: Any) -> "Report":
        narrowed = {**options, **(_only(only) if only else {})}
        try:
            report = check(
                fn, *args, **{"name": request.node.name, "reproduce": functools.partial(_again, request), **narrowed}
            )
        except GradientMismatch as error:
            kept.append(error.report)
            raise
        kept.append(report)
        return report

    yield checked


def _only(text: str) -> dict[str, tuple[Any, ...]]:
    try:
        dtype, transform, seed = text.split("/")
        return {"dtypes": (dtype,), "transforms": (transform,), "seeds": (int(seed),)}
    except ValueError:
        raise pytest.UsageError(
            f"--three-way-only is {text!r}; write DTYPE/TRANSFORM/SEED, such as float32/vmap/1"
        ) from None


def _again(request: pytest.FixtureRequest, setting: "Setting") -> str:
    return f"python -m pytest '{request.node.nodeid}' --three-way-only {'/'.join(map(str, setting))}"
