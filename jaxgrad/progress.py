"""Long work tells how far it is, and a Ctrl-C that stops it leaves what it has found."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

# (how many are done, of how many, what comes next).
Progress: TypeAlias = Callable[[int, int, str], None]


def silent(done: int, total: int, note: str) -> None:
    """The progress that nobody looks at."""


@contextlib.contextmanager
def kept(found: Callable[[], Any], told: Callable[[], str]) -> Iterator[None]:
    """Have a `KeyboardInterrupt` from inside carry what was found so far, for `found_by`, and a note that says so.

    It stays the same exception: whoever waits for Ctrl-C still sees one.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.found = found()  # type: ignore[attr-defined]
        stop.add_note(told())
        raise


def found_by(stop: KeyboardInterrupt) -> Any:
    """What was found before a Ctrl-C, such as a `Report` of `check`; None where nothing was."""
    return getattr(stop, "found", None)
