# SPDX-License-Identifier: Apache-2.0
"""The ROS 2 side: messages, parameters, diagnostics and the nodes; all that imports rclpy."""
