"""The site builds without a warning, its formulas and links are what they should be."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from jaxgrad.models.mlp.forward import Nodes, Params

ROOT = Path(__file__).parents[2]
SOURCES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Tests ask no network: what is linked outside is listed here, for whoever adds one to have looked at it.
OUTSIDE: set[str] = set()
# What a browser would load by itself, unlike a link that a reader follows.
LOADED = re.compile(
    r"""<(?:script|img|iframe|source|link)\b[^>]*?\b(?:src|srcset|href)=["']?(https?:|//)[^>]*>|url\(["']?(?:https?:|//)"""
)


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


def test_every_formula_is_mathml(site: Path):
    for page in site.rglob("*.html"):
        shown = re.sub(r"<(code|pre|script)\b.*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not re.search(r"\$\$|\$\\|\\\(|\\\[", shown), page
    for page in ("vjps.html", "backprop_by_hand.html", "how-it-decides.html"):
        assert (site / page).read_text(encoding="utf-8").count("<math ") > 5, page


def test_a_formula_that_cannot_be_shown_is_an_error():
    pytest.importorskip("latex2mathml", reason="latex2mathml is not installed: pip install 'jaxgrad[docs]'")
    hook = runpy.run_path(str(ROOT / "docs/mathml.py"))
    marked = '<span class="arithmatex">\\(%s\\)</span>'
    page = SimpleNamespace(file=SimpleNamespace(src_uri="a.md"))
    assert "<math " in hook["on_page_content"](marked % r"\frac12 x_{ij}", page)
    with pytest.raises(ValueError, match="cannot be made MathML"):
        hook["on_page_content"](marked % r"\unheardof x", page)


def test_a_page_loads_nothing_from_another_host(site: Path):
    for file in [*site.rglob("*.html"), *site.rglob("*.css")]:
        found = LOADED.search(file.read_text(encoding="utf-8"))
        assert not found, f"{file.relative_to(site)}: {found[0]}"
    # The theme fetches Mermaid for a page with a diagram of it; there is none.
    assert not any('class="mermaid"' in page.read_text(encoding="utf-8") for page in site.rglob("*.html"))


def test_the_search_finds_pages_and_works_from_a_disc(site: Path):
    index = json.loads((site / "search/search_index.json").read_text(encoding="utf-8"))["docs"]
    found = {doc["location"].partition("#")[0] for doc in index if "custom_vjp" in doc["text"]}
    assert {"how-to/check-my-vjp.html", "gallery.html"} <= found
    assert {page.name for page in site.glob("*.html")} - {"404.html"} <= {
        doc["location"].partition("#")[0] for doc in index
    }
    # Without a server there is no worker and no fetch: the index is a script, and the worker a frame.
    assert (site / "search/search_index.js").is_file()
    assert "assets/iframe-worker.js" in (site / "index.html").read_text(encoding="utf-8")


def test_the_notebook_is_run_by_make_docs_and_not_here():
    # It takes minutes, and test_notebook.py runs it.
    assert "execute: !ENV [JAXGRAD_RUN_NOTEBOOKS, false]" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "JAXGRAD_RUN_NOTEBOOKS=true" in (ROOT / "Makefile").read_text(encoding="utf-8")


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
