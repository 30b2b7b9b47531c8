"""What all tests share."""

import os
from pathlib import Path

import jax
import pytest

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
