# SPDX-License-Identifier: Apache-2.0
"""The walk: natural order, each real folder once, what is passed over; any name the disk takes."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctxseg_ros.system.files import IMAGE_SUFFIXES, Walk, shown, walk

LATIN1 = os.fsdecode(b"caf\xe9.jpg")


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names(found: Walk) -> list[str]:
    return [path.relative_to(found.folder).as_posix() for path in found.paths]


def test_numbers_are_in_their_order_not_in_that_of_text(tmp_path: Path) -> None:
    touch(
        *(tmp_path / f"take{n % 3}" / f"{n}.JPG" for n in range(30)), tmp_path / "take10" / "1.png"
    )
    expected = [f"take{take}/{n}.JPG" for take in range(3) for n in range(take, 30, 3)]
    assert names(walk(tmp_path, IMAGE_SUFFIXES)) == [*expected, "take10/1.png"]


@given(st.lists(st.integers(0, 10**25), unique=True, min_size=1, max_size=20))
def test_any_numbers_are_in_their_order(numbers: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        touch(*(Path(folder, f"frame {number}.png") for number in numbers))
        assert names(walk(Path(folder), {".png"})) == [f"frame {n}.png" for n in sorted(numbers)]


# All bytes but the two that no name may have; a dot at the start hides a file.
FILE_NAMES = st.binary(min_size=1, max_size=40).filter(
    lambda name: not set(b"/\0") & set(name) and not name.startswith(b".")
)


@given(st.sets(FILE_NAMES, max_size=8), st.sets(FILE_NAMES, max_size=8))
def test_every_name_is_read_or_counted_and_can_be_printed(
    images: set[bytes], others: set[bytes]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in images:
            touch(Path(folder, os.fsdecode(name + b".png")))
        for name in others:
            touch(Path(folder, os.fsdecode(name + b".txt")))
        found = walk(Path(folder), {".png"})
        assert {os.fsencode(path.name) for path in found.paths} == {n + b".png" for n in images}
        assert sum(found.passed_over.values()) == len(others)
        line = found.passed_over_line()
        assert (line is None) == (not others)
        for text in (line or "", *map(shown, found.paths)):
            text.encode()


def test_links_in_a_circle_and_to_the_same_folder_are_read_once(tmp_path: Path) -> None:
    touch(tmp_path / "a" / "photo.jpg")
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "a" / "here").symlink_to(".")
    (tmp_path / "0 first").symlink_to("a")
    (tmp_path / "self").symlink_to("self")
    found = walk(tmp_path, IMAGE_SUFFIXES)
    assert names(found) == ["a/photo.jpg"]
    assert sum(found.passed_over.values()) == 4


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_any_links_end_and_give_each_file_once(links: list[tuple[int, int]]) -> None:
    with tempfile.TemporaryDirectory() as top:
        folders = [Path(top, *map(str, range(depth + 1))) for depth in range(6)]
        for i, folder in enumerate(folders):
            touch(folder / f"{i}.png")
        for number, (where, target) in enumerate(links):
            (folders[where] / f"link{number}").symlink_to(folders[target])
        found = walk(Path(top), {".png"})
        assert sorted(path.name for path in found.paths) == [f"{i}.png" for i in range(6)]
        assert not any("link" in path.as_posix() for path in found.paths)


def test_a_folder_and_a_file_elsewhere_are_followed(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere" / "1.png", tmp_path / "one.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "file.png").symlink_to(tmp_path / "one.png")
    assert names(walk(tmp_path / "data", {".png"})) == ["file.png", "linked/1.png"]


def test_what_is_passed_over_is_counted_by_its_reason(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ("1.png", "._1.png", ".DS_Store", "a.HEIC", "b", "c.txt")))
    touch(tmp_path / ".cache" / "2.png")
    (tmp_path / "gone.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    found = walk(tmp_path, {".png"})
    assert names(found) == ["1.png"]
    assert sum(found.passed_over.values()) == 8
    line = found.passed_over_line()
    assert line and str(tmp_path) in line
    for part in ("3 hidden", ".heic", "1 .txt", "1 without a suffix", "1 broken link"):
        assert part in line


def test_a_folder_that_is_one_item_is_not_entered(tmp_path: Path) -> None:
    touch(tmp_path / "bag" / "metadata.yaml", tmp_path / "bag" / "1.png", tmp_path / "2.png")
    found = walk(tmp_path, {".png"}, lambda folder: (folder / "metadata.yaml").exists())
    assert names(found) == ["2.png", "bag"]


def test_a_folder_that_cannot_be_listed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        walk(tmp_path / "nowhere", {".png"})
    touch(tmp_path / "file")
    with pytest.raises(NotADirectoryError):
        walk(tmp_path / "file", {".png"})


def test_names_that_are_not_utf_8_are_shown_by_their_bytes() -> None:
    assert shown(LATIN1) == r"caf\xe9.jpg"
    assert shown(Path("🚗/é.png")) == "🚗/é.png"


def test_a_password_is_not_shown() -> None:
    assert shown("rtsp://me:secret@camera:554/a:b@c") == "rtsp://me:***@camera:554/a:b@c"
    assert shown("rtsp://camera:554/a") == "rtsp://camera:554/a"
