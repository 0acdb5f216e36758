# SPDX-License-Identifier: Apache-2.0
"""Loading beside everything else: configure, changes that race a fault, devices that hang."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.srv import GetState

from ctxseg_ros.inference import engine
from ctxseg_ros.model.prediction import Prediction
from ctxseg_ros.ros import segmenter
from ctxseg_ros.ros.segmenter import SegmentNode

pytestmark = pytest.mark.slow


class Gate:
    """Holds whoever passes until it is opened."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self.opened.wait(60)


@pytest.fixture
def loading(stage: Any, monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Models open only after this gate."""
    gate = Gate()

    def open_slowly(*arguments: Any) -> Any:
        gate()
        return stage.open(*arguments)

    monkeypatch.setattr(engine, "open_runtime", open_slowly)
    return gate


@pytest.mark.parametrize("by_service", [False, True])
def test_the_executor_goes_on_while_the_node_configures(
    graph_with: Callable[..., Any],
    model_factory: Callable[..., Path],
    loading: Gate,
    wait: Any,
    by_service: bool,
) -> None:
    graph = graph_with(model=model_factory(), device="cpu", autostart=str(not by_service).lower())
    node = graph.add(SegmentNode())
    answers: list[bool] = []
    if by_service:
        wait(lambda: graph.values().get("state") == "unconfigured")
        asking = threading.Thread(target=lambda: answers.append(graph.transition("configure")))
        asking.start()
    assert loading.reached.wait(60)
    wait(lambda: graph.status() and "loading" in graph.status().message)
    assert graph.status().level == DiagnosticStatus.OK
    assert "s so far" in graph.status().message and graph.values()["state"] == "unconfigured"
    assert graph.get("device") == "cpu" and graph.state() == "unconfigured"
    assert not answers
    loading.opened.set()
    if by_service:
        asking.join(60)
        assert answers == [True] and node.state == "inactive"
    else:
        wait(lambda: node.state == "active")
    wait(lambda: "loading" not in graph.status().message)


def test_a_second_configure_waits_and_is_refused(
    graph_with: Callable[..., Any], model_factory: Callable[..., Path], loading: Gate, wait: Any
) -> None:
    graph = graph_with(model=model_factory(), device="cpu")
    node = graph.add(SegmentNode())
    assert loading.reached.wait(60)
    answers: list[bool] = []
    asking = threading.Thread(target=lambda: answers.append(graph.transition("configure")))
    asking.start()
    graph.call(GetState, "/segment/get_state", GetState.Request())
    loading.opened.set()
    asking.join(60)
    assert answers == [False]
    wait(lambda: node.state == "active")


class Refiner:
    """A stand-in that begins only after a gate."""

    gate: Gate
    made: ClassVar[list["Refiner"]]

    def __init__(self, kind: str, classes: int) -> None:
        self.classes, self.closed = classes, False
        self.made.append(self)
        self.gate()

    def __call__(self, image: Any, prediction: Prediction, level: float) -> Prediction:
        return prediction

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def refiner(monkeypatch: pytest.MonkeyPatch) -> type[Refiner]:
    class Gated(Refiner):
        gate = Gate()
        made: ClassVar[list[Refiner]] = []

    monkeypatch.setattr(engine, "Refiner", Gated)
    return Gated


@pytest.mark.parametrize("fault", ["before", "while", "none"])
def test_a_change_of_refinement_and_a_fault_of_the_device_meet(
    scene: Any, refiner: type[Refiner], wait: Any, image_message: Any, fault: str
) -> None:
    """Whatever comes first, an open model with the refinement runs in the end."""
    made = scene(device="cpu")
    stage, node, graph = made.stage, made.node, made.graph
    if fault == "before":
        stage.errors["cpu"] = RuntimeError("device lost")
        stage.open_errors["cpu"] = RuntimeError("still lost")
        made.publishers[""].publish(image_message())
        wait(lambda: graph.counts()["dropped_inference_error"] == 1)
    answers: list[tuple[bool, str]] = []
    asking = threading.Thread(target=lambda: answers.append(graph.set("refinement", "crf")))
    asking.start()
    if fault != "before":
        assert refiner.gate.reached.wait(60)
    if fault == "while":
        # The worker fails on a frame while the loader adapts the engine that it runs.
        stage.errors["cpu"] = RuntimeError("device lost")
        made.publishers[""].publish(image_message())
        wait(lambda: node.cameras[""][0].counts.totals()["inference_error"] == 1)
    stage.errors.clear()
    stage.open_errors.clear()
    refiner.gate.opened.set()
    asking.join(60)
    assert answers == [(True, "")]

    def labelled() -> bool:
        made.publishers[""].publish(image_message())
        return graph.counts()["frames_labelled"] >= 3

    wait(labelled)
    assert graph.values()["refinement"] == "crf"
    open_now = [runtime for runtime in stage.opened if not runtime.closed]
    assert len(open_now) == 1 and open_now[0].runs >= 3
    assert [item.closed for item in refiner.made].count(False) == 1


def test_deactivate_does_not_wait_for_a_device_that_hangs(
    scene: Any, wait: Any, image_message: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segmenter, "STOP_S", 0.5)
    made = scene()
    made.stage.stepping = True
    made.publishers[""].publish(image_message())
    assert made.stage.running.wait(60)
    assert not made.graph.transition("deactivate")
    assert made.graph.state() == "unconfigured"
    # The node is as good as new; the device answers after all.
    made.stage.stepping = False
    made.stage.turns.release(10)
    assert made.graph.transition("configure") and made.graph.transition("activate")
    made.graph.wait_for_state("active")
    before = made.graph.counts()["frames_labelled"]
    made.publishers[""].publish(image_message())
    wait(lambda: made.graph.counts()["frames_labelled"] == before + 1)
