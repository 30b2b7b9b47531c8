"""The transformer's notebook runs with its own answers, all that it checks is right, and it is kept as it was run."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from .notebooks import answers, code, exercises, said

PATH = Path(__file__).parents[2] / "docs/gpt_by_hand.ipynb"
OPEN = "write your answer first, in place of the dots."


@pytest.fixture
def kept() -> nbformat.NotebookNode:
    return nbformat.read(PATH, as_version=4)


def test_it_is_kept_with_the_outputs_of_one_run_and_in_one_way(kept):
    nbformat.validate(kept)
    ran = code(kept)
    assert [cell.execution_count for cell in ran.values()] == list(range(1, len(ran) + 1))
    assert not any(output.output_type == "error" for cell in ran.values() for output in cell.outputs)
    assert PATH.read_text(encoding="utf-8") == nbformat.writes(kept) + "\n"
    # Another machine's paths and warnings are no output.
    assert not any(output.get("name") == "stderr" for cell in ran.values() for output in cell.outputs)


def test_left_open_every_exercise_asks_for_its_answer_which_is_folded_away(kept):
    asked = [cell.id.removeprefix("exercise-").replace("-", "_") for cell in exercises(kept)]
    assert asked == list(answers(kept)) and len(asked) >= 9
    assert [cell.id for cell in exercises(kept) if not said(cell).endswith(OPEN)] == []


def test_with_its_answers_all_is_right_and_it_trains(kept):
    for cell, answer in zip(exercises(kept), answers(kept).values(), strict=True):
        cell.source = f"{answer}{cell.source.splitlines()[-1]}"
    NotebookClient(kept, timeout=300, kernel_name="python3").execute()
    ran = code(kept)
    checked = {name: cell for name, cell in ran.items() if "check(" in cell.source and name != "parameters"}
    assert len(checked) == 15
    for name, cell in checked.items():
        assert said(cell).count(": right, ") == cell.source.count("check("), (name, said(cell))
    assert "16 of 16 parameters are right" in said(ran["parameters"])
    keys, queries = (float(line.split()[-1]) for line in said(ran["key-bias"]).splitlines())
    assert keys < 1e-15 < 1e-3 < queries
    guessing, first, last = map(float, re.findall(r"\d\.\d{3}", said(ran["training"])))
    assert abs(first - guessing) < 0.1 and last < 2.6
    assert len(said(ran["sampling"]).split()) >= 11
    pictures = [
        name
        for name, cell in ran.items()
        for o in cell.outputs
        if {"image/png", "image/svg+xml"} & {*o.get("data", ())}
    ]
    assert pictures == ["shapes-ln", "shapes-v", "picture-attention", "training-curve"]
