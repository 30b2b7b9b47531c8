"""Files are written whole or not at all."""

import errno
import json
import os
import stat
import threading
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from jaxgrad import files
from jaxgrad.errors import JaxgradError


def test_a_file_appears_whole_and_its_folders_are_made(tmp_path: Path):
    files.write_json(tmp_path / "a" / "b.json", {"x": [1, 2]})
    assert (tmp_path / "a" / "b.json").read_text() == '{\n "x": [\n  1,\n  2\n ]\n}\n'
    assert list((tmp_path / "a").iterdir()) == [tmp_path / "a" / "b.json"]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(JaxgradError, match=r"a\.txt: cannot be written \(No space left on device\)"):
        files.write_bytes(path, b"new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_a_file_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(JaxgradError, match="file/a: cannot be written"):
        files.write_bytes(tmp_path / "file" / "a", b"")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"] and (tmp_path / "file").read_bytes() == b""


def test_json_has_no_nan(tmp_path: Path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "a.json", float("nan"))
    assert not list(tmp_path.iterdir())


def test_a_link_stays_one_and_its_target_is_written(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder/target")
    for text in (b"old", b"new"):
        files.write_bytes(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "folder" / "target").read_bytes() == text
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["target"]


def test_a_loop_of_links_is_a_sentence(tmp_path: Path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(JaxgradError, match="a: cannot be written"):
        files.write_bytes(tmp_path / "a", b"")


def test_a_pipe_is_written_through_to_its_reader(tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    # More than a pipe holds at once, and a reader that comes late.
    value, read = list(range(100_000)), []

    def reader() -> None:
        time.sleep(0.2)
        read.append(pipe.read_bytes())

    thread = threading.Thread(target=reader)
    thread.start()
    files.write_json(pipe, value)
    thread.join()
    assert json.loads(read[0]) == value and stat.S_ISFIFO(pipe.lstat().st_mode)


def test_a_pipe_that_nobody_reads_is_a_sentence_and_stays_one(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(files, "READER_SECONDS", 0.1)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(JaxgradError, match=r"pipe: cannot be written \(a pipe that nobody reads\)"):
        files.write_bytes(tmp_path / "pipe", b"new")
    assert stat.S_ISFIFO((tmp_path / "pipe").lstat().st_mode)


def test_a_device_is_written_through(tmp_path: Path):
    # The system's own would be replaced if this failed: links to them are as good.
    for name in ("null", "full"):
        (tmp_path / name).symlink_to(f"/dev/{name}")
    files.write_bytes(tmp_path / "null", b"new")
    files.check_writable(tmp_path / "null")
    with pytest.raises(JaxgradError, match=r"full: cannot be written \(No space left on device\)"):
        files.write_bytes(tmp_path / "full", b"new")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode) and (tmp_path / "full").is_symlink()


def test_an_open_descriptor_is_written_where_it_stands(tmp_path: Path):
    # As `--json /dev/stdout > file` is: the file must neither be replaced nor begun anew.
    with (tmp_path / "file").open("wb", buffering=0) as file:
        file.write(b"before ")
        files.write_bytes(Path(f"/dev/fd/{file.fileno()}"), b"and after")
    assert (tmp_path / "file").read_bytes() == b"before and after"


def test_text_with_half_a_surrogate_pair_is_written_as_its_escape(tmp_path: Path):
    files.write_text(tmp_path / "page", "run \udcff, zoë")
    assert (tmp_path / "page").read_text(encoding="utf-8") == "run \\udcff, zoë"


class Pair(NamedTuple):
    name: str
    size: float = 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[" * 100_000, "recursion"),
        (b'{"name": 1}', "Expected `str`, got `int`"),
        (b'{"name": "a", "size": "1"}', "Expected `float`, got `str`"),
        (b'{"name": "a", "more": 1}', "unknown field 'more'"),
        (b'{"size": 1}', "missing required field 'name'"),
        (b'["a", 1]', "Expected `object`"),
        (b'{"name": "\xff"}', "."),
        (b"", "truncated"),
    ],
)
def test_what_is_no_record_is_a_sentence(tmp_path: Path, text: bytes, message: str):
    (tmp_path / "pair.json").write_bytes(text)
    with pytest.raises(JaxgradError, match=rf"pair.json: is not a pair that jaxgrad wrote \(.*{message}.*; mend it"):
        files.read_json(tmp_path / "pair.json", Pair, "a pair", "mend it")
    (tmp_path / "pairs.jsonl").write_bytes(b'{"name": "a"}\n' + text + b"\n")
    with pytest.raises(JaxgradError, match=r"pairs.jsonl, line 2: is not a pair that jaxgrad wrote"):
        files.read_json_lines(tmp_path / "pairs.jsonl", Pair, "a pair", "mend it")


def test_a_record_is_read_and_a_line_without_its_end_is_none(tmp_path: Path):
    (tmp_path / "pair.json").write_text('{"name": "a", "size": 2}')
    assert files.read_json(tmp_path / "pair.json", Pair, "a pair", "") == Pair("a", 2.0)
    (tmp_path / "pairs.jsonl").write_text('{"name": "a"}\n{"name": "b"')
    assert files.read_json_lines(tmp_path / "pairs.jsonl", Pair, "a pair", "") == [Pair("a")]


def test_a_file_that_claims_a_terabyte_is_refused_by_its_size(tmp_path: Path):
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(JaxgradError, match=r"sparse: has 1,024.00 GiB, and at most .* can be read"):
        files.read_bytes(tmp_path / "sparse")


def test_what_is_no_file_is_refused_without_waiting_for_it(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(JaxgradError, match="is a pipe or a device; give a file, which can be read again"):
            files.read_bytes(path)
    # A file by its mode, which waits for the kernel's next message, where this process may read it.
    if os.access("/proc/kmsg", os.R_OK):
        with pytest.raises((JaxgradError, OSError), match=r"as a pipe does|not permitted"):
            files.read_bytes(Path("/proc/kmsg"))
