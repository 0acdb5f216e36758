# SPDX-License-Identifier: Apache-2.0
"""What the commands share that make model files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

from ctxseg_ros.model.model_file import ModelFileError, write_metadata
from ctxseg_ros.system.output_files import check_writable


@dataclass(frozen=True)
class Provenance:
    """What the user states about a model, in words; None where the command knows it itself.

    Args:
        data: what the model learnt from. terms: the licence or terms of use that come with it.
    """

    data: str | None = None
    terms: str | None = None


#: Nothing is stated.
KNOWN = Provenance()


def checked_name(out: Path, name: str | None) -> str:
    """The name of the model that is to be written to ``out``: ``name``, or the stem of ``out``.

    Raises:
        OutputError: no file can be written there.
        ModelFileError: no model file can have this suffix or that name.
    """
    if out.suffix != ".onnx":
        raise ModelFileError(f"{out}: a model file ends in .onnx; give --out {out}.onnx")
    check_writable(out)
    name = name or out.stem
    try:  # write_metadata knows which names there can be; all else of this is right
        write_metadata(
            onnx.ModelProto(),
            name=name,
            task="attention",
            classes=[],
            stride=1,
            size=(1, 1),
            source={},
        )
    except ModelFileError as error:
        raise ModelFileError(
            f"a model cannot be called {name!r}: give --name, a letter or digit and then letters, "
            "digits, '_', '-' and '.'"
        ) from error
    return name


def counted(number: int, what: str) -> str:
    """A number of things in words: "1 frame", "2 frames"."""
    return f"{number} {what}{'' if number == 1 else 's'}"
