# SPDX-License-Identifier: Apache-2.0
"""Libraries that only refinement needs: the optional extra `refine`."""

from importlib import import_module
from typing import Any


def refining(module: str) -> Any:
    """Import a module that the extra `refine` brings; ImportError that names the extra."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"refinement needs {module} ({error}). pip install 'ctxseg_ros[refine]'"
        ) from error
