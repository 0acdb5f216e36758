# SPDX-License-Identifier: Apache-2.0
"""What the segmenter publishes for one camera, each only while somebody subscribes to it."""

import functools

import cv2
import numpy as np
from numpy.typing import NDArray
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from ctxseg_ros.image import render
from ctxseg_ros.image.attention import attention_image, head_map, mask_image, mass_mask
from ctxseg_ros.inference.engine import Engine
from ctxseg_ros.model.model_file import ClassInfo
from ctxseg_ros.model.prediction import Prediction
from ctxseg_ros.ros import qos
from ctxseg_ros.ros.camera_input import Frame
from ctxseg_ros.ros.images import read_rgb, to_image
from ctxseg_ros.ros.parameters import Values

IMAGES = {
    "labels": "class ids (mono8) at the camera's size; 255 = unlabelled",
    "confidence": "255 x probability of that class (mono8)",
    "attention": "attention models: attention scaled to 255 at its peak, interpolated (mono8)",
    "attention_mask": "attention models: 255 on the fewest patches with `attention_mass` (mono8)",
    "color": "class colours, or the attention as heat (rgb8)",
    "overlay": "the same blended over the camera's frame, with a legend (rgb8)",
}
"""The Image topics of a camera, in the order in which they are published."""

Wanted = set[str]
"""Names of the topics that have a subscriber now."""


class CameraOutputs:
    """The publishers of one camera. Made and destroyed by the executor's thread, used by the
    worker's."""

    def __init__(self, node: Node, camera: str) -> None:
        self._node = node
        self._suspects: dict[str, Publisher] = {}  # with a subscriber that once did not match
        prefix = f"~/{camera}/" if camera else "~/"
        kinds: dict[str, type] = {
            **dict.fromkeys(IMAGES, Image),
            # JPEG would mix the ids of neighbouring classes: PNG, under image_transport's name.
            "labels/compressed": CompressedImage,
            "camera_info": CameraInfo,
        }
        self._publishers: dict[str, Publisher] = {}
        try:
            for name, kind in kinds.items():
                self._publishers[name] = self._publisher(kind, prefix + name)
        except Exception:  # such as QoS overrides that cannot be
            self.destroy()
            raise

    def destroy(self) -> None:
        """Take the topics away."""
        for publisher in self._publishers.values():
            self._node.destroy_publisher(publisher)

    def topic(self, name: str) -> str:
        """The full name of a topic, after remapping."""
        return self._publishers[name].topic_name

    def wanted(self) -> Wanted:
        """The topics that somebody subscribes to."""
        return {name for name, item in self._publishers.items() if item.get_subscription_count()}

    def needed(self) -> bool:
        """Whether a topic that takes inference has a subscriber now."""
        return bool(self.wanted() - {"camera_info"})

    def publish_labels(
        self, frame: Frame, prediction: Prediction, wanted: Wanted, settings: Values
    ) -> None:
        """What robots act on: labels and confidence, or attention and its mask."""
        header = frame.message.header
        if prediction.attention is not None:
            self._publish_attention(frame, prediction.attention, wanted, settings)
            return
        assert prediction.labels is not None
        if "labels" in wanted:
            self._publish("labels", header, prediction.labels, "mono8")
        if "confidence" in wanted and prediction.confidence is not None:
            self._publish("confidence", header, prediction.confidence, "mono8")
        if "labels/compressed" in wanted:
            _, data = cv2.imencode(".png", prediction.labels, (cv2.IMWRITE_PNG_COMPRESSION, 1))
            self._publishers["labels/compressed"].publish(
                CompressedImage(header=header, format="mono8; png compressed", data=data.tobytes())
            )

    def _publish_attention(
        self, frame: Frame, attention: NDArray[np.float32], wanted: Wanted, settings: Values
    ) -> None:
        header = frame.message.header
        plane = _plane(attention, settings["attention_head"])
        if "attention" in wanted:
            self._publish("attention", header, attention_image(plane, *frame.size), "mono8")
        if "attention_mask" in wanted:
            mask = mass_mask(plane, settings["attention_mass"])
            self._publish("attention_mask", header, mask_image(mask, *frame.size), "mono8")

    def publish_pictures(
        self,
        frame: Frame,
        prediction: Prediction,
        engine: Engine,
        wanted: Wanted,
        settings: Values,
    ) -> None:
        """What people look at: class colours or attention as heat, alone and over the frame."""
        header, alpha = frame.message.header, settings["overlay_alpha"]
        if not wanted & {"color", "overlay"}:
            return
        if prediction.attention is not None:
            heat = attention_image(
                _plane(prediction.attention, settings["attention_head"]), *frame.size
            )
            if "color" in wanted:
                self._publish("color", header, render.heat_map(heat), "rgb8")
            if "overlay" in wanted:
                painted = render.heat_overlay(
                    read_rgb(frame.message, None, None, frame.reading), heat, alpha
                )
                self._publish("overlay", header, painted, "rgb8")
            return
        labels = prediction.labels
        assert labels is not None
        if "color" in wanted:
            colours = render.colour_map(labels, engine.colours)
            self._publish("color", header, colours, "rgb8")
        if "overlay" in wanted:
            painted = render.overlay(
                read_rgb(frame.message, None, None, frame.reading), labels, engine.colours, alpha
            )
            _legend(engine.classes, *frame.size).draw(painted, labels)
            self._publish("overlay", header, painted, "rgb8")

    def publish_camera_info(self, header: Header, info: CameraInfo) -> None:
        """The camera's, with the header of the labels."""
        info.header = header
        self._publishers["camera_info"].publish(info)

    def _publish(self, name: str, header: Header, pixels: NDArray[np.uint8], encoding: str) -> None:
        self._publishers[name].publish(to_image(header, pixels, encoding))

    def _publisher(self, kind: type, topic: str) -> Publisher:
        publisher = self._node.create_publisher(
            kind,
            topic,
            qos.OUTPUT,
            event_callbacks=PublisherEventCallbacks(
                incompatible_qos=lambda _: self._suspects.update({topic: publisher})
            ),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        return publisher

    def unmatched(self) -> list[str]:
        """A sentence for each topic that has a subscriber which asks for more than it offers."""
        said = []
        for name, publisher in list(self._suspects.items()):
            # By the name that it was created with: rclpy remaps it here, too.
            subscribers = self._node.get_subscriptions_info_by_topic(name)
            sentence = qos.subscriber_mismatch(
                publisher.topic_name, publisher.qos_profile, subscribers
            )
            if sentence is None:
                del self._suspects[name]
            else:
                said.append(sentence)
        return said


def _plane(attention: NDArray[np.float32], head: int) -> NDArray[np.float32]:
    """The chosen head's plane; the mean of all where this model does not have that head."""
    # A model with more heads takes over after this frame.
    return head_map(attention, head if head < len(attention) else -1)


@functools.lru_cache(maxsize=8)
def _legend(classes: tuple[ClassInfo, ...], height: int, width: int) -> render.Legend:
    return render.Legend(classes, height, width)
