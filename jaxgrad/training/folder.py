"""A run's folder: who holds it, its config, and its metrics, which only grow while a run goes on."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxgrad.errors import JaxgradError
from jaxgrad.training.config import Config, checked

LOCK = ".lock"
METRICS = "metrics.jsonl"


def claim(folder: Path) -> None:
    """Make a folder for a new run; raises `JaxgradError` where something is in it or it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = {path.name for path in folder.iterdir()} - {LOCK}
    except OSError as error:
        raise JaxgradError(f"{folder}: cannot be a run folder ({error.strerror}); give another --out") from None
    if taken:
        raise JaxgradError(f"{folder}: exists and is not empty; give another --out, or remove it first")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder, which exists, against other processes; the system lets go of it however this one ends.

    Raises `JaxgradError` where another process, which is named, holds it, and where it cannot be written.
    """
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise JaxgradError(f"{folder}: cannot be written ({error.strerror}); make it writable, or copy it") from None
    try:
        _lock(folder, descriptor)
        yield
    finally:
        os.close(descriptor)


def _lock(folder: Path, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "that just started"
        raise JaxgradError(f"{folder}: is in use by process {holder}; wait until it ends, or stop it") from None
    except OSError as error:
        raise JaxgradError(f"{folder}: cannot be locked ({error.strerror}); put the run on another disk") from None
    # The number is for people; on a disk without room for it the lock holds all the same.
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)


def load_config(folder: Path) -> Config:
    """The config of a run folder; raises `JaxgradError` where it is missing or not one that jaxgrad wrote."""
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        fixed = {
            name: tuple((key, value) for key, value in values[name]) for name in ("optimizer_args", "schedule_args")
        }
        return checked(Config(**{**values, **fixed, "vocabulary": tuple(values["vocabulary"])}))
    except OSError as error:
        raise JaxgradError(f"{path}: cannot be read ({error.strerror}); give the folder of a run") from None
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise JaxgradError(f"{path}: is not a config that jaxgrad wrote ({error})") from None


def append_metrics(folder: Path, lines: list[dict[str, Any]]) -> None:
    """Add lines to metrics.jsonl, in one write, or none of them: raises `JaxgradError` where they have no room."""
    data = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines).encode()
    path = folder / METRICS
    try:
        with path.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                if file.write(data) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                file.truncate(before)
                raise
    except OSError as error:
        raise JaxgradError(
            f"{path}: cannot be written ({error.strerror}); free some space, then go on with --resume {folder}"
        ) from None


def metrics_mark(folder: Path) -> tuple[int, str]:
    """Bytes and sha256 of metrics.jsonl, which is on the disk when this returns."""
    with (folder / METRICS).open("ab+") as file:
        os.fsync(file.fileno())
        file.seek(0)
        data = file.read()
    return len(data), hashlib.sha256(data).hexdigest()


def rewind_metrics(folder: Path, n_bytes: int, sha256: str) -> None:
    """Drop the lines after the first `n_bytes`, which a resumed run writes again, the same.

    Raises `JaxgradError` where those before do not have that sha256.
    """
    path = folder / METRICS
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data[:n_bytes]).hexdigest() != sha256:
        raise JaxgradError(f"{path}: is not as the checkpoint knew it; put it back, or train the run again")
    try:
        with path.open("ab") as file:
            file.truncate(n_bytes)
    except OSError as error:
        raise JaxgradError(f"{path}: cannot be written ({error.strerror}); make it writable") from None


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; one that a killed process left without its end is none."""
    text = (folder / METRICS).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
