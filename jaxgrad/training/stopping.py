"""Signals that ask a run to stop are heard, and obeyed when it is at a good place; a second one is obeyed at once."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SHOW_CURSOR = b"\x1b[?25h"


@contextlib.contextmanager
def stopping() -> Iterator[Callable[[], int | None]]:
    """A function that returns the number of the first of `SIGNALS` that came while this is open; None before.

    A second signal ends the process at once with exit code 128 + its number, which loses nothing that was saved.
    Handlers are put back on leaving. Only the main thread may enter.
    """
    came: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        if came:
            # A progress bar has hidden it, and will not be asked to clean up.
            if os.isatty(2):
                os.write(2, SHOW_CURSOR)
            os._exit(128 + number)
        came.append(number)
        # Not print: the signal may have come in the middle of one.
        name = signal.Signals(number).name
        os.write(2, f"jaxgrad: {name}: will stop and save after this chunk; a second one stops at once\n".encode())

    before = {number: signal.signal(number, hear) for number in SIGNALS}
    try:
        yield lambda: came[0] if came else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
