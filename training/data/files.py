# SPDX-License-Identifier: Apache-2.0
"""Image files: found, read, and checked one by one before anything is done with them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track

from ctxseg_ros.encodings import BadImage, stated_size

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".tif", ".tiff", ".webp"}

_SHOWN = 50  # files that a message names; the checker names them all

Item = TypeVar("Item")
Result = TypeVar("Result")


class DataError(ValueError):
    """A data set that cannot be used as it is. The message names every file at fault."""


class BrokenFiles(DataError):
    """Files at fault; ``lines`` has one line for each, the message the first of them."""

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = sorted(lines)
        shown = "\n  ".join(self.lines[:_SHOWN])
        more = len(self.lines) - _SHOWN
        rest = f"\n  ... and {more} more" if more > 0 else ""
        super().__init__(f"{len(self.lines)} file(s) cannot be used:\n  {shown}{rest}")


def each_file(function: Callable[[Item], Result], items: Sequence[Item], what: str) -> list[Result]:
    """``function`` of each item, in order, by as many threads as there are cores.

    ``what`` stands beside the progress bar.

    Raises:
        BrokenFiles: of all the DataErrors that ``function`` raised.
    """

    def attempt(item: Item) -> tuple[Result | None, str | None]:
        try:
            return function(item), None
        except DataError as error:
            return None, str(error)

    # `closing`: an interrupt does not wait for the files that are left.
    with ThreadPoolExecutor(os.cpu_count()) as pool, closing(pool.map(attempt, items)) as results:
        done = list(progress(results, what, len(items)))
    wrong = [line for _, line in done if line is not None]
    if wrong:
        raise BrokenFiles(wrong)
    return [result for result, _ in done]


def progress(items, what: str, total: int | None):  # type: ignore[no-untyped-def]
    """``items``, with a progress bar on a terminal, of one process where several train."""
    console = Console(stderr=True)
    quiet = not console.is_terminal or os.environ.get("LOCAL_RANK", "0") != "0"
    return track(items, what, total, console=console, transient=True, disable=quiet)


def image_files(folder: Path) -> dict[str, Path]:
    """Image files below a folder by their path within it, less the suffix, sorted.

    Raises:
        DataError: there is no such folder, it holds no image, or two files share a stem.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            stem = path.relative_to(folder).with_suffix("").as_posix()
            if stem in found:
                raise DataError(f"{path} and {found[stem]} share a stem: which is meant?")
            found[stem] = path
    if not found:
        raise DataError(f"{folder}: no image files in it")
    return found


def decoded(path: Path, flags: int) -> np.ndarray:
    """The pixels of an image file as OpenCV decodes it with ``flags`` (``cv2.IMREAD_...``).

    Not detected: damage in the middle of a JPEG, which has no checksums; decoders show it as
    smeared or shifted blocks, often without a warning. A PNG has checksums, and they are checked.

    Raises:
        DataError: the file is missing, no image, too large (more than 2**30 pixels), or cut short;
            a JPEG without its end marker counts as cut short, whatever is missing before it.
    """
    try:
        data = path.read_bytes()
        stated_size(data)
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except OSError as error:
        raise DataError(f"{path}: cannot be read as an image ({error.strerror})") from error
    except BadImage as error:
        raise DataError(f"{path}: {error.cause}; copy it again or remove it") from error
    except cv2.error as error:  # such as a header that asks for more pixels than OpenCV allows
        raise DataError(f"{path}: cannot be read as an image ({error.err})") from error
    if image is None:
        raise DataError(f"{path}: cannot be read as an image")
    return image


def read_image(path: Path) -> np.ndarray:
    """An image file as uint8 [H, W, 3], RGB.

    Grey becomes RGB, alpha is dropped, 16 bits become 8 (by 255 / 65535, rounded), and the EXIF
    orientation is applied.

    Raises:
        DataError: see ``decoded``; or it is of floating-point numbers.
    """
    # OpenCV alone would turn 16 bits into 8 by dropping the lower ones.
    image = decoded(path, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if image.dtype == np.uint16:
        image = cv2.convertScaleAbs(image, alpha=255 / 65535)
    if image.dtype != np.uint8:
        raise DataError(f"{path}: pixels are {image.dtype}; save it with 8 or 16 bits")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
