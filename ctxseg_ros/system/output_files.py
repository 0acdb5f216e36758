# SPDX-License-Identifier: Apache-2.0
"""Files that commands write: checked before the work starts, and never left half written."""

import contextlib
import errno
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

_CAUSES = {
    errno.EEXIST: "there is a file of that name",
    errno.EISDIR: "it is a folder",
    errno.ENOTDIR: "part of its path is a file",
}
_FIXES = {
    errno.EDQUOT: "free some space within your quota, or choose another place",
    errno.EFBIG: "raise the file size limit (ulimit -f), or choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOSPC: "free some space on that disk, or choose another place",
}


class OutputError(OSError):
    """A file or folder that cannot be written; the message names it, the cause and a fix."""


def make_folder(path: Path) -> None:
    """Create a folder and its missing parents, and check that files can be written in it.

    Raises OutputError.
    """
    with _reported(path, "this folder cannot be written"):
        path.mkdir(parents=True, exist_ok=True)
        _probe(path)


def check_writable(path: Path) -> None:
    """Check that a file can be written at `path`, whose folder must exist. Raises OutputError."""
    with _reported(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if _is_device(path):
            return
        folder = _target(path).parent
        if not folder.is_dir():
            raise OutputError(f"{path}: its folder does not exist; create it first")
        _probe(folder)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole: where that fails, `path` is as it was before. Raises OutputError."""
    with replacing(path) as draft:
        draft.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, as `write_bytes` does. Raises OutputError."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, as `write_bytes` does. Raises OutputError."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_image(path: Path, image: NDArray[np.uint8]) -> None:
    """Write an image, uint8 [H, W, 3] RGB or [H, W] grey, in the format of the path's suffix.

    Whole or not at all, as `write_bytes`. Raises OutputError.
    """
    pixels = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    write_bytes(path, cv2.imencode(path.suffix, pixels)[1].tobytes())


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a draft for the block to write, which takes the place of `path` when the block ends.

    Where the block raises, the draft is removed and `path` stays as it was. The draft lies in the
    same folder, has the same suffix and a name that is unique on a shared disk too. A device or a
    pipe, such as /dev/stdout, is its own draft.

    Raises OutputError, also in place of an OSError of the block about the draft.
    """
    with _reported(path):
        is_device, target = _is_device(path), _target(path)
    if is_device:
        with _reported(path, about=path):
            yield path
        return
    draft = target.with_name(f".{uuid.uuid4().hex}{target.suffix}")
    try:
        with _reported(path, about=draft):
            yield draft
        with _reported(path):
            with draft.open("rb+") as file:
                os.fsync(file.fileno())  # some disks report that they are full only now
            os.replace(draft, target)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def _target(path: Path) -> Path:
    return Path(os.path.realpath(path))  # a link stays a link to the new file


def _is_device(path: Path) -> bool:
    return path.exists() and not path.is_file() and not path.is_dir()


def _probe(folder: Path) -> None:
    """Raise OSError if no file can be created in a folder.

    By creating one: permissions do not show a read-only disk, or what is refused to root.
    """
    probe = folder / f".{uuid.uuid4().hex}"
    probe.touch(exist_ok=False)
    probe.unlink()


@contextlib.contextmanager
def _reported(
    path: Path, problem: str = "cannot be written", about: Path | None = None
) -> Iterator[None]:
    """Turn an OSError of the block into an OutputError about `path`; if `about` is given, not one
    that names another file."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        if about is not None and error.filename not in (None, str(about)):
            raise
        cause = _CAUSES.get(error.errno or 0, error.strerror or str(error))
        fix = _FIXES.get(error.errno or 0, "choose a place where you may write")
        raise OutputError(f"{path}: {problem}: {cause}; {fix}") from error
