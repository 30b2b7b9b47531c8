"""Two runs: what is slower beyond the spread is flagged."""

import copy
import json
import sys
from pathlib import Path

import pytest

from jaxgrad import cli
from jaxgrad.bench import compare
from jaxgrad.errors import JaxgradError


def run_of(**seconds: tuple[float, float, float]) -> dict:
    peers = [
        {"name": name, "reason": None, "seconds_per_step": dict(zip(("low", "median", "high"), s, strict=True))}
        for name, s in seconds.items()
    ]
    sizes = [{"name": "own", "batch": 8, "hidden": 16, "peers": peers}]
    return {"schema": "jaxgrad.bench/1", "environment": {"cpu": "A", "jax": "1", "date": "then"}, "sizes": sizes}


BEFORE = run_of(slower=(1.0, 2.0, 3.0), faster=(1.0, 2.0, 3.0), same=(1.0, 2.0, 3.0), gone=(1.0, 2.0, 3.0))
AFTER = run_of(slower=(3.1, 3.2, 3.3), faster=(0.7, 0.8, 0.9), same=(2.9, 3.9, 4.9), new=(1.0, 1.0, 1.0))


def test_quartiles_that_lie_apart_are_a_change_and_others_none():
    found = {c.peer: c for c in compare.changes(BEFORE, AFTER)}
    assert {name: c.verdict for name, c in found.items()} == {
        "slower": "regression", "faster": "faster", "same": "same",
    }  # fmt: skip
    assert found["slower"].ratio == pytest.approx(1.6)


def test_what_was_not_timed_is_not_compared():
    untimed = copy.deepcopy(AFTER)
    untimed["sizes"][0]["peers"][0] = {"name": "slower", "reason": "wrong"}
    assert "slower" not in {c.peer for c in compare.changes(BEFORE, untimed)}


def test_runs_of_other_sizes_cannot_be_compared():
    other = copy.deepcopy(AFTER)
    other["sizes"][0]["hidden"] = 17
    with pytest.raises(JaxgradError, match="no competitor at one size in common"):
        compare.changes(BEFORE, other)


def test_differences_name_the_machine_first_and_leave_the_date_out():
    other = {**AFTER, "environment": {"cpu": "B", "jax": "2", "date": "now"}}
    assert compare.differences(BEFORE, other) == ["cpu: A before, B after", "jax: 1 before, 2 after"]


def command(monkeypatch, *args: Path) -> int:
    monkeypatch.setattr(sys, "argv", ["jaxgrad", "bench", "--compare", *map(str, args)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


def test_the_command_exits_1_on_a_regression(monkeypatch, capsys, tmp_path: Path):
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    before.write_text(json.dumps(BEFORE))
    after.write_text(json.dumps(AFTER))
    assert command(monkeypatch, before, after) == 1
    out = capsys.readouterr().out
    assert "regression" in out and "1 of 3 are slower beyond the spread" in out
    assert command(monkeypatch, before, before) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a benchmark that jaxgrad wrote"),
        ('{"schema": "x"}', "has the schema 'x'"),
        ("[]", "is not a benchmark"),
    ],
)
def test_another_file_is_an_error_that_names_it(tmp_path: Path, text: str, message: str):
    file = tmp_path / "other.json"
    file.write_text(text)
    with pytest.raises(JaxgradError, match=rf"other.json: .*{message}"):
        compare.load(file)
