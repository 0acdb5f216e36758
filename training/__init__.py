# SPDX-License-Identifier: Apache-2.0
"""Offline training of the models that ctxseg_ros runs, their export and their evaluation."""
