# SPDX-License-Identifier: Apache-2.0
"""``python -m training.evaluate``, another way to write ``python -m training evaluate``."""

import sys

from training.evaluation.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
