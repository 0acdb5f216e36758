# SPDX-License-Identifier: Apache-2.0
"""Topics under namespaces and remapping rules: what the node listens to is what it reports."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from ctxseg_ros.ros.camera_input import CameraStream
from ctxseg_ros.ros.camera_output import CameraOutputs

pytestmark = pytest.mark.slow

Rules = list[tuple[str, str]]

SETTINGS = {"input_reliability": "auto", "input_encoding": "auto", "input_bits": 16}
CAMERAS = ("", "front", "left")
NAMES = st.sampled_from(
    [
        f"{prefix}{name}{suffix}"
        for prefix in ("", "/", "/robot/")
        for name in ("image", "front/image", "left/image", "front/camera_info", "elsewhere")
        for suffix in ("", "/compressed")
    ]
)


def expanded(name: str, namespace: str) -> str:
    return name if name.startswith("/") else f"{namespace.rstrip('/')}/{name}"


def remapped(name: str, namespace: str, rules: Rules) -> str:
    """The first rule that matches applies, and no other after it, as the design of ROS 2 says."""
    full = expanded(name, namespace)
    for match, replacement in rules:
        if expanded(match, namespace) == full:
            return expanded(replacement, namespace)
    return full


def frames_topic(image: str, compressed: bool, namespace: str, rules: Rules) -> str | None:
    """Where a camera's frames are to be read; None where two rules would follow each other."""
    if not compressed:
        return remapped(image, namespace, rules)
    own = remapped(f"{image}/compressed", namespace, rules)
    if own != expanded(f"{image}/compressed", namespace):
        return own
    behind = remapped(image, namespace, rules) + "/compressed"
    return behind if remapped(behind, namespace, rules) == behind else None


@pytest.fixture(scope="module")
def looker(shared_graph: Any) -> Iterator[Node]:
    """A node that no executor spins: what goes while one waits for its events would end that."""
    node = Node("onlooker", context=shared_graph.node.context)
    yield node
    node.destroy_node()


def subscribed(looker: Node, node: Node) -> dict[str, str]:
    """Type by topic of what a node subscribes to, as others see it."""
    name, namespace = node.get_name(), node.get_namespace()
    found = looker.get_subscriber_names_and_types_by_node(name, namespace)
    return {topic: kinds[0] for topic, kinds in found}


@given(
    st.sampled_from(["/", "/robot"]),
    st.sampled_from(CAMERAS),
    st.booleans(),
    st.lists(st.tuples(NAMES, NAMES), max_size=4),
)
@example("/", "front", False, [("front/image", "left/image"), ("left/image", "front/image")])
@example("/", "front", True, [("front/image", "left/image"), ("left/image", "front/image")])
@example(
    "/robot",
    "front",
    True,
    [
        ("front/image", "left/image"),
        ("front/image/compressed", "left/image/compressed"),
        ("left/image/compressed", "front/image/compressed"),
    ],
)
@example("/", "", True, [("image", "/left/image"), ("/left/image/compressed", "/elsewhere")])
@example("/", "", False, [("image", "/elsewhere"), ("/elsewhere", "/robot/image")])
@example("/", "front", True, [("front/image/compressed", "front/camera_info")])
@settings(max_examples=60, deadline=None)
def test_what_is_listened_to_is_what_is_reported_and_what_one_rule_makes_of_it(
    looker: Node, wait: Any, namespace: str, camera: str, compressed: bool, rules: Rules
) -> None:
    words = [word for rule in rules for word in ("-r", ":=".join(rule))]
    node = Node(
        "segment",
        namespace=namespace,
        context=looker.context,
        cli_args=["--ros-args", *words] if words else [],
        use_global_arguments=False,
    )
    transport = "compressed" if compressed else "raw"
    prefix = f"{camera}/" if camera else ""
    image = f"{prefix}image"
    try:
        expected = frames_topic(image, compressed, namespace, rules)
        make = lambda: CameraStream(  # noqa: E731
            node, camera, SETTINGS | {"image_transport": transport}, lambda _: False
        )
        if expected is None:
            with pytest.raises(ValueError, match=f"remap {image}/compressed itself"):
                make()
            return
        info = remapped(f"{prefix}camera_info", namespace, rules)
        if info == expected:
            with pytest.raises(ValueError, match="both images and camera_info"):
                make()
            return
        stream = make()
        assert stream.topic == expected
        stream.open()
        kind = CompressedImage if compressed else Image
        assert stream.topic == expected
        wait(lambda: {expected, info} <= set(subscribed(looker, node)))
        assert subscribed(looker, node)[expected].endswith(f"/{kind.__name__}")
        publisher = looker.create_publisher(kind, expected, 1)
        try:
            wait(lambda: (stream.follow_publishers(), stream.publishers)[1])
            assert stream.publishers == 1 and stream.blocked is None and stream.unheard
        finally:
            looker.destroy_publisher(publisher)
        stream.close()
    finally:
        node.destroy_node()


def test_a_subscriber_of_a_remapped_output_that_cannot_match_is_named(
    looker: Node, wait: Any
) -> None:
    """~/labels goes to /left, whatever else is remapped from there."""
    node = Node(
        "segment",
        context=looker.context,
        cli_args=["--ros-args", "-r", "~/labels:=/left", "-r", "/left:=/right"],
        use_global_arguments=False,
    )
    executor = SingleThreadedExecutor(context=looker.context)
    executor.add_node(node)
    outputs = CameraOutputs(node, "")
    durable = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    subscription = looker.create_subscription(Image, "/left", lambda _: None, durable)
    try:
        (sentence,) = wait(lambda: (executor.spin_once(0.1), outputs.unmatched())[1])
        assert "a subscriber of /left gets nothing" in sentence and "/onlooker" in sentence
    finally:
        looker.destroy_subscription(subscription)
        executor.shutdown()
        outputs.destroy()
        node.destroy_node()


SWAPPED = {"front/image": "left/image", "left/image": "front/image"}
INFOS = {"front/camera_info": "left/camera_info", "left/camera_info": "front/camera_info"}


@pytest.mark.parametrize(
    ("transport", "rules"),
    [
        ("raw", SWAPPED),
        ("compressed", SWAPPED),
        ("compressed", {f"{k}/compressed": f"{v}/compressed" for k, v in SWAPPED.items()}),
        (
            "compressed",
            SWAPPED | {f"{k}/compressed": f"{v}/compressed" for k, v in SWAPPED.items()},
        ),
    ],
)
def test_two_cameras_swapped_by_remapping_get_the_right_camera_each(
    graph: Any,
    wait: Any,
    image_message: Any,
    model_factory: Callable[..., Path],
    transport: str,
    rules: dict[str, str],
) -> None:
    graph.start(
        "segment_node",
        arguments=[word for rule in (rules | INFOS).items() for word in ("-r", ":=".join(rule))],
        model=model_factory(),
        device="cpu",
        cameras="[front, left]",
        image_transport=transport,
    )
    graph.wait_for_state("active")
    sizes = {"front": (48, 32), "left": (100, 60)}
    suffix, kind = ("/compressed", CompressedImage) if transport == "compressed" else ("", Image)
    labels = {name: graph.collect(Image, f"/segment/{name}/labels") for name in sizes}
    infos = {name: graph.collect(CameraInfo, f"/segment/{name}/camera_info") for name in sizes}
    images = {name: graph.publisher(kind, f"/{name}/image{suffix}") for name in sizes}
    info_publishers = {name: graph.publisher(CameraInfo, f"/{name}/camera_info") for name in sizes}

    def send() -> None:
        for name, (width, height) in sizes.items():
            info_publishers[name].publish(CameraInfo(width=width, height=height))
            message = image_message(width, height)
            message.header.frame_id = name
            if transport == "compressed":
                pixels = message.data.tobytes()
                picture = cv2.imencode(".png", shaped(pixels, height, width))[1].tobytes()
                message = CompressedImage(header=message.header, format="png", data=picture)
            images[name].publish(message)

    wait(lambda: (all(labels.values()) and all(infos.values())) or send())
    for name, other in (("front", "left"), ("left", "front")):
        assert {item.header.frame_id for item in labels[name]} == {other}
        assert {(item.width, item.height) for item in labels[name]} == {sizes[other]}
        assert infos[name][-1].width == sizes[other][0]
        wait(lambda: graph.values(name).get("topic") == f"/{other}/image{suffix}")  # noqa: B023
        wait(lambda: int(graph.values(name)["frames_labelled"]) > 0)  # noqa: B023


def shaped(data: bytes, height: int, width: int) -> np.ndarray:
    return np.frombuffer(data, np.uint8).reshape(height, width, 3)
