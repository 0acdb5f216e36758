# SPDX-License-Identifier: Apache-2.0
"""``python -m ctxseg_ros.ros.demo``, which is ``make demo``."""

import sys


def main() -> int:
    """Run the demo; returns its exit code (`ctxseg_ros.command`)."""
    try:
        from ctxseg_ros.ros.demo.command import run
    except KeyboardInterrupt:  # the imports take seconds
        print("demo: interrupted", file=sys.stderr)
        return 130
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
