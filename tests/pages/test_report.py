"""One page of many results: every kind of file has a section, and a browser shows it on a phone, light and dark."""

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jaxgrad.cli.report import _source
from jaxgrad.errors import JaxgradError
from jaxgrad.pages import heat, report
from jaxgrad.pages.document import APART, CLOSE, UNJUDGED
from jaxgrad.pages.report import SECTIONS, Source
from jaxgrad.pages.section import Section
from jaxgrad.training.config import config_of
from jaxgrad.training.folder import Line, append_metrics, save_config

ROOT = Path(__file__).parents[2]
HOSTILE = "</script></table><img src=x onerror=alert(1)>&\"'\u202e\x1b[31m\ud800"
SHOWN = "&lt;/script&gt;&lt;/table&gt;&lt;img src=x onerror=alert(1)&gt;&amp;&quot;&#x27;\\u202e\\x1b[31m\\ud800"
ENVIRONMENT = {"jax": "0.10", "torch": None}


def pair(share: float, name: str = "hand") -> dict[str, Any]:
    at = {"exact": False, "at": [0], "max_abs": 1.0, "values": [1.0, "(1+2j)"], "ulps": "inf", "not_finite": None}
    judged = {"agrees": share <= 1, "judged": True, "unjudged": 0, "size": 4, "share": share, "where": "as a whole"}
    return {"engines": [name, "jax.grad"], "relative": 0.5, "noise": 0.2, "tolerance": 1.0, **at, **judged}


def tensor(share: float, name: str = "x") -> dict[str, Any]:
    grid = [[None, 1.5], [-2.0, "nan"]]
    drawn = {"engines": ["hand", "jax.grad"], "shape": [2, 2], "grid": grid}
    return {"name": name, "kind": "input", "note": "", "pairs": [pair(share)], "heat": drawn}


def check(share: float, name: str = "test_f") -> dict[str, Any]:
    passed = share <= 1
    of = {"dtype": "float64", "transform": "jit", "seed": 0, "sizes": "", "first": None, "alone": None, "why": ""}
    said = {"outcome": "agrees" if passed else "differs", "passed": passed, "sentence": f"said of {name}"}
    settings = [{**of, **said, "tensors": [tensor(share)]}]
    return {"name": name, "test": f"test_f.py::{name}", "passed": passed, "message": "", "settings": settings}


def checks(*found: dict[str, Any]) -> dict[str, Any]:
    return {"schema": "jaxgrad.check/1", "date": "2026-01-02T03:04:05+00:00", "environment": ENVIRONMENT,
            "passed": all(one["passed"] for one in found), "checks": list(found)}  # fmt: skip


def parity(outcome: str = "agrees", name: str = "the batch") -> dict[str, Any]:
    case = {"name": name, "dtype": "float64", "losses": {"torch": 3.5}, "outcome": outcome, "sentence": "All agree.",
            "tensors": [{**tensor(0.5), "heat": None}, {**tensor(0.5, "y"), "pairs": []}]}  # fmt: skip
    return {"schema": "jaxgrad.parity/2", "environment": ENVIRONMENT, "cases": [case]}


def step(op: str, module: str, agrees: bool | None, like: int | None = None) -> dict[str, Any]:
    line = {"file": "/a/net.py", "line": 3, "function": "net", "text": "x = 1"}
    return {"op": op, "module": module, "line": line, "shape": [2], "agrees": agrees, "like": like}


def port(layers: int = 4, wrong: int | None = 2) -> dict[str, Any]:
    """A program of layers of two values each, which part at the second of layer `wrong`."""
    other = [
        step(op, f"h.{k}.{op}", wrong is None or (k, op) < (wrong, "b")) for k in range(layers) for op in ("a", "b")
    ]
    own = [{**step(f"my {s['op']}", "", s["agrees"], n if s["agrees"] else None)} for n, s in enumerate(other)]
    at = None if wrong is None else 2 * wrong + 1
    # The operations of all layers have one name and one line here: the place is told by the module.
    place = {key: other[at][key] for key in ("op", "module", "line")} if at is not None else None
    mine = {**{key: own[at][key] for key in ("op", "line")}, "module": ""} if at is not None else None
    region = [] if mine is None else [{**mine["line"], "around": [[2, "before"], [3, "x = 1"]]}]
    return {
        "schema": "jaxgrad.port/1", "date": "2026-01-02T03:04:05+00:00", "environment": ENVIRONMENT, "complete": True,
        "agrees": wrong is None, "kind": "agrees" if wrong is None else "forward", "sentence": "they part",
        "last": [], "jax": mine, "other": place, "region": region, "other_region": region, "distance": 0.5,
        "off": {"shape": [2, 2], "grid": [[None, 1.5], [-2.0, "nan"]]}, "behind": [],
        "mends": [] if mine is None else [{"place": mine, "words": "1 should be 2", "residual": 1e-16}],
        "agreeing": [5, 8], "mapping": None, "notes": ["a note"], "other_name": "torch",
        "steps": own, "other_steps": other,
    }  # fmt: skip


MUTANTS = {
    "schema": "jaxgrad.mutation/1", "complete": True, "date": "2026-01-02T03:04:05+00:00", "environment": ENVIRONMENT,
    "scores": {"mine": {"killed": 5, "equivalent": 1, "untried": 0, "survived": [
        {"operator": "a sign flipped", "file": "a.py", "line": 3, "text": "x = -y", "mistake": "minus y is y"}]}},
}  # fmt: skip

OTHERS: list[dict[str, Any]] = [
    {"schema": "jaxgrad.sweep/1", "config": {"steps": 3}, "runs": [
        {"rank": 1, "seed": 0, "learning_rate": 0.1, "train": 2.0, "dev": 2.1, "test": 2.2},
        {"rank": 2, "seed": 1, "learning_rate": 9.0, "train": None, "dev": None, "test": None}]},
    {
        "schema": "jaxgrad.corpus/1",
        "date": "",
        "corpus": "names.txt",
        "words": 3,
        "vocabulary": [".", "a"],
        "X": {"train": [9, 3], "dev": [1, 3]},
    },
    {"schema": "jaxgrad.eval/1", "run": "runs/a", "train": 2.0, "dev": "inf", "test": 2.1, "date": ""},
    {"schema": "jaxgrad.bench.compare/1", "date": "", "changes": [
        {"size": "32 x 200", "peer": "fused", "before": 1e-5, "after": 2e-5, "ratio": 2.0, "verdict": "regression"}]},
    {"schema": "jaxgrad.bench.check/1", "date": "", "costs": [
        {"title": "an op", "who": "script", "seconds": 1.0, "ratio": 1.0, "whole": 2.0, "peak_mb": 300.0, "why": ""},
        {"title": "an op", "who": "defaults", "seconds": "nan", "ratio": "nan", "whole": "nan", "peak_mb": "nan",
         "why": "took too long"}]},
    {"schema": "jaxgrad.bench.verdicts/1", "date": "", "summary": [
        {"dtype": "float32", "agrees": 3, "differs": 1, "not judged": 0, "median share": 0.1, "largest share": 0.2,
         "median seen": None, "largest seen": None}],
     "verdicts": [{"program": "4x5 sin", "dtype": "float32", "seed": 0, "outcome": "differs", "why": "beyond"}]},
    {"schema": "jaxgrad.bench.checkers/1", "environment": {"date": "", "jax": "0"}, "rows": [
        {"case": "norm", "checker": "jaxgrad.check", "faulty": wrong, "seconds": 1.0,
         "alarm": {"said": "wrong", "place": "x"} if wrong else None} for wrong in (True, False)]},
    {"schema": "jaxgrad.bench.embedding/1", "date": "", "sizes": [
        {"n": 32, "width": 10, "rows": 27, "seconds": {"scatter-add": {"median": 1e-6}, "one-hot": {"median": 2e-6}}}]},
    {"schema": "jaxgrad.bench.scaling/1", "date": "", "meshes": [
        {"mesh": "data=4", **{way: dict.fromkeys(("flops", "temporary_bytes", "all_reduces", "reduced_bytes"), 8.0)
                              for way in ("counted", "compiled")}}]},
]  # fmt: skip


def run(folder: Path, finished: bool = True) -> Path:
    config = config_of(steps=40, log_every=10)
    folder.mkdir()
    save_config(folder, config)
    append_metrics(folder, [Line(10, 3.0, 0.1), Line(20, 2.5, 0.1)])
    (folder / "checkpoints" / "20").mkdir(parents=True)
    if finished:
        (folder / "losses.json").write_text('{"train": 2.0, "dev": 2.1, "test": 2.2}')
    return folder


def everything(folder: Path) -> list[Source]:
    benchmarks = [json.loads((ROOT / f"data/benchmarks/{name}.json").read_text()) for name in ("cpu", "ops-cpu")]
    shown = [
        checks(check(0.5), check(7.0, "test_g")),
        parity(),
        port(),
        port(wrong=None),
        MUTANTS,
        *OTHERS,
        *benchmarks,
    ]
    written = "2026-05-06T07:08:09+00:00"
    return [_source(run(folder / "run")), *(Source(f"{k}.json", data, written) for k, data in enumerate(shown))]


def test_every_schema_that_is_written_is_shown():
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "jaxgrad").rglob("*.py"))
    written = set(re.findall(r'"(jaxgrad\.[\w.]+/\d+)"', sources))
    # A mapping is what a verdict of a port holds, and is read by the next.
    assert written == {*SECTIONS, "jaxgrad.port.mapping/1"}


def section(data: dict[str, Any]) -> Section:
    return report.section(Source("a.json", data, "2026-05-06T07:08:09+00:00"))


def test_every_kind_of_file_has_a_section_and_a_line_of_the_summary(tmp_path: Path):
    sources = everything(tmp_path)
    assert {source.data["schema"] for source in sources} == set(SECTIONS)
    page = report.html(sources, "of this night")
    assert page.count('<section class="part"') == page.count('<a href="#part-') == len(sources)
    assert page.count("<h1>") == 1 and "<h1>of this night</h1>" in page
    for words in (
        "1 check agrees, 1 check differs", "test_f.py::test_g", "1 should be 2", "minus y is y", "took too long",
        "train 2.0000 · dev 2.1000", "2 runs, 1 diverged; the best has dev 2.1",
    ):  # fmt: skip
        assert words in page, words


def test_a_page_asks_no_network_and_runs_no_script(tmp_path: Path):
    page = report.html(everything(tmp_path))
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'\"" in page
    assert "<script" not in page and "://" not in page and "@import" not in page and "url(" not in page


@pytest.mark.parametrize(
    ("data", "kind", "verdict"),
    [
        (checks(check(0.5)), CLOSE, "1 check agrees"),
        (checks(check(0.5), check(2.0)), APART, "1 check agrees, 1 check differs"),
        (parity(), CLOSE, "1 case agrees"),
        (parity("differs"), APART, "1 case differs"),
        (parity("not judged"), UNJUDGED, "1 case not judged"),
        ({**parity(), "complete": False}, UNJUDGED, "stopped before its end: 1 case agrees"),
        (MUTANTS, APART, "5 mutants killed, 1 survived"),
        (port(wrong=None), CLOSE, "the programs agree; 5 of 8 values found on the other side"),
    ],
)
def test_a_section_says_how_it_ended(data: dict[str, Any], kind: str, verdict: str):
    made = section(data)
    assert (made.kind, made.verdict) == (kind, verdict)


def test_when_is_what_the_file_says_and_else_when_it_was_written():
    assert section(checks(check(0.5))).when == "2026-01-02T03:04:05+00:00"
    assert section(parity()).when == "2026-05-06T07:08:09+00:00"


def test_a_run_that_goes_on_is_not_finished(tmp_path: Path):
    made = report.section(_source(run(tmp_path / "run", finished=False)))
    assert (made.kind, made.verdict) == (UNJUDGED, "not finished: step 20 of 40")
    assert "<polyline" in made.body and "<dt>learning_rate<dd>0.1" in made.body


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "has no schema, which no report shows; give what jaxgrad writes with --json"),
        ({"schema": "jaxgrad.parity/1"}, "has the schema 'jaxgrad.parity/1', which no report shows"),
        ({"schema": ["x"]}, "has the schema"),
        ({"schema": "jaxgrad.parity/2"}, "is not as jaxgrad.parity/2 should be (no 'cases')"),
        ({**checks(check(0.5)), "checks": [7]}, "is not as jaxgrad.check/1 should be"),
        ({**parity(), "cases": None}, "is not as jaxgrad.parity/2 should be"),
        ({**port(), "steps": [{}]}, "is not as jaxgrad.port/1 should be"),
        ({**MUTANTS, "scores": {"mine": []}}, "is not as jaxgrad.mutation/1 should be"),
        ({**port(), "off": {"shape": [2], "grid": [[{}]]}}, "is not as jaxgrad.port/1 should be"),
    ],
)
def test_what_is_foreign_or_damaged_is_a_sentence(data: dict[str, Any], said: str):
    with pytest.raises(JaxgradError, match=re.escape(said)) as caught:
        section(data)
    assert str(caught.value).startswith("a.json: ") and "\n" not in str(caught.value)


def test_files_and_folders_that_are_no_results_are_sentences(tmp_path: Path):
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "torn.json").write_text('{"schema": "jaxgrad.par')
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "plan.json").write_text("{}")
    for path, said in (
        ("list.json", "is not a result that jaxgrad wrote"), ("torn.json", "is not a result that jaxgrad wrote"),
        ("none.json", "cannot be read (No such file or directory)"), (".", "is the folder of neither a run nor a"),
        ("plan", "the sweep is not finished; go on with jaxgrad sweep --resume"),
    ):  # fmt: skip
        with pytest.raises(JaxgradError, match=re.escape(said)):
            _source(tmp_path / path)


def test_a_sweeps_folder_is_read_from_its_sweep_json(tmp_path: Path):
    (tmp_path / "sweep.json").write_text(json.dumps(OTHERS[0]))
    assert report.section(_source(tmp_path)).what == "sweep"


def test_names_are_shown_and_not_run():
    hostile = [parity(name=HOSTILE), checks(check(7.0, HOSTILE))]
    found = port()
    found["mends"][0]["words"] = found["steps"][0]["op"] = found["other_steps"][0]["module"] = HOSTILE
    page = report.html([Source(HOSTILE, data, "") for data in (*hostile, found)], HOSTILE)
    assert "<img" not in page and page.count(SHOWN) > 10
    assert not re.search("[\u202e\x1b\ud800]", page)


def places(data: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where every value is in data as JSON has them, the first two of a list standing for all."""
    yield at
    inside = data.items() if isinstance(data, dict) else enumerate(data[:2]) if isinstance(data, list) else ()
    for key, value in inside:
        yield from places(value, (*at, key))


def replaced(data: Any, at: tuple[Any, ...], value: Any) -> Any:
    if not at:
        return value
    changed = copy.copy(data)
    changed[at[0]] = replaced(data[at[0]], at[1:], value)
    return changed


@pytest.mark.parametrize("value", [HOSTILE, None, [{}]], ids=["text", "nothing", "a list"])
def test_whatever_stands_in_a_file_it_is_shown_or_refused(value: Any, tmp_path: Path):
    for source in everything(tmp_path):
        for at in list(places(source.data))[1:]:
            try:
                made = section(replaced(source.data, at, value))
            except JaxgradError as error:
                assert "\n" not in str(error)
            else:
                assert "<img" not in made.body, (source.data["schema"], at)


def test_another_kind_of_file_is_one_more_row(monkeypatch):
    monkeypatch.setitem(SECTIONS, "mine/1", lambda data: Section("mine", CLOSE, data["said"], "", "<p>a body"))
    assert "all well" in report.html([Source("a.json", {"schema": "mine/1", "said": "all well"}, "")])


def test_a_map_says_what_it_cannot_draw_and_merges_neighbours_of_one_shade():
    assert "nothing to draw" in heat.drawn({"shape": [0, 3], "grid": []})
    drawn = heat.drawn({"shape": [100, 96], "grid": [[1.0] * 48 for _ in range(48)]})
    assert "each of 48 × 48 cells shows the largest of up to 3 × 2 elements" in drawn
    assert drawn.count("M0 ") == 48 and "M1 " not in drawn and "2304 cells beyond: 10<" in drawn
    assert drawn.count("<path") == 2


def rows_of(page: str) -> list[str]:
    return re.findall(r'<details class="(\w+)"', page)


def test_layers_that_agree_are_folded_and_the_parting_is_open():
    body = section(port(layers=12, wrong=7)).body
    assert "h.0 … h.6" in body and "h.8 … h.11" in body
    opened = re.findall(r'<details class="(\w+)" open', body)
    assert opened == ["parts", "parts", "parts"]
    assert body.count("<li class=first>") == 2
    assert "<mark>   3  x = 1</mark>" in body and "1.5" not in body


def test_programs_that_agree_are_folded_whole():
    body = section(port(layers=12, wrong=None)).body
    assert set(rows_of(body)) == {"good"} and " open" not in body


# In a browser.

MEASURED = """<script>
const paper = () => getComputedStyle(document.body).backgroundColor;
const found = {wide: innerWidth, fits: document.documentElement.scrollWidth <= innerWidth, system: paper()};
document.querySelectorAll("details").forEach(one => { one.open = true; });
found.opened = document.documentElement.scrollWidth <= innerWidth;
found.scrolled = [...document.querySelectorAll(".scroll")].some(box => box.scrollWidth > box.clientWidth);
for (const name of ["dark", "light", "system"]) { document.getElementById(name).click(); found[name + "2"] = paper(); }
parent.postMessage(JSON.stringify(found), "*");
</script>"""

# A window is never as narrow as a phone, a frame is.
FRAME = """<!doctype html><style>:root { color-scheme: light dark }</style>
<script>onmessage = event => { document.title = event.data }</script>
<iframe src="page.html" width="390" height="844" style="border: 0"></iframe>"""


def looked_at(page: str, folder: Path, *flags: str) -> dict[str, Any]:
    """What a browser of a phone's width makes of a page, which gets a script that measures it."""
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if binary is None:
        pytest.skip("no browser here: apt-get install chromium")
    (folder / "frame.html").write_text(FRAME)
    policy = re.search(r'<meta http-equiv="Content-Security-Policy".*?>', page)[0]
    measured = page.replace(policy, "").replace("</body>", MEASURED + "</body>")
    (folder / "page.html").write_text(measured, encoding="utf-8")
    usual = ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
             "disable-component-update", "disable-sync", "virtual-time-budget=5000", "dump-dom")  # fmt: skip
    command = [binary, *(f"--{flag}" for flag in (*usual, *flags)), f"--user-data-dir={folder / 'profile'}"]
    done = subprocess.run(
        [*command, (folder / "frame.html").as_uri()], capture_output=True, text=True, check=True, timeout=120
    )
    return json.loads(re.search(r"<title>(.*?)</title>", done.stdout)[1])


def test_in_a_browser_it_fits_a_phone_and_is_light_or_dark(tmp_path: Path):
    page = report.html(everything(tmp_path))
    light, dark = "rgb(246, 247, 249)", "rgb(15, 19, 24)"
    found = looked_at(page, tmp_path)
    assert found["wide"] == 390 and found["fits"] and found["opened"] and found["scrolled"], found
    assert [found[name] for name in ("system", "dark2", "light2", "system2")] == [light, dark, light, light]
    found = looked_at(page, tmp_path, "blink-settings=preferredColorScheme=0")
    assert [found[name] for name in ("system", "dark2", "light2", "system2")] == [dark, dark, light, dark]
