# SPDX-License-Identifier: Apache-2.0
"""Policies of real-time operation, without ROS: budget, latency, recovery, stamps, frame slot."""
