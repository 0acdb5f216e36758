# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint or from weights to a checked model file."""
