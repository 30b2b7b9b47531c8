"""Whole files or none: what is written appears under its name only when it is complete."""

import contextlib
import json
import os
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
