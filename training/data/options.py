# SPDX-License-Identifier: Apache-2.0
"""The options of commands that read frames: what bags and 16-bit images do not say themselves."""

from __future__ import annotations

import argparse

from ctxseg_ros.image.encodings import BITS, ENCODINGS, Reading


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


def reading(options: argparse.Namespace) -> Reading:
    """How frames are read by these options."""
    return Reading(options.encoding, options.bits)
