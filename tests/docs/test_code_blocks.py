"""Every code block of README and of the docs is run, or says in its source why it is not, and is then parsed.

A page runs from top to bottom in an empty folder. Its Python blocks share their names; one that follows a line with a
file's name in backquotes and a colon is written to that file. `sh` and `console` blocks go to bash, and what a
`console` block shows after a command is compared with what the command prints, where `…` stands for anything. A comment
before a block, `<!-- not run: why -->` or `<!-- fails: why -->`, makes an exception. Blocks without a language are
pictures or output, and those of YAML are read by tests/test_workflows.py.
"""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from typer.testing import CliRunner

from jaxgrad.cli import app

ROOT = Path(__file__).parents[2]
PAGES = {str(path.relative_to(ROOT)): path for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]}
# Blocks of the first are files of a checkout, and what those of the second say is compared: test_add_an_op.py and
# test_gallery.py.
RUN_ELSEWHERE = {"docs/how-to/add-an-op.md", "docs/gallery.md"}
BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>(?:not run|fails): .+?) -->\n+)?(?:^`(?P<file>[\w./-]+\.\w+)`:\n\n)?"
    r"^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    flags=re.DOTALL | re.MULTILINE,
)


class Block(NamedTuple):
    """A fenced block; `mark` is "not run", "fails" or empty, `file` the name that it is written under."""

    line: int
    mark: str
    file: str
    language: str
    text: str


class Command(NamedTuple):
    """A line for the shell, and what the page shows that it prints; None where it shows nothing."""

    line: str
    shown: str | None


def blocks(page: str) -> list[Block]:
    text = PAGES[page].read_text(encoding="utf-8")
    found = []
    for m in BLOCK.finditer(text):
        mark, _, _ = (m["mark"] or "").partition(":")
        found.append(Block(text.count("\n", 0, m.start("text")), mark, m["file"] or "", m["language"], m["text"]))
    assert 2 * len(found) == len(re.findall(r"^ *```", text, flags=re.MULTILINE)), "a fence is indented or left open"
    return found


def commands(block: Block) -> Iterator[Command]:
    """The commands of a block: those after `$ ` in what a terminal shows, all lines of a script as one."""
    if block.language == "sh":
        yield Command(block.text, None)
        return
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        line, _, shown = part.partition("\n")
        yield Command(line, shown)


def as_pattern(shown: str) -> str:
    lines = shown.splitlines()
    return "".join(r"(?:.*\n)*?" if line == "…" else re.escape(line).replace("…", ".*") + r"\n" for line in lines)


def run_command(command: Command, folder: Path, fails: bool) -> None:
    # What a developer's shell says of corpora, devices and pytest is not the page's, nor how quickly tests compile: a
    # page shows what its reader sees. Where compiled programs are kept changes nothing.
    others = ("JAXGRAD_", "JAX_", "PYTEST_", "XLA_FLAGS")
    cache = ("JAX_COMPILATION_CACHE_", "JAX_PERSISTENT_CACHE_")
    kept = {k: v for k, v in os.environ.items() if k.startswith(cache) or not k.startswith(others)}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-ec", command.line], cwd=folder, env={**kept, "PATH": path}, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert (done.returncode != 0) is fails, f"{command.line}: exit {done.returncode}\n{done.stdout}"
    if command.shown is not None:
        assert re.fullmatch(as_pattern(command.shown), done.stdout), f"{command.line} printed\n{done.stdout}"


def run_block(block: Block, page: str, folder: Path, names: dict) -> None:
    if block.file:
        (folder / block.file).write_text(block.text, encoding="utf-8")
    elif block.language == "python":
        code = compile("\n" * block.line + block.text, page, "exec")
        if block.mark == "fails":
            with pytest.raises(Exception):  # noqa: B017 - which one is for the page to say
                exec(code, names)
        else:
            exec(code, names)
    elif block.language in ("sh", "console"):
        *first, last = commands(block)
        for command in first:
            run_command(command, folder, fails=False)
        run_command(last, folder, fails=block.mark == "fails")


def to_run(page: str) -> list[Block]:
    # README's commands set up, train and test for minutes; what they print is held by tests of their own.
    languages = ("python",) if page == "README.md" else ("python", "sh", "console")
    return [b for b in blocks(page) if b.mark != "not run" and b.language in languages]


@pytest.mark.parametrize("page", [page for page in PAGES if page not in RUN_ELSEWHERE and to_run(page)])
def test_a_page_runs_from_top_to_bottom(page: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "page"}
    for block in to_run(page):
        run_block(block, page, tmp_path, names)


@pytest.mark.parametrize("page", PAGES)
def test_blocks_are_of_kinds_that_are_run_or_are_no_code(page: str):
    assert {b.language for b in blocks(page)} <= {"", "python", "sh", "console", "yaml"}


def mentioned(page: str, program: str) -> set[str]:
    """Every line that begins with a program's name: in blocks, after `$`, and in backquotes in the text."""
    text = PAGES[page].read_text(encoding="utf-8")
    prose = BLOCK.sub("", text)
    lines = [line.removeprefix("$ ") for b in blocks(page) if b.language != "python" for line in b.text.splitlines()]
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    joined = "\n".join([*lines, *spans]).replace("&&", "\n")
    return set(re.findall(rf"^(?:[A-Z_]+=\S+ )*({program} .+?)(?: +#.*)?$", joined, flags=re.MULTILINE))


CALLS = sorted({(page, call.strip()) for page in PAGES for call in mentioned(page, "jaxgrad")})


@pytest.mark.parametrize(("page", "call"), CALLS, ids=[f"{Path(page).stem}: {call}" for page, call in CALLS])
def test_every_option_that_is_shown_exists(page: str, call: str):
    # Asked for help, the command line parses all options first, and fails on one that it does not have.
    _, *words = shlex.split(call)
    done = CliRunner().invoke(app, ["--no-compile-cache", *words, "--help"])
    assert done.exit_code == 0, f"{page}: {call}\n{done.output}"


def leaves(command: Any, path: str) -> set[str]:
    """The commands that a command line has, as they are typed."""
    below = getattr(command, "commands", {})
    return set().union(*(leaves(sub, f"{path} {name}") for name, sub in below.items())) if below else {path}


def test_the_reference_has_every_command():
    shown = mentioned("docs/reference/command-line.md", "jaxgrad")
    for command in leaves(typer.main.get_command(app), "jaxgrad"):
        assert any(f"{call} ".startswith(f"{command} ") for call in shown), command


def test_every_make_target_that_is_shown_exists():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    shown = {word for page in PAGES for call in mentioned(page, "make") for word in call.split()[1:]}
    assert shown and shown <= targets


def test_every_extra_that_is_shown_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    shown = {call for page in PAGES for call in mentioned(page, "pip")}
    named = {extra for call in shown for group in re.findall(r"\[([\w,]+)\]", call) for extra in group.split(",")}
    assert named and named <= set(extras)
