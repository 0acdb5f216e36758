# SPDX-License-Identifier: Apache-2.0
"""The options of commands that read frames, see ``training.data.frames.FrameOptions``."""

from __future__ import annotations

import argparse

from ctxseg_ros.image.encodings import BITS, ENCODINGS
from training.data.frames import FrameOptions


def add_reading(parser: argparse.ArgumentParser, purpose: str = "") -> None:
    """Add --topic, --encoding and --bits. ``purpose``: what the frames are for, behind the help."""
    parser.add_argument("--topic", help=f"of the images in bags{purpose}")
    parser.add_argument(
        "--encoding",
        choices=ENCODINGS,
        metavar="NAME",
        default="",
        help="of images in bags whose own encoding does not say what their channels are (8UC3, "
        f"8UC1, 16UC1, none): rgb8, bgr8, bayer_rggb8, ...{purpose}",
    )
    add_bits(parser, purpose)


def add_bits(parser: argparse.ArgumentParser, purpose: str = "") -> None:
    """Add --bits. ``purpose``: what the frames are for, behind the help."""
    parser.add_argument(
        "--bits",
        type=int,
        choices=BITS,
        metavar="N",
        default=BITS[-1],
        help=f"that 16-bit images use, such as 12: else they are nearly black{purpose}",
    )


def add_stride(parser: argparse.ArgumentParser, purpose: str = "") -> None:
    """Add --stride. ``purpose``: what the frames are for, behind the help."""
    parser.add_argument("--stride", type=int, default=1, help=f"take every n-th frame{purpose}")


def frame_options(args: argparse.Namespace) -> FrameOptions:
    """Which frames, and how they are read, by the options of a command; --stride may lack."""
    return FrameOptions(args.topic, getattr(args, "stride", 1), args.encoding, args.bits)
