# SPDX-License-Identifier: Apache-2.0
"""From a model's name to its file: the models that this package ships, and paths."""

import difflib
import hashlib
import os
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from ctxseg_ros.model.model_file import ModelFileError, ModelInfo, read_fix, read_model_info
from ctxseg_ros.system.files import shown

SUMS = "SHA256SUMS"
SUFFIX = ".onnx"


class UnknownModelError(ModelFileError):
    """A name that no shipped model has; the message lists the names there are."""


def models_dir() -> Path:
    """The folder of the shipped models: NAME.onnx, its card NAME.md, and SHA256SUMS."""
    return Path(str(resources.files("ctxseg_ros"))) / "models"


def model_names() -> list[str]:
    """The names of the shipped models, sorted."""
    return sorted(path.stem for path in models_dir().glob(f"*{SUFFIX}"))


def find_model(name_or_path: str | Path) -> Path:
    """The file of a shipped model's name, or of a path; ~ and ~USER at its start are home folders.

    A name is a path if it ends in .onnx, has a / or starts with ~. Raises ModelFileError if there
    is no such file or it is a folder, UnknownModelError if there is no such name.
    """
    text = str(name_or_path)
    if text in model_names():
        return models_dir() / f"{text}{SUFFIX}"
    if text.endswith(SUFFIX) or "/" in text or text.startswith("~"):
        path = Path(os.path.expanduser(text))
        if not os.path.isfile(path):
            raise ModelFileError(_why_no_file(path))
        return path
    names = model_names()
    raise UnknownModelError(
        f"no model is called {text!r}; shipped models: {', '.join(names) or 'none'}. "
        f"{_did_you_mean(text, names)}Use one of these names, or a path that ends in {SUFFIX}"
        f"{_file_hint(Path(text))}"
    )


def load(name_or_path: str | Path) -> ModelInfo:
    """Find, check and read a model. A shipped model must also have the SHA-256 it shipped with.

    Raises ModelFileError if the file is missing, damaged or not valid.
    """
    path = find_model(name_or_path)
    if path.parent == models_dir():
        _check_sum(path)
    return read_model_info(path)


def _why_no_file(path: Path) -> str:
    """Why a path is not a model's file, and what may be meant."""
    if str(path).startswith("~"):
        user = path.parts[0].removeprefix("~")
        return (
            f"{shown(path)}: there is no such file, and no user is called {user!r}. Check the path"
        )
    if os.path.isdir(path):
        models = sorted(shown(item.name) for item in _children(path) if item.suffix == SUFFIX)
        inside = f"one of those in it: {', '.join(models)}" if models else "the .onnx file itself"
        return f"{shown(path)}: is a folder. Give {inside}"
    try:
        path.lstat()
    except (FileNotFoundError, ValueError):
        pass
    except NotADirectoryError:
        return f"{shown(path)}: a component of the path is a file, not a folder. Check the path"
    except OSError as error:  # no permission for a folder on the way, a name that is too long
        return f"{shown(path)}: cannot be read: {error.strerror}. {read_fix(error)}"
    else:
        kind = "a link to nothing" if path.is_symlink() else "not a regular file"
        return f"{shown(path)}: is {kind}. Give the .onnx file itself"
    names = model_names()
    near = difflib.get_close_matches(path.name.removesuffix(SUFFIX), names, n=1)
    if near and path.parent == Path():
        hint = f"Did you mean {near[0]}, without {SUFFIX}, which is shipped?"
    elif os.path.isfile(f"{path}{SUFFIX}"):
        hint = f"Did you mean {shown(path.name)}{SUFFIX}?"
    else:
        beside = [item.name for item in _children(path.parent) if item.suffix == SUFFIX]
        hint = f"{_did_you_mean(path.name, beside)}Check the path"
    return f"{shown(path)}: there is no such file. {hint}"


def _file_hint(path: Path) -> str:
    """Whether a file of a name that is no shipped model's may be meant."""
    if os.path.isfile(f"{path}{SUFFIX}"):
        return f": {shown(path)}{SUFFIX} exists"
    if os.path.isdir(path):
        return f": {shown(path)} is a folder"
    if os.path.isfile(path):
        return f": the file {shown(path)} does not end so"
    return ""


def _did_you_mean(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name.lower(), names, n=1)
    return f"Did you mean {shown(near[0])}? " if near else ""


def _children(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (OSError, ValueError):
        return []


def _check_sum(path: Path) -> None:
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        lines = (path.parent / SUMS).read_text().splitlines()
    except OSError as error:
        raise ModelFileError(
            f"{error.filename}: cannot be read: {error.strerror}. Reinstall ctxseg_ros"
        ) from error
    sums = {
        name.lstrip(" *"): digest for digest, _, name in (line.partition(" ") for line in lines)
    }
    if path.name not in sums:
        raise ModelFileError(f"{path}: not listed in {SUMS} beside it. Reinstall ctxseg_ros")
    if found != sums[path.name]:
        raise ModelFileError(
            f"{path}: damaged: its SHA-256 is {found}, it shipped with {sums[path.name]}. "
            "Reinstall ctxseg_ros"
        )
