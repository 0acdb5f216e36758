# SPDX-License-Identifier: Apache-2.0
"""Videos, images, URLs and live streams: what is played, what is lost, what cannot be read."""

import os
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctxseg_ros.image.source import FOLDER_RATE_HZ, FrameSource, SourceError

pytestmark = pytest.mark.slow


def write_video(path: Path, count: int = 5, rate: float = 20.0, code: str = "mp4v") -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), rate, (64, 48))
    for number in range(count):
        writer.write(np.full((48, 64, 3), number * 40 % 256, np.uint8))
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


def test_images_that_are_all_damaged_are_an_error(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "frames")
    for path in folder.glob("*.png"):
        path.write_bytes(b"damaged")
    with pytest.raises(SourceError, match=r"0\.png.*and 2 more"):
        FrameSource(str(folder))


def test_images_that_vanish_are_counted_and_the_last_is_an_error(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "frames")
    source = FrameSource(str(folder))
    frames = source.frames(loop=True)
    next(frames)
    for path in folder.glob("*.png"):
        path.unlink()
    with pytest.raises(SourceError, match="can be decoded any more"):
        list(frames)
    assert source.unreadable == 5 and len(source.trouble) == 3


def test_a_damaged_frame_is_counted_at_each_pass_and_told_once(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "frames")
    (folder / "1.png").write_bytes(b"damaged")
    reported: list[str] = []
    source = FrameSource(str(folder), report=reported.append)
    frames = source.frames(loop=True)
    assert [int(next(frames)[0, 0, 0]) for _ in range(5)] == [1, 3, 1, 3, 1]
    assert source.unreadable == 2
    assert sum("1.png" in line for line in reported) == 1


def test_one_photo_is_a_source(tmp_path: Path) -> None:
    write_folder(tmp_path / "frames")
    source = FrameSource(str(tmp_path / "frames" / "1.png"))
    assert (source.count, source.live) == (1, False)
    assert [int(frame[0, 0, 0]) for frame in source.frames()] == [2]  # not 2.png, which follows


@pytest.mark.parametrize(
    ("pattern", "numbers"),
    [("frame_%d.png", [1, 2, 10]), ("frame_%03d.png", [1, 2, 10]), ("frame_%02d.png", [])],
)
def test_a_pattern_takes_its_numbers_in_order(
    tmp_path: Path, pattern: str, numbers: list[int]
) -> None:
    width = 3 if "3" in pattern or "2" in pattern else 1
    for number in (1, 2, 10):
        path = tmp_path / f"frame_{number:0{width}d}.png"
        cv2.imwrite(str(path), np.full((8, 8, 3), number, np.uint8))
    (tmp_path / "frame_x.png").touch()
    if numbers:
        frames = FrameSource(str(tmp_path / pattern)).frames()
        assert [int(frame[0, 0, 0]) for frame in frames] == numbers
    else:
        with pytest.raises(SourceError, match="no file matches"):
            FrameSource(str(tmp_path / pattern))


def test_12_bits_in_16_are_told_and_can_be_brightened(tmp_path: Path) -> None:
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((8, 8), 4095, np.uint16))
    source = FrameSource(str(tmp_path))
    assert [int(frame.max()) for frame in source.frames()] == [16] * 3
    assert len(source.trouble) == 1 and "4095 of 65535" in source.trouble[0]
    source = FrameSource(str(tmp_path), bits=12)
    assert [int(frame.max()) for frame in source.frames()] == [255] * 3 and not source.trouble


def test_home_and_file_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    video = write_video(tmp_path / "my clip 🚗.mp4")
    for source in ("~/my clip 🚗.mp4", video.as_uri()):
        assert len(list(FrameSource(source).frames())) == 5
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~").mkdir()
    shutil.copy(video, tmp_path / "~" / "own.mp4")  # a folder of that very name
    assert len(list(FrameSource("~/own.mp4").frames())) == 5


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("~nobody-of-that-name/a.mp4", "does not exist"),
        ("http://[::1/a.mp4", "not a URL"),
        ("http://127.0.0.1:9/a.mp4", "stream .* cannot be opened"),
        ("rtsp://me:secret@127.0.0.1:9/a", r"stream rtsp://me:\*\*\*@.* cannot be opened"),
        ("/dev/null", "camera /dev/null cannot be opened"),
        ("a" * 300, "cannot be read: File name too long"),
    ],
)
def test_other_sources_that_cannot_be_opened(source: str, cause: str) -> None:
    with pytest.raises(SourceError, match=cause):
        FrameSource(source)


@given(st.text(st.characters(exclude_characters="/:0123456789~", codec=None)))
def test_any_other_text_is_refused_in_words_that_can_be_printed(source: str) -> None:
    with pytest.raises(SourceError) as caught:
        FrameSource(source and source + ".mp4")
    str(caught.value).encode()


def test_pipes_and_bags_are_refused_with_another_way(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("a.mcap", "b.bag", "photo.HEIC"):
        (tmp_path / name).write_bytes(b"data")
    ways = {
        "pipe": "udp://",
        "a.mcap": "ros2 bag play",
        "b.bag": "rosbags-convert",
        "photo.HEIC": "save it as .jpg",
    }
    for name, way in ways.items():
        with pytest.raises(SourceError, match=way):
            FrameSource(str(tmp_path / name))


# URLs


JPEGS = [cv2.imencode(".jpg", np.full((48, 64, 3), 9 * n, np.uint8))[1].tobytes() for n in range(9)]
PART = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"


class Web(ThreadingHTTPServer):
    """/stream sends 9 JPEGs as a network camera does, then drops; all else is a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.refused = 0  # of the next connections to /stream
        self.streams = 0
        self.most = 10**9  # bytes of a file that are sent
        super().__init__(("127.0.0.1", 0), Answer)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"

    def handle_error(self, *_: object) -> None:
        """The client may close its connection at any time."""


class Answer(BaseHTTPRequestHandler):
    server: Web

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path != "/stream":
            self.send_file((self.server.folder / self.path[1:]).read_bytes())
        elif self.server.refused:
            self.server.refused -= 1
            self.send_error(503)
        else:
            self.server.streams += 1
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            for jpeg in JPEGS:
                self.wfile.write(PART % len(jpeg) + jpeg + b"\r\n")

    def send_file(self, data: bytes) -> None:
        start = int(self.headers.get("Range", "bytes=0-").split("=")[1].split("-")[0])
        self.send_response(206)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start : self.server.most])


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    server = Web(tmp_path)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_video_behind_a_url_is_a_file(web: Web) -> None:
    write_video(web.folder / "clip.mp4")
    source = FrameSource(web.url("clip.mp4"))
    assert (source.rate_hz, source.count, source.live) == (20.0, 5, False)
    frames = source.frames(loop=True)
    assert [round(next(frames).mean() / 40) for _ in range(7)] == [0, 1, 2, 3, 4, 0, 1]


def test_a_download_that_breaks_off_is_told(web: Web) -> None:
    write_video(web.folder / "clip.avi", count=200, code="MJPG")
    source = FrameSource(web.url("clip.avi"))
    web.most = (web.folder / "clip.avi").stat().st_size // 2
    frames = len(list(source.frames()))
    assert 0 < frames < 200 and source.missing == 200 - frames - source.unreadable
    assert any("ends early" in line and "clip.avi" in line for line in source.trouble)


def test_a_stream_that_drops_is_reconnected_and_the_outage_counted(web: Web) -> None:
    reported: list[str] = []
    source = FrameSource(web.url("stream"), report=reported.append)
    assert (source.rate_hz, source.count, source.live) == (None, None, True)
    frames = source.frames()
    for _ in JPEGS:
        next(frames)
    assert source.connected and not source.trouble
    web.refused = 2
    next(frames)
    assert source.connected and source.outages == 1 and source.outage_s > 0
    assert len(source.trouble) == 1 and "1 time" in source.trouble[0]
    assert len(reported) == 2 and "reconnect" in reported[0] and "back" in reported[1]
    frames.close()


def test_closing_ends_a_source_that_is_gone(web: Web) -> None:
    gone = threading.Event()
    source = FrameSource(web.url("stream"), report=lambda line: gone.set())
    thread = threading.Thread(target=lambda: list(source.frames()))
    web.refused = 10**6
    thread.start()
    assert gone.wait(30)
    assert not source.connected and source.outages == 1
    source.close()
    thread.join(30)
    assert not thread.is_alive()
