"""Files are written whole or not at all, and read into typed records: here, and nowhere else."""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import re
import stat
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from jaxgrad import memory
from jaxgrad.errors import JaxgradError

Record = TypeVar("Record")

# No file of ours comes near it; what claims to be larger was not written by us.
LARGEST_JSON = 2**28
BLOCK = 2**20
# What msgspec raises for bytes that are no JSON, or not of the record's types.
_NOT_A_RECORD = (msgspec.MsgspecError, UnicodeError, RecursionError)
# How long a pipe may have no reader, and a file of the system's that makes its bytes up may go on making them.
READER_SECONDS = 10.0
READ_SECONDS = 10.0


def write_bytes(path: Path, data: bytes) -> None:
    """Write to a temporary file beside `path`, then rename it; folders on the way are made.

    A link stays one: what it points to is written. A device, a pipe or an open descriptor (`/dev/stdout`) cannot be
    renamed to and is written through; for the reader of a pipe `READER_SECONDS` are waited.
    Raises `JaxgradError` naming the path where the disk is full or the folder cannot be written.
    """
    try:
        if (descriptor := _named_descriptor(path)) is not None or _is_special(path):
            _write_through(path, descriptor, data)
        else:
            _replace(path.resolve() if path.is_symlink() else path, data)
    # `resolve` calls a loop of links a RuntimeError before Python 3.13; a name with a NUL is a ValueError.
    except (OSError, RuntimeError, ValueError) as error:
        raise unwritable(path, error) from None


def write_text(path: Path, text: str) -> None:
    """`text` in UTF-8; half a surrogate pair, which file names may hold and UTF-8 may not, is written as its escape."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON; raises `ValueError` for a NaN or an infinity, which JSON does not have."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def unwritable(path: Path, error: Exception) -> JaxgradError:
    """The sentence for a file that could not be written."""
    why = getattr(error, "strerror", None) or str(error)
    return JaxgradError(f"{path}: cannot be written ({why}); give another path or free some space")


def is_unfinished(name: str) -> bool:
    """Whether a file of this name is what a killed process was writing."""
    return re.fullmatch(r"\..*\.[0-9]+\.tmp", name) is not None


def check_writable(path: Path) -> None:
    """Raise `JaxgradError` where `write_bytes` could not write to `path`: to be asked before long computations."""
    if _named_descriptor(path) is None and not _is_special(path):
        check_room(path.parent, 1)


def check_room(folder: Path, n_bytes: int) -> None:
    """Write `n_bytes` into the folder, which is made, and take them away again.

    For writers that fail less clearly than this: raises `JaxgradError` naming the folder where it cannot be
    written, the disk is full or a quota or limit of the system is in the way.
    """
    piece = bytes(min(n_bytes, BLOCK))
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


def read_bytes(path: Path, most: int | None = None) -> bytes:
    """The bytes of a regular file, which never waits for more of them.

    Raises `JaxgradError` for a pipe, a device, and more than `most` bytes (without it, more than memory has), and
    `OSError` for a file that is missing or cannot be read.
    """
    most = memory.total() if most is None else most
    # Asked first: to open a device may already do something.
    _check_regular(path, path.stat())
    # Regular by its mode, a log of the kernel's would still wait for its next line; this makes it an error.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123 - a descriptor has no path
        claimed = os.fstat(descriptor)
        _check_regular(path, claimed)
        if claimed.st_size > most:
            raise _too_large(path, claimed.st_size, most)
        blocks, n_bytes, until = [], 0, time.monotonic() + READ_SECONDS
        while block := file.read(BLOCK):
            blocks.append(block)
            n_bytes += len(block)
            if n_bytes > most:
                raise _too_large(path, n_bytes, most)
            if n_bytes > claimed.st_size and time.monotonic() > until:
                raise JaxgradError(f"{path}: does not end; give a file that can be read again")
        # None is what a file without a next byte gives, for now.
        if block is None:
            raise JaxgradError(f"{path}: gives its bytes when it has some, as a pipe does; give a file with an end")
    return b"".join(blocks)


def read_json(path: Path, kind: type[Record], what: str, advice: str) -> Record:
    """A JSON file as a record of this type: a NamedTuple, a dataclass, or any type that msgspec knows.

    Values of another type, keys that the record lacks and missing ones without a default are errors. Raises
    `JaxgradError`: the path, what is wrong and where, `what` the file should be (`"a config"`), and `advice`.
    """
    return read_json_and_sha256(path, kind, what, advice)[0]


def read_json_and_sha256(path: Path, kind: type[Record], what: str, advice: str) -> tuple[Record, str]:
    """What `read_json` returns, and the sha256 of the bytes that it was read from."""
    try:
        data = read_bytes(path, LARGEST_JSON)
        return _record(msgspec.json.decode(data), kind), hashlib.sha256(data).hexdigest()
    except OSError as error:
        raise JaxgradError(f"{path}: cannot be read ({error.strerror}); {advice}") from None
    except _NOT_A_RECORD as error:
        raise JaxgradError(f"{path}: is not {what} that jaxgrad wrote ({str(error)[:200]}); {advice}") from None


def converted(raw: Any, kind: type[Record], path: Path, what: str, advice: str) -> Record:
    """What was read from JSON as a record; raises as `read_json` does."""
    try:
        return _record(raw, kind)
    except _NOT_A_RECORD as error:
        raise JaxgradError(f"{path}: is not {what} that jaxgrad wrote ({str(error)[:200]}); {advice}") from None


def read_json_lines(path: Path, kind: type[Record], what: str, advice: str) -> list[Record]:
    """The whole lines of a file of one JSON record a line; one without its end, as a kill leaves it, is none.

    Raises as `read_json` does, with the number of the line.
    """
    try:
        *lines, _ = read_bytes(path).split(b"\n")
    except OSError as error:
        raise JaxgradError(f"{path}: cannot be read ({error.strerror}); {advice}") from None
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(_record(msgspec.json.decode(line), kind))
        except _NOT_A_RECORD as error:
            raise JaxgradError(
                f"{path}, line {number}: is not {what} that jaxgrad wrote ({str(error)[:200]}); {advice}"
            ) from None
    return records


def sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes, read a block at a time; raises `OSError`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, where its file system can: renames are then kept through a power cut."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _replace(path: Path, data: bytes) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _named_descriptor(path: Path) -> int | None:
    """The open descriptor that a name such as /dev/stdout or /dev/fd/63 stands for; None for other names."""
    numbers = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
    found = re.fullmatch(r"/(?:dev|proc/self)/fd/([0-9]{1,9})", str(path))
    return int(found[1]) if found else numbers.get(str(path))


def _is_special(path: Path) -> bool:
    """Whether something is there that is neither a file nor a folder, and is written through."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _write_through(path: Path, descriptor: int | None, data: bytes) -> None:
    if descriptor is None:
        with open(_opened(path), "wb", buffering=0) as file:
            _write_all(file.fileno(), data)
        return
    # What was printed so far comes first.
    if descriptor == 1:
        sys.stdout.flush()
    _write_all(descriptor, data)


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def _opened(path: Path) -> int:
    """The descriptor of a device or a pipe; one that nobody reads is an error after `READER_SECONDS`."""
    until = time.monotonic() + READER_SECONDS
    while True:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except OSError as error:
            # Said of a pipe without a reader; a plain open would wait for one for ever.
            if error.errno != errno.ENXIO or not path.is_fifo():
                raise
            if time.monotonic() > until:
                raise OSError(errno.ENXIO, "a pipe that nobody reads") from None
            time.sleep(0.05)
        else:
            os.set_blocking(descriptor, True)
            return descriptor


def _check_regular(path: Path, found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(found.st_mode):
        raise JaxgradError(f"{path}: is a pipe or a device; give a file, which can be read again")


def _too_large(path: Path, n_bytes: int, most: int) -> JaxgradError:
    return JaxgradError(
        f"{path}: has {n_bytes / 2**30:,.2f} GiB, and at most {most / 2**30:,.2f} can be read; is it the right file?"
    )


def _record(raw: Any, kind: type[Record]) -> Record:
    names = _names(kind)
    if names is not None:
        if not isinstance(raw, dict):
            raise msgspec.ValidationError("Expected `object`")
        if unknown := sorted(set(raw) - set(names)):
            raise msgspec.ValidationError(f"Object contains unknown field {unknown[0][:80]!r}")
        # msgspec has a NamedTuple as an array; in files it is an object, whose names people can read.
        if issubclass(kind, tuple):
            defaults = getattr(kind, "_field_defaults", {})
            if missing := [name for name in names if name not in {**raw, **defaults}]:
                raise msgspec.ValidationError(f"Object missing required field {missing[0]!r}")
            raw = [raw.get(name, defaults.get(name)) for name in names]
    return msgspec.convert(raw, kind)


def _names(kind: Any) -> tuple[str, ...] | None:
    if dataclasses.is_dataclass(kind):
        return tuple(field.name for field in dataclasses.fields(kind))
    return getattr(kind, "_fields", None)
