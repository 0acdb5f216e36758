# SPDX-License-Identifier: Apache-2.0
"""Real-time semantic perception for ROS 2: model files, runtimes, and nodes that publish labels."""

__version__ = "0.1.0"
