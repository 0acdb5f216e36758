# SPDX-License-Identifier: Apache-2.0
"""The demo is two ROS nodes: its tests have the fixtures of theirs."""

from tests.ros.conftest import *  # noqa: F403
