# SPDX-License-Identifier: Apache-2.0
"""The options of commands that read labelled frames for a model: one data set, or several."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.data.class_maps import parse_changes
from training.data.ground_truth import GroundTruth
from training.data.options import add_bits
from training.data.own import CLASSES_HELP, find_label_set
from training.data.pairs import Pair, by_name, pair_files


@dataclass(frozen=True)
class Labelled:
    """Frames with ground truth, and how it is read.

    ``name``: the last folders of the path, to tell data sets apart.
    """

    name: str
    pairs: list[Pair]
    truth: GroundTruth


def add_labelled(parser: argparse.ArgumentParser) -> None:
    """Add the options of one data set, which ``labelled`` reads."""
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--labels", type=Path, required=True, metavar="DIR")
    add_bits(parser)
    parser.add_argument("--ignore", type=int, metavar="ID", help="id of the truth to leave out")
    parser.add_argument("--classes", metavar="FILE", help=CLASSES_HELP)
    parser.add_argument(
        "--map",
        nargs="+",
        metavar="CLASS=CLASS",
        help="a class of --classes that is another of the model, or several (CLASS=CLASS,CLASS), "
        "or is left out (CLASS=)",
    )
    parser.add_argument("--only", nargs="+", metavar="PATTERN", help="of file names to use")
    parser.add_argument("--without", nargs="+", metavar="PATTERN", help="of those to leave out")


def labelled(args: argparse.Namespace) -> Labelled:
    """The data set of these options.

    Raises:
        DataError: files do not pair, none is left, or ``--classes`` or ``--map`` cannot be used.
    """
    return Labelled(
        "/".join(args.images.absolute().parts[-3:-1]),
        by_name(pair_files(args.images, args.labels, args.bits), args.only, args.without),
        GroundTruth(
            args.ignore,
            find_label_set(args.classes) if args.classes else None,
            parse_changes(args.map) if args.map else None,
        ),
    )


def labelled_sets(parser: argparse.ArgumentParser, args: Sequence[str]) -> list[Labelled]:
    """The data sets of a command line whose ``--images`` may be there several times.

    Each ``--images`` begins a data set, to which the options behind it belong, up to the next.

    Args:
        parser: of the command, with the options of ``add_labelled``, without abbreviations.

    Raises:
        DataError: see ``labelled``. SystemExit: a data set lacks its ``--labels``.
    """
    of_set = argparse.ArgumentParser(
        prog=parser.prog, usage=parser.format_usage(), add_help=False, allow_abbrev=False
    )
    add_labelled(of_set)
    starts = [i for i, each in enumerate(args) if each.partition("=")[0] == "--images"]
    # What stands before the first --images belongs to the first data set.
    ends = [*starts[1:], len(args)]
    return [
        labelled(of_set.parse_known_args(args[start:end])[0])
        for start, end in zip([0, *starts[1:]], ends, strict=True)
    ]
