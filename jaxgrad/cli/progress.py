"""A bar with the time left, on a terminal, and nothing elsewhere."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


@contextlib.contextmanager
def bar(console: "Console", total: int, unit: str) -> Iterator[Callable[[int, str], None]]:
    """Yields `update(completed, note)`; the note stands beside the bar, and is "compiling" at first."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(unit), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn()
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(unit, total=total, note="compiling")
        yield lambda completed, note: progress.update(task, completed=completed, note=note)
