# SPDX-License-Identifier: Apache-2.0
"""Frames without labels: from images, videos and ROS 2 bags."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from ctxseg_ros.image.encodings import (
    BadImage,
    Reading,
    is_picture,
    largest_value,
    read_rgb,
)
from ctxseg_ros.image.image_file import ALL_BITS, too_dark
from ctxseg_ros.image.video import Loss, Video, VideoError
from ctxseg_ros.system.files import BAG_SUFFIXES, IMAGE_SUFFIXES, VIDEO_SUFFIXES, shown
from training.data.bags import bag_images, is_bag
from training.data.files import (
    BrokenFiles,
    DataError,
    each_file,
    files_below,
    progress,
    read_image,
    warn,
)
from training.places import expanded

#: Pixels that a frame has at least, in height and width: networks that halve it four times are
#: left with one.
LEAST_SIDE = 16

#: Bytes of video and bag frames that are kept, at most: 10,000 to 40,000 frames of 1280x720.
MOST_KEPT = 4 * 2**30

_JPEG_QUALITY = 95

_LISTED = 10  # losses that are logged; FrameList has all
_LOOKED_AT = 5  # first frames of a bag: are they of 16 bits and nearly black?

_SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES | BAG_SUFFIXES

#: A path, or several.
Source = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class FrameOptions:
    """Which frames of a source are used, and what the files do not state about them.

    Args:
        topic: of the images in bags; None where a bag has only one.
        stride: every stride-th frame is used, from the first on.
        encoding, bits: of images, see ``ctxseg_ros.image.encodings.Reading``.

    Raises:
        ValueError: there is no such encoding, or no images of so many bits.
    """

    topic: str | None = None
    stride: int = 1
    encoding: str = ""
    bits: int = ALL_BITS

    def __post_init__(self) -> None:
        Reading(self.encoding, self.bits)

    @property
    def reading(self) -> Reading:
        """How pixels are read."""
        return Reading(self.encoding, self.bits)


#: Every frame, as the files state it.
ALL_FRAMES = FrameOptions()


@dataclass(frozen=True)
class _Frame:
    """Where a frame is: in an image file, or encoded in memory."""

    name: str
    place: Path | bytes
    size: tuple[int, int]
    one_colour: bool
    bits: int = ALL_BITS

    @property
    def kept(self) -> int:
        """Bytes in memory."""
        return len(self.place) if isinstance(self.place, bytes) else 0

    def read(self) -> np.ndarray:
        if isinstance(self.place, Path):
            return read_image(self.place, self.bits)
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        pixels = cv2.imdecode(np.frombuffer(self.place, np.uint8), flags)
        assert pixels is not None  # it was decoded before
        return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


class FrameList(Sequence[np.ndarray]):
    """Frames as uint8 [H, W, 3], RGB, of any sizes.

    Item i is decoded when it is asked for: image files are read again; frames of videos and bags
    are kept encoded, since one in the middle of those takes long to get. A bag's JPEG or PNG is
    kept as it is, all else as JPEG of quality 95.

    ``names``: file, and the number in it or the topic and the number. ``sizes``: (height, width).
    ``one_colour``: names of frames of a single colour. ``left_out``: one line for each message of
    a bag, or run of frames of a video, that cannot be read, and for each video that ends early.
    ``kept_bytes``: of memory.
    """

    def __init__(self, frames: Sequence[_Frame], left_out: Sequence[str]) -> None:
        self._frames, self.left_out = frames, left_out
        self.names = [frame.name for frame in frames]
        self.sizes = [frame.size for frame in frames]
        self.one_colour = [frame.name for frame in frames if frame.one_colour]
        self.kept_bytes = sum(frame.kept for frame in frames)

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self._frames[index].read()


def open_frames(source: Source, options: FrameOptions = ALL_FRAMES) -> FrameList:
    """Frames of one or more sources, each decoded once and checked.

    A folder is read as ``system.files.walk`` does. Recordings are used as far as they can be
    read, and warnings tell the rest (see ``FrameList.left_out``); an image file that cannot be read
    is an error, since it can be replaced or removed.

    Args:
        source: an image, a video, a ROS 2 bag (its folder, or an .mcap or .db3 file), or a folder
            of all these, at any depth; or several of them.
        options: which frames, and how they are read.

    Raises:
        DataError: there is nothing to read, or an image or a whole recording cannot be read, or
            frames have fewer than LEAST_SIDE pixels in height or width, or more than MOST_KEPT
            bytes would be kept; see also ``bag_images``. Every file at fault is named.
    """
    topic, stride, reading = options.topic, options.stride, options.reading
    if stride < 1:
        raise DataError(f"stride is {stride}: it must be 1 or more")
    files = _files(source)
    if topic is not None and not any(map(is_bag, files)):
        raise DataError(f"topic {topic} was given, but there is no bag in {_listed(source)}")
    images = [path for path in files if not is_bag(path) and not _is_video(path)]
    frames: list[_Frame] = []
    wrong: list[str] = []
    left_out: list[str] = []
    try:
        frames += each_file(partial(_image_frame, bits=reading.bits), images[::stride], "images")
    except BrokenFiles as error:
        wrong += error.lines
    room = MOST_KEPT
    for path in files:
        try:
            if is_bag(path):
                found = _kept(_bag_pixels(path, topic, stride, reading, left_out), path, room)
            elif _is_video(path):
                found = _kept(_video_pixels(path, stride, left_out), path, room)
            else:
                continue
        except _TooMuch:
            raise
        except DataError as error:
            wrong.append(str(error))
            continue
        room -= sum(frame.kept for frame in found)
        frames += found
    if wrong:
        raise BrokenFiles(wrong)
    for line in left_out[:_LISTED]:
        warn(f"left out: {line}")
    if len(left_out) > _LISTED:
        warn(f"left out: and {len(left_out) - _LISTED} more of this kind")
    return FrameList(frames, left_out)


def holds_bag(source: Source) -> bool:
    """Whether there is a ROS 2 bag among one or more sources, see ``open_frames``.

    Raises:
        DataError: nothing is there, or nothing that is known by its suffix.
    """
    return any(map(is_bag, _files(source)))


class _TooMuch(DataError):
    """More frames than memory should hold; no file is at fault."""


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def _entries(source: Source) -> Sequence[str | Path]:
    return [source] if isinstance(source, str | Path) else source


def _listed(source: Source) -> str:
    return ", ".join(map(str, _entries(source)))


def _files(source: Source) -> list[Path]:
    """Images, videos and bags at or below each path."""
    paths = [expanded(entry) for entry in _entries(source)]
    return [found for path in paths for found in _found(path)]


def _found(path: Path) -> list[Path]:
    name = shown(path)
    if not path.exists():
        raise DataError(f"{name}: no such file or folder")
    if is_bag(path):
        return [path]
    if path.is_dir():
        if found := files_below(path, _SUFFIXES, is_bag):
            return found
        raise DataError(f"{name}: no images, videos or bags in it")
    if path.suffix.lower() == ".bag":
        raise DataError(
            f"{name}: a bag of ROS 1; convert it: rosbags-convert --src {path.name} --dst FOLDER"
        )
    if path.suffix.lower() not in _SUFFIXES:
        known = ", ".join(sorted(_SUFFIXES))
        raise DataError(f"{name}: no image, video or bag by its suffix ({known})")
    if not path.is_file():
        raise DataError(f"{name}: not a regular file")
    return [path]


def _image_frame(path: Path, bits: int) -> _Frame:
    return replace(_checked(shown(path), path, read_image(path, bits)), bits=bits)


def _checked(name: str, place: Path | bytes, pixels: np.ndarray) -> _Frame:
    height, width = pixels.shape[:2]
    if min(height, width) < LEAST_SIDE:
        raise DataError(f"{name}: {width}x{height} pixels, fewer than {LEAST_SIDE} on a side")
    return _Frame(name, place, (height, width), bool((pixels == pixels[0, 0]).all()))


def _kept(encoded: Iterator[tuple[str, bytes, np.ndarray]], path: Path, room: int) -> list[_Frame]:
    """Frames of (name, data, pixels), as long as their data takes no more than ``room`` bytes."""
    frames: list[_Frame] = []
    for name, data, pixels in encoded:
        room -= len(data)
        if room < 0:
            raise _TooMuch(
                f"{path}: with its frame {len(frames)} more than {MOST_KEPT / 2**30:.0f} GiB of "
                "frames would be kept in memory: take fewer with --stride N (training: "
                "--data.stride N), or write them into a folder as images"
            )
        frames.append(_checked(name, data, pixels))
    return frames


def _jpeg(rgb: np.ndarray) -> bytes:
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()


def _video_pixels(
    path: Path, stride: int, left_out: list[str]
) -> Iterator[tuple[str, bytes, np.ndarray]]:
    def lost(loss: Loss) -> None:
        left_out.append(loss.line)

    try:
        video = Video(path)
        frames = video.frames(lost, stride)
        total = None if video.count is None else -(-video.count // stride)
        for number, bgr in progress(frames, video.name, total):
            rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
            yield f"{video.name}#{number}", _jpeg(rgb), rgb
    except VideoError as error:
        raise DataError(str(error)) from error


def _bag_pixels(
    path: Path, topic: str | None, stride: int, reading: Reading, left_out: list[str]
) -> Iterator[tuple[str, bytes, np.ndarray]]:
    """As `_video_pixels`: messages that cannot be read go to `left_out`."""
    wrong: list[str] = []
    darkest: list[str] = []
    choices: Sequence[str] = ()
    good = 0
    for chosen, number, message in bag_images(path, topic, stride):
        name = f"{path}:{chosen}#{number}"
        try:
            rgb = read_rgb(message, reading=reading)
        except BadImage as error:
            wrong.append(f"{name}: {error.cause}")
            choices = error.choices or choices
            continue
        if good < _LOOKED_AT and (dark := too_dark(largest_value(message, reading), reading.bits)):
            darkest.append(dark)
        good += 1
        yield name, bytes(message.data) if is_picture(message, reading) else _jpeg(rgb), rgb
    if not good:
        raise DataError(
            f"{wrong[0]}. Not one of its {len(wrong)} messages can be read"
            + (f": {_tell(choices)}" if choices else "")
        )
    if len(darkest) == min(good, _LOOKED_AT):
        warn(f"{shown(path)}: {darkest[-1]}")
    left_out += wrong


def _tell(choices: Sequence[str]) -> str:
    return (
        "say what the pixels are with --encoding (training: --data.encoding), one of "
        + ", ".join(choices)
    )
