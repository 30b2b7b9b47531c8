"""The page holds all that was compared, escapes what it is given, and works in a real browser."""

import base64
import json
import os
import re
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxgrad import GradientMismatch, Report, check
from jaxgrad.checking import report as checks
from jaxgrad.checking.heat import heat
from jaxgrad.models.mlp.record import MODEL
from jaxgrad.pages import comparison
from jaxgrad.parity import page
from jaxgrad.parity.engines import Target, graph, run
from jaxgrad.parity.verdict import verdict

GRAPH = graph(MODEL, MODEL.sizes(), 27)
BACKWARD_ORDER = list(GRAPH.order)

ENGINES = ("by-node", "fused", "jax.grad", "torch")
HOSTILE = '</script><img src=x onerror="window.hurt = 1">&amp;\'{{data}}'


@pytest.fixture(scope="module")
def spoiled(seeded_case) -> dict[str, Any]:
    """An honest small case, and the notebook's batch with mistakes of by-node at bn_diff and h_prenorm."""
    cases = []
    for number, case in enumerate((seeded_case(batch_size=3, h_size=4), seeded_case())):
        found = run(ENGINES, case, Target())
        if number == 1:
            g = found["by-node"]
            h_prenorm = g.nodes["h_prenorm"]
            not_finite = np.where(h_prenorm == h_prenorm.max(), np.inf, h_prenorm)
            nodes = {**g.nodes, "bn_diff": 2 * g.nodes["bn_diff"], "h_prenorm": not_finite}
            found["by-node"] = g._replace(nodes=nodes)
        cases.append(page.case(verdict(case, Target(), found)))
    return page.of_cases(cases, "cpu", "cpu")


def data_of(html: str) -> dict[str, Any]:
    (kept,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, flags=re.DOTALL)
    return json.loads(kept)


def hostile_case(**changes: Any) -> dict[str, Any]:
    at = {"exact": False, "at": [0], "max_abs": 1.0, "values": [1.0, 2.0], "ulps": 1.0, "not_finite": None}
    judged = {"agrees": True, "judged": True, "unjudged": 0, "size": 1, "share": 0.5, "where": HOSTILE}
    pair = {"engines": [HOSTILE, "b"], "relative": 0.5, "noise": 0.2, "tolerance": 1.0, **at, **judged}
    row = {"name": HOSTILE, "kind": "node", "note": HOSTILE, "pairs": [pair]}
    rows = [{**row, "heat": {"engines": [HOSTILE, "b"], "shape": [1], "grid": [[0.0]]}}]
    words = {"name": HOSTILE, "sentence": HOSTILE, "details": HOSTILE, "dtype": HOSTILE}
    told = {"outcome": "agrees", "agree": True, "losses": {HOSTILE: "nan"}}
    return {**words, **told, "rows": rows, "edges": [], **changes}


def test_the_page_holds_every_node_its_place_in_the_graph_and_its_map(spoiled):
    data = data_of(comparison.html(spoiled))
    right, wrong = data["cases"]
    assert [row["name"] for row in wrong["rows"]] == ["forward loss", *BACKWARD_ORDER]
    assert all(row["heat"]["engines"] == row["pairs"][row["worst"]]["engines"] for row in wrong["rows"])
    assert {name for edge in wrong["edges"] for name in edge} == {"forward loss", *BACKWARD_ORDER}
    order = ["forward loss", *BACKWARD_ORDER]
    assert all(order.index(above) < order.index(below) for above, below in wrong["edges"])
    assert (wrong["agree"], right["agree"]) == (False, True)
    assert data["environment"]["JAX device"] == "cpu" and data["environment"]["jax"]


def test_the_worst_pair_of_a_node_is_what_contradicts_it_most(spoiled):
    right, wrong = data_of(comparison.html(spoiled))["cases"]
    rows = {row["name"]: row for row in wrong["rows"]}
    worst = {name: row["pairs"][row["worst"]] for name, row in rows.items()}
    assert "by-node" in worst["bn_diff"]["engines"] and worst["bn_diff"]["share"] > 1e9
    assert worst["h_prenorm"]["relative"] == "nan" and worst["h_prenorm"]["not_finite"]
    assert sum(cell == "inf" for line in rows["h_prenorm"]["heat"]["grid"] for cell in line) == 1
    assert all(pair["share"] <= 1 for row in right["rows"] for pair in row["pairs"])


def test_a_node_that_one_engine_has_is_there_without_a_pair():
    case = hostile_case(rows=[{**hostile_case()["rows"][0], "pairs": [], "heat": None}])
    data = data_of(comparison.html({"title": "", "environment": {}, "cases": [case]}))
    assert data["cases"][0]["rows"][0]["worst"] is None


def test_the_page_asks_the_network_for_nothing(spoiled):
    html = comparison.html(spoiled)
    assert "default-src 'none'" in html and "://" not in html
    assert re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]*)""", html) == ["data:,"]
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(", html)


def test_names_are_shown_and_not_run():
    html = comparison.html({"title": HOSTILE, "environment": {HOSTILE: None}, "cases": [hostile_case()]})
    assert "<img" not in html and html.count("</script>") == 2
    data = data_of(html)
    assert data["environment"] == {HOSTILE: None} and data["cases"][0]["rows"][0]["name"] == HOSTILE
    assert html.count("&lt;/script&gt;&lt;img") == 2  # as title and as heading


def test_a_pair_that_was_not_judged_comes_before_one_that_agrees():
    fine = hostile_case()["rows"][0]["pairs"][0]
    pairs = [fine, {**fine, "judged": False, "share": 0.1}, {**fine, "share": 0.9}]
    case = hostile_case(rows=[{**hostile_case()["rows"][0], "pairs": pairs, "heat": None}])
    data = data_of(comparison.html({"title": "", "environment": {}, "cases": [case]}))
    assert data["cases"][0]["rows"][0]["worst"] == 1


def test_a_maps_limits_are_those_of_the_elements(seeded_case):
    case = seeded_case(batch_size=3, h_size=4)
    gradients = run(("by-node", "jax.grad"), case, Target())
    g = gradients["by-node"]
    h = g.nodes["h"].copy()
    found = verdict(case, Target(), gradients)
    noise = next(t for t in found.tensors if t.name == "h").noise
    # 8.5 to 10 deviations of two engines are what one of twelve elements may have.
    for times, beyond in ((20.0, True), (7.0, False)):
        changed = h.copy()
        changed[1, 2] = gradients["jax.grad"].nodes["h"][1, 2] + times * 2**0.5 * noise.deviation[1, 2]
        spoiled = {**gradients, "by-node": g._replace(nodes={**g.nodes, "h": changed})}
        rows = page.case(verdict(case, Target(), spoiled))["rows"]
        grid = next(row for row in rows if row["name"] == "h")["heat"]["grid"]
        assert (grid[1][2] > 0) == beyond
        assert max(level for line in grid for level in line if level is not None) == grid[1][2]


def test_a_map_keeps_the_largest_of_each_block_and_says_what_is_not_finite():
    a, b = np.zeros((100, 96)), np.zeros((100, 96))
    b[99, 95], b[0, 1], b[4, 4], b[4, 5] = 1e-3, np.nan, np.inf, 7.0
    found = heat(a, b, 10.0, most=48)
    assert found["shape"] == [100, 96]
    assert (len(found["grid"]), {len(line) for line in found["grid"]}) == (48, {48})
    assert (found["grid"][-1][-1], found["grid"][0][0], found["grid"][1][1]) == (-4.0, "nan", None)
    assert found["grid"][2][2] == "inf"


def test_every_element_is_in_a_block_of_the_map():
    for size in (1, 2, 47, 48, 49, 95, 96, 97, 1000):
        for at in {0, size // 3, size - 1}:
            a = np.zeros(size)
            a[at] = 1.0
            (line,) = heat(a, np.zeros(size), 1.0)["grid"]
            # As the page finds the cell of the worst element again.
            assert [i for i, cell in enumerate(line) if cell == 0.0] == [((at + 1) * len(line) - 1) // size]


def test_a_map_of_any_rank_is_flat_and_of_any_scale_is_a_number_or_says_why_not():
    grid = [heat(np.ones(shape), np.zeros(shape), 1.0)["grid"] for shape in ((), (3,), (2, 3, 4), (0, 3))]
    assert grid == [[[0.0]], [[0.0] * 3], [[0.0] * 4] * 6, []]
    tiny, zero = np.full(1, 5e-324), np.zeros(1)
    assert heat(tiny, zero, 1e10)["grid"] == [[-333.31]]
    assert heat(tiny, zero, 0.0)["grid"] == [["inf"]]
    assert heat(zero, zero, 0.0)["grid"] == [[None]]
    with pytest.raises(ValueError, match=r"\(2,\) and \(1,\)"):
        heat(np.zeros(2), zero, 1.0)


@jax.custom_vjp
def square(x):
    return x * x


square.defvjp(lambda x: (x * x, x), lambda x, dy: (dy * x,))


def plain(x):
    return x * x


def of_reports(report: Report) -> dict[str, Any]:
    return comparison.of_checks(checks.to_json([checks.check(report)]))


def failed(fn: Callable[..., Any], **options: Any) -> GradientMismatch:
    with pytest.raises(GradientMismatch) as caught:
        check(fn, np.arange(3.0), reference=plain, dtypes=("float64",), seeds=(0,), name="my square", **options)
    return caught.value


def test_checks_of_ones_own_have_a_case_for_each_setting_and_the_first_failure_its_message():
    error = failed(square)
    cases = of_reports(error.report)["cases"]
    assert [case["name"].split(", ")[1] for case in cases] == [f.setting.transform for f in error.report.findings]
    assert [case["details"] for case in cases] == [str(error), *[""] * (len(cases) - 1)] and len(cases) > 3
    assert not any(case["agree"] for case in cases)
    assert [row["name"] for row in cases[0]["rows"]][1] == "x"


def test_a_setting_that_was_not_judged_is_shown_with_its_reason():
    def narrow(x):
        if x.dtype == "bfloat16":
            raise TypeError("no bfloat16 here")
        return x * x

    report = check(narrow, np.arange(3.0), reference=plain, seeds=(0,))
    cases = of_reports(report)["cases"]
    assert all(case["agree"] for case in cases)
    lost = [case for case in cases if case["outcome"] == "not judged"]
    assert lost and all(case["dtype"] == "bfloat16" for case in lost)
    assert all(case["sentence"].startswith("not judged: ") and "no bfloat16 here" in case["sentence"] for case in lost)
    assert all(case["rows"] == [] for case in lost) and data_of(comparison.html(of_reports(report)))


def test_numbers_that_json_lacks_are_strings():
    report = check(lambda x: x * x, np.array([1 + 2j]), reference=plain, dtypes=("float64",), transforms=("jit",))
    assert data_of(comparison.html(of_reports(report)))["cases"]


def test_a_check_that_should_have_differed_is_not_shown_as_agreeing():
    error = failed(plain, transforms=("jit",), expected="differs")
    (case,) = of_reports(error.report)["cases"]
    assert not case["agree"] and case["details"] == str(error)
    passed = check(
        square, np.arange(3.0), reference=plain, dtypes=("float64",), transforms=("jit",), expected="differs"
    )
    assert all(case["agree"] and not case["details"] for case in of_reports(passed)["cases"])


class Browser:
    """A headless browser in a phone's size, driven through the WebDriver protocol."""

    def __init__(self, binary: str, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}/session"
        flags = ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "no-first-run")
        options = {"args": [f"--{flag}" for flag in flags], "binary": binary}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = self.call("", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        self.address += f"/{session}"
        # What a click or a key sets off may come a moment later; an element is waited for.
        self.call("/timeouts", {"implicit": 30_000})
        self.devtools("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=1, mobile=True)

    def call(self, path: str, body: dict[str, Any] | None = None, method: str | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=300) as response:
            return json.loads(response.read())["value"]

    def devtools(self, command: str, **params: Any) -> Any:
        return self.call("/goog/cdp/execute", {"cmd": command, "params": params})

    def js(self, expression: str) -> Any:
        return self.call("/execute/sync", {"script": f"return {expression}", "args": []})

    def element(self, selector: str) -> str:
        (found,) = self.call("/element", {"using": "css selector", "value": selector}).values()
        return f"/element/{found}"

    def click(self, selector: str) -> None:
        self.call(self.element(selector) + "/click", {})

    def press(self, selector: str, key: str) -> None:
        self.call(self.element(selector) + "/value", {"text": key})

    def text(self, selector: str) -> str:
        return self.call(self.element(selector) + "/text")

    def log(self) -> list[str]:
        return [entry["message"] for entry in self.call("/se/log", {"type": "browser"})]


@pytest.fixture
def browser() -> Iterator[Browser]:
    driver = shutil.which("chromedriver")
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if driver is None or binary is None:
        pytest.skip("no browser here: apt-get install chromium chromium-driver")
    # A short folder of its own, because the browser leaves files behind and its socket's path may not be long.
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        subprocess.Popen(
            [driver, "--port=0"],
            env={**os.environ, "TMPDIR": folder},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process,
    ):
        try:
            port = next(found[1] for line in process.stdout if (found := re.search(r"started .* on port (\d+)", line)))
            opened = Browser(binary, int(port))
            yield opened
            opened.call("", method="DELETE")
        finally:
            process.terminate()


ENTER, ESCAPE = "\ue007", "\ue00c"


def test_in_a_browser_a_node_can_be_chosen_and_its_map_appears(browser: Browser, spoiled, tmp_path: Path):
    file = tmp_path / "page.html"
    file.write_text(comparison.html({**spoiled, "cases": [*spoiled["cases"], hostile_case()]}), encoding="utf-8")
    browser.call("/url", {"url": file.as_uri()})

    # Who agrees with whom: the case that differs comes first and open, the others after it and closed.
    assert browser.text(".verdict") == "✗ 1 of 3 cases does not agree"
    assert browser.js("[...document.querySelectorAll('main > details')].map(d => d.open)") == [True, False, False]
    assert "Engines part at bn_diff, the first in backward order. by-node stands alone" in browser.text("summary")
    fits = "document.documentElement.scrollWidth <= window.innerWidth && window.innerWidth === 390"
    assert browser.js(fits), "the page scrolls sideways"

    # The graph and the table have every node; what is wrong is marked in both.
    order = ["forward loss", *BACKWARD_ORDER]
    assert browser.js("[...document.querySelectorAll('.graph .node')].map(n => n.dataset.node)") == order
    assert browser.js("[...document.querySelectorAll('tbody th button')].map(b => b.textContent)") == order
    assert browser.js("document.querySelectorAll('.graph path.head').length") == len(spoiled["cases"][1]["edges"])
    assert re.fullmatch(r"bn_diff\n✗ [\d.]+e1\d × limit", browser.text("[data-node=bn_diff]"))
    assert browser.text("[data-node=h_prenorm]") == "h_prenorm\n! not finite"
    # How much of its limit an engine takes is rounding's, and so the compiler's.
    assert re.fullmatch(r"h\n✓ 0\.\d+ × limit", browser.text("[data-node=h]"))
    assert browser.js("[...document.querySelectorAll('tr.apart th, tr.lost th')].map(th => th.innerText)") == [
        "bn_diff\nfirst to part",
        "h_prenorm",
    ]

    # A click on a node shows its map.
    browser.click("[data-node=bn_diff]")
    shown = browser.text("dialog")
    assert shown.startswith("bn_diff") and "Shape 32 × 200, each of 32 × 48 cells" in shown and "Worst at [" in shown
    assert "1536 cells beyond: " in shown and "by-node | torch beyond a limit" in shown
    assert browser.js("document.querySelectorAll('dialog .map rect').length") == 1536 + 1
    assert browser.js(fits) and browser.js("document.querySelector('dialog').getBoundingClientRect().right <= 390")

    # By the keyboard: onwards to what is not finite, out, and all pairs of a row.
    for _ in range(2):
        browser.press("[aria-label='next node']", ENTER)
    assert browser.text("#node") == "h_prenorm" and "1 not finite, crossed" in browser.text(".legend")
    assert browser.js("document.querySelectorAll('dialog .map .cross').length") == 1
    browser.press("[aria-label='next node']", ESCAPE)
    browser.element("dialog:not([open])")
    browser.press("[aria-label='all 6 of C']", ENTER)
    browser.element("tr.all:not([hidden]) li:nth-child(6):last-child")
    assert browser.js(fits)

    # A name that looks like HTML is a name; a case is drawn when it is opened.
    assert browser.js("document.querySelectorAll('table').length") == 1
    browser.click("main > details:last-child summary")
    browser.click("main > details:last-child .node")
    assert browser.text("#node") == HOSTILE
    assert browser.js("document.images.length") == 0 and browser.js("window.hurt ?? null") is None

    # Dark mode has colours of its own.
    paper = "getComputedStyle(document.body).backgroundColor"
    light = browser.js(paper)
    browser.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert browser.js(paper) != light
    assert base64.b64decode(browser.call("/screenshot")).startswith(b"\x89PNG")
    assert browser.log() == []
