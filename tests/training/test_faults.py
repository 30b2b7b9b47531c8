"""Full disks, folders that cannot be written, damaged files, a folder in use: a sentence, and nothing is lost."""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxgrad import corpus, files
from jaxgrad.errors import JaxgradError
from jaxgrad.training import checkpoints, run
from jaxgrad.training import folder as folders
from jaxgrad.training.config import Config, config_of
from jaxgrad.training.run import Stopped


@pytest.fixture(scope="module")
def data() -> corpus.Corpus:
    return corpus.load()


@pytest.fixture(scope="module")
def config(data) -> Config:
    return config_of(steps=120, hidden=8, log_every=20, chunk=20, save_every=20, vocabulary=data.vocabulary)


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory, data, config) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    asked = iter([False, False, True])
    with pytest.raises(Stopped):
        run.train(config, data, folder, stop=lambda: next(asked))
    assert [path.name for path in checkpoints.saved(folder)] == ["20", "40", "60"]
    return folder


@pytest.fixture
def stopped(stopped_once, tmp_path) -> Path:
    """A run after 60 of its 120 steps, with checkpoints at 20, 40 and 60."""
    return Path(shutil.copytree(stopped_once, tmp_path / "run"))


def contents(folder: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name != folders.LOCK}


def jaxgrad(*arguments: str | Path) -> subprocess.CompletedProcess:
    # A process of its own, because how fast it ends, and what it says when it does, is part of the promise.
    return subprocess.run(
        [sys.executable, "-m", "jaxgrad", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60
    )


def assert_one_sentence(done: subprocess.CompletedProcess, *parts: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("jaxgrad: ") and done.stderr.count("\n") == 1, done.stderr
    for part in parts:
        assert part in done.stderr


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def alter(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def files_of(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.stat().st_size)


@pytest.mark.parametrize("harm", [cut, alter, Path.unlink], ids=["cut", "altered", "gone"])
def test_the_newest_whole_checkpoint_is_used_and_it_is_said(stopped, data, harm, caplog):
    newest = stopped / "checkpoints" / "60"
    largest = max(files_of(newest), key=lambda path: path.stat().st_size)
    harm(largest)
    harmed = contents(newest)
    run.load(stopped)
    assert f"{newest}: the checkpoint is damaged, so {stopped / 'checkpoints' / '40'} is used" in caplog.text
    losses = run.resume(stopped, data)
    assert caplog.text.count("60: the checkpoint is damaged, so") == 2
    assert contents(stopped / "checkpoints" / "60.damaged") == harmed
    assert run.load(stopped)[0].steps == 120 and checkpoints.saved(stopped)[-1].name == "120"
    assert losses.dev == checkpoints.metadata(stopped / "checkpoints" / "120").dev_loss


def test_no_file_of_a_checkpoint_can_be_altered_unseen(stopped):
    for path in files_of(stopped / "checkpoints" / "60"):
        whole = path.read_bytes()
        alter(path)
        assert not checkpoints.is_valid(stopped / "checkpoints" / "60"), path
        path.write_bytes(whole)
    assert checkpoints.is_valid(stopped / "checkpoints" / "60")


def test_a_damaged_older_checkpoint_stops_nothing_and_decides_nothing(stopped, data, caplog):
    # Its metadata say that it is the best, and are not what was written.
    older = stopped / "checkpoints" / "20"
    metadata = json.loads((older / "notes.json").read_text())
    (older / "notes.json").write_text(json.dumps({**metadata, "dev_loss": 0.1}))
    whole_best = min((20, 40, 60), key=lambda step: losses_of(stopped, step) if step != 20 else 9.0)
    with caplog.at_level("WARNING"):
        assert checkpoints.best(checkpoints.saved(stopped)) == stopped / "checkpoints" / str(whole_best)
        run.load(stopped, best=True)
    assert f"{older}: the checkpoint is damaged, so it is passed over" in caplog.text
    run.resume(stopped, data)
    assert f"{older}: the checkpoint is damaged, and is now 20.damaged" in caplog.text
    assert (stopped / "losses.json").exists() and (stopped / "checkpoints" / "20.damaged").is_dir()


def losses_of(folder: Path, step: int) -> float:
    return json.loads((folder / "checkpoints" / str(step) / "notes.json").read_text())["dev_loss"]


def test_metadata_that_cannot_be_read_of_an_older_checkpoint_stop_nothing(stopped, data):
    (stopped / "checkpoints" / "20" / "notes.json").write_text("{")
    assert run.resume(stopped, data).dev == checkpoints.metadata(stopped / "checkpoints" / "120").dev_loss


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "file", "link in place of a file", "link to it all"])
def test_what_is_added_to_a_checkpoint_is_seen(stopped, data, kind: str):
    newest = stopped / "checkpoints" / "60"
    match kind:
        case "link":
            (newest / "arrays" / "more").symlink_to(newest / "notes.json")
        case "pipe":
            os.mkfifo(newest / "more")
        case "folder":
            (newest / "arrays" / "more").mkdir()
        case "file":
            (newest / "more").touch()
        case "link in place of a file":
            (newest / "notes.json").rename(stopped / "notes.json")
            (newest / "notes.json").symlink_to(stopped / "notes.json")
        case _:
            newest.rename(stopped / "elsewhere")
            newest.symlink_to(stopped / "elsewhere")
    assert not checkpoints.is_valid(newest)
    run.resume(stopped, data)
    assert os.path.lexists(stopped / "checkpoints" / "60.damaged") and run.load(stopped)[0].steps == 120


def test_the_checksums_are_those_that_sha256sum_reads(stopped):
    newest = stopped / "checkpoints" / "60"
    done = subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "sha256"], cwd=newest, check=False)
    assert done.returncode == 0


def test_one_byte_altered_in_any_file_of_a_run_is_never_taken_for_the_runs(stopped, data, caplog):
    run.resume(stopped, data)
    losses, whole = (
        run.resume(stopped, data),
        {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()},
    )
    _, params, statistics = run.load(stopped)
    for path, text in whole.items():
        if path.name in (folders.LOCK, "loss.png") or not text:
            continue
        for place in range(0, len(text), max(1, len(text) // (25 if path.suffix == ".json" else 2))):
            altered = bytearray(text)
            altered[place] ^= 1
            path.write_bytes(altered)
            caplog.clear()
            with contextlib.suppress(JaxgradError):
                assert run.resume(stopped, data) == losses, (path, place)
                _, *read = run.load(stopped)
                same = all(map(np.array_equal, jax.tree.leaves(read), jax.tree.leaves((params, statistics))))
                assert same or "is damaged" in caplog.text, (path, place)
        path.write_bytes(text)


@pytest.mark.parametrize(
    ("before", "after"), [('"seed": 0', '"seed": 1'), ('"learning_rate": 0.1', '"learning_rate": 0.2')]
)
def test_a_config_that_the_run_was_not_trained_with_is_refused_by_name(stopped, data, before: str, after: str):
    path = stopped / "config.json"
    path.write_text(path.read_text().replace(before, after))
    all_before = contents(stopped)
    name, value = after.strip('"').split('": ')
    for read in (lambda: run.resume(stopped, data), lambda: run.load(stopped)):
        with pytest.raises(
            JaxgradError, match=rf"config.json: is not what the run was trained with: {name} is {value}"
        ):
            read()
    assert contents(stopped) == all_before


def test_checkpoints_that_are_all_damaged_are_refused_and_left_as_they_are(stopped, data, config, tmp_path):
    for checkpoint in checkpoints.saved(stopped):
        cut(checkpoint / "notes.json")
    before = contents(stopped)
    with pytest.raises(JaxgradError, match="all checkpoints are damaged: steps 60, 40, 20; put one back") as caught:
        run.resume(stopped, data)
    assert contents(stopped) == before
    # What the sentence says to do does what it says.
    remove, again = str(caught.value).rpartition("to the same end: ")[2].split(" && ")
    assert again == f"jaxgrad train --resume {stopped}"
    subprocess.run(remove, shell=True, check=True)
    assert run.resume(stopped, data) == run.train(config, data, tmp_path / "undisturbed")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('"hidden": 8', '"hidden": 9', r"of another model: it and the config differ in state\.params\.W1 \(30, [89]\)"),
        ('"optimizer": "sgd"', '"optimizer": "adam"', r"of another model: .* differ in state\.opt_state"),
        ('"context": 3', '"context": 4', r"train\.X has the shape \(\d+, 3\); the config needs \(\d+, 4\)"),
        ('"steps": 120', '"steps": 0', "steps is 0; it must be a whole number of at least 1"),
        ('"steps": 120', '"steps"', "is not a config that jaxgrad wrote"),
    ],
)
def test_a_config_of_another_model_is_refused_and_nothing_is_touched(stopped, data, before, after, message):
    path = stopped / "config.json"
    path.write_text(path.read_text().replace(before, after))
    all_before = contents(stopped)
    with pytest.raises(JaxgradError, match=message):
        run.resume(stopped, data)
    assert contents(stopped) == all_before


def test_another_corpus_is_refused_and_nothing_is_touched(stopped, data):
    other = data._replace(train=data.train._replace(Y=data.train.Y[::-1]))
    before = contents(stopped)
    with pytest.raises(JaxgradError, match="was trained on another corpus; give that one with --corpus"):
        run.resume(stopped, other)
    assert contents(stopped) == before


@pytest.mark.parametrize("text", ["", '{"step": 20, "loss": 1.0, "learning_rate": 0.1}\n'])
def test_metrics_that_were_altered_are_refused_and_left_as_they_are(stopped, data, text):
    (stopped / "metrics.jsonl").write_text(text)
    with pytest.raises(JaxgradError, match=r"metrics\.jsonl: is not as the checkpoint knew it"):
        run.resume(stopped, data)
    assert (stopped / "metrics.jsonl").read_text() == text


def test_a_folder_in_use_names_the_process_and_is_left_alone(stopped, data, config):
    before = contents(stopped)
    with folders.locked(stopped):
        with pytest.raises(JaxgradError, match=f"run: is in use by process {os.getpid()}; wait until it ends"):
            run.resume(stopped, data)
        with pytest.raises(JaxgradError, match="exists and is not empty"):
            run.train(config, data, stopped)
    assert contents(stopped) == before


def test_of_two_runs_that_begin_in_one_folder_one_is_refused(tmp_path, data, config):
    at_once = threading.Barrier(2)
    ends: list[str] = []

    def begin() -> None:
        at_once.wait()
        with contextlib.suppress(JaxgradError):
            run.train(config, data, tmp_path / "run")
            ends.append("trained")

    both = [threading.Thread(target=begin) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert ends == ["trained"] and run.load(tmp_path / "run")[0] == config


def test_the_lock_of_a_process_that_is_gone_holds_nobody(stopped, data):
    (stopped / folders.LOCK).write_text("1\n")
    run.resume(stopped, data)


@pytest.mark.parametrize("replaced", [False, True], ids=["moved", "and another began"])
def test_a_run_whose_folder_is_moved_stops_and_writes_to_no_other(tmp_path, data, config, replaced: bool):
    folder, asked = tmp_path / "run", iter(range(100))
    others: dict[str, bytes] = {}

    def move_after_two_chunks() -> bool:
        if next(asked) == 1:
            folder.rename(tmp_path / "moved")
            if replaced:
                run.train(dataclasses.replace(config, seed=1), data, folder)
                others.update(contents(folder))
        return False

    with pytest.raises(JaxgradError) as caught:
        run.train(config, data, folder, stop=move_after_two_chunks)
    moved = tmp_path / "moved"
    assert f"{folder}: was moved or replaced while the run went on" in str(caught.value)
    assert f"what it saved is now {moved}: go on with --resume {moved}" in str(caught.value)
    assert "/proc/" not in str(caught.value)
    assert (contents(folder) == others) if replaced else not folder.exists()
    if replaced:
        return
    run.resume(moved, data)
    run.train(config, data, tmp_path / "undisturbed")
    for name in ("metrics.jsonl", "losses.json"):
        assert (moved / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()


def test_a_lock_that_is_taken_away_stops_the_run(stopped, data):
    def take_away() -> bool:
        (stopped / folders.LOCK).unlink()
        return False

    with pytest.raises(JaxgradError, match=r"its .lock was removed or replaced while the run went on"):
        run.resume(stopped, data, stop=take_away)


def test_a_lock_that_is_a_link_or_a_pipe_is_refused_and_its_target_left_alone(stopped, data, tmp_path):
    (tmp_path / "victim").write_text("precious")
    (stopped / folders.LOCK).unlink()
    (stopped / folders.LOCK).symlink_to(tmp_path / "victim")
    with pytest.raises(JaxgradError, match=r"\.lock: is a link, or no file at all; remove it"):
        run.resume(stopped, data)
    assert (tmp_path / "victim").read_text() == "precious"
    (stopped / folders.LOCK).unlink()
    os.mkfifo(stopped / folders.LOCK)
    with pytest.raises(JaxgradError, match=r"\.lock: is a link, or no file at all; remove it"):
        run.resume(stopped, data)


def test_a_file_system_without_locks_is_a_sentence(stopped, data, monkeypatch):
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    before = contents(stopped)
    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(
        JaxgradError, match=r"run: cannot be locked \(No locks available\); put the run on another disk"
    ):
        run.resume(stopped, data)
    assert contents(stopped) == before


def test_a_clock_that_was_set_back_changes_nothing(stopped, data):
    # The newest checkpoint is the one of the most steps, whatever the times of files say.
    for age, path in enumerate(checkpoints.saved(stopped)):
        os.utime(path, (1e9 - age, 1e9 - age))
    assert run._latest(stopped, checkpoints.saved(stopped)).name == "60"


def test_a_disk_that_fills_up_while_training_stops_the_run_and_keeps_what_was_saved(stopped, data, monkeypatch):
    saves, room = [], files.check_room

    def fills_up(folder: Path, n_bytes: int) -> None:
        saves.append(folder)
        if len(saves) == 2:
            raise JaxgradError(f"{folder}: cannot be written (No space left on device)")
        room(folder, n_bytes)

    monkeypatch.setattr(files, "check_room", fills_up)
    with pytest.raises(JaxgradError, match="No space left on device"):
        run.resume(stopped, data)
    assert checkpoints.saved(stopped)[-1].name == "80"
    run.resume(stopped, data)
    assert len(folders.read_metrics(stopped)) == 6


def test_a_metrics_line_that_has_no_room_is_absent_as_a_whole(tmp_path, monkeypatch):
    line = folders.Line(1, 2.5, 0.1)
    folders.append_metrics(tmp_path, [line])
    text = (tmp_path / "metrics.jsonl").read_text()
    # A disk with room for some bytes of what is written next: Linux then writes these and says how many.
    code = (
        "import resource, sys; from pathlib import Path; from jaxgrad.training.folder import Line, append_metrics;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (70, 70));"
        "append_metrics(Path(sys.argv[1]), [Line(2, 2.5, 0.1)] * 5)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "metrics.jsonl: cannot be written" in done.stderr and "go on with --resume" in done.stderr
    assert folders.read_metrics(tmp_path) == [line] and (tmp_path / "metrics.jsonl").read_text() == text


@pytest.fixture
def small_disk(tmp_path: Path):
    """A disk of 400 KiB, where mounting one is allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here: this takes root's rights")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_real_disk_that_is_full_is_a_sentence_and_loses_nothing(small_disk, data, config):
    folder = small_disk / "run"
    done = jaxgrad("train", "--steps", 400, "--hidden", 8, "--chunk", 20, "--save-every", 20, "--log-every", 20,
                   "--keep", 20, "--out", folder)  # fmt: skip
    assert_one_sentence(done, "No space left on device")
    kept = checkpoints.saved(folder)
    assert kept and all(checkpoints.is_valid(path) for path in kept)
    assert len(folders.read_metrics(folder)) >= int(kept[-1].name) // 20
    for path in kept[:-1]:
        shutil.rmtree(path)
    # With room again the run goes on from what was kept, if it need not keep as many.
    (folder / "config.json").write_text((folder / "config.json").read_text().replace('"keep": 20', '"keep": 1'))
    again = jaxgrad("train", "--resume", folder)
    assert again.returncode == 0 and len(folders.read_metrics(folder)) == 20, again.stderr


def test_an_arrays_file_that_cannot_be_written_after_all_is_a_sentence_and_ends_at_once(tmp_path):
    # The look for room was passed, and then the disk was full: what Orbax makes of it, in the background.
    code = """
import resource, sys
from pathlib import Path
import jax, jax.numpy as jnp
from jaxgrad import files
from jaxgrad.errors import JaxgradError
from jaxgrad.training import checkpoints
files.check_room = lambda folder, n_bytes: folder.mkdir(parents=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
arrays = checkpoints.Checkpoint(jax.random.normal(jax.random.key(0), (500, 100)), jnp.zeros(2), jnp.zeros(2))
try:
    checkpoints.begin(Path(sys.argv[1]) / "5", arrays, checkpoints.Metadata(None, (), 0, "", "", {}))()
except JaxgradError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert "5: the checkpoint cannot be written" in done.stdout, done.stderr
    assert not checkpoints.saved(tmp_path)


@pytest.mark.parametrize("folder", ["/proc/jaxgrad", "/proc/1"])
def test_a_folder_that_cannot_be_written_is_a_sentence_and_ends_at_once(folder: str):
    # /proc takes no new files from anybody, root included, whom the modes of ordinary folders do not keep out.
    if not Path("/proc/1").is_dir():
        pytest.skip("this system has no /proc")
    assert_one_sentence(jaxgrad("train", "--steps", 20, "--hidden", 4, "--out", folder), folder)


@pytest.fixture
def read_only(stopped: Path):
    """The stopped run on a disk that is mounted so that nothing can be written, where mounting is allowed."""
    if subprocess.run(["mount", "--bind", str(stopped), str(stopped)], capture_output=True, check=False).returncode:
        pytest.skip("a folder cannot be mounted read-only here: this takes root's rights")
    subprocess.run(["mount", "-o", "remount,bind,ro", str(stopped)], check=True)
    yield stopped
    subprocess.run(["umount", str(stopped)], check=True)


def test_a_read_only_run_can_be_looked_at_but_not_resumed(read_only, data):
    before = contents(read_only)
    config, _, _ = run.load(read_only)
    assert config.steps == 120
    with pytest.raises(JaxgradError, match="run: cannot be written \\(Read-only file system\\); make it writable"):
        run.resume(read_only, data)
    assert contents(read_only) == before


READ_ONLY = """
import os, sys
from pathlib import Path
from jaxgrad import corpus
from jaxgrad.errors import JaxgradError
from jaxgrad.training import run

folder, data = Path(sys.argv[1]), corpus.load()
# Everything that is imported on the way, while this process may read it.
config, _, _ = run.load(folder)
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
print(run.load(folder)[0].steps)
for write in (lambda: run.resume(folder, data), lambda: run.train(config, data, folder / "new")):
    try:
        write()
    except JaxgradError as error:
        print(error)
"""


def test_a_user_who_may_only_read_a_run_can_look_at_it_and_is_told_why_no_more(stopped):
    # Modes keep out everybody but root, so root becomes another user; pytest's own folders let no other in.
    with tempfile.TemporaryDirectory() as parent:
        Path(parent).chmod(0o755)
        folder = Path(shutil.copytree(stopped, Path(parent) / "run"))
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        before = contents(folder)
        done = subprocess.run(
            [sys.executable, "-c", READ_ONLY, str(folder)], capture_output=True, text=True, check=False, timeout=60
        )
        assert contents(folder) == before
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755)
    assert done.stdout.splitlines() == [
        "120",
        f"{folder}: cannot be written (Permission denied); make it writable, or copy it",
        f"{folder / 'new'}: cannot be a run folder (Permission denied); give another --out",
    ], done.stderr


def test_resume_takes_no_other_flags_and_only_a_run(tmp_path):
    assert_one_sentence(jaxgrad("train", "--resume", tmp_path), "config.json: cannot be read")
    done = jaxgrad("train", "--resume", tmp_path, "--lr", 0.1, "--batch-size", 8, "--out", tmp_path)
    assert_one_sentence(done, f"takes everything from {tmp_path}/config.json; leave out --batch-size, --lr, --out")
