"""The pytest plugin: the fixture `three_way`, its options, and a summary of what its checks judged.

pytest loads it in every project of an environment that has jaxgrad, so nothing heavy is imported at its head: JAX
comes with the first test that asks for the fixture, after a `conftest.py` has set it up.
"""

import functools
import json
import math
import os
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import pytest

if TYPE_CHECKING:
    from jaxgrad.checking.findings import Finding, Report, Setting

MOST_LINES = 10

# What pytest-xdist can send from a worker: tuples, lists and strings, and no classes of ours.
Judgement: TypeAlias = tuple[str, str, str]  # setting, outcome, why
Check: TypeAlias = tuple[str, list[Judgement]]  # the test's id, and one judgement a setting


class _Session(NamedTuple):
    """What the plugin keeps for one session, in its config."""

    defaults: dict[str, Any]  # arguments of check, from the ini file
    only: dict[str, Any]  # arguments of check, from --three-way-only
    checks: list[Check]
    told: list[dict[str, Any]]  # checks as JSON, only where a report was asked for


_session = pytest.StashKey[_Session]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Two options of the fixture `three_way`, and a project's defaults for its arguments."""
    group = parser.getgroup("jaxgrad", "three-way gradient checks")
    group.addoption("--three-way-only", metavar="DTYPE/TRANSFORM/SEED", help="run each check in this one setting")
    group.addoption("--three-way-report", metavar="FILE", type=Path, help="write all checks as a page, or as FILE.json")
    said = "mark the line of a wrong rule in a pull request, as on GitHub it is done without asking"
    group.addoption("--three-way-annotations", action="store_true", help=said)
    for key in ("dtypes", "transforms", "seeds"):
        parser.addini(f"three_way_{key}", f"{key} of three_way where a test gives none", type="args", default=None)
    parser.addini("three_way_tolerance", "tolerance of three_way where a test gives none", default=None)


def pytest_configure(config: pytest.Config) -> None:
    """Read options and defaults. Raises `pytest.UsageError` for those that cannot be read."""
    only = config.getoption("--three-way-only")
    config.stash[_session] = _Session(_defaults(config.getini), _only(only) if only else {}, [], [])


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the page that was asked for; a worker of pytest-xdist sends its part, and its checks, instead."""
    config = session.config
    kept, target = config.stash[_session], config.getoption("--three-way-report")
    if _is_worker(config):
        _to_controller(config)["three_way_checks"] = kept.checks
        # As text, because what JSON has as numbers xdist would take apart one by one.
        _to_controller(config)["three_way_told"] = json.dumps(kept.told)
    elif target is not None:
        _write(target, kept.told)


def _write(target: Path, told: list[dict[str, Any]]) -> None:
    """The session's checks as JSON where the name ends so, else as a page; workers end in any order."""
    from jaxgrad import files
    from jaxgrad.checking import report
    from jaxgrad.pages import comparison

    found = report.to_json(sorted(told, key=lambda check: check["test"]))
    if target.suffix == ".json":
        files.write_json(target, found)
    else:
        files.write_text(target, comparison.html(comparison.of_checks(found)))


# A hook of pytest-xdist, which need not be installed.
@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a worker sent. One that crashed has sent nothing."""
    kept, sent = node.config.stash[_session], getattr(node, "workeroutput", {})
    kept.checks.extend(sent.get("three_way_checks", []))
    kept.told.extend(json.loads(sent.get("three_way_told", "[]")))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """How many checks there were, and which settings they could not judge."""
    checks = config.stash[_session].checks
    if checks:
        terminalreporter.section("three-way gradient checks")
        for line in summary(checks):
            terminalreporter.line(line)
    if _annotates(config):
        for report in terminalreporter.getreports("failed"):
            if (command := annotation(dict(report.user_properties))) is not None:
                terminalreporter.line(command)


def annotation(properties: dict[str, Any]) -> str | None:
    """The workflow command with which GitHub marks a line, from a test's properties; None where they name no line.

    https://docs.github.com/actions/reference/workflows-and-actions/workflow-commands
    """
    if "three_way_file" not in properties:
        return None
    title, _, rest = properties["three_way_says"].partition("\n")
    of = {"file": properties["three_way_file"], "line": properties["three_way_line"], "title": title}
    told = ",".join(f"{name}={_escaped(value, ':,')}" for name, value in of.items())
    return f"::error {told}::{_escaped(textwrap.dedent(rest).strip() or title)}"


def _escaped(text: str, more: str = "") -> str:
    """What GitHub reads as this text; in a property a colon and a comma mean something too."""
    return "".join(f"%{ord(c):02X}" if c in "%\r\n" + more else c for c in text)


def _annotates(config: pytest.Config) -> bool:
    return bool(config.getoption("--three-way-annotations")) or os.environ.get("GITHUB_ACTIONS") == "true"


def summary(checks: list[Check]) -> list[str]:
    """A line of counts, then one for each of the first settings that were not judged, in the order of tests' ids."""
    # Workers finish in any order. The sort is stable, so the checks of one test keep theirs.
    judged = [(test, *one) for test, of_test in sorted(checks, key=lambda check: check[0]) for one in of_test]
    unjudged = [
        f"{test}  {setting}{': ' if why else ''}{why}"
        for test, setting, outcome, why in judged
        if outcome == "not judged"
    ]
    counts = _counts(len(checks), Counter(outcome for _, _, outcome, _ in judged))
    more = [f"… and {len(unjudged) - MOST_LINES} more"] if len(unjudged) > MOST_LINES else []
    return [f"three_way: {counts}{':' if unjudged else ''}", *unjudged[:MOST_LINES], *more]


def _counts(checks: int, outcomes: Counter[str]) -> str:
    agree, differ, unjudged = (outcomes[outcome] for outcome in ("agrees", "differs", "not judged"))
    parts = [
        "1 check" if checks == 1 else f"{checks} checks",
        "1 setting agrees" if agree == 1 else f"{agree} settings agree",
        *([f"{differ} differs" if differ == 1 else f"{differ} differ"] if differ else []),
        *([f"{unjudged} not judged"] if unjudged else []),
    ]
    return ", ".join(parts)


@pytest.fixture
def three_way(request: pytest.FixtureRequest) -> "Iterator[Callable[..., Report]]":
    """`jaxgrad.check`, named after the test, whose failure message has the command that repeats it.

    `--three-way-only float32/vmap/1` runs that one setting. `--three-way-report FILE` gathers a session's checks, those
    of pytest-xdist's workers too, as a page or as JSON. With `--junitxml`, and on GitHub, a failed test has the file
    and the line of the wrong rule. A project's defaults are keys of pytest's ini file: `three_way_dtypes`,
    `three_way_transforms`, `three_way_seeds` and `three_way_tolerance`. A test's own arguments win over them, and
    `--three-way-only` wins over both. At its end a session counts what was compared and lists what was not judged.
    """
    from jaxgrad.checking import report as reporting
    from jaxgrad.checking.findings import GradientMismatch, Report
    from jaxgrad.front import check
    from jaxgrad.progress import found_by

    kept = request.config.stash[_session]
    shown = _Shown(request.config)
    wanted = request.config.getoption("--three-way-report") is not None
    own = {"name": request.node.name, "reproduce": functools.partial(_again, request)}
    placed = _annotates(request.config) or bool(request.config.getoption("xmlpath", None))

    def keep(report: "Report") -> None:
        kept.checks.append((request.node.nodeid, [_judgement(finding) for finding in report.findings]))
        if wanted:
            kept.told.append(reporting.check(report, request.node.nodeid))

    @functools.wraps(check)
    def checked(fn: Callable[..., Any], *args: Any, **options: Any) -> "Report":
        given = {**own, "progress": shown, **kept.defaults, **options, **kept.only}
        try:
            report = check(fn, *args, **given)
        except GradientMismatch as error:
            # Where the programs part is looked for only if somebody reads it: mutants fail by the hundred.
            keep(error.report if wanted else error.judged)
            if placed:
                request.node.user_properties.extend(_place(request.config, error.report, fn, args, given))
            raise
        except KeyboardInterrupt as stop:
            if isinstance(found := found_by(stop), Report):
                keep(found)
            raise
        finally:
            shown.clear()
        keep(report)
        return report

    yield checked


class _Shown:
    """How far a check is and how long it will still take, behind the test's name, where a verbose session shows it.

    Nothing where pytest writes to no terminal, and before `SECONDS` have passed.
    """

    SECONDS = 2.0

    def __init__(self, config: pytest.Config) -> None:
        # A worker of pytest-xdist has none.
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        self.capture = config.pluginmanager.get_plugin("capturemanager")
        looked_at = reporter is not None and reporter.isatty and config.get_verbosity() > 0
        self.writer = config.get_terminal_writer() if looked_at else None
        self.began = time.monotonic()
        self.written = False

    def __call__(self, done: int, total: int, note: str) -> None:
        seconds = time.monotonic() - self.began
        if seconds > self.SECONDS and done:
            left = seconds / done * (total - done)
            # The cursor stays where it is, so that pytest writes its word for the outcome over this.
            self._write(f"\x1b7{done}/{total} {note}, {left:.0f} s left\x1b[K\x1b8")

    def clear(self) -> None:
        """Take what was shown away."""
        if self.written:
            self._write("\x1b[K")

    def _write(self, text: str) -> None:
        if self.writer is None or self.capture is None:
            return
        with self.capture.global_and_fixture_disabled():
            self.writer.write(text, flush=True)
        self.written = True


def _place(
    config: pytest.Config, report: "Report", fn: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]
) -> list[tuple[str, str]]:
    """The properties of a failed test: what was said, and the file and line that it blames, where one is known."""
    from jaxgrad.mutation.blame import wrong_line

    said = [("three_way_says", report.message)]
    place = wrong_line(report, fn, *args, **options)
    if place is None:
        return said
    # GitHub knows files by their paths in the repository.
    root = Path(os.environ.get("GITHUB_WORKSPACE") or config.rootpath)
    path = Path(place.file)
    file = path.relative_to(root) if path.is_relative_to(root) else path
    return [*said, ("three_way_file", file.as_posix()), ("three_way_line", str(place.line))]


def _judgement(finding: "Finding") -> Judgement:
    outcome = getattr(finding, "outcome", "agrees" if finding.passed else "differs")
    # One line each, whatever the reason's own form.
    return _text(finding.setting), str(outcome), " ".join(str(getattr(finding, "why", "")).split())


def _defaults(getini: Callable[[str], Any]) -> dict[str, Any]:
    """Arguments of `check` from the ini file; which dtypes and transforms exist is for `check` to say."""
    given = {key: getini(f"three_way_{key}") for key in ("dtypes", "transforms", "seeds")}
    for key, values in given.items():
        if values is not None and not values:
            raise pytest.UsageError(f"three_way_{key} is empty; give at least one of the {key}, or leave the key out")
    defaults: dict[str, Any] = {key: tuple(map(str, values)) for key, values in given.items() if values is not None}
    if "seeds" in defaults:
        defaults["seeds"] = tuple(_seed(text) for text in defaults["seeds"])
    tolerance = getini("three_way_tolerance")
    if tolerance is not None:
        defaults["tolerance"] = _tolerance(tolerance)
    return defaults


def _seed(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise pytest.UsageError(f"three_way_seeds has {text!r}; seeds are whole numbers, such as 0 1") from None


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise pytest.UsageError(f"three_way_tolerance is {text!r}; give one number that is not below 0, such as 1e-6")
    return value


def _only(text: str) -> dict[str, tuple[Any, ...]]:
    try:
        dtype, transform, seed = text.split("/")
        return {"dtypes": (dtype,), "transforms": (transform,), "seeds": (int(seed),)}
    except ValueError:
        raise pytest.UsageError(
            f"--three-way-only is {text!r}; write DTYPE/TRANSFORM/SEED, such as float32/vmap/1"
        ) from None


def _again(request: pytest.FixtureRequest, setting: "Setting") -> str:
    return f"python -m pytest '{request.node.nodeid}' --three-way-only {_text(setting)}"


def _text(setting: "Setting") -> str:
    return "/".join(map(str, setting[:3]))


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workeroutput")


def _to_controller(config: pytest.Config) -> dict[str, Any]:
    """What pytest-xdist sends when a worker ends: an attribute that it adds to the worker's config."""
    return config.workeroutput  # type: ignore[attr-defined]
