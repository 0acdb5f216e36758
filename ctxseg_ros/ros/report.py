# SPDX-License-Identifier: Apache-2.0
"""The segmenter's reports for /diagnostics: one on the node, and one on each named camera."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.node import Node

from ctxseg_ros.model.model_file import format_size
from ctxseg_ros.realtime.latency import LatencyWindow
from ctxseg_ros.ros import diagnostics
from ctxseg_ros.ros.camera_input import CameraStream
from ctxseg_ros.ros.diagnostics import CAUSES, OK, CameraHealth, Finding, NodeHealth
from ctxseg_ros.ros.parameters import Settings
from ctxseg_ros.ros.worker import Running
from ctxseg_ros.system import machine

NODE_VALUES = {
    "state": "lifecycle state; `idle`: active, and no output has a subscriber",
    "model": "name in the model file",
    "model_sha256": "checksum of the model file",
    "task": "`semantic`, `clusters` or `attention`",
    "classes": "id, name and colour (RGB) of each class, after `label_groups`",
    "device": "device that the model runs on now",
    "device_reason": "why no faster device is used",
    "precision": "fp32, bf16 or fp16",
    "input_size": "input size of the model now, HxW",
    "input_sizes": "all sizes it may use, each with its time (model and refinement) at load",
    "refinement": "`none`, `crf` or `merge`",
    "latency_budget_ms": "as set; 0: none",
    "needed_budget_ms": "the budget that the smallest size needs, if it exceeds the one set",
    "memory_mb": "resident memory of the process",
}
COUNTS = {
    "rate_in_hz": "rate of received frames in Hz",
    "rate_out_hz": "rate of labelled frames in Hz",
    "frames_received": "since configure, like all counts",
    "frames_labelled": "frames that the model has processed",
    "frames_idle": "frames without inference, for no output of the camera had a subscriber",
    "lost_transport": "gaps in the publisher's sequence numbers; unknown with several publishers",
    "dropped_queue": "a newer frame came while the model was busy",
    "dropped_stale": "older than `max_age_ms` before inference",
    "dropped_malformed": "could not be decoded; the status message and the log give the reason",
    "dropped_out_of_order": "stamped earlier than a previous frame",
    "dropped_inference_error": "the model or its refinement failed on it",
    "unstamped": "frames with stamp 0; their age is counted from arrival",
    "camera_info_mismatched": "CameraInfo whose size differs from its frame's",
}
CAMERA_VALUES = {
    "topic": "topic of the frames, after remapping",
    "input_encoding": "encoding of the newest frame",
    "clock_offset_ms": "this machine's clock minus the camera's, if they disagree",
    "read_delay_ms": "from arrival in the process to the callback, median of the last second",
}
LATENCIES = {
    "latency": "camera stamp to published labels",
    "transport": "stamp to callback",
    "queue": "callback to worker",
    "preprocess": "decoding and scaling to the model's size",
    "inference": "the model alone",
    "refine": "`refinement`",
    "postprocess": "labels to the camera's size, groups, `min_confidence`",
    "publish": "labels and confidence",
}
"""Each as `_p50_ms`, `_p95_ms` and `_p99_ms`, over the last 500 frames."""


def statuses(
    node: Node,
    state: str,
    failure: str,
    running: Running | None,
    busy_s: float,
    streams: Sequence[CameraStream],
    latency: LatencyWindow,
    settings: Settings,
    shortage: str,
    idle: bool,
    loading: str,
) -> tuple[list[DiagnosticStatus], list[Finding]]:
    """ "NODE: labels" on all that the node does, and "NODE: CAMERA" on each named camera.

    The node's level and sentence are made from the findings, which are those of the node and of
    its cameras.
    """
    budget_ms = settings["latency_budget_ms"]
    name = node.get_fully_qualified_name()
    health = NodeHealth(
        name,
        state,
        failure,
        budget_ms=budget_ms,
        busy_s=busy_s,
        shortage=shortage,
        idle=idle,
        loading=loading,
    )
    values: dict[str, Any] = {"state": "idle" if idle else state}
    if running is not None:
        _add_running(running, health, values)
    values |= {
        "refinement": settings["refinement"],
        "latency_budget_ms": f"{budget_ms:g}",
        "memory_mb": f"{machine.memory_mb():.1f}",
        **_counts(streams),
        **_latencies(latency),
    }
    findings = health.findings()
    of_cameras: dict[str, list[Finding]] = {}
    if state == "active":
        of_cameras = {item.name: _camera_health(item, settings).findings() for item in streams}
        if health.runs:
            findings += [
                item._replace(what=f"{camera} {item.what or item.message}")
                for camera, found in of_cameras.items()
                for item in found
            ]
    if len(streams) == 1 and not streams[0].name:
        values |= _camera(streams[0])
    level, message = diagnostics.summary(findings)
    result = [diagnostics.status(node, "labels", level, message, values)]
    if running is not None:
        result[0].hardware_id = running.engine.device
    not_active = [Finding(OK, state)]
    for stream in streams:
        if stream.name:
            level, message = diagnostics.summary(of_cameras.get(stream.name, not_active))
            entries = {**_camera(stream), **_counts([stream]), **_latencies(stream.latency)}
            result.append(diagnostics.status(node, stream.name, level, message, entries))
    return result, findings


def _add_running(running: Running, health: NodeHealth, values: dict[str, Any]) -> None:
    engine, controller = running.engine, running.controller
    runtime = engine.runtimes[controller.index]
    health.trouble, health.broken = running.trouble, running.broken
    health.p95_ms, health.needed_ms = controller.p95_ms, controller.needed_ms
    health.input_size = format_size(runtime.size)
    health.refines = engine.refiner is not None
    sizes = zip(engine.runtimes, engine.costs_ms, strict=True)
    values |= {
        "model": engine.info.name,
        "model_sha256": engine.info.sha256,
        "task": engine.info.task,
        "classes": ", ".join(
            f"{item.id} {item.name} #{bytes(item.colour).hex()}" for item in engine.classes
        ),
        "device": runtime.device,
        "device_reason": running.trouble or engine.runtimes[0].reason,
        "precision": runtime.precision,
        "input_size": health.input_size,
        "input_sizes": ", ".join(f"{format_size(item.size)} {ms:.1f} ms" for item, ms in sizes),
        "needed_budget_ms": "" if health.needed_ms is None else math.ceil(health.needed_ms),
    }


def _camera_health(stream: CameraStream, settings: Settings) -> CameraHealth:
    return CameraHealth(
        topic=stream.topic,
        blocked=stream.blocked,
        unmatched=stream.unmatched,
        publishers=stream.publishers,
        publishers_s=stream.publishers_s,
        unheard=stream.unheard,
        same_host=stream.same_host,
        silence_s=stream.silence_s,
        last_error=stream.last_error,
        recent=stream.counts.recent(),
        rate_in_hz=stream.counts.rate("received"),
        rate_out_hz=stream.counts.rate("labelled"),
        read_delay_ms=stream.read_delay_ms,
        max_age_ms=settings["max_age_ms"],
        clock_offset_s=stream.clock.offset_s,
    )


def _camera(stream: CameraStream) -> dict[str, Any]:
    offset_s = stream.clock.offset_s
    return {
        "topic": stream.topic,
        "input_encoding": stream.encoding,
        "clock_offset_ms": "" if offset_s is None else f"{offset_s * 1e3:.0f}",
        "read_delay_ms": f"{stream.read_delay_ms:.1f}",
    }


def _counts(streams: Sequence[CameraStream]) -> dict[str, Any]:
    totals: Counter[str] = sum((stream.counts.totals() for stream in streams), Counter())
    known = all(stream.gaps_known for stream in streams)
    return {
        "rate_in_hz": f"{sum(stream.counts.rate('received') for stream in streams):.2f}",
        "rate_out_hz": f"{sum(stream.counts.rate('labelled') for stream in streams):.2f}",
        "frames_received": totals["received"],
        "frames_labelled": totals["labelled"],
        "frames_idle": totals["idle"],
        "lost_transport": totals["lost_transport"] if known else "unknown",
        **{f"dropped_{cause}": totals[cause] for cause in CAUSES},
        "unstamped": totals["unstamped"],
        "camera_info_mismatched": totals["camera_info_mismatched"],
    }


def _latencies(window: LatencyWindow) -> dict[str, str]:
    return {
        f"{'latency' if stage == 'total' else stage}_{point}_ms": f"{ms:.2f}"
        for stage, points in window.percentiles().items()
        for point, ms in points.items()
    }
