# SPDX-License-Identifier: Apache-2.0
"""``python -m training pseudo-label --model M --source D --out DIR``: a teacher labels frames.

Any semantic model file is a teacher. Its labels and confidence are averaged over sizes and over
the mirrored frame, in terms of the classes that the student is to have. DIR becomes a data set:
``images``, ``labels``, ``confidence`` (255 x the probability of the label, at most 254),
``classes.yaml`` and ``teacher.json``; train with it as a source of
``training.data.mixture.Mixture``. The same command goes on with a DIR that it has not finished.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from ctxseg_ros.command import run_command
from ctxseg_ros.image.resize import resized
from ctxseg_ros.inference.runtimes import Runtime, open_runtime
from ctxseg_ros.model.model_file import ModelInfo, format_size, parse_size
from ctxseg_ros.model.prediction import Prediction
from ctxseg_ros.model.store import load
from ctxseg_ros.system.output_files import make_folder, write_bytes, write_json, write_text
from training.data.class_maps import allowed_classes, parse_changes
from training.data.files import DataError
from training.data.frames import FrameList, open_frames
from training.data.label_files import IGNORE
from training.data.mixture import CERTAIN, CONFIDENCE, TEACHER
from training.data.options import add_reading, add_stride, frame_options
from training.data.own import CLASSES_HELP, find_label_set


@dataclass(frozen=True)
class Teacher:
    """A model file and what its classes are to the student.

    ``classes``: the student's, name and colour (RGB) by id. ``target``: int [T], for each of the
    teacher's classes the student's id, or ``len(classes)`` where the student has none.
    """

    info: ModelInfo
    classes: tuple[tuple[str, tuple[int, int, int]], ...]
    target: NDArray[np.intp]

    def add(self, shares: NDArray[np.float32], prediction: Prediction) -> None:
        """Add one prediction of a frame to the sum of them, in place.

        A model file gives the label and its probability c: that goes to the label's class, and
        each of the other T - 1 classes of the teacher gets (1 - c) / (T - 1).

        Args:
            shares: float32 [K + 1, H, W], the last for what the student has no class for.
            prediction: labels and confidence of any size; labels are resized to the nearest
                pixel, confidence bilinearly.
        """
        assert prediction.labels is not None and prediction.confidence is not None
        height, width = shares.shape[1:]
        nearest = cv2.INTER_NEAREST_EXACT
        labels = cv2.resize(prediction.labels, (width, height), interpolation=nearest)
        sure = cv2.resize(prediction.confidence, (width, height)).astype(np.float32) / 255
        rest = (1 - sure) / max(1, len(self.target) - 1)
        shares += np.bincount(self.target, minlength=len(shares))[:, None, None] * rest
        place = self.target[labels][None]
        found = np.take_along_axis(shares, place, 0) + (sure - rest)
        np.put_along_axis(shares, place, found, 0)


def student_classes(
    info: ModelInfo, classes: str | None, changes: Mapping[str, Sequence[str]]
) -> Teacher:
    """A teacher whose classes are told by name in those of the student.

    Args:
        classes: the student's: a name or file, see ``find_label_set``; None: the teacher's own.
        changes: see ``training.data.class_maps.allowed_classes``; one class or none for each.

    Raises:
        DataError: a class cannot be mapped, or ``classes`` cannot be read.
        ValueError: the model is not a semantic one.
    """
    if info.task != "semantic":
        raise ValueError(f"{info.name} is a model of task {info.task}; a teacher has classes")
    own = tuple((item.name, item.colour) for item in info.classes)
    students = own if classes is None else find_label_set(classes).classes
    several = [name for name, targets in changes.items() if len(targets) > 1]
    if several:
        raise DataError(f"--map {several[0]}: give one class, or none")
    try:
        allowed = allowed_classes([n for n, _ in own], [n for n, _ in students], changes)
    except DataError as error:
        raise DataError(f"{info.name}: {error} (--map CLASS=CLASS, or --map CLASS= )") from error
    target = np.array([min(each, default=len(students)) for each in allowed])
    return Teacher(info, students, target)


def soft_labels(
    teacher: Teacher, runtimes: Sequence[Runtime], frame: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Labels and confidence uint8 [H, W] of a frame uint8 [H, W, 3], from all its views.

    Where the student has no class for what the teacher sees, the label is IGNORE.
    """
    shares = np.zeros((len(teacher.classes) + 1, *frame.shape[:2]), np.float32)
    for runtime in runtimes:
        image = resized(frame, runtime.size)
        teacher.add(shares, runtime.run(image))
        mirrored = runtime.run(np.ascontiguousarray(image[:, ::-1]))
        assert mirrored.labels is not None and mirrored.confidence is not None
        labels, confidence = (
            np.ascontiguousarray(a[:, ::-1]) for a in (mirrored.labels, mirrored.confidence)
        )
        teacher.add(shares, Prediction(labels, confidence))
    shares /= 2 * len(runtimes)
    labels = shares.argmax(0).astype(np.uint8)
    confidence = (255 * shares.max(0) + 0.5).clip(0, CERTAIN - 1).astype(np.uint8)
    labels[labels == len(teacher.classes)] = IGNORE
    return labels, confidence


def pseudo_label(
    teacher: Teacher,
    frames: FrameList,
    out: Path,
    sizes: Sequence[tuple[int, int]],
    device: str = "auto",
) -> int:
    """Label frames into a folder; those that it has already stay. Returns how many were new.

    Args:
        sizes: (height, width) of the teacher's input, at each of which it sees each frame.
        device: see ``ctxseg_ros.inference.runtimes.open_runtime``.

    Raises:
        DataError: the folder is another run's. OutputError: it cannot be written.
        ModelFileError: a size does not fit the model.
        RuntimeUnavailable: see ``open_runtime``.
    """
    for size in sizes:
        teacher.info.check_size(size)
    _begin(teacher, frames, out, sizes)
    todo = [i for i in range(len(frames)) if not _file(out, CONFIDENCE, frames, i).exists()]
    with ExitStack() as opened:
        runtimes = []
        for size in sizes:
            runtimes.append(open_runtime(teacher.info, size, device))
            opened.callback(runtimes[-1].close)
        for i in track(todo, teacher.info.name, console=Console(stderr=True)):
            frame = frames[i]
            labels, confidence = soft_labels(teacher, runtimes, frame)
            bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
            # The confidence last: where it is, all is.
            for folder, pixels in (("images", bgr), ("labels", labels), (CONFIDENCE, confidence)):
                file = _file(out, folder, frames, i)
                options = _JPEG if file.suffix == ".jpg" else []
                write_bytes(file, cv2.imencode(file.suffix, pixels, options)[1].tobytes())
    return len(todo)


_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 95]


def _file(out: Path, folder: str, frames: FrameList, index: int) -> Path:
    stem = Path(frames.names[index].replace("#", "_").replace(":", "_")).stem
    return out / folder / f"{index:06}_{stem}{'.jpg' if folder == 'images' else '.png'}"


def _begin(
    teacher: Teacher, frames: FrameList, out: Path, sizes: Sequence[tuple[int, int]]
) -> None:
    """Write what the folder is, or check that it is this run's already."""
    info = teacher.info
    run: dict[str, Any] = {
        "model": info.name,
        "sha256": hashlib.sha256(info.path.read_bytes()).hexdigest(),
        "source": info.source,
        "classes": [name for name, _ in teacher.classes],
        "target": teacher.target.tolist(),
        "frames": len(frames),
        # Names without their folders, which may be mounted elsewhere next time.
        "names": hashlib.sha256("\n".join(Path(n).name for n in frames.names).encode()).hexdigest(),
        "sizes": [format_size(size) for size in sizes],
    }
    record = out / TEACHER
    if record.exists():
        if json.loads(record.read_text()) != run:
            raise DataError(
                f"{out}: it holds the labels of another teacher, source or setting "
                f"({record.name} says which); give another --out, or remove it"
            )
        return
    for folder in ("images", "labels", CONFIDENCE):
        make_folder(out / folder)
    rows = [
        {"id": i, "name": name, "colour": list(colour)}
        for i, (name, colour) in enumerate(teacher.classes)
    ]
    write_text(out / "classes.yaml", yaml.safe_dump(rows, sort_keys=False))
    write_json(record, run)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training pseudo-label", description=__doc__)
    add = parser.add_argument
    add("--model", required=True, help="a name of `ctxseg models` or an .onnx file")
    add("--source", required=True, nargs="+", help="images, videos, ROS 2 bags, folders of them")
    add("--out", required=True, type=Path, metavar="DIR", help="a new folder, or an unfinished one")
    add("--classes", help=f"the student's: {CLASSES_HELP} (default: the teacher's)")
    add(
        "--map",
        nargs="+",
        default=[],
        metavar="CLASS=CLASS",
        help="a class of the teacher that has another name in the student, or none (CLASS=)",
    )
    add(
        "--sizes",
        nargs="+",
        type=parse_size,
        metavar="HxW",
        help="of the teacher's input; several are averaged (default: as it was trained)",
    )
    add_reading(parser)
    add_stride(parser)
    add("--device", default="auto")
    return parser


def _work(args: argparse.Namespace) -> None:
    teacher = student_classes(load(args.model), args.classes, parse_changes(args.map))
    frames = open_frames(args.source, frame_options(args))
    sizes = args.sizes or [teacher.info.fixed_size or teacher.info.size]
    new = pseudo_label(teacher, frames, args.out, sizes, args.device)
    print(f"{args.out}: {new} frames labelled, {len(frames) - new} were labelled before")


def main(args: Sequence[str] | None = None) -> int:
    """The command; exit codes as of ``ctxseg_ros.command.run_command``."""
    parsed = _parser().parse_args(args)
    return run_command("pseudo-label", lambda: _work(parsed))
