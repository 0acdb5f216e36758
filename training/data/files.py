# SPDX-License-Identifier: Apache-2.0
"""Image files: found, read, and checked one by one before anything is done with them."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Callable, Collection, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TypeVar, cast

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track

from ctxseg_ros.image import image_file
from ctxseg_ros.image.image_file import ALL_BITS
from ctxseg_ros.system.files import IMAGE_SUFFIXES, shown, walk

_log = logging.getLogger(__name__)

_SHOWN = 50  # files that a message names; the checker names them all

_dark_folders: set[Path] = set()  # that a warning was given of

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
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        generator = cast(
            "Generator[tuple[Result | None, str | None], None, None]", pool.map(attempt, items)
        )
        with closing(generator) as results:
            done = list(progress(results, what, len(items)))
    wrong = [line for _, line in done if line is not None]
    if wrong:
        raise BrokenFiles(wrong)
    return [result for result, _ in done]


def warn(line: str) -> None:
    """Log a warning, in one process where several train."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        _log.warning("%s", line)


def progress(items, what: str, total: int | None):  # type: ignore[no-untyped-def]
    """``items``, with a progress bar on a terminal, of one process where several train."""
    console = Console(stderr=True)
    quiet = not console.is_terminal or os.environ.get("LOCAL_RANK", "0") != "0"
    return track(items, what, total, console=console, transient=True, disable=quiet)


def image_files(folder: Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """Image files below a folder by their path within it, less the suffix, in natural order.

    See ``system.files.walk`` for what is read; a warning says what was passed over. The keys
    are in Unicode's form NFC: a Mac may write accents as characters of their own.

    Raises:
        DataError: there is no such folder, it holds no image, or two files share a stem.
    """
    found = files_below(folder, suffixes)
    if not found:
        raise DataError(f"{shown(folder)}: no image files in it")
    by_stem: dict[str, Path] = {}
    for path in found:
        stem = path.relative_to(folder).with_suffix("").as_posix()
        stem = unicodedata.normalize("NFC", stem)
        if stem in by_stem:
            both = f"{shown(path)} and {shown(by_stem[stem])}"
            raise DataError(f"{both} have the same name but for the suffix: remove one of them")
        by_stem[stem] = path
    return by_stem


def files_below(
    folder: Path,
    suffixes: Collection[str],
    is_item: Callable[[Path], bool] = lambda folder: False,
) -> list[Path]:
    """What ``ctxseg_ros.system.files.walk`` finds; a warning says what was passed over.

    Raises:
        DataError: there is no such folder, or it cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"{shown(folder)}: no such folder")
    try:
        found = walk(folder, suffixes, is_item)
    except OSError as error:
        raise DataError(f"{shown(folder)}: cannot be read ({error.strerror})") from error
    if line := found.passed_over_line():
        warn(line)
    return found.paths


def decoded(path: Path, flags: int) -> np.ndarray:
    """The pixels of an image file, see ``image_file.decoded``. Raises DataError."""
    try:
        return image_file.decoded(path, flags)
    except image_file.BadImageFile as error:
        raise DataError(str(error)) from error


def read_image(path: Path, bits: int = ALL_BITS) -> np.ndarray:
    """An image file as uint8 [H, W, 3], RGB, see ``ctxseg_ros.image.image_file.read_bgr``.

    A warning, once for a folder, says that images of 16 bits are nearly black.

    Raises:
        DataError: the file is missing, not an image, damaged, or of floating-point numbers.
    """
    try:
        bgr, highest = image_file.read_bgr(path, bits)
    except image_file.BadImageFile as error:
        raise DataError(str(error)) from error
    if (dark := image_file.too_dark(highest, bits)) and path.parent not in _dark_folders:
        _dark_folders.add(path.parent)
        warn(f"{shown(path)}: {dark}")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
