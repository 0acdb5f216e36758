# SPDX-License-Identifier: Apache-2.0
"""The demo: plays a source through camera_node and segment_node, measures, and keeps a video.

Three processes over real DDS. The demo's own records labels (or attention) and the stamps of the
frames, nothing else: a file's pixels are read again afterwards. Recording the images too took a
quarter of the frame rate on two busy cores.
"""
