# SPDX-License-Identifier: Apache-2.0
"""``python -m training name-clusters --model X.onnx``: a clusters model becomes a semantic one.

Either a few labelled frames name the clusters, each by the class that holds most of it::

    --images D --labels D [--classes camvid] --out Y.onnx

or a person does, from a sheet of examples, in a YAML file::

    --images FOLDER_OR_BAG --sheet DIR
    --names DIR/names.yaml --out Y.onnx

The names file has a name by cluster, and colours by name where others than the sheet's are wanted.
Clusters of one name become one class, those without a name are left unlabelled. Where the file says
whose clusters they are, as the sheet's does, it names those of that model only::

    model: NAME SHA256
    clusters: {0: road, 1: road, 2: car, 3: }
    colours: {road: [128, 64, 128]}
"""

from __future__ import annotations

import argparse
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from numpy.typing import NDArray

from ctxseg_ros.command import run_command
from ctxseg_ros.inference.pipeline import Model
from ctxseg_ros.inference.runtimes import open_runtime
from ctxseg_ros.model.model_file import ClassInfo, ModelInfo, parse_size
from ctxseg_ros.model.prediction import UNLABELLED
from ctxseg_ros.model.store import load
from ctxseg_ros.system.machine import commit
from training.clusters.named_graph import cluster_logits, sum_by_class
from training.clusters.sheet import (
    NAMES_FILE,
    SHEET_FILE,
    NamingError,
    check_task,
    identity,
    write_sheet,
)
from training.commands import checked_name
from training.data.files import progress
from training.data.frames import open_frames
from training.data.label_files import IGNORE
from training.data.label_sets import LabelSet
from training.data.options import add_reading, add_stride, frame_options
from training.data.own import CLASSES_HELP, find_label_set
from training.data.pairs import Pair, pair_files, read_label, read_pair
from training.data.palette import cluster_colours
from training.evaluation.labels import count_pixels
from training.evaluation.matching import NONE, match_clusters
from training.evaluation.scores import Scores
from training.export.checkpoint import write_checked


@dataclass(frozen=True)
class Naming:
    """Classes, and the way to them.

    ``table``: uint8 [K], the class id of each cluster; UNLABELLED for one without a name. ``by``:
    who named the clusters, and what is known of that.
    """

    classes: tuple[ClassInfo, ...]
    table: NDArray[np.uint8]
    by: dict[str, Any]


# By labels


@dataclass(frozen=True)
class Truth:
    """Frames with labels, and how a model is to see them.

    ``ignore``: id of the labels that is no class; 255 never is one. ``label_set``: whose names,
    colours and ids the labels have; None: the classes are called by their numbers. ``size``:
    (height, width) of the model's input; None: the size that it is meant for. ``device``: see
    ``ctxseg_ros.inference.runtimes.open_runtime``.
    """

    pairs: Sequence[Pair]
    ignore: int | None = None
    label_set: LabelSet | None = None
    size: tuple[int, int] | None = None
    device: str = "auto"

    def count(self, info: ModelInfo) -> NDArray[np.int64]:
        """Pixels by [class, label that the model gives], see ``count_pixels``.

        Raises:
            DataError: frames or labels cannot be used.
        """
        classes, ids = len(self.label_set.classes) if self.label_set else IGNORE, len(info.classes)
        pixels = np.zeros((classes, ids + 1), np.int64)
        runtime = open_runtime(info, self.size, self.device)
        try:
            segmenter = Model(runtime)
            for pair in progress(self.pairs, info.name, len(self.pairs)):
                image, truth, _ = read_pair(pair, self._read)
                labels = segmenter.segment(image).labels
                assert labels is not None
                pixels += count_pixels(truth, labels, classes, ids)
        finally:
            runtime.close()
        return pixels

    def _read(self, path: Path) -> NDArray[np.uint8]:
        if self.label_set is None:
            return read_label(path, IGNORE, self.ignore)
        label = self.label_set.read(path)
        ignored = () if self.ignore is None else (self.ignore,)
        return np.where(np.isin(label, ignored), np.uint8(IGNORE), label)


def name_by_labels(info: ModelInfo, truth: Truth) -> Naming:
    """Name each cluster by the class that holds most of its pixels in labelled frames.

    The classes keep the ids that they have in the labels, so that labels of the same kind score
    the named model.

    Args:
        info: a clusters model.

    Raises:
        NamingError: no labelled pixel is in any cluster.
        DataError: frames or labels cannot be used.
    """
    check_task(info)
    pixels = truth.count(info)[:, :-1]
    if not pixels.any():
        raise NamingError(
            "the labels never meet a cluster: all of their pixels are ignored; check --ignore and "
            "--labels"
        )
    by: dict[str, Any] = {"labels": "without names", "images": len(truth.pairs)}
    if truth.label_set is None:
        colours = cluster_colours(int(np.flatnonzero(pixels.any(1))[-1]) + 1).tolist()
        classes = [(f"class {i}", tuple(c)) for i, c in enumerate(colours)]
    else:
        classes = list(truth.label_set.classes)
        by |= {"labels": truth.label_set.name, "terms": truth.label_set.terms}
    matching = match_clusters(pixels, "majority")
    table = np.where(matching == NONE, UNLABELLED, matching).astype(np.uint8)
    infos = tuple(ClassInfo(i, name, colour) for i, (name, colour) in enumerate(classes))
    return Naming(infos, table, by)


def scores(info: ModelInfo, truth: Truth) -> dict[str, float]:
    """What a named model scores on the frames that named it: ``miou`` and ``pixel_accuracy``."""
    found = Scores(truth.count(info)[: len(info.classes)])
    return {"miou": round(found.miou, 6), "pixel_accuracy": round(found.pixel_accuracy, 6)}


# By a person


def read_names(path: Path, info: ModelInfo) -> Naming:
    """The naming of a names file, see the module's description; classes in order of clusters.

    Raises:
        NamingError: the file cannot be read, or does not fit its format or the model.
    """
    check_task(info)
    try:
        content = yaml.load(path.read_bytes(), _Loader)
    except OSError as error:
        raise NamingError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # PyYAML lets several unrelated types through
        reason = " ".join(str(error).split()) or type(error).__name__
        raise NamingError(f"{path}: no valid YAML: {reason}") from error
    try:
        return _naming(content, info, path.name)
    except NamingError as error:
        raise NamingError(f"{path}: {error}") from error


class _Loader(yaml.SafeLoader):
    """PyYAML lets the last of equal keys win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        found = super().construct_mapping(node, deep)
        if len(found) < len(node.value):
            keys = [self.construct_object(key) for key, _ in node.value]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"the key {reprlib.repr(twice)} is there more than once")
        return found


def _naming(content: Any, info: ModelInfo, file: str) -> Naming:
    if not isinstance(content, dict) or not isinstance(content.get("clusters"), dict):
        raise NamingError("there is no mapping 'clusters', a name by cluster")
    if unknown := content.keys() - {"model", "clusters", "colours"}:
        raise NamingError(
            f"unknown key {unknown.pop()!r}; the keys are model, clusters and colours"
        )
    model = content.get("model", identity(info))
    if model != identity(info):
        raise NamingError(
            f"these are names for {' '.join(str(model).split())}, not for {identity(info)}: give "
            "that --model, or write a new --sheet and name its clusters"
        )
    names = _cluster_names(content["clusters"], info)
    colours = _colours(content.get("colours") or {}, set(names.values()))
    table = np.full(len(info.classes), UNLABELLED, np.uint8)
    classes: list[ClassInfo] = []
    ids: dict[str, int] = {}
    for cluster, name in sorted(names.items()):
        if name not in ids:
            ids[name] = len(classes)
            colour = colours.get(name, info.classes[cluster].colour)
            classes.append(ClassInfo(ids[name], name, colour))
        table[cluster] = ids[name]
    return Naming(tuple(classes), table, {"names": file})


def _cluster_names(listed: Mapping[Any, Any], info: ModelInfo) -> dict[int, str]:
    """Names by cluster, of those that have one."""
    names: dict[int, str] = {}
    for cluster, name in listed.items():
        if type(cluster) is not int or not 0 <= cluster < len(info.classes):
            raise NamingError(
                f"{info.name} has no cluster {reprlib.repr(cluster)}; its clusters are 0 to "
                f"{len(info.classes) - 1}"
            )
        if name is None or name == "":
            continue
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise NamingError(
                f"the name {reprlib.repr(name)} of cluster {cluster} is no printable text; put it "
                "in quotes if YAML reads the word as something else"
            )
        names[cluster] = name.strip()
    if not names:
        raise NamingError(f"no cluster has a name; write them after the numbers, see {SHEET_FILE}")
    return names


def _colours(listed: Any, names: set[str]) -> dict[str, tuple[int, int, int]]:
    if not isinstance(listed, dict):
        raise NamingError("'colours' is no mapping, a colour by name")
    for name, colour in listed.items():
        if name not in names:
            raise NamingError(f"a colour is for {reprlib.repr(name)}, which no cluster is called")
        if not (
            isinstance(colour, list)
            and len(colour) == 3
            and all(type(part) is int and 0 <= part <= 255 for part in colour)
        ):
            raise NamingError(
                f"the colour {reprlib.repr(colour)} of {name!r} is not [red, green, blue], three "
                "integers of 0 to 255"
            )
    return {name: (c[0], c[1], c[2]) for name, c in listed.items()}


# The model file


def write_named(
    info: ModelInfo, naming: Naming, out: Path, name: str, truth: Truth | None = None
) -> dict[str, Any]:
    """Write the semantic model file: the clusters model, its clusters summed up to classes.

    Args:
        truth: to score the file on; None leaves the scores out.

    Returns:
        ``ctxseg.source`` as written.

    Raises:
        ModelFileError: the name, or a class, is none that a model file can have.
        NamingError: see ``training.clusters.named_graph.cluster_logits``.
    """
    model = onnx.load(info.path)
    sum_by_class(model, naming.table)
    kept = {key: value for key, value in info.source.items() if key != "scores"}
    named = {"model": info.name, **naming.by, "commit": commit()}
    return write_checked(
        model,
        out,
        {**kept, "named": named},
        lambda draft: {"named": {**named, **scores(draft, truth)}} if truth else {},
        name=name,
        task="semantic",
        classes=naming.classes,
        stride=info.stride,
        size=info.size,
    )


def report(info: ModelInfo, naming: Naming, named: dict[str, Any]) -> None:
    """Print which clusters became which class, and what the model scores where that is known."""
    members: dict[int, list[str]] = {}
    for cluster in info.classes:
        members.setdefault(int(naming.table[cluster.id]), []).append(str(cluster.id))
    for item in naming.classes:
        print(f"  {item.name}: {' '.join(members.get(item.id, ['none']))}")
    if left := members.get(UNLABELLED):
        print(f"  unlabelled: {' '.join(left)}")
    if "miou" in named:
        print(f"there: mIoU {named['miou']:.4f}, pixel accuracy {named['pixel_accuracy']:.4f}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code (``ctxseg_ros.command``)."""
    parser = argparse.ArgumentParser(
        prog="python -m training name-clusters",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="a clusters model: name or .onnx file")
    parser.add_argument("--images", type=Path, help="frames; for --sheet also videos and bags")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--labels", type=Path, help="label files of the images, to name clusters by")
    how.add_argument("--sheet", type=Path, metavar="DIR", help="for examples of the clusters")
    how.add_argument("--names", type=Path, metavar="YAML", help="names file, filled in")
    add_reading(parser, ", for --sheet")
    add_stride(parser, ", for --sheet")
    parser.add_argument("--ignore", type=int, metavar="ID", help="id of the labels to leave out")
    parser.add_argument("--classes", metavar="FILE", help=CLASSES_HELP)
    parser.add_argument("--out", type=Path, help="the .onnx file to write")
    parser.add_argument("--name", help="of the model (default: the stem of --out)")
    parser.add_argument("--size", type=parse_size, metavar="HxW", help="of the model's input")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(arguments)
    if args.images is None and args.names is None:
        parser.error("--labels and --sheet need --images")
    if args.out is None and args.sheet is None:
        parser.error("--labels and --names need --out")
    return run_command("name_clusters", lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    name = "" if args.sheet else checked_name(args.out, args.name)
    info = load(args.model)
    check_task(info)
    cluster_logits(onnx.load(info.path))  # before any work
    if args.sheet:
        frames = open_frames(args.images, frame_options(args))
        write_sheet(info, frames, args.sheet, args.size, args.device)
        print(f"{args.sheet / SHEET_FILE}: fill {args.sheet / NAMES_FILE} in, for --names")
        return
    truth = None
    if args.names:
        naming = read_names(args.names, info)
    else:
        label_set = find_label_set(args.classes) if args.classes else None
        pairs = pair_files(args.images, args.labels, args.bits)
        truth = Truth(pairs, args.ignore, label_set, args.size, args.device)
        naming = name_by_labels(info, truth)
    source = write_named(info, naming, args.out, name, truth)
    print(f"{args.out}: {len(naming.classes)} classes from {len(info.classes)} clusters")
    report(info, naming, source["named"])
