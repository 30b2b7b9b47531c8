"""What is printed: whole on any terminal, and never a command to it."""

import codecs
import contextlib
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from jaxgrad.errors import JaxgradError, not_installed
from jaxgrad.text import escaped, visible

if TYPE_CHECKING:
    from rich.console import Console

# For streams that take ASCII only; what is not here is written as its escape.
_IN_ASCII = {"·": "|", "…": "...", "µ": "u", "×": "x", "–": "-", "—": "-", "─": "-", "│": "|", "≤": "<=", "±": "+-"}

_OWN_CACHE = "jaxgrad"

# What a command exits with that Ctrl-C stopped, as a shell has it.
INTERRUPTED = 128 + signal.SIGINT


def say(console: "Console", text: str) -> None:
    """Print a line as it is: names of files and words of a corpus are no markup and no commands."""
    console.out(visible(text), highlight=False)


def complain(text: object) -> None:
    """One sentence on stderr; what it quotes may hold ends of lines, and a sentence has none.

    It is one write: a library's thread, such as the one that waits for other processes, writes to the same stream, and
    where Python does not buffer, each part would be a write of its own, with the other's line between.
    """
    sys.stderr.write(f"jaxgrad: {visible(' '.join(str(text).splitlines()))}\n")
    sys.stderr.flush()


def guarded(command: Callable[[], object]) -> int:
    """The exit code of a command. Errors that a person can mend are one sentence on stderr, and 2.

    Those are our own; a library that an extra brings; a platform that JAX does not find; memory that is used up; a
    stdout that takes no more.
    """
    _prepare_streams()
    try:
        with _one_warning_of_the_cache():
            code = _code(command)
        sys.stdout.flush()
        return code
    except JaxgradError as error:
        complain(error)
    except ModuleNotFoundError as error:
        if (lacking := not_installed(error)) is None:
            raise
        complain(lacking)
    except (RuntimeError, MemoryError) as error:
        if (sentence := _of_the_system(error)) is None:
            raise
        complain(sentence)
    except OSError as error:
        if not _stdout_is_broken():
            raise
        # Whoever read it has seen enough, as `head` has: no error, and the code of the signal that others die of.
        if isinstance(error, BrokenPipeError):
            return 128 + signal.SIGPIPE
        complain(f"stdout takes no more ({error.strerror}); what was written to files is whole")
    return 2


def _code(command: Callable[[], object]) -> int:
    """What the command exits with."""
    try:
        command()
    except SystemExit as end:
        if isinstance(end.code, str):
            complain(end.code)
            return 1
        return end.code or 0
    return 0


def _prepare_streams() -> None:
    codecs.register_error("jaxgrad", _replaced)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # A stream that was closed by whoever started this; nobody reads what is printed.
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - open to the end
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="jaxgrad")


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    cut = error.object[error.start : error.end]
    return "".join(_IN_ASCII.get(c) or escaped(c) for c in cut), error.end


def _of_the_system(error: Exception) -> str | None:
    """The sentence for what JAX or Python raise where the machine has not what is needed; None for other errors."""
    first = (str(error).splitlines() or [""])[0][:300]
    if "Unable to initialize backend" in first:
        return f"{first}; set JAX_PLATFORMS to a platform that there is, or leave it out"
    if isinstance(error, MemoryError) or first.startswith("RESOURCE_EXHAUSTED"):
        return f"there is not enough memory ({first or 'MemoryError'}); make the model, batch or corpus smaller"
    return None


def _stdout_is_broken() -> bool:
    """Whether stdout cannot take what was printed; it is then let go, so that Python does not try again at its exit."""
    try:
        sys.stdout.flush()
        # Without a buffer nothing is left to flush: a byte more tells.
        os.write(sys.stdout.fileno(), b"\n")
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        return True
    return False


@contextlib.contextmanager
def _one_warning_of_the_cache() -> Iterator[None]:
    """JAX warns of every program that it cannot read from its cache, at every start: here once, and mended if ours."""
    shown, told = warnings.showwarning, False

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        nonlocal told
        found = re.match(r"Error (reading|writing) persistent compilation cache entry for '(\w+)'", str(message))
        if found is None:
            shown(message, category, filename, lineno, file, line)
            return
        folder = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR", ""))
        # What cannot be read is never written again while it is there; another's folder is left as it is.
        if found[1] == "reading" and folder.parent.name == _OWN_CACHE:
            for path in folder.glob(f"{found[2]}-*-cache"):
                path.unlink(missing_ok=True)
        if not told:
            told = True
            complain(
                f"{folder}: compiled programs cannot be used ({str(message).partition(': ')[2][:120]});"
                " they are compiled again"
            )

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = shown
