# SPDX-License-Identifier: Apache-2.0
"""Quality of service: what the nodes offer, what they ask for, and what does not fit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
                f"{message_type}: remap `image` to another topic or set image_transport"
            )
        if reason := _why_not(publisher.qos_profile, wanted):
            return (
                f"no frame of {name} can arrive on {topic}: it offers "
                f"{describe(publisher.qos_profile)}; this node asks for {describe(wanted)} "
                f"({reason}): set input_reliability to auto or best_effort, or let the camera "
                "publish reliable"
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
