# SPDX-License-Identifier: Apache-2.0
"""From a model's name to its file: the models that this package ships, and paths."""

import hashlib
from importlib import resources
from pathlib import Path

from ctxseg_ros.model_file import ModelFileError, ModelInfo, read_model_info

SUMS = "SHA256SUMS"


class UnknownModelError(ModelFileError):
    """A name that no shipped model has; the message lists the names there are."""


def models_dir() -> Path:
    """The folder of the shipped models: NAME.onnx, its card NAME.md, and SHA256SUMS."""
    return Path(str(resources.files("ctxseg_ros"))) / "models"


def model_names() -> list[str]:
    """The names of the shipped models, sorted."""
    return sorted(path.stem for path in models_dir().glob("*.onnx"))


def find_model(name_or_path: str | Path) -> Path:
    """The file of a shipped model's name, or the path itself if it ends in .onnx.

    Raises ModelFileError if there is no such file, UnknownModelError if there is no such name.
    """
    text = str(name_or_path)
    if text.endswith(".onnx"):
        path = Path(text).expanduser()
        if not path.is_file():
            raise ModelFileError(f"{path}: there is no such file. Check the path")
        return path
    names = model_names()
    if text not in names:
        raise UnknownModelError(
            f"no model is called {text!r}; shipped models: {', '.join(names) or 'none'}. "
            "Use one of these names, or a path that ends in .onnx"
        )
    return models_dir() / f"{text}.onnx"


def load(name_or_path: str | Path) -> ModelInfo:
    """Find, check and read a model. A shipped model must also have the SHA-256 it shipped with.

    Raises ModelFileError if the file is missing, damaged or not valid.
    """
    path = find_model(name_or_path)
    if path.parent == models_dir():
        _check_sum(path)
    return read_model_info(path)


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
