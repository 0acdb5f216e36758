# SPDX-License-Identifier: Apache-2.0
"""Everything that the node publishes, and that it costs nothing while nobody listens."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from ctxseg_ros.image import render
from ctxseg_ros.image.attention import attention_image, head_map, mask_image, mass_mask
from ctxseg_ros.ros import camera_output as outputs
from ctxseg_ros.ros.camera_output import IMAGES
from ctxseg_ros.ros.images import read_rgb

pytestmark = pytest.mark.slow


def pixels(message: Image) -> np.ndarray:
    return np.asarray(message.data).reshape(message.height, message.width, -1).squeeze()


def first(messages: list[Any], publisher: Any, message: Image, wait: Any) -> Any:
    """The first answer to a frame that is sent until one comes."""
    wait(lambda: messages or publisher.publish(message) or time.sleep(0.1))
    return messages[0]


@pytest.fixture
def sent(image_message: Any) -> Image:
    return image_message(97, 61)


def test_attention_and_mask_are_of_the_chosen_head_at_the_cameras_size(
    graph: Any, model_factory: Callable[..., Path], wait: Any, sent: Image
) -> None:
    model = model_factory(task="attention")
    graph.start("segment_node", model=model, device="cpu", attention_head=1)
    graph.wait_for_state("active")
    publisher = graph.publisher(Image, "image")
    maps = graph.collect(Image, "/segment/attention")
    masks = graph.collect(Image, "/segment/attention_mask")
    colours = graph.collect(Image, "/segment/color")
    overlays = graph.collect(Image, "/segment/overlay")
    labels = graph.collect(Image, "/segment/labels")

    # The tiny model's heads are the colours' means over each patch of 16, as shares.
    small = read_rgb(sent, (32, 48)).astype(float)
    patches = small.reshape(2, 16, 3, 16, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    shares = (patches / patches.sum(axis=(1, 2), keepdims=True)).astype(np.float32)
    for head in (1, -1):
        assert graph.set("attention_head", head)[0]
        for received in (maps, masks, colours, overlays):
            del received[:]
        plane = head_map(shares, head)
        found = first(maps, publisher, sent, wait)
        assert found.header == sent.header and found.encoding == "mono8"
        expected = attention_image(plane, 61, 97)
        assert np.abs(pixels(found).astype(int) - expected).max() <= 1
        expected = mask_image(mass_mask(plane, 0.6), 61, 97)
        np.testing.assert_array_equal(pixels(first(masks, publisher, sent, wait)), expected)
        assert pixels(first(colours, publisher, sent, wait)).shape == (61, 97, 3)
        assert pixels(first(overlays, publisher, sent, wait)).shape == (61, 97, 3)
    assert not labels
    assert graph.set("attention_mass", 0.2)[0]
    del masks[:]
    share = (pixels(first(masks, publisher, sent, wait)) == 255).mean()
    assert 0 < share <= 0.5
    good, reason = graph.set("attention_head", 3)
    assert not good and "-1 to 2 for tiny" in reason
    assert graph.values()["task"] == "attention"


def test_compressed_labels_are_the_labels(
    graph: Any, model_factory: Callable[..., Path], wait: Any, sent: Image
) -> None:
    graph.start("segment_node", model=model_factory(), device="cpu")
    graph.wait_for_state("active")
    publisher = graph.publisher(Image, "image")
    labels = graph.collect(Image, "/segment/labels")
    packed = graph.collect(CompressedImage, "/segment/labels/compressed")
    message = first(packed, publisher, sent, wait)
    plain = first(labels, publisher, sent, wait)
    assert message.header == sent.header
    assert message.format == "mono8; png compressed"
    decoded = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(decoded, pixels(plain))


def test_groups_change_ids_names_colours_and_confidence_alike(
    graph: Any, model_factory: Callable[..., Path], wait: Any, sent: Image, tmp_path: Path
) -> None:
    groups = tmp_path / "groups.yaml"
    groups.write_text(
        "groups:\n"
        "- {name: light, colour: [200, 100, 0], classes: [class 3, class 2]}\n"
        "- {name: rest, colour: [0, 50, 250], classes: rest}\n"
        "unlabelled: [class 0]\n"
    )
    graph.start("segment_node", model=model_factory(), device="cpu")
    graph.wait_for_state("active")
    publisher = graph.publisher(Image, "image")
    topics = ("labels", "confidence", "color")
    plain = {name: graph.collect(Image, f"/segment/{name}") for name in topics}
    before = {name: pixels(first(plain[name], publisher, sent, wait)) for name in topics}
    assert graph.set("label_groups", str(groups))[0]
    for received in plain.values():
        del received[:]
    after = {name: pixels(first(plain[name], publisher, sent, wait)) for name in topics}
    table = np.array([255, 1, 0, 0], np.uint8)
    np.testing.assert_array_equal(after["labels"], table[before["labels"]])
    kept = np.where(after["labels"] == 255, 0, before["confidence"])
    np.testing.assert_array_equal(after["confidence"], kept)
    colours = np.zeros((256, 3), np.uint8)
    colours[:2] = (200, 100, 0), (0, 50, 250)
    np.testing.assert_array_equal(after["color"], colours[after["labels"]])
    assert graph.get("class_names") == ["light", "rest"]
    wait(lambda: graph.values()["classes"] == "0 light #c86400, 1 rest #0032fa")


def test_confidence_and_labels_agree_on_min_confidence(
    graph: Any, model_factory: Callable[..., Path], wait: Any, sent: Image
) -> None:
    graph.start("segment_node", model=model_factory(), device="cpu", min_confidence=0.5)
    graph.wait_for_state("active")
    publisher = graph.publisher(Image, "image")
    topics = ("labels", "confidence")
    received = {name: graph.collect(Image, f"/segment/{name}") for name in topics}
    labels, confidence = (pixels(first(received[name], publisher, sent, wait)) for name in topics)
    np.testing.assert_array_equal(labels == 255, confidence < 127.5)
    assert 0 < (labels == 255).mean() < 1


def test_the_overlay_has_a_legend_where_there_is_room(
    graph: Any, model_factory: Callable[..., Path], wait: Any, image_message: Any
) -> None:
    graph.start("segment_node", model=model_factory(), device="cpu", overlay_alpha=0.0)
    graph.wait_for_state("active")
    overlays = graph.collect(Image, "/segment/overlay")
    message = image_message(480, 360)
    found = pixels(first(overlays, graph.publisher(Image, "image"), message, wait))
    rgb = read_rgb(message)
    assert found.shape == rgb.shape
    differs = (found != rgb).any(axis=2)
    assert 0.005 < differs.mean() < 1 / 3  # alpha is 0: only the legend differs


def test_nothing_is_made_for_nobody(
    scene: Any, wait: Any, image_message: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def spy(module: Any, name: str) -> None:
        function = getattr(module, name)

        def called(*arguments: Any) -> Any:
            made.append(name)
            return function(*arguments)

        monkeypatch.setattr(module, name, called)

    for name in ("colour_map", "overlay"):
        spy(render, name)
    spy(outputs, "to_image")
    spy(outputs, "read_rgb")
    spy(cv2, "imencode")
    playing = scene()
    playing.publishers[""].publish(image_message())
    wait(lambda: playing.graph.counts()["frames_labelled"] == 1)
    assert made == []
    wanted = playing.node.cameras[""][1].wanted
    for topic, calls in (
        ("labels", ["to_image"]),
        ("color", ["to_image", "colour_map", "to_image"]),
        ("overlay", None),
        ("labels/compressed", None),
    ):
        kind = CompressedImage if topic.endswith("compressed") else Image
        playing.graph.collect(kind, f"/segment/{topic}")
        wait(lambda: topic in wanted())  # noqa: B023
        before = len(playing.graph.counts()) and int(playing.graph.values()["frames_labelled"])
        del made[:]
        playing.publishers[""].publish(image_message())
        wait(lambda: playing.graph.counts()["frames_labelled"] > before)  # noqa: B023
        if calls is not None:
            assert made == calls
    assert {"overlay", "imencode", "read_rgb"} <= set(made)


def test_every_output_of_the_table_is_advertised(scene: Any) -> None:
    topics = dict(scene().graph.node.get_topic_names_and_types())
    for name in IMAGES:
        assert topics[f"/segment/{name}"] == ["sensor_msgs/msg/Image"]
    assert topics["/segment/labels/compressed"] == ["sensor_msgs/msg/CompressedImage"]
    assert topics["/segment/camera_info"] == ["sensor_msgs/msg/CameraInfo"]


def test_camera_info_is_published_only_for_frames_of_its_size(
    scene: Any, wait: Any, image_message: Any
) -> None:
    playing = scene()
    infos = playing.graph.publisher(CameraInfo, "camera_info")
    copies = playing.graph.collect(CameraInfo, "/segment/camera_info")
    wait(lambda: "camera_info" in playing.node.cameras[""][1].wanted())
    infos.publish(CameraInfo(width=48, height=32))
    wait(lambda: playing.node.cameras[""][0].camera_info)
    for width in (48, 64, 48):
        before = playing.graph.counts()["frames_labelled"]
        playing.publishers[""].publish(image_message(width))
        wait(lambda: playing.graph.counts()["frames_labelled"] > before)  # noqa: B023
    wait(lambda: len(copies) == 2)
    assert {item.width for item in copies} == {48}
    wait(lambda: playing.graph.values()["camera_info_mismatched"] == "1")
