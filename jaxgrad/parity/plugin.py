"""The pytest plugin: fixtures `seeded_case` and `three_way`, for this suite and for users' own."""

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from jaxgrad.parity.cases import Case
    from jaxgrad.parity.findings import Report, Setting


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option of the fixture `three_way`."""
    group = parser.getgroup("jaxgrad", "three-way gradient checks")
    group.addoption("--three-way-only", metavar="DTYPE/TRANSFORM/SEED", help="run each check in this one setting")


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

    `--three-way-only float32/vmap/1` runs that one setting.
    """
    from jaxgrad.parity.three_way import check

    only = request.config.getoption("--three-way-only")

    @functools.wraps(check)
    def checked(fn: Callable[..., Any], *args: Any, **options: Any) -> "Report":
        narrowed = {**options, **(_only(only) if only else {})}
        return check(
            fn, *args, **{"name": request.node.name, "reproduce": functools.partial(_again, request), **narrowed}
        )

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
