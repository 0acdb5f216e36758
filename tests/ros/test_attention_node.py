# SPDX-License-Identifier: Apache-2.0
"""Attention models in the node: maps, masks and heat over DDS, changed and swapped as it runs."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from rcl_interfaces.srv import SetParametersAtomically
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from ctxseg_ros.model.model_file import ClassInfo
from ctxseg_ros.model.prediction import Prediction
from ctxseg_ros.ros.images import read_rgb, to_image
from ctxseg_ros.ros.segmenter import SegmentNode

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SIZE = (124, 202)  # of the camera; no pixel's centre lies on the border of two patches
ATTENTION = ("attention", "attention_mask", "color", "overlay")
LABELS = ("labels", "confidence", "color", "overlay")
DEFAULTS: dict[str, Any] = {
    "input_sizes": [""],
    "latency_budget_ms": 0.0,
    "min_confidence": 0.0,
    "label_groups": "",
    "refinement": "none",
    "attention_head": -1,
    "attention_mass": 0.6,
    "overlay_alpha": 0.5,
}


class Playing:
    """A segment_node in a process of its own, every picture that it publishes, and a camera."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.received = {
            name: graph.collect(Image, f"/segment/{name}", 1000)
            for name in dict.fromkeys(ATTENTION + LABELS)
        }
        self._camera = graph.publisher(Image, "image")

    def set(self, **values: Any) -> tuple[bool, str]:
        """Set parameters together: did it work, and if not, why."""
        messages = [Parameter(k, value=v).to_parameter_msg() for k, v in values.items()]
        request = SetParametersAtomically.Request(parameters=messages)
        name = "/segment/set_parameters_atomically"
        result = self.graph.call(SetParametersAtomically, name, request).result
        return result.successful, result.reason

    def send(self, rgb: np.ndarray) -> Image:
        """Publish a frame with the time of now."""
        header = Header(frame_id="front")
        header.stamp.sec, header.stamp.nanosec = divmod(time.time_ns(), 10**9)
        message = to_image(header, rgb, "rgb8")
        self._camera.publish(message)
        return message

    def show(self, rgb: np.ndarray, topics: Iterable[str]) -> tuple[Image, dict[str, np.ndarray]]:
        """A frame that was sent now, and what each of the topics says of it, under its header, at
        its size. It is sent again where a topic is not yet connected."""
        for _ in range(60):
            sent = self.send(rgb)
            deadline = time.monotonic() + 1
            while time.monotonic() < deadline:
                found = {name: self._answer(name, sent) for name in topics}
                if all(message is not None for message in found.values()):
                    return sent, {name: pixels(message) for name, message in found.items()}
                time.sleep(0.01)
        raise AssertionError("the node does not answer")

    def _answer(self, topic: str, sent: Image) -> Image | None:
        for message in self.received[topic]:
            if message.header == sent.header:
                assert (message.height, message.width) == (sent.height, sent.width)
                return message
        return None


def pixels(message: Image) -> np.ndarray:
    encoding = {"mono8": 1, "rgb8": 3}[message.encoding]
    shape = (message.height, message.width, encoding)
    return np.asarray(message.data, np.uint8).reshape(shape).squeeze()


@pytest.fixture(scope="module")
def model(model_factory: Callable[..., Path]) -> Path:
    """An attention model of three heads, on patches of 16."""
    return model_factory(name="attentive", task="attention", size=(64, 96))


@pytest.fixture(scope="module")
def semantic(model_factory: Callable[..., Path]) -> Path:
    classes = [ClassInfo(0, "dark", (10, 20, 30)), ClassInfo(1, "bright", (250, 200, 0))]
    return model_factory(name="namer", classes=classes)


@pytest.fixture(scope="module")
def active(shared_graph: Any, model: Path) -> Playing:
    shared_graph.start("segment_node", model=model, device="cpu")
    shared_graph.wait_for_state("active")
    return Playing(shared_graph)


@pytest.fixture
def playing(active: Playing, model: Path) -> Playing:
    """The one node of this module, with the attention model and every parameter at its default."""
    assert active.set(model=str(model), **DEFAULTS) == (True, "")
    for messages in active.received.values():
        del messages[:]
    return active


@pytest.fixture
def rgb() -> np.ndarray:
    """A frame whose patches differ, in each colour otherwise."""
    blocks = np.random.default_rng(3).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return cv2.resize(blocks, SIZE[::-1], interpolation=cv2.INTER_NEAREST)


# What the graph says of a frame, and slow ways from there to what is published.


def graph_says(model: Path, sent: Image, size: tuple[int, int] = (64, 96)) -> np.ndarray:
    """float32 [heads, h, w]"""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(["attention"], {"image": read_rgb(sent, size)[None]})[0][0]


def enlarged(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, the patches' centres at half positions, the border's value beyond them."""
    rows, columns = (
        np.clip((np.arange(many) + 0.5) * few / many - 0.5, 0, few - 1)
        for many, few in ((height, plane.shape[0]), (width, plane.shape[1]))
    )
    across = np.stack([np.interp(columns, range(plane.shape[1]), row) for row in plane])
    return np.stack([np.interp(rows, range(plane.shape[0]), column) for column in across.T], 1)


def holding(plane: np.ndarray, mass: float, height: int, width: int) -> np.ndarray:
    """The mask of the fewest patches that hold the mass, by nearest neighbour: bool."""
    chosen = np.zeros(plane.shape, bool)
    while plane[chosen].sum(dtype=float) < mass * plane.sum(dtype=float):
        left = np.where(chosen, -1, plane)
        chosen[np.unravel_index(left.argmax(), plane.shape)] = True
    rows, columns = (
        np.floor((np.arange(many) + 0.5) * few / many).astype(int)
        for many, few in ((height, plane.shape[0]), (width, plane.shape[1]))
    )
    return chosen[rows][:, columns]


def levels(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    """0 to 255 at the most attended patch, in whole numbers as they are published."""
    return np.rint(255 * enlarged(plane / plane.max(), height, width))


@pytest.mark.parametrize("head", [-1, 0, 1, 2])
def test_map_and_mask_are_the_graphs_own_at_the_cameras_size(
    playing: Playing, model: Path, rgb: np.ndarray, head: int
) -> None:
    assert playing.set(attention_head=head)[0]
    sent, found = playing.show(rgb, ATTENTION)
    says = graph_says(model, sent)
    plane = says.mean(0) if head == -1 else says[head]
    np.testing.assert_allclose(found["attention"], levels(plane, *SIZE), atol=1)
    other = says[(head + 1) % 3]
    assert np.abs(found["attention"] - levels(other, *SIZE)).max() > 20  # heads do differ
    for mass in (0.1, 0.6, 1.0):
        assert playing.set(attention_mass=mass)[0]
        _, found = playing.show(rgb, ATTENTION)
        mask = 255 * holding(plane, mass, *SIZE)
        np.testing.assert_array_equal(found["attention_mask"], mask)


@pytest.mark.parametrize("head", [3, 63])
def test_a_head_that_the_model_lacks_is_refused(
    playing: Playing, model: Path, rgb: np.ndarray, head: int
) -> None:
    assert playing.set(attention_head=2)[0]
    good, reason = playing.set(attention_head=head)
    assert (good, reason) == (False, f"attention_head must be -1 to 2 for attentive, not {head}")
    assert playing.graph.get("attention_head") == 2
    sent, found = playing.show(rgb, ATTENTION)
    np.testing.assert_allclose(
        found["attention"], levels(graph_says(model, sent)[2], *SIZE), atol=1
    )


def test_colour_and_overlay_are_heat_without_a_legend(playing: Playing, rgb: np.ndarray) -> None:
    rgb = cv2.resize(rgb, (480, 360))  # a legend would have room
    for alpha in (0.0, 0.5, 1.0):
        assert playing.set(overlay_alpha=alpha)[0]
        _, found = playing.show(rgb, ATTENTION)
        heat = cv2.applyColorMap(found["attention"], cv2.COLORMAP_INFERNO)[..., ::-1]
        np.testing.assert_array_equal(found["color"], heat)
        mixed = (1 - alpha) * rgb + alpha * heat
        np.testing.assert_allclose(found["overlay"], mixed, atol=0.51)


def test_attention_gives_no_labels(playing: Playing, rgb: np.ndarray) -> None:
    for _ in range(3):
        playing.show(rgb, ATTENTION)
    counts = playing.graph.counts()
    assert counts["frames_labelled"] > 0 and counts["dropped_inference_error"] == 0
    assert not playing.received["labels"] and not playing.received["confidence"]
    assert playing.graph.get("class_names") == [""]
    values = playing.graph.values()
    assert (values["task"], values["classes"]) == ("attention", "")


def test_models_of_both_tasks_take_turns_between_two_frames(
    playing: Playing, model: Path, semantic: Path, rgb: np.ndarray
) -> None:
    stopping = threading.Event()
    before = playing.graph.counts()

    def play() -> None:
        while not stopping.wait(0.03):
            playing.send(rgb)

    camera = threading.Thread(target=play)
    camera.start()
    try:
        for path, topic, names in (
            (semantic, "labels", ["dark", "bright"]),
            (model, "attention", [""]),
        ):
            assert playing.set(model=str(path)) == (True, "")
            assert playing.graph.get("class_names") == names
            seen = len(playing.received[topic])
            playing_on = time.monotonic() + 60
            while len(playing.received[topic]) < seen + 5:
                assert time.monotonic() < playing_on
                time.sleep(0.02)
    finally:
        stopping.set()
        camera.join()
    after = playing.graph.counts()
    assert after["dropped_inference_error"] == before["dropped_inference_error"]

    def stamps(topic: str) -> list[tuple[int, int]]:
        headers = [message.header for message in playing.received[topic]]
        return [(header.stamp.sec, header.stamp.nanosec) for header in headers]

    maps, labels = stamps("attention"), stamps("labels")
    assert maps == sorted(maps) and labels == sorted(labels)
    assert not set(maps) & set(labels)
    assert not [stamp for stamp in maps if labels[0] < stamp < labels[-1]]
    assert labels[-1] < maps[-1]


def test_overlay_and_legend_follow_the_task(
    playing: Playing, model: Path, semantic: Path, rgb: np.ndarray
) -> None:
    rgb = cv2.resize(rgb, (480, 360))
    assert playing.set(overlay_alpha=0.0)[0]  # only a legend differs from the frame
    for path, topics, has_legend in (
        (semantic, LABELS, True),
        (model, ATTENTION, False),
        (semantic, LABELS, True),
    ):
        assert playing.set(model=str(path))[0]
        _, found = playing.show(rgb, topics)
        assert (found["overlay"] != rgb).any() == has_legend
        colours = {tuple(colour) for colour in found["color"].reshape(-1, 3).tolist()}
        assert (colours <= {(10, 20, 30), (250, 200, 0)}) == has_legend


@pytest.mark.parametrize("stride", [14, 16])
def test_the_budget_chooses_among_sizes_of_the_models_stride(
    playing: Playing,
    model_factory: Callable[..., Path],
    rgb: np.ndarray,
    wait: Any,
    stride: int,
) -> None:
    name = f"stride{stride}"
    path = model_factory(name=name, task="attention", stride=stride, size=(stride, stride))
    sizes = [(4 * stride, 6 * stride), (2 * stride, 3 * stride)]
    texts = [f"{height}x{width}" for height, width in sizes]
    good, reason = playing.set(model=str(path), input_sizes=[texts[0], f"{stride}x{stride + 1}"])
    assert not good and f"multiples of {stride}" in reason
    assert playing.set(model=str(path), input_sizes=texts) == (True, "")
    # No size holds the first budget, every size the second.
    for budget_ms, number in ((0.001, 1), (10000.0, 0)):
        assert playing.set(latency_budget_ms=budget_ms)[0]
        wait(
            lambda: (
                playing.show(rgb, ATTENTION)
                and playing.graph.values()["input_size"] == texts[number]  # noqa: B023
            )
        )
        sent, found = playing.show(rgb, ATTENTION)
        mean = graph_says(path, sent, sizes[number]).mean(0)
        assert mean.shape == ((2, 3), (4, 6))[1 - number]
        np.testing.assert_allclose(found["attention"], levels(mean, *SIZE), atol=1)
        np.testing.assert_array_equal(found["attention_mask"], 255 * holding(mean, 0.6, *SIZE))


def test_what_is_for_labels_is_refused_or_changes_nothing(
    playing: Playing, model: Path, semantic: Path, rgb: np.ndarray, tmp_path: Path
) -> None:
    groups = tmp_path / "groups.yaml"
    groups.write_text("groups:\n- {name: all, colour: [9, 8, 7], classes: rest}\n")
    said = {"label_groups": "no classes to group", "refinement": "models that give labels"}
    values = {"label_groups": str(groups), "refinement": "crf"}
    _, before = playing.show(rgb, ATTENTION)
    for name, value in values.items():
        good, reason = playing.set(**{name: value})
        assert not good and said[name] in reason
    assert playing.set(model=str(semantic), label_groups=str(groups))[0]
    good, reason = playing.set(model=str(model))
    assert not good and said["label_groups"] in reason
    playing.show(rgb, LABELS)
    assert playing.set(model=str(model), label_groups="") == (True, "")
    assert playing.set(min_confidence=1.0)[0]
    _, after = playing.show(rgb, ATTENTION)
    for name in ATTENTION:
        np.testing.assert_array_equal(after[name], before[name])


def six_heads(graph: onnx.ModelProto) -> None:
    """Make the tiny model's three heads six: each stands twice."""
    (node,) = (node for node in graph.graph.node if node.output[0] == "attention")
    node.output[0] = "half"
    graph.graph.node.append(helper.make_node("Concat", ["half", "half"], ["attention"], axis=1))
    graph.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 6


def test_model_and_head_change_together(
    playing: Playing, model: Path, model_factory: Callable[..., Path], rgb: np.ndarray
) -> None:
    wide = model_factory(name="wide", task="attention", size=(64, 96), edit=six_heads)
    assert playing.set(model=str(wide), attention_head=5) == (True, "")
    sent, found = playing.show(rgb, ATTENTION)
    np.testing.assert_allclose(
        found["attention"], levels(graph_says(model, sent)[2], *SIZE), atol=1
    )
    good, reason = playing.set(model=str(model))
    assert not good and reason == "attention_head must be -1 to 2 for attentive, not 5"
    playing.show(rgb, ATTENTION)
    assert playing.set(model=str(model), attention_head=1) == (True, "")


# Nodes of this process


def test_the_last_frame_of_a_model_may_lack_the_head_that_is_set_for_the_next(
    graph_with: Callable[..., Any], model_factory: Callable[..., Path], wait: Any
) -> None:
    wide = model_factory(task="attention", edit=six_heads)
    graph = graph_with(model=wide, device="cpu", attention_head=5)
    node = graph.add(SegmentNode())
    graph.wait_for_state("active")
    maps = graph.collect(Image, "/segment/attention")
    _, outputs = node.cameras[""]
    wait(lambda: "attention" in outputs.wanted())
    attention = np.zeros((3, 1, 2), np.float32)
    attention[0, 0, 1] = attention[1, 0, 1] = attention[2, 0, 0] = 1
    frame = SimpleNamespace(message=Image(header=Header(frame_id="front")), size=(1, 2))
    outputs.publish_labels(
        frame, Prediction(attention=attention), {"attention"}, {"attention_head": 5}
    )
    wait(lambda: maps)
    assert list(maps[0].data) == [128, 255]  # the heads' mean


def test_the_demo_shows_heat_and_no_legend(
    model_factory: Callable[..., Path], tmp_path: Path
) -> None:
    clip, out = tmp_path / "clip.mp4", tmp_path / "out"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter_fourcc(*"mp4v"), 25, (320, 180))
    frame = np.full((180, 320, 3), 60, np.uint8)
    frame[40:140, 200:300] = 220
    for _ in range(30):
        writer.write(frame)
    writer.release()
    path = model_factory(task="attention", size=(96, 160))
    command = [sys.executable, "-m", "ctxseg_ros.demo", "--source", clip, "--model", path]
    done = subprocess.run(
        [*command, "--device", "cpu", "--out", out],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout
    video = cv2.VideoCapture(str(out / "overlay.mp4"))
    assert int(video.get(cv2.CAP_PROP_FRAME_COUNT)) == 30
    assert int(video.get(cv2.CAP_PROP_FRAME_HEIGHT)) == 180
    sheet = cv2.imread(str(out / "frames.png"))
    assert sheet.shape == (6 * 270, 960, 3)  # rows alone
    image, heat = sheet[:270, :480].astype(int), sheet[:270, 480:].astype(int)
    assert abs(image[130, 375] - 220).max() < 20
    # Inferno at 255 is pale yellow (RGB 252, 255, 164), here over the frame by half.
    assert abs(heat[130, 375] - (192, 238, 236)).max() < 25
