"""The site builds without a warning, its formulas and links are what they should be."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxgrad.models.mlp.forward import Nodes, Params

ROOT = Path(__file__).parents[2]
SOURCES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Tests ask no network: what is linked outside is listed here, for whoever adds one to have looked at it.
OUTSIDE: set[str] = set()


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install 'jaxgrad[docs]'")
    target = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", target],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return target


def test_every_formula_is_marked_for_typesetting(site: Path):
    # Pages only: a notebook's formulas are found by MathJax itself.
    for page in site.rglob("*.html"):
        if page.stem not in ("backprop_by_hand", "gpt_by_hand"):
            shown = re.sub(r"<(code|pre|script)\b.*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
            assert not re.search(r"\$\$|\$\\", shown), page


def test_the_maths_of_every_operation_and_node_is_there(site: Path):
    page = (site / "vjps.html").read_text(encoding="utf-8")
    operations = {path.stem for path in (ROOT / "jaxgrad/ops").glob("[!_]*.py")} - {"precision"}
    for operation in operations:
        after = page.partition(f'<h2 id="{operation}">')[2].partition("<h2")[0]
        assert 'class="arithmatex"' in after, operation
    for node in (*Nodes._fields, *Params._fields):
        assert f"<td><code>{node}</code></td>" in page, node


def test_links_of_readme_lead_to_files():
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", SOURCES[0].read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), target


def test_links_to_the_outside_are_known():
    found = {link for path in SOURCES for link in re.findall(r"\]\((https?://[^)]+)\)", path.read_text("utf-8"))}
    assert found == OUTSIDE
