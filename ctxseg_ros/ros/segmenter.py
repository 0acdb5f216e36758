# SPDX-License-Identifier: Apache-2.0
"""The segmentation node: a camera's frames in, labels with the camera's own stamps out.

The executor's thread runs every callback, and none of them computes: the image callback leaves the
newest frame in a slot. One worker thread takes it from there, infers and publishes.
"""

import logging
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.srv import ChangeState
from numpy.typing import NDArray
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.publisher import Publisher
from rclpy.qos import ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from ctxseg_ros import render, store
from ctxseg_ros.latency import FrameTimes, LatencyWindow
from ctxseg_ros.model_file import ModelFileError, format_size
from ctxseg_ros.pipeline import FrameSegmenter
from ctxseg_ros.prediction import UNLABELLED
from ctxseg_ros.ros import diagnostics, qos
from ctxseg_ros.ros.diagnostics import CAUSES, FrameCounts, Health
from ctxseg_ros.ros.images import (
    BadImage,
    check_image,
    compressed_to_rgb,
    image_to_rgb,
    to_image,
)
from ctxseg_ros.ros.parameters import Setting, Settings, choice, number, sizes, switch, text
from ctxseg_ros.ros.slot import LatestSlot
from ctxseg_ros.runtimes import DEVICES, RuntimeUnavailable, open_runtime

try:
    from vision_msgs.msg import LabelInfo, VisionClass
except ImportError:  # not installed, or older than LabelInfo
    LabelInfo = None

LATENCY_WINDOW = 500  # frames behind the percentiles: 20 s at 25 Hz
THROTTLE_S = 5.0
SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE

SETTINGS: dict[str, Setting] = {
    "model": text(
        "segmenter_tiny", "Name of a shipped model, or path of an .onnx file", fixed=True
    ),
    "device": choice("auto", ("auto", *DEVICES), "Where the model runs", fixed=True),
    "input_sizes": sizes(
        "Sizes at which the model may run; the first is used. Empty: the model's own", fixed=True
    ),
    "autostart": switch(
        True,
        "Configure and activate at the start; false where a lifecycle manager does it",
        read_only=True,
    ),
    "image_transport": choice(
        "raw",
        ("raw", "compressed"),
        "raw: Image on `image`; compressed: CompressedImage (JPEG, PNG) on `image/compressed`",
        fixed=True,
    ),
    "input_reliability": choice(
        "auto", qos.RELIABILITIES, "QoS asked for; auto: what the publishers of `image` offer"
    ),
    "latency_budget_ms": number(
        0.0, 0.0, 60000.0, "Camera stamp to published labels; 0: only report the latency"
    ),
    "max_age_ms": number(
        0.0, 0.0, 60000.0, "An older frame is dropped before inference; 0: none is"
    ),
    "min_confidence": number(
        0.0, 0.0, 1.0, "Pixels whose class is less probable become 255 (unlabelled)"
    ),
    "overlay_alpha": number(0.5, 0.0, 1.0, "Opacity of the classes' colours in ~/overlay"),
}


@dataclass(frozen=True)
class Frame:
    """A message and when it came, in seconds of the node's clock."""

    message: Image | CompressedImage
    received: float


class SegmentNode(LifecycleNode):
    """configure loads the model, activate subscribes and starts the worker; see the README."""

    def __init__(self) -> None:
        super().__init__("segment")
        self._state = "unconfigured"
        self._failure: str | None = None  # why the last configure failed
        self._blocked: str | None = None  # why no frame can arrive
        self._last_error = ""
        self._segmenter: FrameSegmenter | None = None
        self._device_reason = ""
        self._slot: LatestSlot[Frame] = LatestSlot()
        self._worker: threading.Thread | None = None
        self._frames: Subscription | None = None
        self._topic = "image"  # as text: a destroyed subscription cannot be asked
        self._infos: Subscription | None = None
        self._camera_info: CameraInfo | None = None
        self._input_encoding = "none yet"
        self._publishers_seen: set[bytes] = set()
        self._last_sequence: int | None = None
        self._gaps_known = True  # False: several publishers, or messages without numbers
        self._last_frame = 0.0  # monotonic
        self._counts = FrameCounts()
        self._latency = LatencyWindow(LATENCY_WINDOW)
        self._class_names: list[str] = []
        self._settings = Settings(
            self,
            {**SETTINGS, "class_names": self._class_names_setting()},
            locked=lambda: self._segmenter is not None,
        )
        self._labels = self._image_publisher("labels")
        self._confidence = self._image_publisher("confidence")
        self._color = self._image_publisher("color")
        self._overlay = self._image_publisher("overlay")
        self._info_copies = self.create_lifecycle_publisher(CameraInfo, "~/camera_info", qos.OUTPUT)
        self._label_info = None
        if LabelInfo is not None:
            self._label_info = self.create_lifecycle_publisher(
                LabelInfo, "~/label_info", qos.LATCHED
            )
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", qos.DIAGNOSTICS)
        self._guard_transitions()
        # Wall time: under use_sim_time a paused clock must not stop these.
        wall = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(1.0, self._every_second, clock=wall)
        self._start = self.create_timer(0.0, self._autostart, clock=wall)

    def _class_names_setting(self) -> Setting:
        def check(value: Any) -> list[str]:
            if [name for name in value or () if name] != self._class_names:
                raise ValueError("what the model says, it cannot be set")
            return self._class_names

        return Setting(
            [""], "Names of the labels' ids, in the order of the ids", check, "read-only"
        )

    def _image_publisher(self, name: str) -> Publisher:
        publisher = self.create_lifecycle_publisher(
            Image,
            f"~/{name}",
            qos.OUTPUT,
            event_callbacks=PublisherEventCallbacks(
                incompatible_qos=lambda _: self._on_incompatible_subscriber(publisher)
            ),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        return publisher

    # Lifecycle

    def _guard_transitions(self) -> None:
        """rclpy lets an illegal transition's error through, which would end the executor."""
        service = next(item for item in self.services if item.srv_type is ChangeState)
        change_state = service.callback

        def guarded(
            request: ChangeState.Request, response: ChangeState.Response
        ) -> ChangeState.Response:
            try:
                return change_state(request, response)
            except RuntimeError:
                asked = request.transition.label or f"number {request.transition.id}"
                self.get_logger().error(
                    f"transition {asked} is not possible while the node is {self._state}"
                )
                return ChangeState.Response(success=False)

        service.callback = guarded

    def _autostart(self) -> None:
        self._start.cancel()
        if not self._settings["autostart"] or self._state != "unconfigured":
            return
        if self.trigger_configure() == SUCCESS:
            self.trigger_activate()

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model, open the device and warm it up."""
        try:
            self._open()
        except Exception as error:  # whatever it is: the node stays, and says why
            self._close()
            known = isinstance(error, ModelFileError | RuntimeUnavailable | ValueError)
            self._failure = str(error) if known else f"{type(error).__name__}: {error}"
            self.get_logger().error(
                f"cannot configure: {self._failure}. Mend it, then configure and activate the node"
            )
            self._publish_diagnostics()
            return FAILURE
        self._failure = None
        self._state = "inactive"
        return SUCCESS

    def _open(self) -> None:
        if self._settings.faults:
            raise ValueError("; ".join(self._settings.faults.values()))
        info = store.load(self._settings["model"])
        if info.task == "attention":
            raise ValueError(
                f"model {info.name} gives attention, this node needs labels: choose a model of "
                "task semantic or clusters"
            )
        size = next(iter(self._settings["input_sizes"]), None)
        log = _RosLog(self)
        runtime = open_runtime(info, size, self._settings["device"], log)
        self._device_reason = log.last
        self._segmenter = FrameSegmenter(runtime)
        self._set_class_names([item.name for item in info.classes])

    def _close(self) -> None:
        if self._segmenter is not None:
            self._segmenter.runtime.close()
            self._segmenter = None
        self._set_class_names([])

    def _set_class_names(self, names: list[str]) -> None:
        self._class_names = names
        self.set_parameters([Parameter("class_names", value=names or [""])])

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start the worker, then subscribe."""
        result = super().on_activate(state)  # the publishers publish from here on
        try:
            self._begin()
        except Exception as error:  # rclpy would drop it without a word
            self._failure = f"activation failed: {type(error).__name__}: {error}"
            return TransitionCallbackReturn.ERROR
        return result

    def _begin(self) -> None:
        self._slot = LatestSlot()
        self._latency = LatencyWindow(LATENCY_WINDOW)
        # What the camera sent meanwhile was not lost.
        self._last_sequence = None
        self._worker = threading.Thread(
            target=self._work, args=(self._segmenter,), name="worker", daemon=True
        )
        self._worker.start()
        self._last_frame = time.monotonic()
        self._publish_label_info()
        self._subscribe(qos.wanted_reliability(self._settings["input_reliability"], ()))
        self._infos = self.create_subscription(
            CameraInfo, "camera_info", self._on_camera_info, qos.CAMERA_INFO
        )
        self._state = "active"
        self._follow_publishers()
        self.get_logger().info(f"active, reading {self._topic}")

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe, and wait for the frame in work."""
        self._stop()
        self._state = "inactive"
        self._publish_diagnostics()
        return super().on_deactivate(state)

    def _stop(self, timeout_s: float | None = None) -> bool:
        """False: the worker was still busy after `timeout_s`."""
        for subscription in (self._frames, self._infos):
            if subscription is not None:
                self.destroy_subscription(subscription)
        self._frames = self._infos = self._camera_info = self._blocked = None
        if self._slot.close():
            self._counts.add("queue")
        if self._worker is not None:
            self._worker.join(timeout_s)
            if self._worker.is_alive():
                return False
            self._worker = None
        return True

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the model and its device's memory."""
        self._close()
        self._state = "unconfigured"
        return SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and free, from whatever state."""
        self._stop()
        self._close()
        self._state = "finalized"
        self._publish_diagnostics()
        return SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """A transition raised: back to unconfigured, with nothing left over."""
        self.get_logger().error(
            f"a transition failed ({self._failure}); the node is unconfigured again"
        )
        self._stop()
        self._close()
        self._state = "unconfigured"
        return SUCCESS

    def close(self, timeout_s: float) -> bool:
        """End for good, once the executor has stopped. False: the worker was still busy."""
        if not self._stop(timeout_s):
            return False
        self._state = "finalized"
        self._publish_diagnostics()
        self._close()
        return True

    # Input

    def _subscribe(self, reliability: ReliabilityPolicy) -> None:
        kind, topic = Image, "image"
        if self._settings["image_transport"] == "compressed":
            # As image_transport does it: the suffix goes behind the name after remapping.
            kind, topic = CompressedImage, f"{self.resolve_topic_name('image')}/compressed"
        self._topic = self.resolve_topic_name(topic)
        self._frames = self.create_subscription(
            kind,
            topic,
            self._on_frame,  # type: ignore[arg-type]  # rclpy's types leave out the second argument
            qos.frames(reliability),
            event_callbacks=SubscriptionEventCallbacks(
                incompatible_qos=lambda _: self._follow_publishers()
            ),
        )

    def _follow_publishers(self) -> None:
        """Ask for what the publishers offer, and say so where nothing can match."""
        if self._frames is None:
            return
        publishers = self.get_publishers_info_by_topic(self._topic)
        wanted = qos.wanted_reliability(
            self._settings["input_reliability"], [item.qos_profile for item in publishers]
        )
        if wanted != self._frames.qos_profile.reliability:
            self.destroy_subscription(self._frames)
            self._subscribe(wanted)
            self.get_logger().info(f"reading {self._topic} as {wanted.name.lower()}")
        seen = {bytes(item.endpoint_gid) for item in publishers}
        if seen != self._publishers_seen:
            self._publishers_seen = seen
            self._last_sequence = None
        kind = "Image" if self._settings["image_transport"] == "raw" else "CompressedImage"
        self._blocked = qos.mismatch(
            self._topic, f"sensor_msgs/msg/{kind}", self._frames.qos_profile, publishers
        )

    def _on_incompatible_subscriber(self, publisher: Publisher) -> None:
        topic = publisher.topic_name
        subscribers = self.get_subscriptions_info_by_topic(topic)
        self.get_logger().error(
            qos.subscriber_mismatch(topic, publisher.qos_profile, subscribers),
            throttle_duration_sec=THROTTLE_S,
        )

    def _on_camera_info(self, message: CameraInfo) -> None:
        self._camera_info = message

    def _on_frame(self, message: Image | CompressedImage, info: dict[str, Any]) -> None:
        received = self._now()
        self._last_frame = time.monotonic()
        self._counts.add("received")
        self._count_gap(info.get("publication_sequence_number"))
        if isinstance(message, Image):
            self._input_encoding = message.encoding
            try:
                check_image(message)
            except BadImage as error:
                self._drop("malformed", f"{self._topic}: {error}")
                return
        else:
            self._input_encoding = message.format
        if self._slot.put(Frame(message, received)):
            self._counts.add("queue")

    def _count_gap(self, sequence: int | None) -> None:
        """A publisher numbers its messages; with several of them the numbers say nothing."""
        self._gaps_known = sequence is not None and len(self._publishers_seen) < 2
        if sequence is None or not self._gaps_known:
            return
        expected, self._last_sequence = self._last_sequence, sequence
        # Counted anew: a second publisher may have come since the last look.
        if (
            expected is not None
            and sequence > expected + 1
            and self.count_publishers(self._topic) < 2
        ):
            self._counts.add("lost_transport", sequence - expected - 1)

    # The worker

    def _work(self, segmenter: FrameSegmenter) -> None:
        for frame in self._slot:
            try:
                self._label(frame, segmenter)
            except BadImage as error:
                self._drop("malformed", f"{self._topic}: {error}")
            except Exception as error:  # whatever a runtime raises: the next frame may do
                self._drop("inference_error", f"inference failed: {error}")

    def _label(self, frame: Frame, segmenter: FrameSegmenter) -> None:
        started = self._now()
        header = frame.message.header
        # A camera that sets no stamp: what can be known is counted from the arrival.
        stamp = header.stamp.sec + header.stamp.nanosec * 1e-9 or frame.received
        max_age_ms = self._settings["max_age_ms"]
        if max_age_ms and (started - stamp) * 1e3 > max_age_ms:
            self._counts.add("stale")
            return
        if isinstance(frame.message, Image):
            rgb = image_to_rgb(frame.message)
        else:
            rgb = compressed_to_rgb(frame.message)
        prediction = segmenter.segment(rgb)
        labels, confidence = prediction.labels, prediction.confidence
        assert labels is not None and confidence is not None  # configure saw to the task
        if self._settings["min_confidence"]:
            labels[confidence < self._settings["min_confidence"] * 255] = UNLABELLED
        inferred = self._now()
        self._labels.publish(to_image(header, labels, "mono8"))
        self._confidence.publish(to_image(header, confidence, "mono8"))
        self._latency.add(FrameTimes(stamp, frame.received, started, inferred, self._now()))
        self._counts.add("labelled")
        try:
            self._publish_camera_info(header, labels.shape)
            self._publish_pictures(header, rgb, labels, segmenter.runtime.info.colours)
        except Exception as error:  # the labels are out: as a frame it is no failure
            self.get_logger().error(f"beside the labels: {error}", throttle_duration_sec=THROTTLE_S)

    def _publish_pictures(
        self,
        header: Header,
        rgb: NDArray[np.uint8],
        labels: NDArray[np.uint8],
        colours: NDArray[np.uint8],
    ) -> None:
        """What people look at, and only while they do."""
        if self._color.get_subscription_count():
            self._color.publish(to_image(header, render.colour_map(labels, colours), "rgb8"))
        if self._overlay.get_subscription_count():
            painted = render.overlay(rgb, labels, colours, self._settings["overlay_alpha"])
            self._overlay.publish(to_image(header, painted, "rgb8"))

    def _publish_camera_info(self, header: Header, shape: tuple[int, ...]) -> None:
        info = self._camera_info
        if info is None:
            return
        if (info.height, info.width) != shape:
            self.get_logger().warning(
                f"camera_info is for {info.width}x{info.height}, the frames of {self._topic} are "
                f"{shape[1]}x{shape[0]}: remap `camera_info` to the same camera",
                throttle_duration_sec=THROTTLE_S,
            )
            return
        info.header = header
        self._info_copies.publish(info)

    def _drop(self, cause: str, error: str) -> None:
        self._counts.add(cause)
        self._last_error = error
        self.get_logger().error(error, throttle_duration_sec=THROTTLE_S)

    def _now(self) -> float:
        return self.get_clock().now().nanoseconds * 1e-9

    # Reports

    def _publish_label_info(self) -> None:
        if self._label_info is None:
            return
        message = LabelInfo(
            class_map=[
                VisionClass(class_id=number, class_name=name)
                for number, name in enumerate(self._class_names)
            ],
            threshold=self._settings["min_confidence"],
        )
        message.header.stamp = self.get_clock().now().to_msg()
        self._label_info.publish(message)

    def _every_second(self) -> None:
        self._follow_publishers()
        if self._blocked:
            self.get_logger().error(self._blocked, throttle_duration_sec=THROTTLE_S)
        self._publish_diagnostics()
        self._counts.sample()

    def _publish_diagnostics(self) -> None:
        percentiles = self._latency.percentiles()
        faults = "; ".join(self._settings.faults.values())
        level, message = Health(
            state=self._state,
            failure=self._failure or faults or None,
            blocked=self._blocked,
            topic=self._topic,
            publishers=len(self._publishers_seen),
            silence_s=time.monotonic() - self._last_frame,
            last_error=self._last_error,
            recent=self._counts.recent(),
            rate_out_hz=self._counts.rate("labelled"),
            latency_p95_ms=percentiles["total"]["p95"],
            budget_ms=self._settings["latency_budget_ms"],
            max_age_ms=self._settings["max_age_ms"],
        ).judge()
        totals = self._counts.totals()
        values: dict[str, Any] = {"state": self._state, "topic": self._topic}
        if self._segmenter is not None:
            runtime = self._segmenter.runtime
            values |= {
                "model": runtime.info.name,
                "model_sha256": runtime.info.sha256,
                "classes": ", ".join(f"{i} {name}" for i, name in enumerate(self._class_names)),
                "device": runtime.device,
                "precision": runtime.precision,
                "device_reason": self._device_reason,
                "input_size": format_size(runtime.size),
            }
        values |= {
            "input_encoding": self._input_encoding,
            "rate_in_hz": f"{self._counts.rate('received'):.2f}",
            "rate_out_hz": f"{self._counts.rate('labelled'):.2f}",
            "frames_received": totals["received"],
            "frames_labelled": totals["labelled"],
            "lost_transport": totals["lost_transport"] if self._gaps_known else "unknown",
            **{f"dropped_{cause}": totals[cause] for cause in CAUSES},
            "latency_budget_ms": f"{self._settings['latency_budget_ms']:g}",
        }
        for stage, points in percentiles.items():
            name = "latency" if stage == "total" else stage
            values |= {f"{name}_{point}_ms": f"{ms:.2f}" for point, ms in points.items()}
        status = diagnostics.status(self, "labels", level, message, values)
        if self._segmenter is not None:
            status.hardware_id = self._segmenter.runtime.device
        self._diagnostics.publish(diagnostics.array(self, status))


class _RosLog(logging.Logger):
    """A logger for the core that writes to a node's, and remembers its last line."""

    def __init__(self, node: LifecycleNode) -> None:
        super().__init__(node.get_name(), logging.INFO)
        self._ros = node.get_logger()
        self.last = ""

    def handle(self, record: logging.LogRecord) -> None:
        self.last = record.getMessage()
        # rclpy wants one severity for each line of code.
        if record.levelno >= logging.ERROR:
            self._ros.error(self.last)
        elif record.levelno >= logging.WARNING:
            self._ros.warning(self.last)
        else:
            self._ros.info(self.last)
