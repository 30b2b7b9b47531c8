"""The plugin works after a plain install, with no conftest, in a project that is not ours."""

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from jaxgrad.pytest_plugin import annotation, summary

FAILING = """
import jax, jax.numpy as jnp

@jax.custom_vjp
def f(x):
    return x * x
f.defvjp(lambda x: (x * x, x), lambda x, dy: (dy * x,))

def test_f(three_way):
    three_way(f, jnp.arange(3.0), reference=lambda x: x * x)
"""

# What check was given, instead of a check: these tests are of arguments alone.
ARGUMENTS = """
import jaxgrad.checking.three_way
import pytest

GIVEN = ("dtypes", "transforms", "seeds", "tolerance")

@pytest.fixture(autouse=True)
def no_check(monkeypatch):
    class Report:
        findings = ()

    def check(fn, *args, **options):
        print("GIVEN", {key: options[key] for key in GIVEN if key in options})
        return Report

    monkeypatch.setattr(jaxgrad.checking.three_way, "check", check)

def test_defaults(three_way):
    three_way(abs)

def test_own(three_way):
    three_way(abs, seeds=(7,), tolerance=None)
"""

# Findings as `check` reports them, without the minutes that it takes to come to them.
NOT_JUDGED = """
import types

import jaxgrad.checking.three_way
import pytest

def finding(setting, outcome, why=""):
    return types.SimpleNamespace(setting=setting, outcome=outcome, why=why, passed=True)

REPORT = types.SimpleNamespace(findings=(
    finding(("float32", "jit", 0), "agrees"),
    finding(("bfloat16", "vmap", 0), "not judged", "the function says\\n  no"),
))

@pytest.fixture(autouse=True)
def no_check(monkeypatch):
    monkeypatch.setattr(jaxgrad.checking.three_way, "check", lambda fn, *args, **options: REPORT)

@pytest.mark.parametrize("number", range(4))
def test_y(three_way, number):
    three_way(abs)
"""

# A check that Ctrl-C stops when one setting of it was judged.
STOPPED = """
import jax.numpy as jnp

def test_z(three_way):
    def stop(done, total, note):
        if done:
            raise KeyboardInterrupt

    three_way(jnp.sin, jnp.ones(3), reference=jnp.sin, dtypes=("float64",), progress=stop)
"""

HEAVY = """
import sys

def pytest_sessionstart(session):
    print("LOADED", [m for m in ("jax", "jaxlib", "torch", "numpy") if m in sys.modules])

def pytest_sessionfinish(session):
    print("LOADED", [m for m in ("jax", "jaxlib", "torch", "numpy") if m in sys.modules])
"""


@pytest.fixture
def project(tmp_path):
    (tmp_path / "test_mine.py").write_text(FAILING)
    return tmp_path


def run(project: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    # What a pull request's session adds by itself is asked for where it is tested.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GITHUB_")}
    return subprocess.run(command, cwd=project, capture_output=True, text=True, check=False, env=clean)


def test_a_failure_says_how_to_repeat_it_and_so_it_repeats(project):
    result = run(project)
    again = "python -m pytest 'test_mine.py::test_f' --three-way-only float64/jit/0"
    assert result.returncode == 1 and again in result.stdout
    options = ("--three-way-only", "float64/jit/0", "--three-way-report", "out.json")
    repeated = run(project, "test_mine.py::test_f", *options)
    assert repeated.returncode == 1 and "setting   float64, jit, seed 0" in repeated.stdout
    assert "in all" not in repeated.stdout
    assert "three_way: 1 check, 0 settings agree, 1 differs\n" in repeated.stdout
    data = json.loads((project / "out.json").read_text())
    assert (data["schema"], data["passed"]) == ("jaxgrad.check/1", False)
    (check,) = data["checks"]
    assert check["test"] == "test_mine.py::test_f" and check["message"].startswith("test_f: the cotangent of input x")
    assert "::error" not in repeated.stdout


def test_an_option_that_cannot_be_read_is_named(project):
    result = run(project, "--three-way-only", "float64")
    assert result.returncode == 4 and "write DTYPE/TRANSFORM/SEED" in result.stderr


@pytest.mark.parametrize("processes", [(), ("--numprocesses", "2")], ids=["one process", "xdist"])
def test_all_checks_of_a_session_go_into_one_page(project, processes):
    (project / "test_other.py").write_text(FAILING.replace("test_f", "test_g"))
    setting = ("--three-way-only", "float64/jit/0")
    told = ("--junitxml", "out.xml", "--three-way-annotations")
    result = run(project, "--three-way-report", "out.html", *told, *setting, *processes)
    assert result.returncode == 1
    page = (project / "out.html").read_text()
    assert "test_f" in page and "test_g" in page and "the cotangent of input x is wrong" in page
    # The wrong rule is on line 7 of both files.
    files = ("test_mine.py", "test_other.py")
    cases = ElementTree.parse(project / "out.xml").iter("testcase")
    found = [{one.get("name"): one.get("value") for one in case.iter("property")} for case in cases]
    assert sorted((one["three_way_file"], one["three_way_line"]) for one in found) == [(file, "7") for file in files]
    assert all("the cotangent of input x is wrong" in one["three_way_says"] for one in found)
    for file in files:
        assert f"\n::error file={file},line=7,title=test_" in result.stdout


# jaxtyping's own plugin, installed beside this one, loads NumPy.
@pytest.mark.parametrize("options", [("-p", "no:jaxtyping"), ("-p", "no:jaxtyping", "-p", "no:xdist")])
def test_a_session_that_makes_no_check_loads_nothing_heavy_and_says_nothing(tmp_path, options):
    (tmp_path / "conftest.py").write_text(HEAVY)
    (tmp_path / "test_mine.py").write_text("def test_nothing(): pass")
    result = run(tmp_path, "-s", *options)
    assert result.returncode == 0 and result.stdout.count("LOADED []") == 2, result.stdout + result.stderr
    assert "three-way" not in result.stdout


def test_what_a_conftest_says_to_jax_in_the_environment_holds(tmp_path):
    (tmp_path / "conftest.py").write_text("import os\nos.environ['JAX_ENABLE_X64'] = '1'\n")
    (tmp_path / "test_mine.py").write_text(
        "def test_x64(three_way):\n    import jax.numpy as jnp\n    assert jnp.ones(3).dtype == 'float64'\n"
    )
    assert run(tmp_path).returncode == 0


def given(project: Path, ini: str, *options: str) -> list[str]:
    (project / "pyproject.toml").write_text(f"[tool.pytest.ini_options]\n{ini}\n")
    (project / "test_mine.py").write_text(ARGUMENTS)
    result = run(project, "-s", *options)
    assert result.returncode == 0, result.stdout + result.stderr
    return [line.partition("GIVEN ")[2] for line in result.stdout.splitlines() if "GIVEN" in line]


def test_a_projects_defaults_give_way_to_a_tests_own_arguments_and_these_to_an_option(tmp_path):
    ini = "three_way_dtypes = 'float64 float32'\nthree_way_seeds = [3, 4]\nthree_way_tolerance = 1e-6"
    dtypes = "'dtypes': ('float64', 'float32')"
    assert given(tmp_path, ini) == [
        f"{{{dtypes}, 'seeds': (3, 4), 'tolerance': 1e-06}}",
        f"{{{dtypes}, 'seeds': (7,), 'tolerance': None}}",
    ]
    one = "{'dtypes': ('bfloat16',), 'transforms': ('vmap',), 'seeds': (1,), 'tolerance': %s}"
    assert given(tmp_path, ini, "--three-way-only", "bfloat16/vmap/1") == [one % "1e-06", one % "None"]


def test_without_defaults_check_has_its_own(tmp_path):
    assert given(tmp_path, "three_way_transforms = ['jit', 'vmap']") == [
        "{'transforms': ('jit', 'vmap')}",
        "{'transforms': ('jit', 'vmap'), 'seeds': (7,), 'tolerance': None}",
    ]


@pytest.mark.parametrize(
    "line, sentence",
    [
        ("three_way_seeds = 0 one", "three_way_seeds has 'one'; seeds are whole numbers"),
        ("three_way_seeds = 0.5", "three_way_seeds has '0.5'; seeds are whole numbers"),
        ("three_way_dtypes =", "three_way_dtypes is empty; give at least one of the dtypes"),
        ("three_way_tolerance = little", "three_way_tolerance is 'little'; give one number"),
        ("three_way_tolerance = nan", "three_way_tolerance is 'nan'; give one number"),
        ("three_way_tolerance = -1", "three_way_tolerance is '-1'; give one number"),
    ],
)
def test_a_default_that_cannot_be_read_ends_the_session_with_one_sentence(tmp_path, line, sentence):
    (tmp_path / "pytest.ini").write_text(f"[pytest]\n{line}\n")
    result = run(tmp_path)
    assert result.returncode == 4 and sentence in result.stderr


def test_a_dtype_that_does_not_exist_is_for_check_to_name(project):
    (project / "pytest.ini").write_text("[pytest]\nthree_way_dtypes = float31\n")
    result = run(project)
    assert result.returncode == 1 and "float31" in result.stdout


@pytest.mark.parametrize("processes", [(), ("--numprocesses", "2")], ids=["one process", "xdist"])
def test_a_session_says_at_its_end_what_was_not_judged(tmp_path, processes):
    (tmp_path / "test_x.py").write_text(NOT_JUDGED)
    result = run(tmp_path, *processes)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if " three-way gradient checks " in line)
    assert lines[at + 1] == "three_way: 4 checks, 4 settings agree, 4 not judged:"
    expected = [f"test_x.py::test_y[{number}]  bfloat16/vmap/0: the function says no" for number in range(4)]
    assert lines[at + 2 : at + 6] == expected


def test_at_most_ten_settings_that_were_not_judged_are_listed():
    line, *listed = summary([(f"test_{number}", [("float32/jit/0", "not judged", "")]) for number in range(12)])
    assert line == "three_way: 12 checks, 0 settings agree, 12 not judged:"
    assert len(listed) == 11 and listed[-1] == "… and 2 more"


def test_where_all_was_judged_there_is_one_line():
    judged = [("float32/jit/0", "agrees", ""), ("float32/vmap/0", "differs", ""), ("bfloat16/jit/0", "differs", "")]
    assert summary([("test_f", judged)]) == ["three_way: 1 check, 1 setting agrees, 2 differ"]


def test_a_session_that_is_stopped_reports_what_was_judged(tmp_path):
    (tmp_path / "test_z.py").write_text(STOPPED)
    result = run(tmp_path, "--three-way-report", "out.json")
    assert result.returncode == 2 and "three_way: 1 check, 1 setting agrees" in result.stdout
    (check,) = json.loads((tmp_path / "out.json").read_text())["checks"]
    assert not check["passed"] and len(check["settings"]) == 1 and "was stopped after 1 of " in check["message"]


def test_an_annotation_is_one_line_in_which_signs_of_its_own_are_escaped():
    said = "test_f[a,b]: x is 50% wrong\n\n  who     hand: alone\n  again   pytest\r"
    line = annotation({"three_way_says": said, "three_way_file": "a,b:c.py", "three_way_line": "7"})
    assert line == (
        "::error file=a%2Cb%3Ac.py,line=7,title=test_f[a%2Cb]%3A x is 50%25 wrong::who     hand: alone%0Aagain   pytest"
    )
    assert annotation({"three_way_says": said}) is None
