# SPDX-License-Identifier: Apache-2.0
"""segment_node: the lifecycle node that labels a camera's frames (see segmenter.py)."""

import sys

from ctxseg_ros.ros import transport
from ctxseg_ros.ros.process import Process


def main(args: list[str] | None = None) -> int:
    """Run the node until a signal comes. Gives the exit code."""
    process = Process()  # before the slow imports, so that a signal during them ends it cleanly

    try:
        from ctxseg_ros.ros.segmenter import SegmentNode
    except ImportError as error:
        return process.refuse(error)
    shortage = transport.shortage()  # before this process takes a segment of its own
    return process.run(lambda: SegmentNode(shortage), args)


if __name__ == "__main__":
    sys.exit(main())
