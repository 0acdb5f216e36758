# SPDX-License-Identifier: Apache-2.0
"""Where camera_node's frames come from: a video file, a folder of images, or a camera."""

import math
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
FOLDER_RATE_HZ = 10.0


class SourceError(ValueError):
    """A source that cannot be read; the message names the cause and the fix."""


class FrameSource:
    """Frames as uint8 [H, W, 3] in OpenCV's order, BGR.

    `name`: the path or index that was given. `rate_hz`: the source's own rate, None for a camera,
    which sets the pace itself. `count`: how many frames it says it has, None where it does not
    know. `live`: a camera, which cannot be read twice.
    """

    def __init__(self, source: str) -> None:
        """Open a file, folder, device, URL or camera index. Raises SourceError."""
        self.name = source
        self._images: list[Path] = []
        self.live = source.isdecimal() or "://" in source or Path(source).is_char_device()
        self.rate_hz: float | None = None
        self.count: int | None = None
        if not source:
            raise SourceError("no source given: set `source` to a video, a folder or an index")
        # OpenCV reads numbered images by a pattern such as frame_%03d.png.
        if not self.live and "%" not in source and not Path(source).exists():
            raise SourceError(f"source {source} does not exist: check the path")
        if Path(source).is_dir() and not self.live:
            self._images = sorted(
                path for path in Path(source).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES
            )
            if not self._images:
                raise SourceError(
                    f"folder {source} holds no image ({', '.join(IMAGE_SUFFIXES)}): "
                    "give the folder that holds the images themselves"
                )
            self.rate_hz = FOLDER_RATE_HZ
            self.count = len(self._images)
            self._read_image(self._images[0])
        elif self.live:
            self._open().release()
        else:
            video = self._open()
            rate, count = video.get(cv2.CAP_PROP_FPS), video.get(cv2.CAP_PROP_FRAME_COUNT)
            if not video.read()[0]:
                raise SourceError(
                    f"no frame of {source} can be decoded: convert it, for example with "
                    "ffmpeg -i IN -c:v libx264 -pix_fmt yuv420p OUT.mp4"
                )
            video.release()
            self.rate_hz = rate if math.isfinite(rate) and 0 < rate <= 1000 else FOLDER_RATE_HZ
            self.count = int(count) if math.isfinite(count) and count > 0 else None

    def frames(self, loop: bool = False) -> Iterator[NDArray[np.uint8]]:
        """Every frame in order, from the start; again and again if `loop`. Raises SourceError."""
        while True:
            if self._images:
                for path in self._images:
                    yield self._read_image(path)
            else:
                yield from self._read_video()
            if not loop:
                return

    def _open(self) -> cv2.VideoCapture:
        video = cv2.VideoCapture(int(self.name) if self.name.isdecimal() else self.name)
        if not video.isOpened():
            raise SourceError(
                f"camera {self.name} cannot be opened: check that it is there, that you may read "
                "it (/dev/video*: group video), and that nobody else uses it"
                if self.live
                else f"{self.name} is no video that OpenCV can open: check the file"
            )
        return video

    def _read_video(self) -> Iterator[NDArray[np.uint8]]:
        video = self._open()
        number = 0
        try:
            while True:
                good, frame = video.read()
                if not good:
                    break
                number += 1
                yield frame  # type: ignore[misc]
        finally:
            video.release()
        if self.live:
            raise SourceError(f"camera {self.name} gives no more frames: is it unplugged?")
        if not number:
            raise SourceError(f"no frame of {self.name} can be decoded any more: check the file")

    @staticmethod
    def _read_image(path: Path) -> NDArray[np.uint8]:
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise SourceError(f"image {path} cannot be decoded: repair or remove it")
        return image  # type: ignore[return-value]
