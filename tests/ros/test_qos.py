# SPDX-License-Identifier: Apache-2.0
"""What is asked for, and what does not fit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.topic_endpoint_info import TopicEndpointInfo

from ctxseg_ros.ros import qos

RELIABLE = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
BEST_EFFORT = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"


@pytest.mark.parametrize(
    ("setting", "offered", "wanted"),
    [
        ("auto", [], "RELIABLE"),
        ("auto", [RELIABLE], "RELIABLE"),
        ("auto", [BEST_EFFORT], "BEST_EFFORT"),
        ("auto", [RELIABLE, BEST_EFFORT], "BEST_EFFORT"),  # matches both
        ("reliable", [BEST_EFFORT], "RELIABLE"),
        ("best_effort", [RELIABLE], "BEST_EFFORT"),
    ],
)
def test_wanted_reliability(setting: str, offered: list[QoSProfile], wanted: str) -> None:
    assert qos.wanted_reliability(setting, offered).name == wanted


def publisher(profile: QoSProfile, kind: str = IMAGE) -> TopicEndpointInfo:
    return TopicEndpointInfo(
        node_name="driver", node_namespace="/cam", topic_type=kind, qos_profile=profile
    )


def test_a_mismatch_names_both_sides_and_the_fix() -> None:
    found = qos.mismatch("/image", IMAGE, RELIABLE, [publisher(RELIABLE), publisher(BEST_EFFORT)])
    assert found is not None
    for part in ("/cam/driver", "/image", "offers best_effort", "asks for reliable", "set input"):
        assert part in found


def test_another_type_on_the_topic_is_a_mismatch() -> None:
    kind = "sensor_msgs/msg/CompressedImage"
    found = qos.mismatch("/image", IMAGE, RELIABLE, [publisher(RELIABLE, kind)])
    assert found is not None and kind in found and IMAGE in found and "remap" in found


@pytest.mark.parametrize(
    ("topic", "kind", "wanted", "advice"),
    [
        ("/cam/image/compressed", COMPRESSED, IMAGE, ["=compressed", "`image` to /cam/image"]),
        ("/cam/jpeg", COMPRESSED, IMAGE, ["=compressed", "`image/compressed` to it"]),
        ("/cam/image", IMAGE, COMPRESSED, ["image_transport:=raw", "`image` to it"]),
        ("/cam/points", "sensor_msgs/msg/PointCloud2", IMAGE, ["`image` to another topic"]),
    ],
)
def test_another_type_on_the_topic_is_answered_with_how_to_read_it(
    topic: str, kind: str, wanted: str, advice: list[str]
) -> None:
    found = qos.mismatch(topic, wanted, RELIABLE, [publisher(RELIABLE, kind)])
    assert found is not None and all(part in found for part in advice), found
    assert found.endswith(advice[-1])


TOPICS = st.from_regex(r"(/[a-z]{1,3}){1,3}", fullmatch=True)


@given(TOPICS, st.booleans(), st.dictionaries(TOPICS, st.just([IMAGE])))
def test_the_same_images_in_another_way_are_found_and_nothing_else(
    image: str, compressed: bool, others: dict[str, list[str]]
) -> None:
    topic = f"{image}/compressed" if compressed else image
    others = {name: kinds for name, kinds in others.items() if not name.startswith(image)}
    assert qos.other_transport(topic, compressed, others) is None
    published = {image: [IMAGE]} if compressed else {f"{image}/compressed": [COMPRESSED]}
    found = qos.other_transport(topic, compressed, others | published)
    right = "image_transport:=raw" if compressed else "image_transport:=compressed"
    assert found is not None and found.endswith(right) and f"{next(iter(published))} is" in found
    for plugin in ("theora", "zstd", "ffmpeg"):
        found = qos.other_transport(topic, compressed, others | {f"{image}/{plugin}": ["x/msg/Y"]})
        assert found is not None and f"republish {plugin} raw" in found
        # Jazzy's republish reads the topics `in/PLUGIN` and `out`, and takes parameters.
        for part in (f"in_transport:={plugin}", f"-r in/{plugin}:={image}/{plugin}"):
            assert f" {part} " in found
        assert found.endswith(f" -r out:={image}")


def test_a_remapping_that_names_the_compressed_topic_itself_is_explained() -> None:
    """image:=/cam/image/compressed with image_transport:=compressed."""
    published = {"/cam/image/compressed": [COMPRESSED]}
    found = qos.other_transport("/cam/image/compressed/compressed", True, published)
    assert found is not None and "remap `image` to /cam/image," in found


def test_what_fits_is_no_mismatch() -> None:
    assert qos.mismatch("/image", IMAGE, BEST_EFFORT, [publisher(RELIABLE)]) is None
    assert qos.mismatch("/image", IMAGE, RELIABLE, []) is None


def test_a_subscriber_that_asks_for_more_is_named() -> None:
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    found = qos.subscriber_mismatch(
        "/labels", qos.OUTPUT, [publisher(latched), publisher(RELIABLE)]
    )
    assert found.count("/cam/driver") == 1
    assert "offers reliable, volatile" in found and "asks for reliable, transient_local" in found
    assert qos.subscriber_mismatch("/labels", qos.OUTPUT, [publisher(RELIABLE)]) is None
    assert qos.subscriber_mismatch("/labels", qos.OUTPUT, []) is None


def test_outputs_are_what_consumers_expect() -> None:
    assert (qos.OUTPUT.reliability, qos.OUTPUT.depth) == (ReliabilityPolicy.RELIABLE, 1)
    assert qos.LATCHED.durability == DurabilityPolicy.TRANSIENT_LOCAL
