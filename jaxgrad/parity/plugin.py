"""The pytest plugin: the fixture `seeded_case`, for this suite and for users' own."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from jaxgrad.parity.cases import Case


@pytest.fixture(scope="session")
def seeded_case() -> Callable[..., "Case"]:
    """The one source of parameters and batches in parity tests: the same seed and sizes give the same arrays.

    `seeded_case()` is the seed notebook's batch; `seeded_case(seed=7, batch_size=5, h_size=11, ...)` is one of
    the sizes asked for (see `jaxgrad.parity.cases.random_case`).
    """
    from jaxgrad.parity import cases

    def make(**sizes: int) -> cases.Case:
        return cases.random_case(**{"seed": 0, **sizes}) if sizes else cases.seed_case()

    return make
