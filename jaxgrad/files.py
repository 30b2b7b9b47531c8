"""Whole files or none: what is written appears under its name only when it is complete."""

import contextlib
import errno
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from jaxgrad.errors import JaxgradError


def write_bytes(path: Path, data: bytes) -> None:
    """Write to a temporary file beside `path`, then rename it; folders on the way are made.

    Raises `JaxgradError` naming the path where the disk is full or the folder cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise JaxgradError(
            f"{path}: cannot be written ({error.strerror}); give another path or free some space"
        ) from None


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON; raises `ValueError` for a NaN or an infinity, which JSON does not have."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def check_room(folder: Path, n_bytes: int) -> None:
    """Write `n_bytes` into the folder, which is made, and take them away again.

    For writers that fail less clearly than this: raises `JaxgradError` naming the folder where it cannot be
    written, the disk is full or a quota or limit of the system is in the way.
    """
    piece = bytes(min(n_bytes, 2**20))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            for _ in range(-(-n_bytes // max(len(piece), 1))):
                if file.write(piece) < len(piece):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise JaxgradError(
            f"{folder}: cannot be written ({error.strerror}); free some space or make it writable"
        ) from None
