# SPDX-License-Identifier: Apache-2.0
"""``python -m ctxseg_ros.demo``, which is ``make demo``."""

import sys

from ctxseg_ros.ros import startup


def main() -> int:
    """Run the demo; returns its exit code (`ctxseg_ros.command`)."""
    try:
        from ctxseg_ros.demo.command import run
    except KeyboardInterrupt:  # the imports take seconds
        print("demo: interrupted", file=sys.stderr)
        return 130
    except ImportError as error:
        print(f"demo: {startup.missing_module(error)}", file=sys.stderr)
        return 2
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
