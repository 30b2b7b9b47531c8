"""What the tests of both notebooks read in one: its cells, its exercises, and their answers."""

import re

import nbformat

ANSWER = re.compile(r"<summary>Answer: <code>d(\w+)</code>.*```python\n(.*?)```", re.DOTALL)


def said(cell: nbformat.NotebookNode) -> str:
    """What a code cell shows: what it prints, and its last value as text."""
    shown = (output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs)
    return "".join(shown)


def code(notebook: nbformat.NotebookNode) -> dict[str, nbformat.NotebookNode]:
    return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


def exercises(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if "exercise" in cell.metadata.get("tags", ())]


def answers(notebook: nbformat.NotebookNode) -> dict[str, str]:
    return dict(found.groups() for cell in notebook.cells if (found := ANSWER.search(cell.source)))
