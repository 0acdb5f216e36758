# SPDX-License-Identifier: Apache-2.0
"""The demo's pictures: overlay.mp4, in real time, and frames.png, six frames and their overlays."""

import errno
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from ctxseg_ros.command import CommandFailed
from ctxseg_ros.demo.recording import Recording, Stamp
from ctxseg_ros.image import render
from ctxseg_ros.image.source import FrameSource, SourceError
from ctxseg_ros.model.model_file import ModelInfo
from ctxseg_ros.system.files import shown
from ctxseg_ros.system.output_files import OutputError, replacing, write_image

VIDEO, SHEET = "overlay.mp4", "frames.png"
ALPHA = 0.5
# Pixels of a frame's longest side in the video. Labels have no more detail than the upper limit,
# and MPEG-4 ends at 8191, legend included; below the lower one a legend cannot be read.
LEAST, MOST = 320, 1920
# OpenCV counts an MPEG-4 video's time in ticks, 100 times the rate if that has two decimals; the
# format allows 65535 a second.
SLOWEST_HZ, FASTEST_HZ = 0.01, 650.0
LONE_FRAME_HZ = 1.0
ROWS = 6  # of frames.png
CELL = 480  # pixels that a frame is wide in it, and half of what it is high at most

Image = NDArray[np.uint8]


def write_pictures(
    recording: Recording, source: FrameSource, info: ModelInfo, out: Path, console: Console
) -> list[Path]:
    """Write overlay.mp4 and frames.png to a folder; gives their paths.

    A frame without labels repeats the overlay before it: so the video moves as often as labels
    came, and colours always lie on the picture that they belong to. Frames of several sizes are
    fitted into that of the first.

    Raises:
        CommandFailed: no frame was labelled, or OpenCV cannot write such a video here.
        SourceError: the source cannot be read again as it was played.
        OutputError: a picture cannot be written.
    """
    stamps = stamps_of_frames(recording, source)
    total = sum(stamp in recording.labels for stamp in stamps)
    if not total:
        raise CommandFailed("no frame was labelled, so there are no pictures")
    chosen = {round((i + 0.5) * total / ROWS - 0.5) for i in range(ROWS)}
    rows: list[Image] = []
    labelled = 0
    last: Image | None = None
    canvas: tuple[int, int] | None = None
    with (
        Progress(console=console) as progress,
        video_writer(out / VIDEO, video_rate(stamps)) as write,
    ):
        task = progress.add_task("writing the video", total=len(stamps))
        for rgb, labels in frames_with_labels(recording, source, stamps):
            canvas = canvas or canvas_size(*rgb.shape[:2])
            if labels is not None:
                painted = _painted(rgb, labels, info)
                if labelled in chosen:
                    rows.append(_row(rgb, painted))
                labelled += 1
                last = fitted(painted, canvas)
            write(_with_legend(fitted(rgb, canvas) if last is None else last, info))
            progress.advance(task)
    write_image(out / SHEET, _with_legend(np.vstack(rows), info))
    return [out / VIDEO, out / SHEET]


def stamps_of_frames(recording: Recording, source: FrameSource) -> Sequence[Stamp | None]:
    """The stamp of each frame that can be shown, in order; None: it is not known."""
    return sorted(recording.pictures) if source.live else recording.sent_stamps()


def frames_with_labels(
    recording: Recording, source: FrameSource, stamps: Sequence[Stamp | None]
) -> Iterator[tuple[Image, Image | None]]:
    """The frame of each stamp, uint8 [H, W, 3] RGB, and its labels, or attention, [H, W] if any.

    The camera sent every frame of a file that can be decoded, in order; so the frames that are read
    again have the stamps in the same order.

    Raises SourceError if the source now gives fewer frames than were sent.
    """
    if source.live:
        frames: Iterator[Image] = (
            cv2.imdecode(jpeg, cv2.IMREAD_COLOR)  # type: ignore[misc]
            for _, jpeg in sorted(recording.pictures.items())
        )
    else:
        frames = source.frames()
    for number, stamp in enumerate(stamps):
        bgr = next(frames, None)
        if bgr is None:
            raise SourceError(
                f"{shown(source.name)} gave {len(stamps)} frames when it was played and {number} "
                "when it was read again for the pictures: it has changed; run the demo again"
            )
        yield cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), recording.labels_of(stamp)  # type: ignore[misc]


def video_rate(stamps: Sequence[Stamp | None]) -> float:
    """The frame rate, in Hz, that shows the frames in real time, as far as a video can have it."""
    known = [stamp for stamp in stamps if stamp is not None]
    if len(known) < 2:
        return LONE_FRAME_HZ
    (first, first_ns), (end, end_ns) = known[0], known[-1]
    seconds = end - first + (end_ns - first_ns) * 1e-9
    rate = (len(known) - 1) / seconds if seconds > 0 else math.inf
    return min(max(round(rate, 2), SLOWEST_HZ), FASTEST_HZ)


def canvas_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) of the video's picture for frames of this size: even, and wide enough for a
    legend."""
    longest = max(height, width)
    scale = min(MOST / longest, 1.0) if longest >= LEAST else math.ceil(LEAST / longest)
    height, width = (min(2 * math.ceil(side * scale / 2), MOST) for side in (height, width))
    return height, max(width, LEAST)


def fitted(image: Image, size: tuple[int, int]) -> Image:
    """The image in the middle of one of (height, width), as large as it fits, on dark grey."""
    height, width = image.shape[:2]
    if (height, width) == size:
        return image
    scale = min(size[0] / height, size[1] / width)
    inner = [
        max(1, min(round(side * scale), most))
        for side, most in zip((height, width), size, strict=True)
    ]
    result = np.full((*size, 3), 24, np.uint8)
    top, left = ((most - side) // 2 for side, most in zip(inner, size, strict=True))
    result[top : top + inner[0], left : left + inner[1]] = cv2.resize(
        image, inner[::-1], interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    )
    return result


@contextmanager
def video_writer(path: Path, rate_hz: float) -> Iterator[Callable[[Image], None]]:
    """Write an MPEG-4 video: call what this gives with each frame, uint8 [H, W, 3] RGB, of one even
    size. The file takes its place when the block ends.

    Raises:
        CommandFailed: OpenCV cannot write such a video here.
        OutputError: the file cannot be written.
    """
    video = cv2.VideoWriter()
    written = 0

    with replacing(path) as draft, _ascii(draft) as name:

        def write(rgb: Image) -> None:
            nonlocal written
            if not written:
                code = cv2.VideoWriter_fourcc(*"mp4v")  # type: ignore[attr-defined]
                video.open(name, code, rate_hz, rgb.shape[1::-1])
                if not video.isOpened():
                    _check_space(draft)
                    raise CommandFailed(
                        f"{shown(path)}: this OpenCV ({cv2.__version__}) cannot write MPEG-4 "
                        f"videos of {rgb.shape[1]}x{rgb.shape[0]} pixels"
                    )
            video.write(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
            written += 1
            if not os.statvfs(draft.parent).f_bavail:  # not after the minutes
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        try:
            yield write
        finally:
            video.release()
        # OpenCV does not tell whether writing failed.
        count = int(cv2.VideoCapture(name).get(cv2.CAP_PROP_FRAME_COUNT))
        if count != written:
            _check_space(draft)
            raise OutputError(f"{shown(path)}: only {count} of {written} frames were written")


@contextmanager
def _ascii(path: Path) -> Iterator[str]:
    """The same file under a name in ASCII, whatever folder it is in: OpenCV crashes on names that
    are not UTF-8."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _check_space(path: Path) -> None:
    """Raise the OSError that a write to the file meets, if it meets one."""
    with path.open("ab") as file:
        file.write(bytes(2**20))
        file.flush()
        os.fsync(file.fileno())


def _painted(rgb: Image, labels: Image, info: ModelInfo) -> Image:
    """The frame under its labels' colours, or under its attention as heat."""
    if info.task == "attention":
        return render.heat_overlay(rgb, labels, ALPHA)
    return render.overlay(rgb, labels, info.colours, ALPHA)


def _with_legend(image: Image, info: ModelInfo) -> Image:
    """The image above the names of the classes, if there are any."""
    return render.legend(image, info.classes) if info.classes else image


def _row(rgb: Image, painted: Image) -> Image:
    """Camera | overlay, CELL pixels wide each, as high as the frame's shape asks for."""
    height = min(max(round(rgb.shape[0] * CELL / rgb.shape[1]), 2), 2 * CELL)
    return np.hstack([fitted(item, (height, CELL)) for item in (rgb, painted)])
