# SPDX-License-Identifier: Apache-2.0
"""``python -m training.export``, another way to write ``python -m training export``."""

import sys

from training.export.checkpoint import main

if __name__ == "__main__":
    sys.exit(main())
