# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the parts of launch_ros that this project's launch files use; see launch."""
