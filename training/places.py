# SPDX-License-Identifier: Apache-2.0
"""Where data sets and weights are: paths that recipes and defaults can name on any machine.

``$CTXSEG_DATA/camvid`` is the folder camvid below the folder that the environment variable
CTXSEG_DATA names; weights are below ``$CTXSEG_WEIGHTS``, which is ``$CTXSEG_DATA/weights`` where it
is not set.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

DATA, WEIGHTS = "CTXSEG_DATA", "CTXSEG_WEIGHTS"

_VARIABLE = re.compile(rf"\$({DATA}|{WEIGHTS})(?=/|$)")
_PURPOSES = {
    DATA: "the folder of the data sets",
    WEIGHTS: f"the folder of the files of weights (it defaults to ${DATA}/weights)",
}


class PlaceError(ValueError):
    """A path begins with an environment variable that is not set."""


def expanded(path: str | Path, option: str | None = None) -> Path:
    """A path with ``~``, or one of the two variables, at its beginning filled in.

    Args:
        path: such as ``$CTXSEG_DATA/camvid``.
        option: the command's option that the path is from, for the message.

    Raises:
        PlaceError: the variable is not set.
    """
    text = os.path.expanduser(path)
    match = _VARIABLE.match(text)
    if match is None:
        return Path(text)
    name = match[1]
    folder = os.environ.get(name)
    if not folder and name == WEIGHTS and (data := os.environ.get(DATA)):
        folder = f"{data}/weights"
    if not folder:
        other = f"give another path by {option}" if option else "give the path in full"
        raise PlaceError(
            f"{path}: the environment variable {name} is not set. Set it to {_PURPOSES[name]}, or "
            f"{other}"
        )
    return Path(folder + text[match.end() :])


def end(path: str | Path, parts: int = 3) -> str:
    """The last parts of a path, which tell what it holds; without ``..`` and the variables."""
    left_out = {"/", "..", f"${DATA}", f"${WEIGHTS}"}
    return "/".join([part for part in Path(path).parts if part not in left_out][-parts:])
