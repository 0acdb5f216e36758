# SPDX-License-Identifier: Apache-2.0
"""Video files: every frame that can be decoded, and which ones could not."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ctxseg_ros.files import shown

#: Where neither the container nor its time stamps tell one.
DEFAULT_RATE_HZ = 10.0

# A rate above this is a container's time base (1000 in what browsers record) more often than a
# camera's rate: the time stamps decide.
_PLAUSIBLE_HZ = 250.0
_TIMED_FRAMES = 30

# Reads that fail in a row before the file counts as at its end: at the end a read costs a
# microsecond, and a damaged stretch may be long.
_LEAST_FAILURES, _MOST_FAILURES = 100, 10_000

_CONVERT = "convert it, for example with ffmpeg -i IN -c:v libx264 -pix_fmt yuv420p OUT.mp4"


class VideoError(ValueError):
    """A video that cannot be read; the message names the file, the cause and the fix."""


class Loss(NamedTuple):
    """Frames of a video that could not be used.

    ``line``: a sentence that names the file and the frames, numbered from 1. ``unreadable``: how
    many frames the file holds that cannot be decoded. ``missing``: how many frames it promises
    beyond its end. One of the two is 0.
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
        self.name = shown(place)
        video = self._open()
        rate, count = video.get(cv2.CAP_PROP_FPS), video.get(cv2.CAP_PROP_FRAME_COUNT)
        video.release()
        self.count = int(count) if math.isfinite(count) and 0 < count < 2**53 else None
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
        number = failed = 0
        last = 0.0
        try:
            while failed < self._most_failures():
                frame: Any = None
                good = video.grab()
                if good and number % stride == 0:
                    good, frame = video.retrieve()
                number += 1
                if not good:
                    failed += 1
                    continue
                # What failed before a good frame is damaged; what fails at the end is the end.
                if failed:
                    lost(self._unreadable(number - failed, failed))
                failed = 0
                last = video.get(cv2.CAP_PROP_POS_MSEC)
                yield number - 1, frame, last
        finally:
            video.release()
        self._look_at_the_end(lost, number - failed, last)

    def _most_failures(self) -> int:
        if isinstance(self._place, str):
            return _LEAST_FAILURES
        return min(max(self.count or 0, _LEAST_FAILURES), _MOST_FAILURES)

    def _look_at_the_end(self, lost: Callable[[Loss], None], read: int, last_ms: float) -> None:
        """Tell damage at the end of the file, and a file that was cut short, from a wrong count.

        The packets are counted without decoding them: those after the last good frame cannot be
        decoded, and those that the header promises beside them are not in the file.
        """
        if not read or self.count is None or read >= self.count:
            return
        times = self._packet_times()
        period = 1000 / (self.rate_hz or DEFAULT_RATE_HZ)
        undecoded = sum(time > last_ms + period / 2 for time in times)
        if undecoded:
            lost(self._unreadable(read + 1, undecoded))
        held = max(len(times), read + undecoded)
        # Some containers state their length as a time, which is that of the longest track, audio
        # included, and OpenCV makes a number of frames of it.
        allowed = 2 if self._states_frames() else max(3, math.ceil(self.count / 20))
        if self.count - held > allowed:
            line = (
                f"{self.name}: the file ends early, after {held} of the {self.count} frames that "
                "its header promises; copy it again, or go on with what it holds"
            )
            lost(Loss(line, missing=self.count - held))

    def _unreadable(self, first: int, count: int) -> Loss:
        numbers = f"frame {first}" if count == 1 else f"frames {first} to {first + count - 1}"
        of = f" of {self.count}" if self.count else ""
        return Loss(f"{self.name}: {numbers}{of} cannot be decoded", unreadable=count)

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

    def _states_frames(self) -> bool:
        """Whether the container states a number of frames, as AVI, MP4 and MOV do."""
        if isinstance(self._place, str):
            return False
        with self._place.open("rb") as file:
            start = file.read(8)
        return start.startswith(b"RIFF") or start[4:] in (b"ftyp", b"moov", b"mdat", b"wide")

    def _open(self) -> cv2.VideoCapture:
        if isinstance(self._place, str):
            video = open_capture(self._place)
        else:
            video = self._open_file(self._place)
        if not video.isOpened():
            raise VideoError(
                f"{self.name}: not a video that OpenCV can open; it is damaged, its recording was "
                f"not finished, or its format is not known: copy it again, or {_CONVERT}"
            )
        return video

    def _open_file(self, path: Path) -> cv2.VideoCapture:
        try:
            with path.open("rb") as file:
                if not file.read(1):
                    raise VideoError(f"{self.name}: the file is empty; copy it again")
                # OpenCV takes paths as UTF-8 and crashes on other names.
                utf8 = self.name == str(path)
                return open_capture(str(path) if utf8 else f"/proc/self/fd/{file.fileno()}")
        except OSError as error:
            raise VideoError(f"{self.name}: cannot be read ({error.strerror})") from error


def open_capture(name: str) -> cv2.VideoCapture:
    """A file or URL, opened by a backend that plays videos; ``isOpened`` tells whether it could.

    OpenCV's own choice would also take a numbered name for a sequence of images.
    """
    video = cv2.VideoCapture(name, cv2.CAP_FFMPEG)
    if not video.isOpened() and cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
        return cv2.VideoCapture(name, cv2.CAP_GSTREAMER)
    return video
