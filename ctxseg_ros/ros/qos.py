# SPDX-License-Identifier: Apache-2.0
"""Quality of service: what the nodes offer, what they ask for, and what does not fit."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rclpy.qos import (
    DurabilityPolicy,
    LivelinessPolicy,
    QoSCompatibility,
    QoSProfile,
    ReliabilityPolicy,
    qos_check_compatible,
)

if TYPE_CHECKING:  # newer distributions have it elsewhere
    from rclpy.topic_endpoint_info import TopicEndpointInfo

# Reliable publishers match both kinds of subscriber. Depth 1: who is late gets the newest.
OUTPUT = QoSProfile(reliability=ReliabilityPolicy.RELIABLE, depth=1)
LATCHED = QoSProfile(
    reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL, depth=1
)
DIAGNOSTICS = QoSProfile(reliability=ReliabilityPolicy.RELIABLE, depth=10)
# Small, and asked for as best effort it matches every camera driver.
CAMERA_INFO = QoSProfile(reliability=ReliabilityPolicy.BEST_EFFORT, depth=5)
CAMERA_INFO_OUTPUT = QoSProfile(reliability=ReliabilityPolicy.RELIABLE, depth=100)

IMAGE, COMPRESSED_IMAGE = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
COMPRESSED = "/compressed"
# image_transport's plugins that this node does not read.
_OTHER_PLUGINS = ("zstd", "theora", "ffmpeg", "compressedDepth")

FRAMES_DEPTH = 10
RELIABILITIES = ("auto", "reliable", "best_effort")


def frames(reliability: ReliabilityPolicy) -> QoSProfile:
    """Profile of a camera's frames, for both ends.

    Deeper than 1, so that a frame that arrives while the executor is busy reaches the callback,
    which is cheap, and is counted there if a newer one replaces it.
    """
    return QoSProfile(reliability=reliability, depth=FRAMES_DEPTH)


def wanted_reliability(setting: str, publishers: Iterable[QoSProfile]) -> ReliabilityPolicy:
    """What to ask for. `auto` is reliable, unless one of the publishers offers best effort only."""
    if setting == "auto":
        offered = {profile.reliability for profile in publishers}
        setting = "best_effort" if ReliabilityPolicy.BEST_EFFORT in offered else "reliable"
    return ReliabilityPolicy.RELIABLE if setting == "reliable" else ReliabilityPolicy.BEST_EFFORT


def describe(profile: QoSProfile) -> str:
    """The policies that decide over a match, such as "reliable, volatile"."""
    words = [profile.reliability.name.lower(), profile.durability.name.lower()]
    if profile.liveliness not in (LivelinessPolicy.AUTOMATIC, LivelinessPolicy.SYSTEM_DEFAULT):
        words.append(f"liveliness {profile.liveliness.name.lower()}")
    return ", ".join(words)


def mismatch(
    topic: str, message_type: str, wanted: QoSProfile, publishers: Sequence[TopicEndpointInfo]
) -> str | None:
    """Why a publisher's frames cannot arrive, with both sides' settings and the fix, or None."""
    for publisher in publishers:
        name = _node(publisher)
        if publisher.topic_type != message_type:
            return (
                f"{name} publishes {publisher.topic_type} on {topic}, this node reads "
                f"{message_type}: {_of_type(topic, publisher.topic_type)}"
            )
        if reason := _why_not(publisher.qos_profile, wanted):
            return (
                f"no frame of {name} can arrive on {topic}: it offers "
                f"{describe(publisher.qos_profile)}; this node asks for {describe(wanted)} "
                f"({reason}): set input_reliability to auto or best_effort, or let the camera "
                "publish reliable"
            )
    return None


def _of_type(topic: str, message_type: str) -> str:
    """How this node is made to read messages of a type on a topic."""
    if message_type == IMAGE:
        return "set image_transport:=raw and remap `image` to it"
    if message_type != COMPRESSED_IMAGE:
        return "remap `image` to another topic"
    if topic.endswith(COMPRESSED):
        return (
            f"set image_transport:=compressed and remap `image` to {topic.removesuffix(COMPRESSED)}"
        )
    return "set image_transport:=compressed and remap `image/compressed` to it"


def other_transport(
    topic: str, compressed: bool, published: Mapping[str, Collection[str]]
) -> str | None:
    """What to do where nobody publishes `topic`, but the same images in another way; else None.

    `published`: the types of each topic that somebody publishes.
    """
    image = topic.removesuffix(COMPRESSED) if compressed else topic
    nobody = f"nobody publishes {topic}"
    other = image if compressed else image + COMPRESSED
    if COMPRESSED_IMAGE in published.get(other, ()):
        if compressed:
            return (
                f"{nobody}, but {other} is compressed: remap `image` to "
                f"{other.removesuffix(COMPRESSED)}, /compressed is added to it"
            )
        return f"{nobody}, but {other} is published: set image_transport:=compressed"
    if compressed and IMAGE in published.get(other, ()):
        return f"{nobody}, but {other} is published: set image_transport:=raw"
    for plugin in _OTHER_PLUGINS:
        # Humble's republish takes the transports as arguments, Jazzy's as parameters.
        if f"{image}/{plugin}" in published:
            return (
                f"{nobody}, but {image}/{plugin} is published, which this node does not read: let "
                "the camera publish raw or compressed images, or republish it: ros2 run "
                f"image_transport republish {plugin} raw --ros-args -p in_transport:={plugin} "
                f"-p out_transport:=raw -r in/{plugin}:={image}/{plugin} -r out:={image}"
            )
    return None


def subscriber_mismatch(
    topic: str, offered: QoSProfile, subscribers: Sequence[TopicEndpointInfo]
) -> str | None:
    """Who gets nothing from this node's publisher, with both sides' settings and the fix, or
    None."""
    refused = [item for item in subscribers if _why_not(offered, item.qos_profile)]
    if not refused:
        return None
    asked = [f"{_node(item)} asks for {describe(item.qos_profile)}" for item in refused]
    return (
        f"a subscriber of {topic} gets nothing: this node offers {describe(offered)}; "
        f"{'; '.join(asked)}: let it ask for that or less"
    )


def _node(endpoint: TopicEndpointInfo) -> str:
    name = f"{endpoint.node_namespace.rstrip('/')}/{endpoint.node_name}"
    return "a node" if "_UNKNOWN_" in name else name  # not ROS, or just discovered


def _why_not(offered: QoSProfile, wanted: QoSProfile) -> str | None:
    compatibility, reason = qos_check_compatible(offered, wanted)
    return reason.strip().rstrip(";") if compatibility == QoSCompatibility.ERROR else None
