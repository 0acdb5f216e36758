# SPDX-License-Identifier: Apache-2.0
"""The thread that labels: takes the newest frames, infers, publishes, and recovers from faults."""

import dataclasses
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rclpy.impl.rcutils_logger import RcutilsLogger

from ctxseg_ros.inference.engine import Engine, reopened
from ctxseg_ros.inference.runtimes import devices
from ctxseg_ros.model.model_file import format_size
from ctxseg_ros.realtime.budget import Move, SizeController
from ctxseg_ros.realtime.latency import FrameTimes, LatencyWindow
from ctxseg_ros.realtime.recovery import Recovery
from ctxseg_ros.realtime.slot import LatestSlots
from ctxseg_ros.ros.camera_input import THROTTLE_S, CameraStream, Frame
from ctxseg_ros.ros.camera_output import CameraOutputs
from ctxseg_ros.ros.images import BadImage, read_rgb
from ctxseg_ros.ros.parameters import Settings


def available_devices() -> list[str]:
    """The devices that seem to be there, best first."""
    return [name for name, why_not in devices().items() if why_not is None]


class InferenceFailed(RuntimeError):
    """A runtime raised: the device is lost, out of memory, or the like."""


@dataclass(eq=False)
class Running:
    """What labels the frames now.

    `home`: the device it was opened on. `trouble`: why it does not run there. `broken`: it does
    not run at all, the worker is trying to open it again.
    """

    engine: Engine
    budget_ms: float
    controller: SizeController
    recovery: Recovery
    home: str
    trouble: str = ""
    broken: bool = False

    @classmethod
    def start(cls, engine: Engine, budget_ms: float) -> "Running":
        """An engine that has not run a frame yet."""
        return cls(
            engine,
            budget_ms,
            SizeController(engine.costs_ms, budget_ms),
            Recovery(engine.device, available_devices),
            engine.device,
        )

    def hold(self, budget_ms: float) -> None:
        """Hold another budget from the next frame on; of the same one, what was learned stays."""
        if budget_ms != self.budget_ms:
            self.budget_ms = budget_ms
            self.controller = SizeController(self.engine.costs_ms, budget_ms)

    def with_engine(self, engine: Engine) -> "Running":
        """Another engine under the same circumstances; a controller of its own unless it is the
        same open model at the same costs."""
        controller = self.controller
        same = engine.runtimes is self.engine.runtimes
        if not same or engine.costs_ms != self.engine.costs_ms:
            controller = SizeController(engine.costs_ms, self.budget_ms)
        return dataclasses.replace(self, engine=engine, controller=controller)


class Worker:
    """Labels frames from `slots` until they are closed.

    What runs may be replaced at any time with `use`: that holds from the next frame on, and what
    ran before is freed with the last frame that it labelled. Whoever makes an engine that shares
    the open model of what runs holds `keeping` from before until it is in use or given up:
    recovery from a fault, which closes the model, waits for that.
    """

    def __init__(
        self,
        running: Running,
        slots: LatestSlots[Frame],
        cameras: Mapping[str, tuple[CameraStream, CameraOutputs]],
        latency: LatencyWindow,
        settings: Settings,
        log: RcutilsLogger,
        library_log: logging.Logger,
    ) -> None:
        self.running = running
        self._since: float | None = None  # when the frame in work was taken
        self._replacing = threading.Lock()
        self.keeping = threading.Lock()
        self._latency = latency
        self._slots = slots
        self._cameras = cameras
        self._settings = settings
        self._log = log
        self._library_log = library_log
        self._buffer = np.empty((0, 0, 3), np.uint8)
        self._thread = threading.Thread(target=self._work, name="worker", daemon=True)
        self._thread.start()

    def use(self, running: Running, instead_of: Running | None = None) -> bool:
        """Label with this from the next frame on; False if `instead_of` is given and has been
        replaced already."""
        with self._replacing:
            if instead_of is not None and self.running is not instead_of:
                return False
            self.running = running
        self._slots.wake()
        return True

    @property
    def busy_s(self) -> float:
        """How long the frame in work has been there; 0 without one, and while a device recovers."""
        since = self._since
        return 0.0 if since is None or self.running.broken else time.monotonic() - since

    def join(self, timeout_s: float | None) -> bool:
        """Wait for the frame in work, after `slots` were closed. False: it took too long."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        for name, frame in self._slots:
            stream, outputs = self._cameras[name]
            running = self.running
            self._since = time.monotonic()
            failure = ""
            try:
                self._label(frame, stream, outputs, running)
            except BadImage as error:
                stream.drop("malformed", f"{stream.topic}: {error}")
            except InferenceFailed as error:
                failure = str(error)
                stream.drop("inference_error", f"inference failed: {failure}")
            except Exception as error:  # a fault of ours or of ROS: the next frame may do
                stream.drop("inference_error", f"{type(error).__name__}: {error}")
            if failure:
                self._recover(running, failure)
            # Else what was replaced would be held until the next frame.
            del frame, running
            self._since = None

    def _label(
        self, frame: Frame, stream: CameraStream, outputs: CameraOutputs, running: Running
    ) -> None:
        started = time.monotonic()
        settings = self._settings.now()
        max_age_ms = settings["max_age_ms"]
        if max_age_ms and (started - frame.stamp) * 1e3 > max_age_ms:
            stream.counts.add("stale")
            return
        if not (settings["always_infer"] or outputs.needed()):
            stream.counts.add("idle")
            return
        times = FrameTimes(frame.stamp, frame.received, started)
        engine, controller = running.engine, running.controller
        runtime = engine.runtimes[controller.index]
        pixels = read_rgb(frame.message, runtime.size, self._input(runtime.size), frame.reading)
        times.prepared = time.monotonic()
        try:
            prediction = runtime.run(pixels)
        except Exception as error:  # each library raises its own kinds
            raise InferenceFailed(f"{type(error).__name__}: {error}") from error
        times.inferred = time.monotonic()
        prediction = engine.refined(pixels, prediction, settings["merge_level"])
        times.refined = time.monotonic()
        wanted = outputs.wanted()
        prediction = engine.finish(
            prediction, *frame.size, settings["min_confidence"], "confidence" in wanted
        )
        times.finished = time.monotonic()
        outputs.publish_labels(frame, prediction, wanted, settings)
        times.published = time.monotonic()
        stages = times.stages()
        stream.counts.add("labelled")
        running.recovery.frame_done(engine.device)
        try:
            stream.check_depth(frame, pixels)
            if "camera_info" in wanted:
                self._publish_camera_info(frame, stream, outputs)
            outputs.publish_pictures(frame, prediction, engine, wanted, settings)
        except Exception as error:  # the labels are out: as a frame it is no failure
            stream.log.error(f"beside the labels: {error}", throttle_duration_sec=THROTTLE_S)
        if frame.doubtful:  # its age may be none
            return
        stream.latency.add(stages)
        self._latency.add(stages)
        # The pictures are nobody's latency but the next frame's.
        publish_ms = (time.monotonic() - times.finished) * 1e3
        sized_ms = stages["inference"] + stages["refine"]
        move = controller.observe(times.published, stages["total"], sized_ms, publish_ms)
        if move is not None:
            self._log_move(engine, move)

    def _input(self, size: tuple[int, int]) -> NDArray[np.uint8]:
        if self._buffer.shape[:2] != size:
            self._buffer = np.empty((*size, 3), np.uint8)
        return self._buffer

    def _log_move(self, engine: Engine, move: Move) -> None:
        sizes = [format_size(runtime.size) for runtime in engine.runtimes]
        why = "breaks" if move.end > move.start else "leaves room in"
        self._log.info(
            f"input size {sizes[move.start]} -> {sizes[move.end]}: a latency of "
            f"{move.p95_ms:.0f} ms (95th percentile) {why} the budget of "
            f"{self._settings['latency_budget_ms']:g} ms, {move.expected_ms:.0f} ms is expected"
        )

    def _publish_camera_info(
        self, frame: Frame, stream: CameraStream, outputs: CameraOutputs
    ) -> None:
        info = stream.camera_info
        if info is None:
            return
        if (info.height, info.width) != frame.size:
            stream.counts.add("camera_info_mismatched")
            stream.log.warning(
                f"camera_info is for {info.width}x{info.height}, the frames of {stream.topic} are "
                f"{frame.size[1]}x{frame.size[0]}: remap `camera_info` to the same camera",
                throttle_duration_sec=THROTTLE_S,
            )
            return
        outputs.publish_camera_info(frame.message.header, info)

    # Faults

    def _recover(self, failed: Running, error: str) -> None:
        """Open the model again, here or on another device, until it opens or somebody else did."""
        reason = f"inference failed on {failed.engine.device}: {error}"
        with self.keeping:
            if self.running.engine.runtimes is not failed.engine.runtimes:
                return
            failed = self.running  # perhaps with other groups or another refinement
            failed.broken = True
        while True:
            wait_s, device = failed.recovery.next()
            failed.broken = True
            failed.trouble = f"{reason}; opening it again on {device}"
            self._log.error(failed.trouble + (f" in {wait_s:g} s" if wait_s else ""))
            if self._slots.pause(wait_s, lambda: self.running is not failed):
                return
            try:
                failed.engine.close_runtimes()  # first: perhaps it is memory that is short
                engine = reopened(failed.engine, device, self._library_log)
            except Exception as refusal:  # whatever a library raises: the next attempt may do
                reason = f"the model does not open on {device}: {' '.join(str(refusal).split())}"
                continue
            mended = failed.with_engine(engine)
            mended.broken, mended.trouble = False, ""
            if engine.device != failed.home:
                mended.trouble = f"{reason}; it runs on {engine.device} instead of {failed.home}"
            if self.use(mended, instead_of=failed):
                mended.hold(self._settings["latency_budget_ms"])  # changed while it opened
            else:
                engine.close()
            return
