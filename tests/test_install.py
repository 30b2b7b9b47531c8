"""What is imported by what, and that a wheel works where there is no PyTorch and no checkout."""

import ast
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def imported_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_importing_jaxgrad_is_light():
    heavy = {"torch", "matplotlib", "orbax", "rich", "typer", "optax", "torchref"}
    assert not heavy & imported_after("import jaxgrad")


def test_help_is_shown_without_loading_jax():
    assert not {"jax", "numpy", "optax", "rich.console"} & imported_after("import jaxgrad.cli")


def test_training_and_parity_need_torch_only_when_an_engine_does():
    assert not {"torch", "torchref"} & imported_after("import jaxgrad.training.run, jaxgrad.parity, jaxgrad.cli")


def imports(path: Path, inside_functions: bool = True) -> set[str]:
    """The modules that a file imports, as dotted names; only its own level without `inside_functions`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    if not inside_functions:
        hidden = {id(n) for f in nodes if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
        nodes = [n for n in nodes if id(n) not in hidden]
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def reaches(modules: set[str], *targets: str) -> set[str]:
    return {m for m in modules for t in targets if m == t or m.startswith(t + ".")}


@pytest.mark.parametrize("room", ["ops", "models"])
def test_the_maths_knows_nothing_of_torch_files_or_terminals(room: str):
    for path in (ROOT / "jaxgrad" / room).rglob("*.py"):
        outside = ("torch", "torchref", "rich", "typer", "pathlib", "os", "optax", "jaxgrad.parity", "jaxgrad.training")
        assert not reaches(imports(path), *outside), path


def test_pages_show_what_they_are_given_and_know_no_room_above_checking():
    above = [f"jaxgrad.{room}" for room in ("port", "parity", "models", "training", "bench", "mutation", "cli", "ops")]
    for path in (ROOT / "jaxgrad" / "pages").rglob("*.py"):
        assert not reaches(imports(path), "rich", "typer", "torch", "torchref", *above), path


def test_the_pytorch_twin_shares_no_code_with_what_it_judges():
    for path in (ROOT / "torchref").glob("*.py"):
        assert not reaches(imports(path), "jaxgrad", "jax"), path


def test_torch_is_imported_only_where_it_is_called():
    for path in (ROOT / "jaxgrad").rglob("*.py"):
        assert not reaches(imports(path, inside_functions=False), "torch", "torchref"), path
        if reaches(imports(path), "torchref"):
            assert path.parent.name in ("parity", "bench"), path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    _pip(command)
    return next(folder.glob("*.whl"))


def _pip(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    # Without an index nothing can be built or installed, which says nothing about the wheel. An index that answers
    # and has no such version does: that dependency cannot be met anywhere.
    if done.returncode and "after connection broken by" in done.stderr and "(from versions: none)" in done.stderr:
        pytest.skip(f"pip reaches no package index here: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr


def test_the_wheel_carries_its_data_and_its_types(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "jaxgrad/data/names.txt",
        "jaxgrad/data/seed_case.json",
        "jaxgrad/py.typed",
        "jaxgrad/pages/style.css",
        "jaxgrad/pages/comparison.html",
        "torchref/notebook.py",
    } <= names
    assert not [name for name in names if name.startswith(("tests/", "data/"))]


CHECKED = """
import jax, jax.numpy as jnp
from jaxgrad import check
fn = jax.custom_vjp(jnp.sin)
fn.defvjp(lambda x: (jnp.sin(x), x), lambda x, dy: (dy * jnp.cos(x),))
print(check(fn, jax.ShapeDtypeStruct((3,), jnp.float32), reference=jnp.sin, dtypes=("float64",)).passed)
"""


def test_the_wheel_checks_alone_and_trains_with_its_extra_where_there_is_no_torch(wheel: Path, tmp_path: Path):
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"

    def install(what: str) -> None:
        _pip([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", what])

    install(str(wheel))
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "JAXGRAD_CORPUS")}

    def jaxgrad(*args: str) -> subprocess.CompletedProcess:
        command = [str(python), "-m", "jaxgrad", *args]
        return subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True, check=False)

    def run(code: str) -> subprocess.CompletedProcess:
        command = [str(python), "-c", code]
        return subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True, check=False)

    for module in ("torch", "optax", "matplotlib"):
        assert f"No module named {module!r}" in run(f"import {module}").stderr
    assert run(CHECKED).stdout == "True\n"
    lacking = jaxgrad("train")
    assert lacking.returncode == 2 and "pip install 'jaxgrad[train]'" in lacking.stderr, lacking.stderr
    alone = jaxgrad("parity", "--batches", "1", "--engines", "by-node,fused,jax.grad")
    assert alone.returncode == 0, alone.stderr
    install(f"{wheel}[train]")
    trained = jaxgrad("train", "--steps", "500", "--out", "run")
    assert trained.returncode == 0, trained.stderr
    sampled = jaxgrad("sample", "run", "-n", "5")
    # A word may be empty, where the boundary is drawn first, but its line is not left out.
    assert sampled.returncode == 0 and sampled.stdout.count("\n") == 5, sampled.stderr
    without = jaxgrad("parity")
    assert without.returncode == 2 and "torch is not installed: pip install 'jaxgrad[parity]'" in without.stderr
