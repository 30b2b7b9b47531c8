"""Help is a screen: what a command does, an example, and every flag with its range, at 80 columns."""

import re
import sys

import pytest
import typer

from jaxgrad import cli


def commands(app: typer.Typer, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The words of every command below an application."""
    own = [(*path, c.name or c.callback.__name__.replace("_", "-")) for c in app.registered_commands if c.callback]
    groups = [c for g in app.registered_groups for c in commands(g.typer_instance, (*path, g.name))]
    return own + groups


ALL = sorted(commands(cli.app))


def shown(monkeypatch, capsys, *args: str) -> str:
    monkeypatch.setattr(sys, "argv", ["jaxgrad", *args])
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert not caught.value.code
    return capsys.readouterr().out


def test_all_commands_are_known():
    assert {("parity",), ("mutate",), ("train",), ("eval",), ("sample",), ("sweep",), ("corpus", "fetch")} <= set(ALL)


@pytest.mark.parametrize("command", [*ALL, ("bench",)], ids=" ".join)
def test_help_fits_a_screen_and_has_an_example(monkeypatch, capsys, command: tuple[str, ...]):
    text = shown(monkeypatch, capsys, *command, "--help")
    lines = text.splitlines()
    assert len(lines) <= 48 and max(map(len, lines)) <= 80
    assert re.search(rf"^  Example: jaxgrad {' '.join(command)}", text, flags=re.MULTILINE)


def test_alone_it_shows_where_to_begin(monkeypatch, capsys):
    text = shown(monkeypatch, capsys)
    assert [line.split()[1] for line in text.splitlines() if line.startswith("  jaxgrad")] == [
        "parity",
        "train",
        "sample",
    ]
    assert max(map(len, text.splitlines())) <= 80


def test_nothing_is_coloured_where_nobody_looks(monkeypatch, capsys):
    assert "\x1b[" not in shown(monkeypatch, capsys, "corpus", "show")
