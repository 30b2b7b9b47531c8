"""The notebook runs from top to bottom, as given and with its own answers, and all that it checks is right."""

import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from jaxgrad.models.mlp.forward import Nodes, Params

from .notebooks import answers, code, exercises, said

PATH = Path(__file__).parents[2] / "docs/backprop_by_hand.ipynb"
NAMES = (*Nodes._fields, *Params._fields)


def given() -> nbformat.NotebookNode:
    return nbformat.read(PATH, as_version=4)


def executed(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    NotebookClient(notebook, timeout=180, kernel_name="python3").execute()
    return notebook


def test_it_is_stored_without_outputs_and_in_one_way():
    notebook = given()
    nbformat.validate(notebook)
    assert all((cell.outputs, cell.execution_count) == ([], None) for cell in code(notebook).values())
    assert PATH.read_text(encoding="utf-8") == nbformat.writes(notebook) + "\n"
    assert not any(re.fullmatch(r"[0-9a-f]{8}", cell.id) for cell in notebook.cells)


def test_every_exercise_has_its_answer_folded_away():
    notebook = given()
    asked = [cell.id.removeprefix("exercise-").replace("-", "_").lower() for cell in exercises(notebook)]
    assert asked == [name.lower() for name in answers(notebook)]
    assert len(asked) >= 10


def test_run_as_given_it_says_what_it_should():
    # One test, so that parallel processes do not each run the notebook.
    ran = code(executed(given()))
    all_26_derivatives_agree_with_both_oracles(ran)
    an_exercise_left_open_asks_for_an_answer(ran)
    every_derivative_has_its_picture(ran)
    the_readers_own_gradients_train(ran)
    zeros_hide_what_is_said_of_them(ran)


def all_26_derivatives_agree_with_both_oracles(ran: dict[str, nbformat.NotebookNode]) -> None:
    lines = "\n".join(map(said, ran.values())).splitlines()
    for name in NAMES:
        for oracle in ("jax.grad", "torch"):
            compared = [line for line in lines if re.match(rf"{name} +\| {re.escape(oracle)} +\|", line)]
            assert compared and all("approx: True" in line for line in compared), (name, oracle)
    assert "ours 3.5586 · torch 3.5586" in lines


def an_exercise_left_open_asks_for_an_answer(ran: dict[str, nbformat.NotebookNode]) -> None:
    for cell in exercises(given()):
        assert said(ran[cell.id]).endswith("write your answer first, in place of the dots.")


def every_derivative_has_its_picture(ran: dict[str, nbformat.NotebookNode]) -> None:
    drawn = [id for id, cell in ran.items() if any("image/svg+xml" in o.get("data", {}) for o in cell.outputs)]
    assert len(drawn) >= len(NAMES) - 1


def the_readers_own_gradients_train(ran: dict[str, nbformat.NotebookNode]) -> None:
    assert said(ran["training-gradients"]).count(": right, ") == len(Params._fields)
    losses = dict(line.split() for line in said(ran["evaluation"]).splitlines())
    assert float(losses["train"]) < float(losses["dev"]) < 2.3 < float(losses["guessing"])
    assert len(said(ran["sampling"]).split()) >= 19


def zeros_hide_what_is_said_of_them(ran: dict[str, nbformat.NotebookNode]) -> None:
    usual, zeros = (line.rpartition(": ")[2] for line in said(ran["hidden-one"]).splitlines())
    assert float(usual) > 1e-4 and float(zeros) == 0
    noticed, hidden = re.search(r"zeros and ones +\d+ of (\d+): (\d+) are hidden", said(ran["hidden-score"])).groups()
    assert int(hidden) > int(noticed) / 2


def test_the_answers_are_right_and_so_is_what_follows_from_them():
    notebook = given()
    solutions, asked = answers(notebook), [cell.id for cell in exercises(notebook)]
    for cell, answer in zip(exercises(notebook), solutions.values(), strict=True):
        cell.source = f"{answer}{cell.source.splitlines()[-1]}"
    ids = [cell.id for cell in notebook.cells]
    notebook.cells = notebook.cells[: ids.index("text-training")]
    ran = code(executed(notebook))
    assert [id for id in asked if ": right, " not in said(ran[id])] == []
    assert "approx: False" not in "".join(map(said, ran.values()))
