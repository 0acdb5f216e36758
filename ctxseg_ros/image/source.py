# SPDX-License-Identifier: Apache-2.0
"""Where frames are played from: a video file, images, or a live camera or stream."""

import math
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import cv2
import numpy as np
from numpy.typing import NDArray

from ctxseg_ros.image.image_file import ALL_BITS, BadImageFile, read_bgr, too_dark
from ctxseg_ros.image.video import Loss, Video, VideoError, open_capture
from ctxseg_ros.system.files import (
    BAG_SUFFIXES,
    IMAGE_SUFFIXES,
    PHOTO_SUFFIXES,
    natural_key,
    shown,
    walk,
)

FOLDER_RATE_HZ = 10.0

# A live stream's read may fail on one damaged packet; so many in a row mean that it is gone.
_MOST_FAILURES = 10
_GONE_S = 5.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 5.0  # between attempts to reconnect

_PATTERN = re.compile(r"%(0?)([0-9]*)d")


class SourceError(ValueError):
    """A source that cannot be read; the message names the cause and the fix."""


class FrameSource:
    """Frames as uint8 [H, W, 3] in OpenCV's order, BGR, of any sizes.

    ``name``: as it was given. ``live``: a camera or a stream without an end, which cannot be read
    twice. ``rate_hz``: the source's own rate, None for a live one, which sets the pace itself.
    ``count``: frames that it should hold, None where that is unknown.

    What could not be used, since the source was opened, and growing while ``frames`` runs:
    ``unreadable``: how many frames could not be decoded (each time, if it loops). ``missing``: how
    many frames a video that ends early promises beyond its end. ``outages`` and ``outage_s``: how
    often, and for how long in all, a live source was gone; ``connected`` is False during one.
    ``trouble``: one sentence for each loss, which names the file and the frames; empty while all is
    well.
    """

    def __init__(
        self, source: str, bits: int = ALL_BITS, report: Callable[[str], None] = lambda line: None
    ) -> None:
        """Open a source and read its first frame, except of a live one.

        Args:
            source: a video or an image; a folder of images, at any depth; numbered images as a
                pattern such as ``frame_%03d.png``; a URL; a device such as ``/dev/video0``, or a
                camera's index. ``~`` is the home folder.
            bits: that images of 16 bits use, see ``read_bgr``.
            report: called with each sentence of ``trouble`` when it is first known, and with what
                was passed over; from the thread that reads.

        Raises:
            SourceError: it cannot be read, or holds no frame that can be decoded.
        """
        self.name = source
        self.rate_hz: float | None = None
        self.count: int | None = None
        self.live = False
        self.unreadable = 0
        self.missing = 0
        self.outages = 0
        self._past_outages_s = 0.0
        self._lost_at: float | None = None  # time.monotonic()
        self._dark = False
        self._bits = bits
        self._report = report
        self._closed = threading.Event()
        self._lines: dict[str, None] = {}
        self._device = source  # index or path, of a camera
        self._images: list[Path] = []
        self._video: Video | None = None
        self._open(source)

    @property
    def trouble(self) -> list[str]:
        """One sentence for each loss so far."""
        lines = list(self._lines)
        if self.outages:
            lines.append(
                f"{shown(self.name)} was gone {self.outages} time(s), {self.outage_s:.1f} s in all"
                f"{'' if self.connected else '; trying to reconnect'}"
            )
        return lines

    @property
    def connected(self) -> bool:
        """Whether a live source gives frames now; True for all others."""
        return self._lost_at is None

    @property
    def outage_s(self) -> float:
        """Seconds that a live source was gone, in all."""
        lost_at = self._lost_at
        now = 0.0 if lost_at is None else time.monotonic() - lost_at
        return self._past_outages_s + now

    def frames(self, loop: bool = False) -> Iterator[NDArray[np.uint8]]:
        """Every frame that can be decoded, in order, from the start; again and again if ``loop``.

        A live source that drops is opened again until it is back or ``close`` is called.

        Raises:
            SourceError: nothing of it can be decoded any more.
        """
        if self.live:
            yield from self._live_frames()
            return
        while True:
            good = 0
            for frame in self._image_frames() if self._images else self._video_frames():
                if self._closed.is_set():
                    return
                good += 1
                yield frame
            if not good:
                raise SourceError(f"no frame of {shown(self.name)} can be decoded any more")
            if not loop:
                return

    def close(self) -> None:
        """End ``frames``, from any thread, at its next frame or attempt to reconnect."""
        self._closed.set()

    # Opening

    def _open(self, source: str) -> None:
        if not source:
            raise SourceError("no source given: set `source` to a video, a folder or an index")
        try:
            scheme = urlsplit(source).scheme if "://" in source else ""
        except ValueError as error:  # such as a bracket that is not closed
            raise SourceError(f"{shown(source)} is not a URL: {error}") from error
        if source.isdecimal():
            self._open_live()
        elif scheme == "file":
            self._open_path(Path(url2pathname(urlsplit(source).path)))
        elif scheme:
            self._open_url()
        else:
            self._open_path(_with_home(Path(source)))

    def _open_url(self) -> None:
        """A stream with a length and a rate is a file; all else is live."""
        capture = open_capture(self.name)
        rate, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
        capture.release()
        if all(math.isfinite(value) and value > 0 for value in (rate, count)):
            self._open_video(self.name)
        else:
            self._open_live()

    def _open_live(self) -> None:
        self.live = True
        capture = self._capture()
        opened = capture.isOpened()
        capture.release()
        if opened:
            return
        if "://" in self.name:
            raise SourceError(
                f"stream {shown(self.name)} cannot be opened: check the address, and that this "
                "machine reaches it"
            )
        raise SourceError(
            f"camera {shown(self.name)} cannot be opened: check that it is connected, that you may "
            "read it (/dev/video*: group video), and that no other program uses it"
        )

    def _open_path(self, path: Path) -> None:
        try:
            name = shown(path)
            mode = path.stat().st_mode
        except ValueError as error:  # a zero byte, or half a surrogate pair
            raise SourceError(f"source {str(path)!a} cannot be a path: {error}") from error
        except OSError as error:
            if isinstance(error, FileNotFoundError) and "%" in path.name:
                self._open_images(_numbered(path))
                return
            missing = isinstance(error, FileNotFoundError)
            cause = (
                "does not exist: check the path" if missing else f"cannot be read: {error.strerror}"
            )
            raise SourceError(f"source {name} {cause}") from error
        if stat.S_ISDIR(mode):
            self._open_folder(path)
        elif stat.S_ISCHR(mode):
            self._device = str(path)
            self._open_live()
        elif not stat.S_ISREG(mode):
            raise SourceError(
                f"source {name} is neither a file, a folder nor a camera; a program can send "
                "video to a URL such as udp://127.0.0.1:5000"
            )
        elif path.suffix.lower() in BAG_SUFFIXES:
            raise SourceError(
                f"source {name} is a bag: play it with `ros2 bag play`, and let segment_node's "
                "`image` be its topic"
            )
        elif path.suffix.lower() == ".bag":
            raise SourceError(
                f"source {name} is a bag of ROS 1: convert it with `rosbags-convert --src "
                f"{path.name} --dst FOLDER` (pip install rosbags), and play that with `ros2 bag "
                "play FOLDER`"
            )
        elif path.suffix.lower() in PHOTO_SUFFIXES:
            raise SourceError(
                f"source {name} is a photo of a kind that OpenCV does not read everywhere: save it "
                "as .jpg"
            )
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            self._open_images([path])
        else:
            self._open_video(path)

    def _open_folder(self, folder: Path) -> None:
        try:
            found = walk(folder, IMAGE_SUFFIXES)
        except OSError as error:
            raise SourceError(f"folder {shown(folder)} cannot be read: {error.strerror}") from error
        passed_over = found.passed_over_line()
        if not found.paths:
            rest = f"; {passed_over}" if passed_over else ""
            raise SourceError(
                f"folder {shown(folder)} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}): "
                f"give the folder that holds the images themselves, or one video{rest}"
            )
        if passed_over:
            self._report(passed_over)
        self._open_images(found.paths)

    def _open_images(self, paths: list[Path]) -> None:
        self._images = paths
        self.rate_hz = FOLDER_RATE_HZ
        self.count = len(paths)
        wrong = []
        for path in paths:
            try:
                read_bgr(path, self._bits)
                return
            except BadImageFile as error:
                wrong.append(str(error))
        more = f" (and {len(wrong) - 1} more, none can)" if len(wrong) > 1 else ""
        raise SourceError(f"{wrong[0]}{more}")

    def _open_video(self, place: Path | str) -> None:
        try:
            self._video = Video(place)
        except VideoError as error:
            raise SourceError(str(error)) from error
        self.rate_hz, self.count = self._video.rate_hz, self._video.count

    def _capture(self) -> cv2.VideoCapture:
        if "://" in self.name:
            return open_capture(self.name)
        return cv2.VideoCapture(int(self._device) if self._device.isdecimal() else self._device)

    # Reading

    def _image_frames(self) -> Iterator[NDArray[np.uint8]]:
        for path in self._images:
            try:
                bgr, highest = read_bgr(path, self._bits)
            except BadImageFile as error:
                self.unreadable += 1
                self._add(str(error))
                continue
            dark = too_dark(highest, self._bits)
            if dark and not self._dark:
                self._dark = True
                self._add(f"{shown(path)}: {dark}")
            yield bgr

    def _video_frames(self) -> Iterator[NDArray[np.uint8]]:
        assert self._video is not None
        try:
            for _, frame in self._video.frames(self._lose):
                yield frame
        except VideoError as error:
            raise SourceError(str(error)) from error

    def _lose(self, loss: Loss) -> None:
        self.unreadable += loss.unreadable
        self.missing = max(self.missing, loss.missing)
        self._add(loss.line)

    def _live_frames(self) -> Iterator[NDArray[np.uint8]]:
        wait = _FIRST_WAIT_S
        while not self._closed.is_set():
            for frame in self._until_it_drops():
                self._found_again()
                wait = _FIRST_WAIT_S
                yield frame
            if self._lost_at is None and not self._closed.is_set():
                self._lost_at = time.monotonic()
                self.outages += 1
                self._report(f"{shown(self.name)} gives no more frames; trying to reconnect")
            self._closed.wait(wait)
            wait = min(2 * wait, _LONGEST_WAIT_S)

    def _until_it_drops(self) -> Iterator[NDArray[np.uint8]]:
        capture = self._capture()
        failed = good = 0
        asked_at = time.monotonic()
        try:
            # A read that waited for its time-out is not one damaged packet.
            while failed < _MOST_FAILURES and time.monotonic() < asked_at + _GONE_S:
                if self._closed.is_set():
                    return
                is_good, frame = capture.read()
                if not is_good:
                    failed += 1
                    continue
                self.unreadable += failed if good else 0  # the first ones may lack their key frame
                failed = 0
                good += 1
                yield frame  # type: ignore[misc]
                asked_at = time.monotonic()
        finally:
            capture.release()

    def _found_again(self) -> None:
        if self._lost_at is not None:
            seconds = time.monotonic() - self._lost_at
            self._past_outages_s += seconds
            self._lost_at = None
            self._report(f"{shown(self.name)} is back after {seconds:.1f} s")

    def _add(self, line: str) -> None:
        if line not in self._lines:
            self._lines[line] = None
            self._report(line)


def _with_home(path: Path) -> Path:
    """The path with a leading ``~`` or ``~user`` replaced, unless a file has that very name."""
    try:
        return path if os.path.exists(path) else path.expanduser()
    except RuntimeError:  # no such user
        return path


def _numbered(pattern: Path) -> list[Path]:
    """The files beside a pattern such as frame_%03d.png that it stands for, by number.

    Raises SourceError.
    """
    split = _PATTERN.split(pattern.name, maxsplit=1)
    files = []
    if len(split) == 4:
        before, zero, width, after = split
        name = re.compile(f"{re.escape(before)}([0-9]+){re.escape(after)}")
        least = int(width or 1)
        try:
            for path in pattern.parent.iterdir():
                match = name.fullmatch(path.name)
                if match and match[1] == f"{int(match[1]):0{least}d}" if zero else match:
                    files.append(path)
        except OSError as error:
            raise SourceError(
                f"folder {shown(pattern.parent)} cannot be read: {error.strerror}"
            ) from error
    if not files:
        raise SourceError(
            f"no file matches {shown(pattern)}: check the pattern, such as frame_%03d.png"
        )
    return sorted(files, key=natural_key)
