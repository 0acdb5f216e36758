# SPDX-License-Identifier: Apache-2.0
"""camera_node: a video file, an image folder or a camera as a ROS 2 camera."""

import sys

from ctxseg_ros.ros import transport
from ctxseg_ros.ros.process import Process


def main(args: list[str] | None = None) -> int:
    """Run the node until its source ends or a signal comes. Gives the exit code."""
    process = Process()  # before the slow imports, so that a signal during them ends it cleanly

    try:
        from ctxseg_ros.ros.camera import CameraNode
    except ImportError as error:
        return process.refuse(error)
    shortage = transport.shortage()  # before this process takes a segment of its own
    return process.run(lambda: CameraNode(process.end, shortage), args)


if __name__ == "__main__":
    sys.exit(main())
