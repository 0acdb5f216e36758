# SPDX-License-Identifier: Apache-2.0
"""Labels redrawn to the image's edges, here and in a process of its own."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctxseg_ros.model.prediction import Prediction
from ctxseg_ros.refinement import refiner as refinement
from ctxseg_ros.refinement.crf import refine
from ctxseg_ros.refinement.merging import merged_labels
from ctxseg_ros.refinement.refiner import RefinementFailed, Refiner, refined

pytestmark = pytest.mark.slow

CLASSES = 3


def scene() -> tuple[np.ndarray, Prediction]:
    """A bright half beside a dark one, labels that are a few pixels off, a corner unlabelled."""
    image = np.full((32, 48, 3), 30, np.uint8)
    image[:, 24:] = (220, 200, 60)
    labels = np.zeros((32, 48), np.uint8)
    labels[:, 20:] = 2
    labels[:5, :5] = 255
    return image, Prediction(labels, np.full_like(labels, 150))


@pytest.fixture(scope="module")
def refiner() -> Iterator[Refiner]:
    """One process for the tests that leave it alive."""
    made = Refiner("merge", CLASSES)
    yield made
    made.close()


@pytest.mark.parametrize("kind", ["crf", "merge"])
def test_labels_move_to_the_edge_and_confidence_is_their_marginal(kind: str) -> None:
    image, plain = scene()
    found = refined(kind, image, plain, CLASSES, 0.5)
    shares = refine(image, plain.labels, plain.confidence, CLASSES)
    labels = shares.argmax(axis=0) if kind == "crf" else merged_labels(image, shares, 0.5)
    for place in np.ndindex(labels.shape):
        if plain.labels[place] == 255:
            assert (found.labels[place], found.confidence[place]) == (255, 0)
        else:
            assert found.labels[place] == labels[place]
            share = shares[labels[place]][place]
            assert found.confidence[place] == pytest.approx(share * 255, abs=0.5001)
    assert (found.labels[8:, :23] == 0).all() and (found.labels[:, 25:] == 2).all()
    assert (plain.labels[:, 20] == 2).all()  # what came in is as it was


def test_merging_at_1_leaves_one_label() -> None:
    image, plain = scene()
    found = refined("merge", image, plain, CLASSES, 1.0)
    assert len(np.unique(found.labels[plain.labels != 255])) == 1


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("labels", [0, 255])
@pytest.mark.parametrize("size", [(1, 1), (16, 16)])
def test_images_without_edges_and_labels_without_a_class_are_fine(
    size: tuple[int, int], labels: int, value: int
) -> None:
    image = np.full((*size, 3), value, np.uint8)
    plain = Prediction(np.full(size, labels, np.uint8), np.zeros(size, np.uint8))
    for classes in (1, CLASSES):
        assert (refined("merge", image, plain, classes, 0.5).labels == labels).all()


def test_the_process_gives_what_a_call_gives(refiner: Refiner) -> None:
    image, plain = scene()
    for level in (0.2, 1.0):
        found = refiner(image, plain, level)
        expected = refined("merge", image, plain, CLASSES, level)
        np.testing.assert_array_equal(found.labels, expected.labels)
        np.testing.assert_array_equal(found.confidence, expected.confidence)


def test_a_frame_that_cannot_be_refined_is_told_and_the_next_one_is(refiner: Refiner) -> None:
    image, plain = scene()
    assert plain.labels is not None
    wrong = Prediction(np.full_like(plain.labels, 7), plain.confidence)
    with pytest.raises(RefinementFailed, match="the labels hold the id 7"):
        refiner(image, wrong, 0.5)
    assert refiner(image, plain, 0.5).labels is not None


def test_a_process_that_dies_is_told_and_started_again(refiner: Refiner) -> None:
    image, plain = scene()
    os.kill(refiner.process.pid, signal.SIGKILL)
    with pytest.raises(RefinementFailed, match="exit code -9"):
        refiner(image, plain, 0.5)
    assert refiner(image, plain, 0.5).labels is not None


def test_the_process_ends_with_its_object() -> None:
    made = Refiner("crf", CLASSES)
    process: Any = made.process
    assert process.poll() is None
    del made
    assert process.poll() == 0


def test_what_a_library_prints_is_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(tmp_path, monkeypatch, "import os; os.system('echo from C'); print('from Python')")
    with pytest.raises(ValueError, match=r"pydensecrf\.densecrf"):  # a module, but not a package
        Refiner("crf", CLASSES)


@pytest.mark.parametrize("kind", refinement.KINDS[1:])
def test_a_missing_extra_is_named_at_the_start(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(tmp_path, monkeypatch, "raise ImportError('hidden by the test')")
    with pytest.raises(ValueError, match=r"pydensecrf.*hidden by the test.*ctxseg_ros\[refine\]"):
        Refiner(kind, CLASSES)


def hide(folder: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    """Put another pydensecrf before the real one, for new processes."""
    (folder / "pydensecrf.py").write_text(content)
    monkeypatch.setenv("PYTHONPATH", str(folder))
