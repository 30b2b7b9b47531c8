"""The how-to's operation passes its own test, in a checkout to which its two files have been added."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/how-to/add-an-op.md").read_text(encoding="utf-8")
SHARED = (
    "jaxgrad",
    "torchref",
    "data",
    "pyproject.toml",
    "tests/conftest.py",
    "tests/ops/conftest.py",
    "tests/ops/test_no_autodiff.py",
)


def files() -> dict[str, str]:
    """The guide's Python blocks, by the file that the text before each names."""
    return dict(re.findall(r"^`([\w/]+\.py)`:.*?```python\n(.*?)```", GUIDE, flags=re.DOTALL | re.MULTILINE))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in SHARED:
        source, target = ROOT / name, tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    for name, text in files().items():
        assert not (tmp_path / name).exists(), "the guide adds files and changes none"
        (tmp_path / name).write_text(text, encoding="utf-8")
    # Most of what its test compiles is compiled by the tests of other operations too.
    (tmp_path / ".pytest_cache").mkdir()
    (tmp_path / ".pytest_cache/compiled").symlink_to(ROOT / ".pytest_cache/compiled")
    return tmp_path


def run(folder: Path, *command: str) -> str:
    """What a command of this environment prints in a folder; it must succeed."""
    done = subprocess.run([sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_one_file_and_one_test_file_add_an_operation(checkout: Path):
    _, test = files()
    # The sizes of the notebook's case are left to the operations that are here to stay: they take most of the time.
    told = run(checkout, "pytest", "-q", test, "tests/ops/test_no_autodiff.py", "-k", "not seed_case")
    assert " passed" in told and "failed" not in told


def test_its_files_are_as_the_linters_want_them(checkout: Path):
    for linter in ("ruff", "mypy"):
        pytest.importorskip(linter, reason=f"{linter} is not installed: pip install 'jaxgrad[dev]'")
    added, test = files()
    run(checkout, "ruff", "check", added, test)
    run(checkout, "ruff", "format", "--check", added, test)
    run(checkout, "mypy", added)
