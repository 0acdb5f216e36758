# SPDX-License-Identifier: Apache-2.0
"""Videos: every frame that decodes is given, and what is lost is counted and named."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxseg_ros.image.video import Loss, Video, VideoError

COUNT = 12
KINDS = {".avi": "MJPG", ".mkv": "MJPG", ".mov": "MJPG", ".mp4": "mp4v", ".webm": "VP80"}


def write(path: Path, count: int = COUNT, rate: float = 20.0, code: str | None = None) -> Path:
    """Frames of a moving texture around a brightness of 20 and 5 for each frame before."""
    fourcc = cv2.VideoWriter_fourcc(*(code or KINDS[path.suffix]))
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, fourcc, rate, (96, 64))
    assert writer.isOpened()
    texture = np.random.default_rng(0).integers(0, 20, (64, 96 + count), np.uint8)
    for number in range(count):
        grey = texture[:, number : number + 96] + np.uint8(10 + 5 * number)
        writer.write(np.dstack([grey] * 3))
    writer.release()
    return path


def read(video: Video) -> tuple[list[int], list[Loss]]:
    """The numbers that the pixels of the frames hold, and what was lost."""
    losses: list[Loss] = []
    frames = video.frames(losses.append)
    return [round((frame.mean() - 20) / 5) for _, frame in frames], losses


@pytest.fixture(scope="module")
def avi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("video") / "good.avi")


def chunks(data: bytes) -> list[tuple[int, int]]:
    """Where the frames of an AVI are: start and length of their JPEGs."""
    found, at = [], data.index(b"movi")
    while (at := data.find(b"00dc", at)) >= 0 and data[at + 8 : at + 10] == b"\xff\xd8":
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        found.append((at + 8, length))
        at += 8 + length
    assert len(found) == COUNT
    return found


@pytest.mark.parametrize("suffix", KINDS)
@pytest.mark.parametrize("rate", [10.0, 24.0, 120.0, 240.0])
def test_a_whole_video_has_no_losses(tmp_path: Path, suffix: str, rate: float) -> None:
    video = Video(write(tmp_path / f"a{suffix}", rate=rate))
    assert video.rate_hz == pytest.approx(rate, rel=0.01)
    for _ in range(2):  # from the start each time
        frames, losses = read(video)
        assert len(frames) == COUNT and frames == sorted(frames) and not losses


def test_a_rate_that_is_a_time_base_is_taken_from_the_time_stamps(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", rate=25.0)
    data = bytearray(path.read_bytes())
    duration = data.index(b"\x23\xe3\x83") + 4  # of a frame, in nanoseconds
    length = data[duration - 1] & 0x7F
    data[duration : duration + length] = (10**6).to_bytes(length, "big")
    path.write_bytes(data)
    assert cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FPS) == pytest.approx(1000)
    assert Video(path).rate_hz == pytest.approx(25, rel=0.01)


def test_numbers_and_stride(avi: Path) -> None:
    numbers = [number for number, _ in Video(avi).frames(lambda loss: None, stride=5)]
    assert numbers == [0, 5, 10]


@settings(max_examples=40, deadline=None)
@given(bad=st.sets(st.integers(0, COUNT - 1), min_size=1, max_size=COUNT - 1))
def test_any_frames_that_cannot_be_decoded_are_left_out_and_counted(
    tmp_path_factory: pytest.TempPathFactory, avi: Path, bad: set[int]
) -> None:
    data = bytearray(avi.read_bytes())
    for number in bad:
        start, length = chunks(avi.read_bytes())[number]
        data[start : start + length] = bytes(length)
    path = tmp_path_factory.mktemp("damaged") / "a.avi"
    path.write_bytes(data)
    frames, losses = read(Video(path))
    assert frames == [n for n in range(COUNT) if n not in bad]
    assert sum(loss.unreadable for loss in losses) == len(bad)
    assert not any(loss.missing for loss in losses)
    assert all(str(path) in loss.line for loss in losses)


def test_the_damaged_frame_is_named_by_its_number(tmp_path: Path, avi: Path) -> None:
    data = bytearray(avi.read_bytes())
    start, length = chunks(avi.read_bytes())[3]
    data[start : start + length] = bytes(length)
    (tmp_path / "a.avi").write_bytes(data)
    _, losses = read(Video(tmp_path / "a.avi"))
    assert losses == [Loss(f"{tmp_path / 'a.avi'}: frame 4 of 12 cannot be decoded", unreadable=1)]


# MP4 and MOV as OpenCV writes them have their index at the end.
@pytest.mark.parametrize("suffix", [".avi", ".mkv", ".webm"])
@pytest.mark.parametrize("share", [0.4, 0.7, 0.9])
def test_a_file_that_was_cut_short_says_so(tmp_path: Path, suffix: str, share: float) -> None:
    path = write(tmp_path / f"a{suffix}", count=40)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    frames, losses = read(Video(path))
    assert frames and losses
    assert len(frames) + sum(loss.unreadable + loss.missing for loss in losses) == 40
    assert losses[-1].missing and "ends early" in losses[-1].line and str(path) in losses[-1].line


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_a_recording_without_its_index_is_refused(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(VideoError, match=rf"a{suffix}: .*recording was not finished"):
        Video(path)


def stated(avi: Path, count: int) -> bytes:
    """The AVI with another number of frames in both its headers."""
    data = bytearray(avi.read_bytes())
    for header, offset in ((b"avih", 8 + 16), (b"strh", 8 + 32)):
        at = data.index(header) + offset
        data[at : at + 4] = count.to_bytes(4, "little")
    return bytes(data)


@pytest.mark.parametrize("count", [0, 1, COUNT - 2, COUNT + 1, COUNT + 2])
def test_a_count_that_is_wrong_or_missing_is_not_damage(
    tmp_path: Path, avi: Path, count: int
) -> None:
    (tmp_path / "a.avi").write_bytes(stated(avi, count))
    assert read(Video(tmp_path / "a.avi")) == (list(range(COUNT)), [])


def sparse(path: Path, share: int) -> Path:
    """A Matroska file that states ``share`` times the rate that its 40 frames keep, as recorders of
    an uneven pace do, and so seems to have that many times the frames."""
    data = bytearray(write(path, count=40).read_bytes())
    at = data.index(b"\x23\xe3\x83\x84") + 4  # nanoseconds for each frame
    data[at : at + 4] = (int.from_bytes(data[at : at + 4], "big") // share).to_bytes(4, "big")
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("suffix", [".mkv", ".webm"])
@pytest.mark.parametrize("share", [2, 3, 5])
def test_frames_that_do_not_keep_the_stated_rate_are_whole(
    tmp_path: Path, suffix: str, share: int
) -> None:
    video = Video(sparse(tmp_path / f"a{suffix}", share))
    frames, losses = read(video)
    assert len(frames) == 40 < (video.count or 0) and not losses


@pytest.mark.parametrize("share", [2, 5])
def test_a_file_that_was_cut_short_says_so_at_any_pace(tmp_path: Path, share: int) -> None:
    path = sparse(tmp_path / "a.mkv", share)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    frames, losses = read(Video(path))
    assert 0 < len(frames) < 40 and losses and losses[-1].missing


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_a_video_that_was_trimmed_without_encoding_it_anew_is_whole(
    tmp_path: Path, suffix: str
) -> None:
    path = write(tmp_path / f"a{suffix}", count=40)
    data = bytearray(path.read_bytes())
    times = data.index(b"mdhd") + 16
    ticks = int.from_bytes(data[times : times + 4], "big")  # a second
    edit = data.index(b"elst") + 16
    data[edit : edit + 4] = (ticks // 2).to_bytes(4, "big")  # of 2 s
    path.write_bytes(data)
    video = Video(path)
    frames, losses = read(video)
    assert len(frames) < 35 and video.count == 40 and not losses


def index_first(path: Path) -> None:
    """Move the index of an MP4 before its frames, as programs do that write for the web."""
    data = path.read_bytes()
    boxes, at = {}, 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        boxes[data[at + 4 : at + 8]] = data[at : at + size]
        at += size
    index = bytearray(boxes.pop(b"moov"))
    table = index.index(b"stco") + 8
    for number in range(int.from_bytes(index[table : table + 4], "big")):
        entry = slice(table + 4 + 4 * number, table + 8 + 4 * number)
        index[entry] = (int.from_bytes(index[entry], "big") + len(index)).to_bytes(4, "big")
    start = boxes.pop(b"ftyp")
    path.write_bytes(start + index + b"".join(boxes.values()))


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_an_mp4_for_the_web_that_was_cut_short_says_so(tmp_path: Path, share: float) -> None:
    path = write(tmp_path / "a.mp4", count=40)
    index_first(path)
    assert read(Video(path))[1] == []
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    frames, losses = read(Video(path))
    assert frames and losses[-1].missing
    assert len(frames) + sum(loss.unreadable + loss.missing for loss in losses) == 40


@pytest.mark.parametrize(
    "name",
    [
        *(b"vid\xe9o.avi", "🚗 %d.avi".encode(), b"a,b;c:d.avi", b"-i.avi", b"frame_003.avi"),
        *(b"http:a.avi", b"concat:a|b.avi"),
    ],
)
def test_any_name_can_be_played(
    tmp_path: Path, avi: Path, name: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / os.fsdecode(name)
    shutil.copy(avi, path)
    assert read(Video(path)) == (list(range(COUNT)), [])
    monkeypatch.chdir(tmp_path)
    video = Video(Path(path.name))
    assert read(video) == (list(range(COUNT)), [])
    video.name.encode()


def test_a_frame_of_another_size_is_read(tmp_path: Path, avi: Path) -> None:
    data = avi.read_bytes()
    start, length = chunks(data)[5]
    small = cv2.imencode(".jpg", np.zeros((32, 48, 3), np.uint8))[1].tobytes()
    small += bytes(length - len(small))
    (tmp_path / "a.avi").write_bytes(data[:start] + small + data[start + length :])
    frames, losses = read(Video(tmp_path / "a.avi"))
    assert len(frames) == COUNT and not losses


def no_frame(avi: Path) -> bytes:
    data = bytearray(avi.read_bytes())
    for start, length in chunks(avi.read_bytes()):
        data[start : start + length] = bytes(length)
    return bytes(data)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (lambda avi: b"", "is empty"),
        (lambda avi: b"<html>404 Not Found</html>", "not a video.*this is text"),
        (lambda avi: b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (lambda avi: bytes(5000), "not a video"),
        (lambda avi: avi.read_bytes()[:200], "not a video|no frame can be decoded"),
        (no_frame, "no frame can be decoded"),
    ],
)
def test_what_is_not_a_video_is_refused(
    tmp_path: Path, avi: Path, content: Callable[[Path], bytes], cause: str
) -> None:
    path = tmp_path / "001.avi"  # a number must not make a sequence of images of it
    path.write_bytes(content(avi))
    cv2.imwrite(str(tmp_path / "002.png"), np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(VideoError, match=rf"001\.avi: .*({cause})"):
        Video(path)


def test_files_that_cannot_be_opened(tmp_path: Path, avi: Path) -> None:
    for path, cause in ((tmp_path / "nowhere.avi", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(VideoError, match=cause):
            Video(path)
    shutil.copy(avi, tmp_path / "gone.avi")
    video = Video(tmp_path / "gone.avi")
    (tmp_path / "gone.avi").unlink()
    with pytest.raises(VideoError, match=r"gone\.avi: cannot be read"):
        read(video)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), suffix=st.sampled_from(sorted(KINDS)))
def test_any_damage_ends_with_frames_or_with_one_error(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, data: st.DataObject
) -> None:
    path = write(tmp_path_factory.mktemp("damaged") / f"a{suffix}")
    content = bytearray(path.read_bytes())
    places = st.integers(0, len(content) - 1)
    for place in data.draw(st.lists(places, max_size=10)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(places)] if data.draw(st.booleans()) else content)
    try:
        frames, losses = read(Video(path))
    except VideoError as error:
        assert str(path) in str(error)
    else:
        assert len(frames) + sum(loss.unreadable for loss in losses) <= 10 * COUNT
        assert all(str(path) in loss.line for loss in losses)
