# SPDX-License-Identifier: Apache-2.0
"""Which files below a folder are read: one list of suffixes, one walk, one order."""

import os
import re
from collections import Counter, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".ppm", ".pgm", ".pnm"}
    | {".tif", ".tiff", ".webp"}
)
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts"}
    | {".wmv", ".flv", ".ogv", ".3gp", ".mjpg", ".mjpeg"}
)
#: Storage files of a ROS 2 bag.
BAG_SUFFIXES = frozenset({".mcap", ".db3"})
#: Photos of phones that OpenCV does not read everywhere: they are not read.
PHOTO_SUFFIXES = frozenset({".heic", ".heif", ".avif"})

_PHOTO_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis")
_PASSWORD = re.compile("(?<=://)([^/@:]*:)[^/@]*(?=@)")
_NUMBER = re.compile("([0-9]+)")

_Key = tuple[tuple[tuple[str | int, ...], str], ...]


@dataclass(frozen=True)
class Walk:
    """What a walk gave.

    ``paths``: the files (and the folders that count as one item), in natural order of their paths.
    ``passed_over``: how many entries were left out, by the reason.
    """

    folder: Path
    paths: list[Path]
    passed_over: dict[str, int]

    def passed_over_line(self) -> str | None:
        """One sentence that says what was left out and why; None if nothing was."""
        if not self.passed_over:
            return None
        listed = ", ".join(f"{count} {reason}" for reason, count in self.passed_over.items())
        return f"passed over in {shown(self.folder)}: {listed}"


def walk(
    folder: Path,
    suffixes: Collection[str],
    is_item: Callable[[Path], bool] = lambda folder: False,
) -> Walk:
    """The files at any depth below a folder whose suffix, in lower case, is in ``suffixes``.

    Each real folder is read once, however many links lead to it, under its own name where it has
    one below ``folder``. Hidden entries, whose names begin with a dot (such as the ``._*`` files
    that a Mac writes beside each file), are left out.

    Args:
        is_item: whether a folder is one item (such as a bag) and not to be entered.

    Raises:
        OSError: ``folder`` cannot be listed. What cannot be listed below it is passed over.
    """
    found: list[tuple[_Key, Path]] = []
    passed_over: Counter[str] = Counter()
    entered: set[tuple[int, int]] = set()
    folders = deque[tuple[_Key, str]]([((), os.fspath(folder))])
    links = deque[tuple[_Key, str]]()
    while folders or links:
        key, current = folders.popleft() if folders else links.popleft()
        try:
            state = os.stat(current)
            if (state.st_dev, state.st_ino) in entered:
                passed_over["link(s) to a folder that is read anyway"] += 1
                continue
            entered.add((state.st_dev, state.st_ino))
            entries = list(os.scandir(current))
        except OSError as error:
            if not key:
                raise
            passed_over[f"folder(s) that cannot be read ({error.strerror})"] += 1
            continue
        for entry in entries:
            own_key = (*key, _name_key(entry.name))
            suffix = os.path.splitext(entry.name)[1].lower()
            if entry.name.startswith("."):
                passed_over["hidden"] += 1
            elif _is_folder(entry):
                if is_item(Path(entry.path)):
                    found.append((own_key, Path(entry.path)))
                else:
                    (links if entry.is_symlink() else folders).append((own_key, entry.path))
            elif not _is_file(entry):
                broken = entry.is_symlink() and not os.path.exists(entry.path)
                passed_over["broken link(s)" if broken else "neither file nor folder"] += 1
            elif suffix in suffixes:
                found.append((own_key, Path(entry.path)))
            else:
                passed_over[_kind(suffix)] += 1
    paths = [path for _, path in sorted(found)]
    return Walk(folder, paths, dict(sorted(passed_over.items())))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _kind(suffix: str) -> str:
    if suffix in PHOTO_SUFFIXES:
        return f"{suffix} (not read by OpenCV everywhere: save as .jpg)"
    return shown(suffix) or "without a suffix"


def told_by(start: bytes) -> str | None:
    """What a file that cannot be read is, by its first bytes (256, or all), and what helps; None
    where they do not tell."""
    if not start:
        return "the file is empty; copy it again"
    if start.startswith(b"version https://git-lfs"):
        return "this is a Git LFS pointer: fetch the file itself with git lfs pull"
    if start[4:8] == b"ftyp" and start[8:12] in _PHOTO_BRANDS:
        return (
            "this is a HEIF or AVIF photo, which OpenCV does not read everywhere: save it as .jpg"
        )
    if re.fullmatch(rb"[\t\n\r -~]{16,}", start[:256]):
        return "this is text, such as the error page of a download: get the file itself"
    return None


def natural_key(path: Path) -> _Key:
    """Sorts paths as people do, folder by folder: 1, 2, 10, not 1, 10, 2."""
    return tuple(map(_name_key, path.parts))


def _name_key(name: str) -> tuple[tuple[str | int, ...], str]:
    parts = _NUMBER.split(name)  # text and numbers in turn
    return tuple(int(part) if i % 2 else part for i, part in enumerate(parts)), name


def shown(path: Path | str) -> str:
    """A path or URL as text that can be printed and logged.

    Bytes that are not UTF-8 are written as ``\\xNN``, and a URL's password as ``***``.
    """
    return _PASSWORD.sub(r"\1***", os.fsencode(path).decode("utf-8", "backslashreplace"))
