# SPDX-License-Identifier: Apache-2.0
"""``python -m training data camvid|ade20k|stanford|labels|bsds|frames ROOT``: check a data set.

Reads every file as training would, prints what is there, or names every broken file and exits
with 1.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from ctxseg_ros.command import FAILED, run_command
from ctxseg_ros.system.files import shown
from training.data import bsds
from training.data.files import BrokenFiles, each_file
from training.data.frames import FrameOptions, open_frames
from training.data.label_files import IGNORE
from training.data.label_sets import LABEL_SETS, LabelSet
from training.data.options import add_bits, add_reading, add_stride, frame_options
from training.data.own import OWN, check_seen, own_label_set
from training.data.pairs import Pair, read_pair

_SIZES = 3  # that are listed

#: (height, width) of a frame, and its pixels by label
_Read = tuple[tuple[int, int], np.ndarray]


def check_labelled(labels: LabelSet, root: Path) -> Table:
    """Read the files of both splits.

    Returns:
        A table: frames, sizes, and the share of the labelled pixels that each class has.

    Raises:
        DataError: see ``read_pair``; the broken files of both splits are named. Of own labels
            also if there is nothing to learn, see ``check_seen``.
    """

    def read(pair: Pair) -> _Read:
        _, label, _ = read_pair(pair, labels.read)
        return label.shape, np.bincount(label.ravel(), minlength=IGNORE + 1)

    splits: dict[str, list[_Read]] = {}
    wrong: list[str] = []
    for split in ("train", "val"):
        try:
            splits[split] = each_file(read, labels.pairs(root, split), f"{labels.name} {split}")
        except BrokenFiles as error:
            wrong += error.lines
    if wrong:
        raise BrokenFiles(list(dict.fromkeys(wrong)))  # a file without partner is found twice
    if labels.name == OWN:
        seen = np.sum([counts for _, counts in splits["train"]], 0) > 0
        check_seen([name for name, _ in labels.classes], seen, root)
    table = _summary(labels, splits)
    table.title = f"{labels.name}: {root}"
    return table


def _summary(labels: LabelSet, splits: Mapping[str, Sequence[_Read]]) -> Table:
    table = Table(title_justify="left")
    table.add_column()
    columns = []
    for split, found in splits.items():
        table.add_column(split, justify="right")
        pixels = np.sum([counts for _, counts in found], 0)
        seen = pixels[: len(labels.classes)]
        shares = 100 * seen / max(1, seen.sum())
        columns.append(
            [
                str(len(found)),
                _sizes([size for size, _ in found]),
                f"{100 * pixels[IGNORE] / pixels.sum():.1f} %",
                f"{np.count_nonzero(seen)} of {len(seen)}",
                *(f"{share:.2f} %" if share else "-" for share in shares),
            ]
        )
    names = ["frames", "sizes", "unlabelled pixels", "classes seen"]
    names += [name for name, _ in labels.classes]
    for name, *cells in zip(names, *columns, strict=True):
        table.add_row(name, *cells, end_section=name == "classes seen")
    return table


def check_frames(source: Sequence[str], options: FrameOptions) -> tuple[Table, bool]:
    """Read unlabelled frames; those of one colour are named on stderr.

    Returns:
        A table, and whether training would use all that the recordings promise.

    Raises:
        DataError: see ``open_frames``.
    """
    frames = open_frames(source, options)
    table = Table(title=", ".join(map(shown, source)), title_justify="left", show_header=False)
    table.add_row("frames", str(len(frames)))
    table.add_row("sizes", _sizes(frames.sizes))
    table.add_row("kept in memory", f"{frames.kept_bytes / 2**20:.1f} MiB")
    table.add_row("of one colour", str(len(frames.one_colour)))
    for name in frames.one_colour:
        print(f"{name}: one colour, it teaches nothing", file=sys.stderr)
    return table, not frames.left_out


def _sizes(sizes: Sequence[tuple[int, int]]) -> str:
    counts = Counter(f"{width}x{height}" for height, width in sizes).most_common()
    if len(counts) == 1:
        return counts[0][0]
    common = [f"{size} ({count})" for size, count in counts[:_SIZES]]
    more = [f"{len(counts) - _SIZES} more"] if len(counts) > _SIZES else []
    return "\n".join(common + more)


def main(args: Sequence[str] | None = None) -> int:
    """The command; returns its exit code (``ctxseg_ros.command``).

    Every file at fault is named, each on a line of its own.
    """
    parser = argparse.ArgumentParser(prog="python -m training data", description=__doc__)
    commands = parser.add_subparsers(dest="what", required=True)
    for name in (*LABEL_SETS, "bsds"):
        commands.add_parser(name).add_argument("root", type=Path)
    own = commands.add_parser("labels", help="one's own images and masks")
    own.add_argument("root", type=Path)
    own.add_argument("--classes", required=True, metavar="FILE", help="the class list")
    own.add_argument("--val-share", type=float, default=0.2, help="of the images (%(default)s)")
    add_bits(own)
    frames = commands.add_parser("frames", help="images, videos, bags, or folders of them")
    frames.add_argument("source", nargs="+")
    add_reading(frames)
    add_stride(frames)
    options = parser.parse_args(args)

    def work() -> int:
        result: Table | str
        whole = True
        try:
            if options.what == "frames":
                result, whole = check_frames(options.source, frame_options(options))
            elif options.what == "bsds":
                bsds.check(options.root)
                result = f"{options.root}: every file can be read"
            elif options.what == "labels":
                labels = own_label_set(options.classes, options.val_share, options.bits)
                result = check_labelled(labels, options.root)
            else:
                result = check_labelled(LABEL_SETS[options.what], options.root)
        except BrokenFiles as error:  # its message names the first of them only
            print(*error.lines, f"{len(error.lines)} broken", sep="\n", file=sys.stderr)
            return FAILED
        Console().print(result)
        return 0 if whole else FAILED

    return run_command("data", work)


if __name__ == "__main__":
    sys.exit(main())
