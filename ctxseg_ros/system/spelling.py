# SPDX-License-Identifier: Apache-2.0
"""Which known name a misspelt one may stand for."""

import difflib
from collections.abc import Iterable


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that a misspelt name may stand for, if any is near."""
    plain = {item.lower(): item for item in names}
    asked = name.lower().replace(".", "_").replace("-", "_")
    found = difflib.get_close_matches(asked, plain, n=1)
    return plain[found[0]] if found else None
