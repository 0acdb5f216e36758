# SPDX-License-Identifier: Apache-2.0
"""The node refines labels where it is asked to, and its budget knows."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sensor_msgs.msg import Image

from ctxseg_ros.inference import engine
from ctxseg_ros.model.prediction import Prediction
from ctxseg_ros.refinement.refiner import RefinementFailed, refined

pytestmark = pytest.mark.slow

CLASSES = 4


def picture() -> np.ndarray:
    """Two grounds that fade and a noise: what the tiny model says of it is ragged."""
    noise = np.random.default_rng(3).integers(0, 60, (32, 48, 3))
    ground = np.linspace(0, 90, 48)[None, :, None] + 100 * (np.arange(32) > 15)[:, None, None]
    return (ground + noise).astype(np.uint8)


def predicted(image: np.ndarray) -> Prediction:
    """What the tiny model says, see tiny_model."""
    light = image.sum(axis=2, dtype=np.float32)
    thresholds = np.linspace(0, 765, CLASSES + 1)[1:-1].astype(np.float32)
    labels = (light[..., None] > thresholds).sum(axis=2).astype(np.uint8)
    return Prediction(labels, (light * np.float32(1 / 3)).astype(np.uint8))


def stamp(message: Image) -> int:
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def plane(message: Image) -> np.ndarray:
    return np.frombuffer(message.data, np.uint8).reshape(message.height, message.width)


def test_refined_labels_come_out_and_may_be_switched_while_running(
    graph: Any, model_factory: Callable[..., Path], wait: Any, image_message: Any
) -> None:
    model = model_factory(task="clusters")
    graph.start("segment_node", model=model, device="cpu", refinement="crf")
    graph.wait_for_state("active")
    found = [graph.collect(Image, f"/segment/{name}") for name in ("labels", "confidence")]
    images = graph.publisher(Image, "image")
    rgb = picture()

    def expect(prediction: Prediction) -> None:
        """Send a frame, and another while the node has not found the subscriptions yet."""

        start = time.time_ns()  # what comes later may still be of a frame before

        def answers() -> list[np.ndarray]:
            message = image_message()
            message.data = rgb.tobytes()
            images.publish(message)
            time.sleep(0.1)
            new = [[plane(item) for item in items if stamp(item) >= start] for items in found]
            return [planes[0] for planes in new] if all(new) else []

        labels, confidence = wait(answers)
        np.testing.assert_array_equal(labels, prediction.labels)
        np.testing.assert_array_equal(confidence, prediction.confidence)

    plain = predicted(rgb)
    crf = refined("crf", rgb, plain, CLASSES, 0.5)
    merged = [refined("merge", rgb, plain, CLASSES, level) for level in (0.0, 1.0)]
    # The planes differ, else the test would tell nothing.
    assert len({item.labels.tobytes() for item in (plain, crf, *merged)}) == 4
    expect(crf)
    wait(lambda: float(graph.values()["refine_p50_ms"]) > 1)
    assert graph.values()["refinement"] == "crf" and graph.values()["task"] == "clusters"
    for level, expected in zip((0.0, 1.0), merged, strict=True):
        assert graph.set("merge_level", level)[0]
        assert graph.set("refinement", "merge")[0]
        expect(expected)
    assert graph.set("refinement", "none")[0]
    expect(plain)
    wait(lambda: float(graph.values()["refine_p50_ms"]) < 1)  # those before are forgotten
    # Unsure pixels are those of the refined confidence.
    assert graph.set("refinement", "crf")[0] and graph.set("min_confidence", 0.9)[0]
    least = int(np.ceil(0.9 * 255))
    unsure = crf.confidence < least
    assert unsure.any() and not unsure.all()
    expect(Prediction(np.where(unsure, 255, crf.labels).astype(np.uint8), crf.confidence))


def test_without_the_extra_it_is_refused_and_what_ran_goes_on(
    graph: Any,
    model_factory: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wait: Any,
    image_message: Any,
) -> None:
    (tmp_path / "pydensecrf.py").write_text("raise ImportError('hidden by the test')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    graph.start("segment_node", model=model_factory(), device="cpu")
    graph.wait_for_state("active")
    for kind in ("crf", "merge"):
        done, reason = graph.set("refinement", kind)
        assert not done and "ctxseg_ros[refine]" in reason and "hidden by the test" in reason
    assert graph.get("refinement") == "none"
    done, reason = graph.set("refinement", "best")
    assert not done and "one of none, crf, merge" in reason
    images = graph.publisher(Image, "image")
    images.publish(image_message())
    wait(lambda: graph.counts()["frames_labelled"] == 1)
    # Nor does the node start with it.
    assert graph.transition("deactivate") and graph.transition("cleanup")
    assert graph.set("refinement", "crf")[0]
    assert not graph.transition("configure")
    assert "ctxseg_ros[refine]" in graph.status().message


class SlowRefiner:
    """Takes its time by the pixels."""

    ms_per_kilopixel = 20.0
    error: Exception | None = None

    def __init__(self, kind: str, classes: int) -> None:
        self.classes = classes

    def __call__(self, image: np.ndarray, prediction: Prediction, level: float) -> Prediction:
        if self.error is not None:
            raise self.error
        time.sleep(self.ms_per_kilopixel * image.shape[0] * image.shape[1] * 1e-6)
        return prediction

    def close(self) -> None:
        pass


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> type[SlowRefiner]:
    class Slow(SlowRefiner):
        pass

    monkeypatch.setattr(engine, "Refiner", Slow)
    return Slow


@pytest.fixture
def playing(image_message: Any) -> Iterator[Callable[[Any], None]]:
    """play(publisher): frames at 10 Hz until the test ends."""
    stopping = threading.Event()
    threads: list[threading.Thread] = []

    def play(publisher: Any) -> None:
        while not stopping.wait(0.1):
            publisher.publish(image_message())

    def start(publisher: Any) -> None:
        threads.append(threading.Thread(target=play, args=(publisher,)))
        threads[0].start()

    yield start
    stopping.set()
    for thread in threads:
        thread.join()


def test_the_budget_counts_refinement(
    scene: Any, slow: type[SlowRefiner], playing: Any, wait: Any
) -> None:
    made = scene(
        input_sizes="['96x144', '64x96', '32x48']",
        latency_budget_ms=200,
        costs_ms={(96, 144): 5.0, (64, 96): 4.0, (32, 48): 3.0},
    )
    graph = made.graph
    playing(made.publishers[""])
    wait(lambda: graph.values()["input_size"] == "96x144")
    # 277 ms at the largest size, 123 at the next, 31 at the smallest; more on a busy machine.
    assert graph.set("refinement", "crf")[0]
    assert len(made.stage.opened) == 3  # nothing was loaded for it
    wait(lambda: graph.values()["input_size"] != "96x144")
    wait(lambda: float(graph.values()["refine_p50_ms"]) >= 30)
    window = made.node.latency.frames()
    for frame in window:
        parts = sum(ms for stage, ms in frame.items() if stage != "total")
        assert parts == pytest.approx(frame["total"])
    # Now not even the smallest does: 307 ms.
    slow.ms_per_kilopixel = 200.0
    wait(lambda: graph.values()["needed_budget_ms"])
    assert graph.values()["input_size"] == "32x48"
    assert "even 32x48, the smallest of input_sizes" in graph.status().message
    assert "set refinement to none" in graph.status().message
    assert graph.set("refinement", "none")[0]
    wait(lambda: graph.values()["input_size"] == "96x144")


def test_a_frame_that_cannot_be_refined_is_counted(
    scene: Any, slow: type[SlowRefiner], wait: Any, image_message: Any
) -> None:
    made = scene(refinement="crf")
    slow.error = RefinementFailed("refinement: a fault")
    made.publishers[""].publish(image_message(stamp=1))
    wait(lambda: made.graph.counts()["dropped_inference_error"] == 1)
    assert "refinement: a fault" in made.graph.status().message
    slow.error = None
    made.publishers[""].publish(image_message(stamp=2))
    wait(lambda: made.graph.counts()["frames_labelled"] == 1)
    assert len(made.stage.opened) == 1  # the model is not to blame
