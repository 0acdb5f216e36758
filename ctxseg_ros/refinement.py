# SPDX-License-Identifier: Apache-2.0
"""Labels redrawn to the image's edges, in a process of its own.

pydensecrf holds Python's lock for its whole run: in the node's process, no frame would be read
meanwhile. And a fault in its C++ ends that process only.
"""

import contextlib
import os
import pickle
import subprocess
import sys
import weakref
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ctxseg_ros.crf import refine
from ctxseg_ros.extras import refining
from ctxseg_ros.merging import merged_labels
from ctxseg_ros.prediction import UNLABELLED, Prediction

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

    `classes`: how many the labels have.
    """

    def __init__(self, kind: str, classes: int) -> None:
        """`kind`: one of KINDS but none. Takes about a second: the process loads its libraries.

        Raises ValueError where the extra `refine` is not installed.
        """
        self._kind = kind
        self.classes = classes
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ctxseg_ros.refinement", self._kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the node: it ends this one
        )
        self._end = weakref.finalize(self, _end, self._process)
        missing = self._answer()
        if missing:
            raise ValueError(missing)

    def __call__(
        self, image: NDArray[np.uint8], prediction: Prediction, merge_level: float
    ) -> Prediction:
        """See `refined`. Raises RefinementFailed; if the process ended, the next call starts it."""
        if not self._end.alive:
            self._start()
        pipe = self._process.stdin
        assert pipe is not None
        try:
            _send(pipe, (self._kind, image, prediction, self.classes, merge_level))
        except OSError as error:
            raise self._ended() from error
        answer = self._answer()
        if isinstance(answer, str):
            raise RefinementFailed(f"refinement: {answer}")
        return answer

    def close(self) -> None:
        """End the process."""
        self._end()

    def _answer(self) -> Any:
        pipe = self._process.stdout
        assert pipe is not None
        try:
            return pickle.load(pipe)
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise self._ended() from error

    def _ended(self) -> RefinementFailed:
        self._end()
        return RefinementFailed(
            f"the process of the refinement ended (exit code {self._process.returncode}); "
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


def _send(pipe: IO[bytes], item: Any) -> None:
    pickle.dump(item, pipe, pickle.HIGHEST_PROTOCOL)
    pipe.flush()


def _serve(kind: str) -> None:
    """The process: refines what comes in by standard input, until that ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    try:
        for module in _MODULES[kind]:
            refining(module)
        _send(answers, "")
    except ImportError as error:
        _send(answers, str(error))
        return
    while True:
        try:
            item = pickle.load(sys.stdin.buffer)
        except EOFError:
            os._exit(0)  # at once: somebody waits for it
        answer: Prediction | str
        try:
            answer = refined(*item)
        except Exception as error:  # whatever a library raises: the next frame may do
            answer = f"{type(error).__name__}: {error}"
        try:
            _send(answers, answer)
        except BrokenPipeError:  # nobody waits any more
            os._exit(0)


if __name__ == "__main__":
    _serve(sys.argv[1])
