# SPDX-License-Identifier: Apache-2.0
"""Video files: every frame that can be decoded, and which ones could not."""

import array
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ctxseg_ros.system.files import shown, told_by

#: Where neither the container nor its time stamps tell one.
DEFAULT_RATE_HZ = 10.0

# A rate above this is a container's time base (1000 in what browsers record) more often than a
# camera's rate: the time stamps decide.
_PLAUSIBLE_HZ = 250.0
_TIMED_FRAMES = 30

# Reads that fail in a row before the file counts as at its end: at the end a read costs a
# microsecond, and a damaged stretch may be long.
_LEAST_FAILURES, _MOST_FAILURES = 100, 10_000

# Of a URL. Without them OpenCV waits half a minute, and at each read again.
_TIMEOUTS = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 10_000, cv2.CAP_PROP_READ_TIMEOUT_MSEC, 10_000]

_GONE_S = 5.0

_LISTED = 10  # ranges of frames that a sentence lists

# Frames are at an even pace if so many of the steps between them differ from the stated one by less
# than this part of it.
_MOSTLY, _EVEN = 0.8, 0.5

_AVI_START = b"RIFF"
_MP4_STARTS = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
_HEADER = 4096  # bytes in which a Matroska file states its size

_CONVERT = "convert it, for example with ffmpeg -i IN -c:v libx264 -pix_fmt yuv420p OUT.mp4"


class VideoError(ValueError):
    """A video that cannot be read; the message names the file, the cause and the fix."""


class Loss(NamedTuple):
    """Frames of a video that could not be used.

    ``line``: a sentence that names the file and the frames, numbered from 1. ``unreadable``: how
    many frames the file holds that cannot be decoded. ``missing``: how many it promises that it
    does not hold. One of the two is 0.
    """

    line: str
    unreadable: int = 0
    missing: int = 0


class Video:
    """A video file, or one behind a URL.

    ``name``: for messages. ``rate_hz``: frames a second. ``count``: frames as the container states
    them, for some containers an estimate; None where it states nothing.
    """

    def __init__(self, place: Path | str) -> None:
        """Open a file (a Path) or a URL (a str). Raises VideoError, also if no frame decodes."""
        self._place = place
        self._is_file = isinstance(place, Path)
        self.name = shown(place)
        self._ends: dict[int, list[Loss]] = {}  # by the frames decoded in a pass
        video = self._open()
        rate, count = video.get(cv2.CAP_PROP_FPS), video.get(cv2.CAP_PROP_FRAME_COUNT)
        video.release()
        self.count = int(count) if math.isfinite(count) and 0 < count < 2**53 else None
        self._stated_hz = rate if math.isfinite(rate) and rate > 0 else 0.0
        self._is_estimated = True
        # Some containers state a time, that of the longest track, audio included, and OpenCV makes
        # a number of frames of it.
        self._may_be_trimmed, self._allowed = False, max(3, math.ceil((self.count or 0) / 20))
        if isinstance(place, Path):
            with self._opened(place) as file:
                start = file.read(8)
                file.seek(0)
                self._may_be_trimmed = start[4:] in _MP4_STARTS
                self._is_estimated = not (self._may_be_trimmed or start.startswith(_AVI_START))
                self._allowed = self._surplus(file)
        self.rate_hz = rate if math.isfinite(rate) and 0 < rate <= _PLAUSIBLE_HZ else 0.0
        times = []
        for _, _, milliseconds in self._decoded(lambda loss: None, 1):
            times.append(milliseconds)
            if self.rate_hz or len(times) > _TIMED_FRAMES:
                break
        if not times:
            raise VideoError(f"{self.name}: no frame can be decoded; {_CONVERT}")
        if not self.rate_hz:
            span = times[-1] - times[0]
            self.rate_hz = 1000 * (len(times) - 1) / span if span > 0 else DEFAULT_RATE_HZ

    def frames(
        self, lost: Callable[[Loss], None], stride: int = 1
    ) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Number, from 0, and pixels, uint8 [H, W, 3] BGR, of every ``stride``-th frame that can be
        decoded, from the start. Frames that cannot be decoded have numbers too.

        Not detected: damage that the decoder conceals, as decoders of H.264 and its like do.

        Args:
            lost: called with each run of frames that cannot be decoded, before the frame after it,
                and with what is missing at the end.

        Raises:
            VideoError: the file can no longer be opened.
        """
        for number, frame, _ in self._decoded(lost, stride):
            if frame is not None:
                yield number, frame

    def _decoded(
        self, lost: Callable[[Loss], None], stride: int
    ) -> Iterator[tuple[int, NDArray[np.uint8] | None, float]]:
        """Number, pixels (None: skipped by the stride) and milliseconds of what decodes."""
        video = self._open()
        most = min(max(self.count or 0, _LEAST_FAILURES), _MOST_FAILURES)
        number = failed = 0
        good_at = time.monotonic()
        unreadable: list[int] = []
        times = array.array("d")  # of the frames that decode
        try:
            while failed < most and (self._is_file or time.monotonic() < good_at + _GONE_S):
                frame: Any = None
                good = video.grab()
                if good and number % stride == 0:
                    good, frame = _retrieved(video)
                number += 1
                if not good:
                    failed += 1
                    continue
                # What failed before a good frame is damaged; what fails at the end is the end.
                if failed:
                    unreadable += range(number - failed, number)
                    lost(self._unreadable(unreadable[-failed:]))
                failed = 0
                good_at = time.monotonic()
                times.append(video.get(cv2.CAP_PROP_POS_MSEC))
                yield number - 1, frame, times[-1]
                good_at = time.monotonic()
        finally:
            video.release()
        if times and self.count and len(times) + len(unreadable) < self.count:
            if self._ends.get(len(times)) is None:  # the same at each pass
                self._ends[len(times)] = self._look_at_the_end(times, unreadable)
            for loss in self._ends[len(times)]:
                lost(loss)

    def _look_at_the_end(self, times: Sequence[float], unreadable: Sequence[int]) -> list[Loss]:
        """Where frames are missing: damage that OpenCV passed over, or a file that was cut short.

        The packets in the file are counted without decoding them. What is in the file beside the
        frames that decoded is damaged, and what the header promises beside that is not in the file.
        A count that is merely wrong, as in files that were trimmed without encoding them anew, is
        no loss.
        """
        assert self.count is not None
        if len(set(times)) < len(times):
            return []  # without time stamps the count is a guess, and packets are not frames
        read, packets, losses = len(times) + len(unreadable), sorted(self._packet_times()), []
        undecoded = min(self._to_be_shown(packets, times, unreadable), self.count) - read
        if undecoded > 0:
            decoded = {round(each, 2) for each in times}
            numbers = [
                number
                for number, each in enumerate(packets, 1)
                if round(each, 2) not in decoded and number not in unreadable
            ]
            losses.append(self._unreadable(numbers, undecoded))
        held = max(len(packets), read + max(undecoded, 0))
        if self.count - held > self._allowed and not self._is_uneven_but_whole(times):
            what = "ends early or has gaps"
            if self._is_estimated:
                what = "ends early, has gaps, or has sound that is longer than its pictures"
            line = (
                f"{self.name}: the file {what}: it holds {held} of the "
                f"{self.count} frames that its header promises; copy it again, or go on with these"
            )
            losses.append(Loss(line, missing=self.count - held))
        return losses

    def _is_uneven_but_whole(self, times: Sequence[float]) -> bool:
        """Whether the count is the stated time by a rate that the frames do not keep, as phones,
        browsers and screen recorders write them, and they go on to the end of that time."""
        assert self.count is not None
        steps = np.diff(times)
        if not self._is_estimated or not self._stated_hz or len(steps) < 2:
            return False
        even = np.abs(steps * self._stated_hz / 1e3 - 1) < _EVEN
        if np.mean(even) >= _MOSTLY:
            return False
        end_ms = times[-1] + float(steps.max())
        return end_ms >= (self.count - self._allowed) * 1e3 / self._stated_hz

    def _surplus(self, file: BinaryIO) -> int:
        """By how many frames the stated count may be too high without a frame missing."""
        start, size = file.read(_HEADER), file.seek(0, os.SEEK_END)
        if start.startswith(_AVI_START):
            return 2
        if max(_matroska_size(start), _mp4_size(file)) > size:
            return 0  # the file is cut short
        return (self.count or 0) if self._may_be_trimmed else self._allowed

    def _to_be_shown(
        self, packets: Sequence[float], times: Sequence[float], unreadable: Sequence[int]
    ) -> int:
        """How many of the packets are frames that should have been read.

        In an MP4 that was trimmed without encoding it anew, those before the first frame are not.
        """
        if not self._may_be_trimmed:
            return len(packets)
        if len(set(packets)) < len(packets):
            return 0  # an older OpenCV gives packets no time stamps
        at_start = sum(i == number for i, number in enumerate(unreadable, 1))
        first = min(times) - 500 / (self.rate_hz or DEFAULT_RATE_HZ)
        return at_start + sum(each > first for each in packets)

    def _unreadable(self, numbers: Sequence[int], count: int | None = None) -> Loss:
        """Frames that cannot be decoded; how many, where not all their numbers are known."""
        count = len(numbers) if count is None else count
        which = f" {_ranges(numbers)}" if len(numbers) == count else ""
        what = "frame" if count == 1 else "frames"
        of = f" of {self.count}" if self.count else ""
        line = f"{what}{which}" if which else f"{count} more {what}"
        return Loss(f"{self.name}: {line}{of} cannot be decoded", unreadable=count)

    def _packet_times(self) -> list[float]:
        """Milliseconds of every packet in the file; empty where OpenCV's backend hides them."""
        if isinstance(self._place, str):
            return []  # it would be downloaded again
        video = self._open()
        times = []
        if video.set(cv2.CAP_PROP_FORMAT, -1):
            while video.grab():
                times.append(video.get(cv2.CAP_PROP_POS_MSEC))
        video.release()
        return times

    def _open(self) -> cv2.VideoCapture:
        if isinstance(self._place, str):
            video = open_capture(self._place)
        else:
            video = self._open_file(self._place)
        if not video.isOpened():
            reason = (
                "it is damaged, its recording was not finished, it holds sound only, or its format "
                f"is not known: copy it again, or {_CONVERT}"
            )
            if isinstance(self._place, Path):
                with self._opened(self._place) as file:
                    reason = told_by(file.read(_HEADER)) or reason
            raise VideoError(f"{self.name}: not a video that OpenCV can open; {reason}")
        return video

    def _open_file(self, path: Path) -> cv2.VideoCapture:
        with self._opened(path) as file:
            # OpenCV takes paths as UTF-8 and crashes on other names.
            is_utf8 = shown(path.absolute()) == str(path.absolute())
            # Absolute, or FFmpeg takes what is before a colon for a protocol.
            return open_capture(
                str(path.absolute()) if is_utf8 else f"/proc/self/fd/{file.fileno()}"
            )

    @contextmanager
    def _opened(self, path: Path) -> Iterator[BinaryIO]:
        try:
            with path.open("rb") as file:
                yield file
        except OSError as error:
            raise VideoError(f"{self.name}: cannot be read ({error.strerror})") from error


def _retrieved(video: cv2.VideoCapture) -> tuple[bool, Any]:
    try:
        return video.retrieve()
    except cv2.error:  # a damaged header may ask for more memory than there is
        return False, None


def open_capture(name: str) -> cv2.VideoCapture:
    """A file or URL, opened by a backend that plays videos; ``isOpened`` tells whether it could.

    OpenCV's own choice would also take a numbered name for a sequence of images.
    """
    video = cv2.VideoCapture(name, cv2.CAP_FFMPEG, _TIMEOUTS)
    if not video.isOpened() and cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
        return cv2.VideoCapture(name, cv2.CAP_GSTREAMER)
    return video


def _mp4_size(file: BinaryIO) -> int:
    """Bytes that an MP4 or MOV file has by its boxes; 0 where the file is another."""
    end = 0
    while True:
        file.seek(end)
        head = file.read(16)
        if len(head) < 8 or not (end or head[4:8] in _MP4_STARTS):
            return end
        size = int.from_bytes(head[:4], "big")
        if size == 1:
            size = int.from_bytes(head[8:], "big")
        if size < 8:  # 0: to the end of the file
            return end
        end += size


def _matroska_size(start: bytes) -> int:
    """Bytes that a Matroska or WebM file has by its header; 0 where the file is another, or its
    size is not stated."""
    if not start.startswith(b"\x1a\x45\xdf\xa3"):
        return 0
    header, after_header = _variable_length(start, 4)
    at = after_header + header
    if start[at : at + 4] != b"\x18\x53\x80\x67" or len(start) < at + 5:
        return 0
    size, after_size = _variable_length(start, at + 4)
    is_known = size != (1 << 7 * (after_size - at - 4)) - 1
    return after_size + size if is_known else 0


def _variable_length(data: bytes, at: int) -> tuple[int, int]:
    """An EBML number at a position, and the position after it: its leading zeros give its bytes."""
    length = 9 - data[at].bit_length()
    value = int.from_bytes(data[at : at + length], "big")
    return value & ((1 << 7 * length) - 1), at + length


def _ranges(numbers: Sequence[int]) -> str:
    """Increasing numbers as text: 4, 8 to 11."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    listed = [str(a) if a == b else f"{a} to {b}" for a, b in ranges[:_LISTED]]
    return ", ".join(listed) + (", ..." if len(ranges) > _LISTED else "")
