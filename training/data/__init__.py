# SPDX-License-Identifier: Apache-2.0
"""Data sets, one file each, and what they share."""
