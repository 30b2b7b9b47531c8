"""The plugin works after a plain install, with no conftest, in a project that is not ours."""

import sys

import pytest

FAILING = """
import jax, jax.numpy as jnp

@jax.custom_vjp
def f(x):
    return x * x
f.defvjp(lambda x: (x * x, x), lambda x, dy: (dy * x,))

def test_f(three_way):
    three_way(f, jnp.arange(3.0), reference=lambda x: x * x)
"""


@pytest.fixture
def project(tmp_path):
    (tmp_path / "test_mine.py").write_text(FAILING)
    return tmp_path


def run(project, *options: str):
    import subprocess

    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)


def test_a_failure_says_how_to_repeat_it_and_so_it_repeats(project):
    result = run(project)
    again = "python -m pytest 'test_mine.py::test_f' --three-way-only float64/jit/0"
    assert result.returncode == 1 and again in result.stdout
    repeated = run(project, "test_mine.py::test_f", "--three-way-only", "float64/jit/0")
    assert repeated.returncode == 1 and "setting   float64, jit, seed 0" in repeated.stdout
    assert "in all" not in repeated.stdout


def test_an_option_that_cannot_be_read_is_named(project):
    assert "write DTYPE/TRANSFORM/SEED" in run(project, "--three-way-only", "float64").stdout


def test_all_checks_of_a_session_go_into_one_page(project):
    assert run(project, "--three-way-report", "out.html").returncode == 1
    page = (project / "out.html").read_text()
    assert "test_f" in page and "the cotangent of input x is wrong" in page


def test_a_page_of_several_processes_is_refused(project):
    result = run(project, "--three-way-report", "out.html", "--numprocesses", "2")
    assert result.returncode == 4 and "run it without --numprocesses" in result.stderr
