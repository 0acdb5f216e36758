# SPDX-License-Identifier: Apache-2.0
"""Labels redrawn to the image's edges, in a process of its own.

pydensecrf holds Python's lock for its whole run: in the node's process, no frame would be read
meanwhile. And a fault in its C++ ends that process only.
"""

import contextlib
import json
import os
import subprocess
import sys
import weakref
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ctxseg_ros.model.prediction import UNLABELLED, Prediction
from ctxseg_ros.refinement.crf import refine
from ctxseg_ros.refinement.extras import refining
from ctxseg_ros.refinement.merging import merged_labels

NONE = "none"
KINDS = (NONE, "crf", "merge")
"""merge: the CRF, then one label for each region that merging leaves."""

_MODULES = {
    "crf": ("pydensecrf.densecrf",),
    "merge": ("pydensecrf.densecrf", "skimage.segmentation", "scipy.spatial"),
}
_END_S = 5.0  # no frame takes longer that anybody waits for


class RefinementFailed(RuntimeError):
    """A frame could not be refined; the next one may do."""


def refined(
    kind: str,
    image: NDArray[np.uint8],
    prediction: Prediction,
    classes: int,
    merge_level: float,
) -> Prediction:
    """Labels that follow the image's edges; confidence is 255 x the label's CRF marginal.

    `image`: uint8 [H, W, 3] RGB, the size of the labels. Unlabelled pixels stay unlabelled, their
    confidence is 0. `merge_level`: see `Hierarchy.at`. Raises what `crf.refine` and
    `merging.merged_labels` raise.
    """
    labels, confidence = prediction.labels, prediction.confidence
    assert labels is not None and confidence is not None  # a model that gives one gives both
    shares = refine(image, labels, confidence, classes)
    found = shares.argmax(axis=0).astype(np.uint8)
    if kind == "merge":
        found = merged_labels(image, shares, merge_level)
    sure = np.take_along_axis(shares, found[None].astype(np.intp), axis=0)[0]
    sure = np.round(np.clip(sure, 0, 1) * 255).astype(np.uint8)
    unlabelled = labels == UNLABELLED
    found[unlabelled], sure[unlabelled] = UNLABELLED, 0
    return Prediction(found, sure)


class Refiner:
    """Runs `refined` in its process, which ends with this object. For one thread at a time.

    `classes`: how many the labels have. `process`: the one that works now; another takes its place
    when it dies.
    """

    def __init__(self, kind: str, classes: int) -> None:
        """`kind`: one of KINDS but none. Takes about a second: the process loads its libraries.

        Raises ValueError where the extra `refine` is not installed.
        """
        self._kind = kind
        self.classes = classes
        self._start()

    def _start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ctxseg_ros.refinement.refiner", self._kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the node: it ends this one
        )
        self._end = weakref.finalize(self, _end, self.process)
        said, _ = self._answer()
        if said["error"]:
            raise ValueError(said["error"])

    def __call__(
        self, image: NDArray[np.uint8], prediction: Prediction, merge_level: float
    ) -> Prediction:
        """See `refined`. Raises RefinementFailed; if the process ended, the next call starts it."""
        if not self._end.alive:
            self._start()
        pipe = self.process.stdin
        assert pipe is not None
        try:
            request = {"classes": self.classes, "merge_level": merge_level}
            _send(pipe, request, image, prediction.labels, prediction.confidence)
        except OSError as error:
            raise self._ended() from error
        said, planes = self._answer()
        if said["error"]:
            raise RefinementFailed(f"refinement: {said['error']}")
        return Prediction(planes[0], planes[1])

    def close(self) -> None:
        """End the process."""
        self._end()

    def _answer(self) -> tuple[dict[str, Any], list[NDArray[np.uint8]]]:
        pipe = self.process.stdout
        assert pipe is not None
        try:
            return _receive(pipe)
        except (EOFError, OSError) as error:
            raise self._ended() from error

    def _ended(self) -> RefinementFailed:
        self._end()
        return RefinementFailed(
            f"the process of the refinement ended (exit code {self.process.returncode}); "
            "it starts again with the next frame"
        )


def _end(process: subprocess.Popen) -> None:
    assert process.stdin is not None and process.stdout is not None
    # Not `communicate`: it would read a result that nobody takes.
    process.stdout.close()
    with contextlib.suppress(OSError):  # it is gone, and something was not written yet
        process.stdin.close()  # which ends it
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _send(pipe: IO[bytes], said: dict[str, Any], *planes: NDArray[np.uint8] | None) -> None:
    """One message: a line of JSON, which ends with the planes' shapes, and their bytes."""
    whole = [np.ascontiguousarray(plane) for plane in planes if plane is not None]
    line = json.dumps({**said, "shapes": [plane.shape for plane in whole]})
    pipe.write(line.encode() + b"\n")
    for plane in whole:
        pipe.write(plane.data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> tuple[dict[str, Any], list[NDArray[np.uint8]]]:
    """What `_send` sent. Raises EOFError where the other end closed, also within a message."""
    line = pipe.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    said = json.loads(line)
    planes = []
    for shape in said["shapes"]:
        plane = np.empty(shape, np.uint8)
        if pipe.readinto(plane.data.cast("B")) < plane.nbytes:  # type: ignore[attr-defined]
            raise EOFError
        planes.append(plane)
    return said, planes


def _serve(kind: str) -> None:
    """The process: refines what comes in by standard input, until that ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    try:
        for module in _MODULES[kind]:
            refining(module)
        _send(answers, {"error": ""})
    except ImportError as error:
        _send(answers, {"error": str(error)})
        return
    while True:
        try:
            said, (image, labels, confidence) = _receive(sys.stdin.buffer)
        except EOFError:
            os._exit(0)  # at once: somebody waits for it
        try:
            prediction = Prediction(labels, confidence)
            found = refined(kind, image, prediction, said["classes"], said["merge_level"])
            answer: tuple[Any, ...] = ({"error": ""}, found.labels, found.confidence)
        except Exception as error:  # whatever a library raises: the next frame may do
            answer = ({"error": f"{type(error).__name__}: {error}"},)
        try:
            _send(answers, *answer)
        except BrokenPipeError:  # nobody waits any more
            os._exit(0)


if __name__ == "__main__":
    _serve(sys.argv[1])
