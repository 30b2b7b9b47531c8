"""The action and the workflows are what GitHub can read, as far as that shows without GitHub: nothing is run there."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: pip install 'jaxgrad[docs]' brings it")

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
GUIDE = ROOT / "docs/how-to/in-ci.md"


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def scripts(steps: list[dict[str, Any]]) -> list[str]:
    return [step["run"] for step in steps if "run" in step]


def assert_is_shell(script: str) -> None:
    # What GitHub fills in is a word to the shell.
    plain = re.sub(r"\$\{\{.*?\}\}", "word", script)
    done = subprocess.run(["bash", "-n"], input=plain, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{script}\n{done.stderr}"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_jobs_of_steps_that_the_shell_can_read(path: Path):
    jobs = read(path)["jobs"]
    for job in jobs.values():
        assert job["runs-on"] and job["steps"]
        assert all(("uses" in step) != ("run" in step) for step in job["steps"])
        for script in scripts(job["steps"]):
            assert_is_shell(script)


def test_the_action_uses_the_inputs_that_it_has_and_never_as_code():
    action = read(ROOT / "action.yml")
    steps = action["runs"]["steps"]
    assert action["runs"]["using"] == "composite" and all("shell" in step for step in steps if "run" in step)
    text = (ROOT / "action.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"inputs\.([\w-]+)", text)) == set(action["inputs"])
    assert all(one["description"] for one in action["inputs"].values())
    for script in scripts(steps):
        assert "${{ inputs." not in script
        assert_is_shell(script)


def test_the_action_knows_the_options_of_the_plugin_and_of_the_command():
    (check,) = (script for script in scripts(read(ROOT / "action.yml")["runs"]["steps"]) if "pytest $PYTEST" in script)
    plugin = (ROOT / "jaxgrad/pytest_plugin.py").read_text(encoding="utf-8")
    assert "--three-way-report" in check and '"--three-way-report"' in plugin
    assert "jaxgrad report " in check


def test_the_guide_gives_the_action_inputs_that_it_has():
    action = read(ROOT / "action.yml")
    blocks = re.findall(r"^```yaml\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert blocks
    used = [
        step
        for block in blocks
        for job in yaml.safe_load(block)["jobs"].values()
        for step in job["steps"]
        if "jaxgrad@" in step.get("uses", "")
    ]
    assert used and all(set(step.get("with", {})) <= set(action["inputs"]) for step in used)
