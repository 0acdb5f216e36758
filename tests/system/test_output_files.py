# SPDX-License-Identifier: Apache-2.0
"""Files that commands write."""

import errno
import json
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctxseg_ros.system.output_files import (
    OutputError,
    check_writable,
    make_folder,
    replacing,
    write_bytes,
    write_image,
)

pytestmark = pytest.mark.slow

LIMIT = 4096


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file can grow beyond LIMIT bytes, as on a disk that is nearly full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_is_written_whole_with_the_usual_permissions(tmp_path):
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    (tmp_path / "usual").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "usual"]


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")
    with pytest.raises(OutputError, match=r"a\.bin: cannot be written: .*; raise"):
        write_bytes(path, bytes(LIMIT + 1))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as draft:
        assert draft.suffix == ".txt" and draft.parent == tmp_path
        draft.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_an_error_of_another_file_stays_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="none"), replacing(tmp_path / "a.txt"):
        (tmp_path / "none").read_bytes()
    with (
        pytest.raises(OutputError, match=r"a\.txt: cannot be written"),
        replacing(tmp_path / "a.txt"),
    ):
        pass  # no draft was written
    assert os.listdir(tmp_path) == []


def test_drafts_of_one_file_differ(tmp_path):
    path = tmp_path / "a.txt"
    with replacing(path) as first, replacing(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    link, file = tmp_path / "link", tmp_path / "there" / "file"
    link.symlink_to(file)
    check_writable(link)
    write_bytes(link, b"x")
    assert link.is_symlink() and file.read_bytes() == b"x"


def test_a_device_stays_a_device():
    code = (
        "from pathlib import Path; from ctxseg_ros.system.output_files import *\n"
        "for name in ('/dev/stdout', '/dev/null'):\n"
        "    check_writable(Path(name)); write_json(Path(name), [1])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, json.loads(done.stdout)) == (0, [1]), done.stderr
    with pytest.raises(OutputError, match="/dev/full: cannot be written: No space left"):
        write_bytes(Path("/dev/full"), b"x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@given(st.binary(max_size=3000))
def test_any_bytes_come_back(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("bytes") / "a"
    write_bytes(path, data)
    assert path.read_bytes() == data


def test_images_are_rgb(tmp_path):
    rgb = np.zeros((4, 6, 3), np.uint8)
    rgb[..., 0] = 200
    write_image(tmp_path / "a.png", rgb)
    found = cv2.cvtColor(cv2.imread(str(tmp_path / "a.png")), cv2.COLOR_BGR2RGB)
    assert np.array_equal(found, rgb)
    write_image(tmp_path / "b.png", rgb[..., 0])
    grey = cv2.imread(str(tmp_path / "b.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(grey, rgb[..., 0])


def refusals(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    yield tmp_path / "folder", "it is a folder"
    yield tmp_path / "missing" / "a", "its folder does not exist"
    yield tmp_path / "file" / "a", "its folder does not exist"
    yield tmp_path / ("x" * 300), "choose a shorter name"


def test_where_no_file_can_be_is_known_before_the_work(tmp_path):
    for path, said in refusals(tmp_path):
        with pytest.raises(OutputError, match=said):
            check_writable(path)
        with pytest.raises(OutputError):
            write_bytes(path, b"x")
    check_writable(tmp_path / "file")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_folders_are_made_with_their_parents_or_refused(tmp_path):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert os.listdir(tmp_path / "a" / "b") == []
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="there is a file of that name"):
        make_folder(tmp_path / "file")
    with pytest.raises(OutputError, match="part of its path is a file"):
        make_folder(tmp_path / "file" / "a")
    with pytest.raises(OutputError, match="choose a shorter name"):
        make_folder(tmp_path / ("x" * 300))


def test_places_that_cannot_be_written_are_refused(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("pathlib.Path.touch", refused)
    for check in (lambda: check_writable(tmp_path / "a"), lambda: make_folder(tmp_path)):
        with pytest.raises(OutputError, match="Read-only file system; choose a place"):
            check()
