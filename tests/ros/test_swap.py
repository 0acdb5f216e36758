# SPDX-License-Identifier: Apache-2.0
"""Another model, device or size while the node is active."""

import gc
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rcl_interfaces.srv import SetParametersAtomically
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image

from ctxseg_ros.model.model_file import ClassInfo

pytestmark = pytest.mark.slow

BRIGHT = [0.0]  # one threshold: everything but black is class 1
DARK = [800.0]  # never exceeded: everything is class 0


def classes(*names: str) -> list[ClassInfo]:
    return [ClassInfo(i, name, (i, i, i)) for i, name in enumerate(names)]


class Camera:
    """Publishes frames with rising stamps from a thread, until the test ends."""

    def __init__(self, publisher: Any, make: Callable[..., Image], period_s: float) -> None:
        self.sent = 0
        self._publisher, self._make, self._period_s = publisher, make, period_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._play)
        self._thread.start()

    def _play(self) -> None:
        while not self._stopping.wait(self._period_s):
            self._publisher.publish(self._make())
            self.sent += 1

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()


@pytest.fixture
def camera(image_message: Any) -> Any:
    """start(publisher, period_s) -> a camera that ends with the test."""
    cameras: list[Camera] = []

    def start(publisher: Any, period_s: float) -> Camera:
        cameras.append(Camera(publisher, image_message, period_s))
        return cameras[-1]

    yield start
    for item in cameras:
        item.stop()


def test_a_model_is_swapped_between_two_frames_and_no_frame_is_lost(
    graph: Any, model_factory: Callable[..., Path], wait: Any, camera: Any
) -> None:
    first = model_factory(name="first", classes=classes("dark", "bright"), thresholds=DARK)
    second = model_factory(name="second", classes=classes("night", "day"), thresholds=BRIGHT)
    graph.start("segment_node", model=first, device="cpu")
    graph.wait_for_state("active")
    labels = graph.collect(Image, "/segment/labels", 1000)
    source = camera(graph.publisher(Image, "image"), 0.03)
    wait(lambda: len(labels) > 10)
    assert graph.set("model", str(second))[0]
    assert graph.get("class_names") == ["night", "day"]
    assert graph.get("model") == str(second)
    swapped = len(labels)
    wait(lambda: len(labels) > swapped + 10)
    source.stop()
    counts = graph.counts()
    assert counts["frames_received"] == source.sent
    # The model takes no time, so each frame is labelled unless two came at once.
    assert counts["frames_labelled"] + counts["dropped_queue"] == source.sent
    assert counts["dropped_inference_error"] == 0
    means = [np.asarray(message.data).mean() > 0.5 for message in labels]
    assert not means[0] and means[-1]
    assert means == sorted(means)  # first the old model's, then the new one's
    wait(lambda: graph.values()["model"] == "second")


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("model", "nonsense", "no model is called 'nonsense'"),
        ("model", "/no/such.onnx", "there is no such file"),
        ("device", "cuda", "no NVIDIA GPU"),
        ("input_sizes", ["32x50"], "multiples of 16"),
        ("label_groups", "/no/groups.yaml", "/no/groups.yaml"),
    ],
)
def test_what_cannot_run_is_refused_and_the_old_model_goes_on(
    running: Any, wait: Any, image_message: Any, name: str, value: Any, reason: str
) -> None:
    if name == "device" and Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has the device that should be missing")
    before = running.get(name)
    good, said = running.set(name, value)
    assert not good and reason in said
    assert running.get(name) == before
    labels = running.collect(Image, "/segment/labels")
    publisher = running.publisher(Image, "image")
    wait(lambda: labels or publisher.publish(image_message()) or time.sleep(0.1))


@pytest.fixture(scope="module")
def running(shared_graph: Any, model_factory: Callable[..., Path]) -> Any:
    """A graph with an active segment_node."""
    shared_graph.start("segment_node", model=model_factory(), device="cpu")
    shared_graph.wait_for_state("active")
    return shared_graph


def test_several_parameters_change_together_or_not_at_all(
    running: Any, model_factory: Callable[..., Path], wait: Any
) -> None:
    wide = str(model_factory(name="wide", stride=32, size=(64, 64)))

    def set_together(**values: Any) -> Any:
        messages = [Parameter(k, value=v).to_parameter_msg() for k, v in values.items()]
        request = SetParametersAtomically.Request(parameters=messages)
        name = "/segment/set_parameters_atomically"
        return running.call(SetParametersAtomically, name, request).result

    old = running.get("model")
    refused = set_together(model=wide, input_sizes=["48x48"])
    assert not refused.successful and "multiples of 32" in refused.reason
    assert running.get("model") == old
    assert set_together(model=wide, input_sizes=["64x96", "32x64"]).successful
    wait(lambda: running.values()["model"] == "wide")
    assert running.values()["input_size"] == "64x96"
    assert running.values()["input_sizes"].startswith("64x96 ")
    assert "32x64" in running.values()["input_sizes"]


@pytest.fixture
def slow_loading(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], tuple[Any, Any]]:
    """begin(stage) -> an event when the next model begins to load, and one that lets it."""

    def begin(stage: Any) -> tuple[Any, Any]:
        loading, go_on = threading.Event(), threading.Event()
        open_at_once = stage.open

        def open_slowly(*arguments: Any) -> Any:
            loading.set()
            assert go_on.wait(60)
            return open_at_once(*arguments)

        monkeypatch.setattr("ctxseg_ros.inference.engine.open_runtime", open_slowly)
        return loading, go_on

    return begin


def test_the_executor_goes_on_while_a_model_loads(
    scene: Any, wait: Any, image_message: Any, slow_loading: Any
) -> None:
    made = scene()
    graph, stage = made.graph, made.stage
    loading, go_on = slow_loading(stage)
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.append(graph.set("device", "openvino")))
    asking.start()
    assert loading.wait(60)
    reports = len(graph.statuses)
    wait(lambda: len(graph.statuses) >= reports + 2)  # diagnostics and ...
    before = graph.counts()["frames_labelled"]
    made.publishers[""].publish(image_message())  # ... frames
    wait(lambda: graph.counts()["frames_labelled"] == before + 1)
    assert not answers
    go_on.set()
    asking.join(60)
    assert answers == [(True, "")]
    assert [runtime.device for runtime in stage.opened] == ["cpu", "openvino"]


def test_what_was_replaced_is_let_go(scene: Any, wait: Any, image_message: Any) -> None:
    made = scene()
    made.publishers[""].publish(image_message())
    wait(lambda: made.graph.counts()["frames_labelled"] == 1)
    old = weakref.ref(made.stage.opened.pop())
    assert made.graph.set("device", "openvino")[0]
    gc.collect()
    wait(lambda: old() is None)


def test_the_memory_of_replaced_models_comes_back(
    graph: Any, model_factory: Callable[..., Path]
) -> None:
    paths = [str(model_factory(name=name)) for name in ("one", "two")]
    graph.start("segment_node", model=paths[0], device="cpu", input_sizes="['1024x1024']")
    graph.wait_for_state("active")
    held = []
    for turn in range(24):
        assert graph.set("model", paths[(turn + 1) % 2])[0]
        if turn >= 8:
            seen = len(graph.statuses)
            while len(graph.statuses) == seen:
                time.sleep(0.05)
            held.append(float(graph.values()["memory_mb"]))
    # One of these models holds some 40 MB of activations. A report may find two of them, the old
    # one not yet freed; 8 more that stay would be 320 MB in each.
    assert min(held[-8:]) < min(held[:8]) + 120


def test_thresholds_and_groups_change_at_once(
    running: Any, wait: Any, image_message: Any, tmp_path: Path, model_factory: Callable[..., Path]
) -> None:
    model = model_factory(name="two", classes=classes("dark", "bright"), thresholds=BRIGHT)
    assert running.set("model", str(model))[0] or running.set("input_sizes", [""])[0]
    assert running.set("input_sizes", [""])[0] and running.set("model", str(model))[0]
    groups = tmp_path / "groups.yaml"
    groups.write_text(
        "groups:\n- {name: light, colour: [9, 8, 7], classes: [bright]}\nunlabelled: [dark]\n"
    )
    assert running.set("label_groups", str(groups))[0]
    assert running.get("class_names") == ["light"]
    labels = running.collect(Image, "/segment/labels")
    publisher = running.publisher(Image, "image")
    wait(lambda: labels or publisher.publish(image_message()) or time.sleep(0.1))
    assert set(np.unique(labels[-1].data)) <= {0, 255}
    assert running.set("label_groups", "")[0]
    assert running.get("class_names") == ["dark", "bright"]


GROUPS = "groups:\n- {name: %s, colour: [9, 8, 7], classes: rest}\n"


def test_the_same_path_with_another_file_behind_it_is_read_again(
    running: Any, model_factory: Callable[..., Path], tmp_path: Path
) -> None:
    groups, model = tmp_path / "groups.yaml", tmp_path / "model.onnx"
    for name in ("one", "two"):
        groups.write_text(GROUPS % name)
        assert running.set("label_groups", str(groups))[0]
        assert running.get("class_names") == [name]
    assert running.set("label_groups", "")[0]
    for name in ("first", "second"):
        model_factory(path=model, classes=classes(name, "other"))
        assert running.set("model", str(model))[0]
        assert running.get("class_names") == [name, "other"]


def test_what_the_budget_taught_outlives_groups_and_the_same_budget(
    scene: Any, wait: Any, image_message: Any, tmp_path: Path
) -> None:
    large, small = (64, 96), (32, 48)
    made = scene(
        input_sizes="['64x96', '32x48']",
        latency_budget_ms=100,
        costs_ms={large: 70.0, small: 5.0},
    )
    assert made.graph.values()["input_size"] == "64x96"
    made.stage.costs_ms[large] = 300.0

    def left() -> bool:
        made.publishers[""].publish(image_message())
        time.sleep(0.05)
        return bool(made.graph.values()["input_size"] == "32x48")

    wait(left)
    groups = tmp_path / "groups.yaml"
    groups.write_text(GROUPS % "all")
    opened = len(made.stage.opened)
    for name, value in (("latency_budget_ms", 100.0), ("label_groups", str(groups))):
        assert made.graph.set(name, value)[0]
        made.graph.counts()  # a report from after the change
        assert made.graph.values()["input_size"] == "32x48"
    assert len(made.stage.opened) == opened
    assert made.graph.set("latency_budget_ms", 1000.0)[0]
    wait(lambda: made.graph.values()["input_size"] == "64x96")


def test_the_node_answers_while_a_model_loads_and_transitions_wait(
    scene: Any, slow_loading: Any
) -> None:
    made = scene()
    loading, go_on = slow_loading(made.stage)
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.append(made.graph.set("device", "openvino")))
    asking.start()
    assert loading.wait(60)
    assert made.graph.state() == "active"
    assert made.graph.get("overlay_alpha") == 0.5
    # A transition waits for its turn.
    leaving = threading.Thread(target=lambda: answers.append(made.graph.transition("deactivate")))
    leaving.start()
    time.sleep(0.5)
    assert made.graph.state() == "active" and not answers
    go_on.set()
    asking.join(60)
    leaving.join(60)
    assert sorted(answers, key=str) == [(True, ""), True]
    assert made.graph.state() == "inactive"
