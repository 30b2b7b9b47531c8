"""A run's folder: who holds it, its config, and its metrics, which only grow while a run goes on."""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxgrad import files, models
from jaxgrad.errors import JaxgradError
from jaxgrad.training.config import SINCE, Config, checked, flat

LOCK = ".lock"
METRICS = "metrics.jsonl"


def claim(folder: Path) -> None:
    """Make a folder for a new run; raises `JaxgradError` where something is in it or it cannot be made.

    What a process left that was killed before it had written anything whole is nothing.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = [name for path in folder.iterdir() if (name := path.name) != LOCK and not files.is_unfinished(name)]
    except OSError as error:
        raise JaxgradError(f"{folder}: cannot be a run folder ({error.strerror}); give another --out") from None
    if taken:
        raise JaxgradError(f"{folder}: exists and is not empty; give another --out, or remove it first")


class Held(NamedTuple):
    """A run folder that this process holds. `shown` is its name, `at` a path that leads to the folder itself.

    Where the system has /proc, `at` goes through the open descriptor: what is written to it is in the folder that was
    locked, whatever becomes of its name. Elsewhere both are the same, and `check_held` alone keeps runs apart.
    """

    shown: Path
    at: Path
    descriptor: int
    lock: int


class Line(NamedTuple):
    """A line of metrics.jsonl: the mean loss of the steps since the line before, and the rate of the last of them."""

    step: int
    loss: float
    learning_rate: float


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[Held]:
    """Hold a run folder, which exists, against other processes; the system lets go of it however this one ends.

    Raises `JaxgradError` where another process, which is named, holds it, and where it cannot be written. Errors
    from inside name the folder as its user does.
    """
    with contextlib.ExitStack() as descriptors:
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            descriptors.callback(os.close, descriptor)
            lock = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=descriptor)
            descriptors.callback(os.close, lock)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise _no_lock_file(folder) from None
            raise JaxgradError(
                f"{folder}: cannot be written ({error.strerror}); make it writable, or copy it"
            ) from None
        if not stat.S_ISREG(os.fstat(lock).st_mode):
            raise _no_lock_file(folder)
        _lock(folder, lock)
        through = Path(f"/proc/self/fd/{descriptor}")
        held = Held(folder, through if through.is_dir() else folder, descriptor, lock)
        check_held(held)
        try:
            yield held
        except JaxgradError as error:
            raise type(error)(str(error).replace(str(held.at), str(folder))) from None


def check_held(held: Held) -> None:
    """Raise `JaxgradError` where the folder's name leads elsewhere by now, or its lock was taken away.

    To be asked before each write: a run must not go on where its user no longer looks for it.
    """
    if not _is(held.descriptor, held.shown):
        now = _name_now(held)
        raise JaxgradError(
            f"{held.shown}: was moved or replaced while the run went on, which ends here"
            + (f"; what it saved is now {now}: go on with --resume {shlex.quote(now)}" if now else "")
        )
    if not _is(held.lock, held.at / LOCK):
        raise JaxgradError(
            f"{held.shown}: its {LOCK} was removed or replaced while the run went on, which ends here;"
            f" go on with --resume {shlex.quote(str(held.shown))}"
        )


def take_back(held: Held, *names: str) -> None:
    """Remove files of these names, the lock, and the folder if it is then empty: of what was refused nothing stays."""
    for name in (*names, LOCK):
        (held.at / name).unlink(missing_ok=True)
    if _is(held.descriptor, held.shown):
        with contextlib.suppress(OSError):
            held.shown.rmdir()


def _is(descriptor: int, path: Path) -> bool:
    """Whether an open file or folder is what has this name, following links to a folder as its user does."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False


def _name_now(held: Held) -> str | None:
    """What the folder is called by now, where the system tells; None where it is gone."""
    try:
        name = Path(f"/proc/self/fd/{held.descriptor}").readlink()
        return str(name) if os.path.samestat(name.stat(), os.fstat(held.descriptor)) else None
    except OSError:
        return None


def _no_lock_file(folder: Path) -> JaxgradError:
    return JaxgradError(f"{folder / LOCK}: is a link, or no file at all; remove it")


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
    path, advice = folder / "config.json", "give the folder of a run"
    return from_json(files.read_json(path, dict[str, Any], "a config", advice), path, advice)


def from_json(given: dict[str, Any], path: Path, advice: str) -> Config:
    """A config from its values by name, which were read from `path`; raises `JaxgradError` where they are no config."""
    values = {**SINCE, **given}
    kind = models.sizes_of(_model(values["model"], path))
    # Every field has a default, and jaxgrad writes them all: one that is missing has been taken out.
    fields = [field.name for field in dataclasses.fields(Config) if field.name != "sizes"]
    of_sizes = [field.name for field in dataclasses.fields(kind)]
    if missing := [name for name in (*fields, *of_sizes) if name not in values]:
        raise JaxgradError(f"{path}: is not a config that jaxgrad wrote (no {', '.join(missing)}); {advice}")
    # In a file sizes are not apart, so `sizes` is as unknown there as any other name.
    own = {name: values.pop(name) for name in of_sizes}
    values = {("sizes?" if name == "sizes" else name): value for name, value in values.items()}
    try:
        config = files.converted(values, Config, path, "a config", advice)
        return checked(dataclasses.replace(config, sizes=files.converted(own, kind, path, "a config", advice)))
    # A name that optax has and that takes other arguments, of types that JSON does not tell apart.
    except (TypeError, OverflowError) as error:
        raise JaxgradError(f"{path}: is not a config that jaxgrad wrote ({error})") from None


def _model(name: Any, path: Path) -> str:
    try:
        models.sizes_of(name)
    except (JaxgradError, TypeError) as error:
        raise JaxgradError(f"{path}: {error}") from None
    return str(name)


def save_config(folder: Path, config: Config) -> None:
    """Write a run's config.json."""
    files.write_json(folder / "config.json", flat(config))


def extend(folder: Path, config: Config) -> None:
    """Have a run go on to the steps of this config. A kill on the way leaves it unfinished, as it was or as it will be.

    Raises `JaxgradError` where the folder cannot be written.
    """
    for path in (folder / "losses.json", folder / "loss.png"):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise files.unwritable(path, error) from None
    save_config(folder, config)


def append_metrics(folder: Path, lines: list[Line]) -> None:
    """Add lines to metrics.jsonl, in one write, or none of them: raises `JaxgradError` where they have no room."""
    data = "".join(json.dumps(line._asdict(), allow_nan=False) + "\n" for line in lines).encode()
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
    path = folder / METRICS
    try:
        with path.open("ab") as file:
            os.fsync(file.fileno())
            n_bytes = file.tell()
        return n_bytes, files.sha256(path)
    except OSError as error:
        raise files.unwritable(path, error) from None


def check_metrics(folder: Path, n_bytes: int, sha256: str) -> None:
    """Raise `JaxgradError` where the first `n_bytes` of metrics.jsonl do not have that sha256."""
    path = folder / METRICS
    try:
        data = files.read_bytes(path) if os.path.lexists(path) else b""
    except OSError as error:
        raise JaxgradError(f"{path}: cannot be read ({error.strerror}); make it readable") from None
    if hashlib.sha256(data[:n_bytes]).hexdigest() != sha256:
        raise JaxgradError(f"{path}: is not as the checkpoint knew it; put it back, or train the run again")


def rewind_metrics(folder: Path, n_bytes: int) -> None:
    """Drop the lines after the first `n_bytes`, which a resumed run writes again, the same.

    Raises `JaxgradError` where the file cannot be written.
    """
    path = folder / METRICS
    try:
        with path.open("ab") as file:
            file.truncate(n_bytes)
    except OSError as error:
        raise JaxgradError(f"{path}: cannot be written ({error.strerror}); make it writable") from None


def read_metrics(folder: Path) -> list[Line]:
    """The lines of metrics.jsonl; one that a killed process left without its end is none.

    Raises `JaxgradError` for a file that is missing or not as it was written.
    """
    return files.read_json_lines(folder / METRICS, Line, "metrics", "train the run again")
