"""What all tests share."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import pytest

if TYPE_CHECKING:
    from jaxgrad.parity.cases import Case

# Most of the suite's time would be XLA's, which compiles the same programs again for another test. They are kept from
# run to run, by a key that is made of the program and JAX's version, but not in the user's own cache folder. Every
# worker has a folder of its own, because JAX does not write an entry in one step; their child processes use it too.
COMPILED = Path(__file__).parents[1] / ".pytest_cache" / "compiled"
KEPT = {
    "jax_compilation_cache_dir": str(COMPILED / os.environ.get("PYTEST_XDIST_WORKER", "main")),
    "jax_persistent_cache_min_compile_time_secs": 0,
}
for option, value in KEPT.items():
    jax.config.update(option, value)
    os.environ[option.upper()] = str(value)
# Workers share the cores. PyTorch's threads, one for each core in every worker, would spend their time waiting for each
# other; JAX's wait without working.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
# A process may hold some 65,000 memory mappings, and every compiled program in use takes a few.
MOST_MAPPINGS = 20_000
# For the tests of meshes; all others run on the first of them.
jax.config.update("jax_num_cpu_devices", 8)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Give every worker what the others compiled, for the next run."""
    if not COMPILED.is_dir() or hasattr(session.config, "workerinput"):
        return
    folders = [folder for folder in COMPILED.iterdir() if folder.is_dir()]
    known = {entry.name: entry for folder in folders for entry in folder.iterdir()}
    for folder in folders:
        for name in known.keys() - {entry.name for entry in folder.iterdir()}:
            os.link(known[name], folder / name)


@pytest.fixture(scope="module", autouse=True)
def few_programs() -> Iterator[None]:
    """Let go of the programs that earlier files compiled before they are too many."""
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > MOST_MAPPINGS:
        jax.clear_caches()


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
