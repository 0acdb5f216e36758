# SPDX-License-Identifier: Apache-2.0
"""Pixels: sources of frames, encodings, image files and videos, resizing, drawing."""
