"""What all tests share."""

import contextlib
import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import jax
import pytest

if TYPE_CHECKING:
    from jaxgrad.parity.cases import Case

# Most of the time would be XLA's. Most programs here are small and run a few times, so they are compiled without
# optimisation, which takes a fifth of the time; `jax_seam.quick_options` does the same to the programs of a check. A
# test of what users' programs are, such as of their memory, compiles with `optimised`; one of what users are shown, to
# the last digit, is marked `as_users_compile`. With JAXGRAD_TEST_OPTIMISED=1, as each night, all are compiled so.
QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}
QUICK_FLAGS = [f"--{name}={str(value).lower()}" for name, value in QUICK.items()]
OPTIMISED = bool(os.environ.get("JAXGRAD_TEST_OPTIMISED"))


def with_flags(given: str) -> str:
    """XLA's flags for the tests. XLA ends a process that has a flag it does not know, so a first one tries them."""
    own = given.split()
    if OPTIMISED:
        return " ".join(flag for flag in own if flag not in QUICK_FLAGS)
    if set(QUICK_FLAGS) <= set(own):
        return given
    quick = " ".join([*own, *QUICK_FLAGS])
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    tried = subprocess.run(command, env={**os.environ, "XLA_FLAGS": quick}, capture_output=True, check=False)
    return quick if tried.returncode == 0 else given


# Workers and child processes inherit what was found here.
if "PYTEST_XDIST_WORKER" not in os.environ or OPTIMISED:
    os.environ["XLA_FLAGS"] = with_flags(os.environ.get("XLA_FLAGS", ""))

# Compiled programs are kept from run to run, by a key that is made of the program and JAX's version, but not in the
# user's own cache folder. Every worker has a folder of its own, because JAX does not write an entry in one step, and
# links what the others have written; their child processes use it too.
COMPILED = Path(__file__).parents[1] / ".pytest_cache" / "compiled"
KEPT = {
    "jax_compilation_cache_dir": str(COMPILED / os.environ.get("PYTEST_XDIST_WORKER", "main")),
    "jax_persistent_cache_min_compile_time_secs": 0,
    # Else the folder's name would be a part of every key, and no worker could use what another has compiled.
    "jax_persistent_cache_enable_xla_caches": "none",
}
for option, value in KEPT.items():
    jax.config.update(option, value)
    os.environ[option.upper()] = str(value)
# An entry that is older than so many seconds is whole.
WRITTEN_SECONDS = 2.0
# Workers share the cores. PyTorch's threads, one for each core in every worker, would spend their time waiting for each
# other; JAX's wait without working.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
# A process may hold some 65,000 memory mappings, and every compiled program in use takes a few.
MOST_MAPPINGS = 20_000
# Fewer collections of young objects than Python's 700, 10 and 10 make: a trace makes objects by the ten thousand.
COLLECTED_AFTER = (50_000, 20, 10)
# The files that take longest, the longest first: they begin first, so that no worker is left with one at the end.
SLOWEST = (
    "training/test_resume.py",
    "ops/test_attention.py",
    "training/test_distributed.py",
    "ops/test_library.py",
    "docs/test_code_blocks.py",
    "third_party/test_jax_functions.py",
    "models/test_gpt_mutants.py",
    "docs/test_notebook.py",
    "training/test_sweep.py",
    "parity/test_engines.py",
    "checking/test_kinds.py",
    "checking/test_taylor.py",
    "training/test_faults.py",
    "parity/test_own_score.py",
    "test_install.py",
    "ops/test_cross_entropy.py",
    "test_pytest_plugin.py",
    "learn/test_verdict.py",
    "test_extremes.py",
)
# For the tests of meshes; all others run on the first of them.
jax.config.update("jax_num_cpu_devices", 8)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slowest files first, and leave all else in its order."""
    rank = {Path(__file__).parent / name: number for number, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


def pytest_collection_finish() -> None:
    """Leave modules and collected tests to themselves, which live to the end.

    Walking through them at each collection of garbage was a sixth of a worker's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTED_AFTER)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is marked `as_users_compile` in a process of its own: XLA reads its flags once."""
    if OPTIMISED or pyfuncitem.get_closest_marker("as_users_compile") is None:
        return None
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", pyfuncitem.nodeid]
    environment = {**os.environ, "JAXGRAD_TEST_OPTIMISED": "1"}
    done = subprocess.run(
        command, cwd=pyfuncitem.config.rootpath, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return True


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Give every worker what the others compiled last, for the next run."""
    if COMPILED.is_dir() and not hasattr(session.config, "workerinput"):
        for folder in COMPILED.iterdir():
            link_programs(folder)


def link_programs(folder: Path) -> None:
    """Link to a worker's folder the programs that the others have compiled."""
    known, until = {entry.name for entry in os.scandir(folder)}, time.time() - WRITTEN_SECONDS
    for other in folder.parent.iterdir():
        for entry in os.scandir(other):
            if entry.name not in known and entry.stat().st_mtime <= until:
                # This worker's own child process may have compiled it just now.
                with contextlib.suppress(FileExistsError):
                    os.link(entry.path, folder / entry.name)


@pytest.fixture(scope="module", autouse=True)
def programs() -> Iterator[None]:
    """Use what other workers compiled by now, and let go of the programs of earlier files before they are too many."""
    folder = Path(KEPT["jax_compilation_cache_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    link_programs(folder)
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > MOST_MAPPINGS:
        jax.clear_caches()


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Undo what a test wrote into the environment: commands set variables there, which later child processes obey."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(scope="session")
def optimised() -> dict[str, Any]:
    """The options of XLA's compiler that users' programs are compiled with."""
    return {
        "xla_backend_optimization_level": 3,
        "xla_llvm_disable_expensive_passes": False,
        "xla_cpu_use_fusion_emitters": True,
        "xla_cpu_parallel_codegen_split_count": 32,
    }


@pytest.fixture(scope="session")
def notebook_corpus() -> Path:
    """The notebook's own corpus, which is not ours to ship: from JAXGRAD_CORPUS or beside the repository."""
    path = Path(os.environ.get("JAXGRAD_CORPUS", Path(__file__).parents[1] / "../shared/data/names.txt"))
    if not path.is_file():
        pytest.skip(f"the notebook's corpus is not at {path}; set JAXGRAD_CORPUS to run this test")
    return path


@pytest.fixture(scope="session")
def seeded_case() -> "Callable[..., Case]":
    """The one source of parameters and batches in parity tests: the same seed and sizes give the same arrays.

    `seeded_case()` is the notebook's batch; `seeded_case(seed=7, batch_size=5, h_size=11, ...)` is one of
    the sizes asked for (see `jaxgrad.parity.cases.random_case`).
    """
    from jaxgrad.parity import cases

    def make(**sizes: int) -> cases.Case:
        return cases.random_case(**{"seed": 0, **sizes}) if sizes else cases.seed_case()

    return make
