# SPDX-License-Identifier: Apache-2.0
"""Offline training of the models that ctxseg_ros runs: data, networks, losses, systems, export, evaluation."""
