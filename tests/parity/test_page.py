"""The page holds all that was compared, escapes what it is given, and works in a real browser."""

import base64
import json
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxgrad.parity import GradientMismatch, check, page
from jaxgrad.parity.engines import Target, run
from jaxgrad.parity.verdict import BACKWARD_ORDER, verdict

ENGINES = ("by-node", "fused", "jax.grad", "torch")


@pytest.fixture(scope="module")
def spoiled(seeded_case) -> str:
    """The page of the notebook's batch, with a mistake of by-node at bn_diff, and of an honest small case."""
    cases, gradients, verdicts = (seeded_case(), seeded_case(batch_size=3, h_size=4)), [], []
    for number, case in enumerate(cases):
        found = run(ENGINES, case, Target())
        if number == 0:
            g = found["by-node"]
            found["by-node"] = g._replace(nodes=g.nodes._replace(bn_diff=2 * g.nodes.bn_diff))
        gradients.append(found)
        verdicts.append(verdict(case, Target(), found))
    return page.html(page.of_verdicts(verdicts, gradients))


def data_of(html: str) -> dict:
    (kept,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', html, flags=re.DOTALL)
    return json.loads(kept)


def test_the_page_holds_every_node_and_its_map(spoiled: str):
    data = data_of(spoiled)
    wrong, right = data["cases"]
    assert [row["name"] for row in wrong["rows"]] == ["forward loss", *BACKWARD_ORDER]
    assert (wrong["agree"], right["agree"]) == (False, True)
    assert all(row["heat"] for row in wrong["rows"])
    assert {name for edge in wrong["edges"] for name in edge} == {"forward loss", *BACKWARD_ORDER}


def test_the_page_asks_the_network_for_nothing(spoiled: str):
    assert not re.findall(r"(?:src|href)\s*=|@import|url\(|fetch\(|XMLHttpRequest", spoiled)


def test_names_are_shown_and_not_run():
    hostile = "</script><img src=x onerror=alert(1)>"
    html = page.html({"title": hostile, "environment": {hostile: hostile}, "cases": []})
    assert hostile not in html and "<img" not in html
    assert data_of(html)["environment"] == {hostile: hostile}


def test_a_map_keeps_the_largest_of_each_block_and_says_what_is_not_finite():
    a, b = np.zeros((100, 96)), np.zeros((100, 96))
    b[99, 95], b[0, 1] = 1e-3, np.nan
    found = page.heat(a, b, 10.0, most=48)
    assert found["shape"] == [100, 96]
    assert (len(found["grid"]), len(found["grid"][0])) == (48, 48)
    assert (found["grid"][-1][-1], found["grid"][0][0], found["grid"][1][1]) == (-4.0, "nan", None)
    assert page.heat(np.ones(()), np.zeros(()), 1.0)["grid"] == [[0.0]]
    assert page.heat(np.ones((2, 3, 4)), np.zeros((2, 3, 4)), 1.0)["grid"] == [[0.0] * 4] * 6


def test_checks_of_ones_own_have_a_case_for_each_setting_and_the_first_failure_its_message():
    @jax.custom_vjp
    def square(x):
        return x * x

    square.defvjp(lambda x: (x * x, x), lambda x, dy: (dy * x,))
    with pytest.raises(GradientMismatch) as caught:
        check(square, np.arange(3.0), reference=lambda x: x * x, dtypes=("float64",), seeds=(0,), name="my square")
    data = page.of_reports([caught.value.report])
    assert [case["name"].split(", ")[1] for case in data["cases"]] == ["jit", "vmap", "scan", "remat", "grad_of_grad"]
    assert [case["details"] for case in data["cases"]] == [str(caught.value), "", "", "", ""]
    assert data_of(page.html(data))["cases"][0]["rows"][1]["name"] == "x"


@pytest.fixture(scope="module")
def browser() -> Iterator[str]:
    """The address of a session of a headless browser, driven through the WebDriver protocol."""
    driver = shutil.which("chromedriver")
    if driver is None or shutil.which("chromium") is None:
        pytest.skip("no browser here: apt-get install chromium chromium-driver")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        address = f"http://127.0.0.1:{port}"
        for _ in range(100):
            try:
                call(address, "/status")
                break
            except OSError:
                time.sleep(0.1)
        flags = ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "no-first-run")
        options = {"args": [f"--{flag}" for flag in flags], "binary": shutil.which("chromium")}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = call(address, "/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        yield f"{address}/session/{session}"
        call(f"{address}/session/{session}", "", method="DELETE")
        process.terminate()


def call(address: str, path: str, body: dict | None = None, method: str | None = None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.loads(response.read())["value"]


def script(browser: str, code: str):
    return call(browser, "/execute/sync", {"script": f"return {code}", "args": []})


def test_in_a_browser_a_node_can_be_chosen_and_its_map_appears(browser: str, spoiled: str, tmp_path: Path):
    file = tmp_path / "page.html"
    file.write_text(spoiled, encoding="utf-8")
    call(browser, "/window/rect", {"width": 390, "height": 844})
    call(browser, "/url", {"url": file.as_uri()})
    text = script(browser, "document.body.innerText")
    assert "1 of 2 comparisons found engines that differ." in text
    assert "Engines part at bn_diff, the first in backward order. by-node stands alone" in text
    # The case that differs comes first and open, and the other closed.
    first = "document.querySelector('details.case')"
    assert script(browser, f"{first}.open && !document.querySelectorAll('details.case')[1].open")
    assert script(browser, f"{first}.querySelectorAll('tr.row').length") == 27
    assert script(browser, f"[...{first}.querySelectorAll('g.bad')].map(g => g.dataset.node)") == ["bn_diff"]
    assert not script(browser, f"{first}.querySelector('canvas')")
    script(browser, f"{first}.querySelector('g.bad').dispatchEvent(new MouseEvent('click'))")
    assert script(browser, f"{first}.querySelector('canvas').width") == 48
    assert "worst at [" in script(browser, f"{first}.querySelector('.heat').innerText")
    # By the keyboard, a row of the table shows all of its pairs.
    script(
        browser, f"{first}.querySelector('[data-row=C]').dispatchEvent(new KeyboardEvent('keydown', {{key: 'Enter'}}))"
    )
    assert script(browser, f"{first}.querySelector('.heat h2').innerText") == "C"
    assert script(browser, f"[...{first}.querySelectorAll('tr.pair')].filter(row => !row.hidden).length") == 6
    assert script(browser, "document.documentElement.scrollWidth <= window.innerWidth"), "the page scrolls sideways"
    assert call(browser, "/se/log", {"type": "browser"}) == []
    assert base64.b64decode(call(browser, "/screenshot")).startswith(b"\x89PNG")
