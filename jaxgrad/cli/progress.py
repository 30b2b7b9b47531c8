"""A bar with the time left, on a terminal, and nothing elsewhere; and what Ctrl-C leaves."""

import contextlib
import dataclasses
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from jaxgrad.cli.terminal import INTERRUPTED, complain
from jaxgrad.progress import found_by

# What is done sooner needs no bar.
SECONDS = 2.0


@contextlib.contextmanager
def bar(total: int, unit: str, shown: bool = True) -> Iterator[Callable[[int, str], None]]:
    """Yields `update(completed, note)` of a bar on stderr, for what takes longer than `SECONDS`.

    The note stands beside the bar, and is "compiling" at first. One that is not `shown` is never drawn.
    """
    with _bar(total, unit, shown) as update:
        yield lambda completed, note: update(completed, total, note)


@contextlib.contextmanager
def counting_bar(unit: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar for work that knows itself how much it is: yields `update(completed, total, note)`."""
    with _bar(None, unit, True) as update:
        yield update


@contextlib.contextmanager
def _bar(total: int | None, unit: str, shown: bool) -> Iterator[Callable[[int, int | None, str], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not (shown and console.is_interactive):
        yield lambda completed, total, note: None
        return
    columns = (
        TextColumn(unit), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn()
    )  # fmt: skip
    # What is printed meanwhile goes above the bar, unless stdout leads elsewhere: then it must not come here.
    progress = Progress(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty())
    task = progress.add_task(unit, total=total, note="compiling")
    begin = threading.Timer(SECONDS, progress.start)
    begin.daemon = True
    begin.start()
    try:
        yield lambda completed, total, note: progress.update(task, completed=completed, total=total, note=note)
    finally:
        begin.cancel()
        # It may be starting the bar at this moment.
        begin.join()
        progress.stop()


@dataclasses.dataclass
class Stop:
    """Whether Ctrl-C came, and what the work that it stopped had found."""

    came: bool = False
    found: Any = None

    def exit(self, code: int) -> None:
        """End the command: with 130 where it was stopped, as a shell expects, else with its own code."""
        raise SystemExit(INTERRUPTED if self.came else code)


@contextlib.contextmanager
def stoppable() -> Iterator[Stop]:
    """Let Ctrl-C end what is inside, and the command go on to show what was found until then."""
    stop = Stop()
    try:
        yield stop
    except KeyboardInterrupt as error:
        stop.came, stop.found = True, found_by(error)
        complain("stopped by Ctrl-C; what was found until then follows")
