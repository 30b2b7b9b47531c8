"""Files are written whole or not at all."""

import errno
import os
from pathlib import Path

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
