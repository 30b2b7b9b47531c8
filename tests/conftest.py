"""What all tests share."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import pytest

if TYPE_CHECKING:
    from jaxgrad.parity.cases import Case

# Tests see what this version compiles, not what another left in the user's cache folder.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
# For the tests of meshes; all others run on the first of them.
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="session")
def seed_corpus() -> Path:
    """The seed notebook's own corpus, which is not ours to ship: from JAXGRAD_CORPUS or beside the repository."""
    path = Path(os.environ.get("JAXGRAD_CORPUS", Path(__file__).parents[1] / "../shared/data/names.txt"))
    if not path.is_file():
        pytest.skip(f"the seed's corpus is not at {path}; set JAXGRAD_CORPUS to run this test")
    return path


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
