# SPDX-License-Identifier: Apache-2.0
"""segment_node as a process: labels out, faults counted, transitions guarded."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.srv import SetParameters
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from ctxseg_ros.ros.images import read_rgb

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def running(shared_graph: Any, model_factory: Callable[..., Path]) -> Any:
    """A graph with an active segment_node, device cpu, at its default name."""
    shared_graph.start("segment_node", model=model_factory(), device="cpu")
    shared_graph.wait_for_state("active")
    return shared_graph


@pytest.fixture(scope="module")
def images(running: Any) -> Any:
    return running.publisher(Image, "image")


def expected_labels(message: Image) -> np.ndarray:
    """What the tiny model of four classes gives for a frame of its own size."""
    total = read_rgb(message).sum(axis=2, dtype=int)
    return np.searchsorted([191.25, 382.5, 573.75], total, side="left").astype(np.uint8)


def pixels(message: Image) -> np.ndarray:
    return np.asarray(message.data).reshape(message.height, message.width, -1).squeeze()


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8", "mono8"])
@pytest.mark.parametrize("padding", [0, 7])
def test_labels_have_the_frames_header_and_size(
    running: Any, images: Any, wait: Any, image_message: Any, encoding: str, padding: int
) -> None:
    labels = running.collect(Image, "/segment/labels")
    confidence = running.collect(Image, "/segment/confidence")
    message = image_message(encoding=encoding, padding=padding)
    wait(lambda: labels or images.publish(message) or time.sleep(0.2))
    wait(lambda: confidence)
    for output in (labels[-1], confidence[-1]):
        assert output.header == message.header
        assert (output.height, output.width, output.step) == (32, 48, 48)
        assert output.encoding == "mono8"
    np.testing.assert_array_equal(pixels(labels[-1]), expected_labels(message))
    mean = read_rgb(message).mean(axis=2)
    assert np.abs(pixels(confidence[-1]).astype(int) - np.floor(mean)).max() <= 1


def test_another_size_than_the_models_is_labelled_at_the_frames_size(
    running: Any, images: Any, wait: Any, image_message: Any
) -> None:
    labels = running.collect(Image, "/segment/labels")
    message = image_message(101, 67)
    wait(lambda: labels or images.publish(message) or time.sleep(0.2))
    assert (labels[-1].width, labels[-1].height, len(labels[-1].data)) == (101, 67, 101 * 67)


def test_colour_and_overlay_come_while_somebody_looks(
    running: Any, images: Any, wait: Any, image_message: Any
) -> None:
    message = image_message()
    color = running.collect(Image, "/segment/color")
    overlay = running.collect(Image, "/segment/overlay")
    wait(lambda: (color and overlay) or images.publish(message) or time.sleep(0.2))
    labels = expected_labels(message)
    expected = np.dstack([labels, 255 - labels, 7 * labels])  # the tiny model's colours
    np.testing.assert_array_equal(pixels(color[-1]), expected)
    blend = (expected.astype(float) + read_rgb(message)) / 2
    assert np.abs(pixels(overlay[-1]) - blend).max() <= 1
    assert color[-1].encoding == overlay[-1].encoding == "rgb8"
    assert color[-1].header == overlay[-1].header == message.header


def test_camera_info_that_fits_is_copied_with_the_frames_header(
    running: Any, images: Any, wait: Any, image_message: Any
) -> None:
    infos = running.publisher(CameraInfo, "camera_info")
    copies = running.collect(CameraInfo, "/segment/camera_info")
    message = image_message()
    info = CameraInfo(width=48, height=32, k=[float(i) for i in range(9)])
    info.header.frame_id = "another"

    def send() -> None:  # the node reads camera_info as best effort: one alone may be lost
        infos.publish(info)
        images.publish(message)

    wait(lambda: copies or send() or time.sleep(0.2))
    assert copies[-1].header == message.header
    assert list(copies[-1].k) == list(info.k)
    infos.publish(CameraInfo(width=640, height=480))
    time.sleep(0.5)
    before = len(copies)
    running.counts()
    labels = running.collect(Image, "/segment/labels")
    wait(lambda: labels or images.publish(message) or time.sleep(0.2))
    assert len(copies) == before  # this one does not fit


BAD_FRAMES = [
    ({"step": 10}, "step is 10"),
    ({"data": bytes(12)}, "data holds 12 bytes"),
    ({"width": 0}, "holds no pixel"),
    ({"encoding": "nonsense"}, "'nonsense'"),
    ({"encoding": "16UC1"}, "depth"),
]


def test_malformed_frames_are_counted_and_the_node_goes_on(
    running: Any, images: Any, wait: Any, image_message: Any
) -> None:
    before = running.counts()
    for fields, expected in BAD_FRAMES:
        message = image_message()
        for name, value in fields.items():
            setattr(message, name, value)
        images.publish(message)
        images.publish(image_message())  # the next one is labelled as ever

        def reported(expected: str = expected) -> bool:
            return expected in running.status().message

        wait(reported)
        assert running.status().level in (DiagnosticStatus.ERROR, DiagnosticStatus.WARN)
        assert "/image: " in running.status().message
    after = running.counts()
    assert after["dropped_malformed"] == before["dropped_malformed"] + len(BAD_FRAMES)
    assert after["frames_labelled"] == before["frames_labelled"] + len(BAD_FRAMES)


def test_diagnostics_name_model_device_and_figures(running: Any, images: Any, wait: Any) -> None:
    values = running.values()
    assert values["model"] == "tiny" and len(values["model_sha256"]) == 64
    assert (values["device"], values["precision"], values["input_size"]) == ("cpu", "fp32", "32x48")
    assert values["device_reason"] == "asked for by name"
    assert values["classes"].startswith("0 class 0 #00ff00, 1 class 1 #01fe07, ")
    for stage in ("latency", "transport", "queue", "inference", "publish"):
        for point in ("p50", "p95", "p99"):
            assert float(values[f"{stage}_{point}_ms"]) >= 0
    assert running.get("class_names") == ["class 0", "class 1", "class 2", "class 3"]


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("overlay_alpha", 1.5, "1"),
        ("min_confidence", -0.1, "0"),
        ("latency_budget_ms", "fast", "a number from 0 to 60000"),
        ("input_reliability", "perhaps", "auto, reliable, best_effort"),
        ("model", "another", "no model is called 'another'"),
        ("device", "gpu", "auto, tensorrt, cuda, openvino, cpu"),
        ("input_sizes", ["33x48"], "multiples of 16"),
        ("input_sizes", ["32x48", "64x96"], "largest to the smallest"),
        ("input_sizes", ["wide"], "HEIGHTxWIDTH"),
        ("label_groups", "missing.yaml", "missing.yaml"),
        ("attention_head", 64, "-1 to 63"),
        ("attention_mass", 0.0, "0.01 to 1"),
        ("max_age_ms", -1, "0 to 60000"),
        ("cameras", ["front"], "clean up"),
        ("image_transport", "compressed", "clean up"),
        ("autostart", False, "read-only"),
        ("class_names", ["mine"], "cannot be set"),
    ],
)
def test_bad_parameter_values_are_refused(
    running: Any, name: str, value: Any, allowed: str
) -> None:
    before = running.get(name)
    good, reason = running.set(name, value)
    assert not good and allowed in reason
    assert running.get(name) == before


def test_parameters_that_may_change_do_so_at_once(
    running: Any, images: Any, wait: Any, image_message: Any
) -> None:
    labels = running.collect(Image, "/segment/labels")
    assert running.set("min_confidence", 1)[0]
    message = image_message()
    message.data[0:3] = message.data[0:3].__class__("B", [255, 255, 255])
    try:
        wait(lambda: labels or images.publish(message) or time.sleep(0.2))
        assert pixels(labels[-1])[0, 0] == 3  # the only pixel of full confidence
        assert (pixels(labels[-1]).ravel()[1:] == 255).all()
    finally:
        assert running.set("min_confidence", 0.0)[0]


def test_illegal_transitions_are_refused_and_the_node_lives(running: Any) -> None:
    for name in ("configure", "cleanup", "activate", "unconfigured_shutdown"):
        assert not running.transition(name)
        assert running.state() == "active"
    for number, label in ((200, ""), (0, "dance")):
        request = ChangeState.Request(transition=Transition(id=number, label=label))
        answer = running.call(ChangeState, "/segment/change_state", request)
        assert not answer.success
    assert running.state() == "active"


def test_every_legal_round_ends_active_and_labels(
    running: Any, images: Any, wait: Any, image_message: Any
) -> None:
    for name in ("deactivate", "cleanup", "configure", "activate", "deactivate", "activate"):
        assert running.transition(name), name
    assert not running.transition("cleanup")
    labels = running.collect(Image, "/segment/labels")
    wait(lambda: labels or images.publish(image_message()) or time.sleep(0.2))


def test_a_subscriber_that_cannot_match_is_told(running: Any, wait: Any) -> None:
    profile = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    running.collect(Image, "/segment/labels", profile)
    said = "a subscriber of /segment/labels gets nothing: this node offers reliable, volatile"
    wait(lambda: said in running.status().message)
    assert said in running.processes[0].output


def test_input_auto_follows_the_publisher_and_back(
    graph: Any, model_factory: Callable[..., Path], wait: Any, image_message: Any
) -> None:
    process = graph.start("segment_node", model=model_factory(), device="cpu")
    labels = graph.collect(Image, "/segment/labels")
    for policy in (ReliabilityPolicy.BEST_EFFORT, ReliabilityPolicy.RELIABLE):
        publisher = graph.publisher(Image, "image", QoSProfile(depth=5, reliability=policy))
        del labels[:]
        message = image_message()
        wait(lambda: labels or publisher.publish(message) or time.sleep(0.2))  # noqa: B023
        seen = policy.name.lower()
        if policy == ReliabilityPolicy.BEST_EFFORT:
            assert f"reading /image as {seen}" in process.output
        graph.node.destroy_publisher(publisher)
    wait(lambda: "reading /image as reliable" in process.output)


def test_a_qos_mismatch_names_both_sides(
    graph: Any, model_factory: Callable[..., Path], wait: Any, image_message: Any
) -> None:
    process = graph.start(
        "segment_node", model=model_factory(), device="cpu", input_reliability="reliable"
    )
    graph.wait_for_state("active")
    profile = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
    publisher = graph.node.create_publisher(Image, "image", profile)
    wait(lambda: "/looker" in graph.status().message)
    assert graph.status().level == DiagnosticStatus.ERROR
    for said in (graph.status().message, process.output):
        assert "offers best_effort" in said and "asks for reliable" in said
    # Mended while it runs.
    assert graph.set("input_reliability", "auto")[0]
    labels = graph.collect(Image, "/segment/labels")
    wait(lambda: labels or publisher.publish(image_message()) or time.sleep(0.2))
    wait(lambda: graph.status().level != DiagnosticStatus.ERROR)


def test_a_failed_configure_leaves_the_node_until_it_is_mended(
    graph: Any, model_factory: Callable[..., Path], wait: Any, image_message: Any, tmp_path: Path
) -> None:
    path = tmp_path / "late.onnx"
    process = graph.start("segment_node", model=path, device="cpu", overlay_alpha=7)
    wait(lambda: graph.status() and graph.status().level == DiagnosticStatus.ERROR)
    assert "overlay_alpha" in graph.status().message and "0 to 1" in graph.status().message
    assert graph.state() == "unconfigured"
    assert graph.set("overlay_alpha", 0.5)[0]
    assert not graph.transition("configure")
    wait(lambda: "late.onnx" in graph.status().message)
    assert "there is no such file" in process.output
    model_factory(path=path)
    path.write_bytes(path.read_bytes()[:-100])
    assert not graph.transition("configure")
    wait(lambda: "damaged" in graph.status().message)
    model_factory(path=path)
    assert graph.transition("configure") and graph.transition("activate")
    labels = graph.collect(Image, "/segment/labels")
    images = graph.publisher(Image, "image")
    wait(lambda: labels or images.publish(image_message()) or time.sleep(0.2))
    wait(lambda: graph.status().level != DiagnosticStatus.ERROR)


def test_compressed_input_and_a_truncated_frame(
    graph: Any, model_factory: Callable[..., Path], wait: Any, image_message: Any
) -> None:
    graph.start("segment_node", model=model_factory(), device="cpu", image_transport="compressed")
    images = graph.publisher(CompressedImage, "image/compressed")
    labels = graph.collect(Image, "/segment/labels")
    frame = image_message()
    data = cv2.imencode(".png", cv2.cvtColor(read_rgb(frame), cv2.COLOR_RGB2BGR))[1].tobytes()
    message = CompressedImage(header=frame.header, format="rgb8; png compressed", data=data)
    wait(lambda: labels or images.publish(message) or time.sleep(0.2))
    assert labels[-1].header == frame.header
    np.testing.assert_array_equal(pixels(labels[-1]), expected_labels(frame))
    images.publish(CompressedImage(header=frame.header, format="png", data=data[:50]))
    wait(lambda: graph.counts()["dropped_malformed"] == 1)
    assert "/image/compressed: " in graph.status().message


def test_malformed_frames_are_in_the_log(
    graph: Any, model_factory: Callable[..., Path], wait: Any, image_message: Any
) -> None:
    process = graph.start("segment_node", model=model_factory(), device="cpu")
    graph.wait_for_state("active")
    message = image_message()
    message.encoding = "16UC1"
    graph.publisher(Image, "image").publish(message)
    wait(lambda: "/image: encoding 16UC1 is depth" in process.output)


def test_a_camera_that_works_is_no_error_for_another_that_cannot_match(
    graph: Any, model_factory: Callable[..., Path], wait: Any, image_message: Any
) -> None:
    graph.start("segment_node", model=model_factory(), device="cpu", input_reliability="reliable")
    graph.wait_for_state("active")
    good = graph.publisher(Image, "image")
    profile = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
    graph.node.create_publisher(Image, "image", profile)

    def warned() -> bool:
        good.publish(image_message())
        time.sleep(0.05)
        status = graph.status()
        return status.level == DiagnosticStatus.WARN and "offers best_effort" in status.message

    wait(warned)


def test_a_dumped_parameter_file_starts_the_node_again(
    graph: Any, model_factory: Callable[..., Path]
) -> None:
    model = model_factory()
    names = "['class 0', 'class 1', 'class 2', 'class 3']"
    graph.start("segment_node", model=model, device="cpu", class_names=names)
    graph.wait_for_state("active")
    # And what is fixed may be set to what it is, as `ros2 param load` does.
    assert graph.set("cameras", [""])[0] and graph.set("image_transport", "raw")[0]


def test_class_names_cannot_be_deleted(graph: Any, model_factory: Callable[..., Path]) -> None:
    graph.start("segment_node", model=model_factory(), device="cpu", autostart=False)
    graph.wait_for_state("unconfigured")
    request = SetParameters.Request(parameters=[ParameterMessage(name="class_names")])
    answer = graph.call(SetParameters, "/segment/set_parameters", request)
    assert not answer.results[0].successful
    assert graph.transition("configure") and graph.state() == "inactive"
