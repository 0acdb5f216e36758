# SPDX-License-Identifier: Apache-2.0
"""Video files, folders of images, and what cannot be read."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from ctxseg_ros.source import FOLDER_RATE_HZ, FrameSource, SourceError


def write_video(path: Path, count: int = 5, rate: float = 20.0) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), rate, (64, 48))
    for number in range(count):
        writer.write(np.full((48, 64, 3), number * 40, np.uint8))
    writer.release()
    return path


def write_folder(path: Path, count: int = 3) -> Path:
    path.mkdir()
    for number in range(count):
        cv2.imwrite(str(path / f"{number}.png"), np.full((8, 12, 3), number + 1, np.uint8))
    (path / "notes.txt").write_text("not an image")
    return path


def test_a_video_has_its_rate_and_all_its_frames(tmp_path: Path) -> None:
    source = FrameSource(str(write_video(tmp_path / "clip.mp4")))
    assert (source.rate_hz, source.count, source.live) == (20.0, 5, False)
    for _ in range(2):  # from the start each time
        frames = list(source.frames())
        assert [frame.shape for frame in frames] == [(48, 64, 3)] * 5
        assert [round(frame.mean() / 40) for frame in frames] == [0, 1, 2, 3, 4]


def test_a_folder_gives_its_images_by_name(tmp_path: Path) -> None:
    source = FrameSource(str(write_folder(tmp_path / "frames")))
    assert (source.rate_hz, source.count, source.live) == (FOLDER_RATE_HZ, 3, False)
    assert [int(frame[0, 0, 0]) for frame in source.frames()] == [1, 2, 3]


def test_loop_starts_again(tmp_path: Path) -> None:
    source = FrameSource(str(write_folder(tmp_path / "frames")))
    frames = source.frames(loop=True)
    assert [int(next(frames)[0, 0, 0]) for _ in range(7)] == [1, 2, 3, 1, 2, 3, 1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (None, None, "no source given"),
        ("missing.mp4", None, "does not exist"),
        ("text.mp4", b"no video", "not a video that OpenCV can open"),
        ("empty", "folder", "holds no image"),
    ],
)
def test_what_cannot_be_read_is_an_error_with_a_fix(
    tmp_path: Path, name: str | None, content: bytes | str | None, message: str
) -> None:
    path = tmp_path / name if name else None
    if path and content == "folder":
        path.mkdir()
    elif path and isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(SourceError, match=message):
        FrameSource(str(path) if path else "")


def test_a_camera_that_is_not_there() -> None:
    with pytest.raises(SourceError, match=r"camera 97 cannot be opened: check that it is"):
        FrameSource("97")


def test_a_damaged_image_is_counted_and_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "frames")
    (folder / "1.png").write_bytes(b"damaged")
    reported: list[str] = []
    source = FrameSource(str(folder), report=reported.append)
    assert [int(frame[0, 0, 0]) for frame in source.frames()] == [1, 3]
    assert source.unreadable == 1 and len(source.trouble) == 1 and "1.png" in source.trouble[0]
    assert reported == ["passed over in " + str(folder) + ": 1 .txt", *source.trouble]
