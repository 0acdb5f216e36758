# SPDX-License-Identifier: Apache-2.0
"""Where the time of a frame goes, from the camera's stamp to the published label."""

import threading
from collections import deque
from dataclasses import dataclass

import numpy as np

STAGES = (
    "total",
    "transport",
    "queue",
    "preprocess",
    "inference",
    "refine",
    "postprocess",
    "publish",
)


@dataclass
class FrameTimes:
    """When a frame passed each point: seconds, all from one clock. None: it did not get there."""

    stamp: float | None = None
    received: float | None = None
    started: float | None = None
    prepared: float | None = None
    inferred: float | None = None
    refined: float | None = None
    finished: float | None = None
    published: float | None = None

    def stages(self) -> dict[str, float]:
        """Milliseconds by stage, those whose two ends are known. total = stamp to published."""
        ends = {
            "total": (self.stamp, self.published),
            "transport": (self.stamp, self.received),
            "queue": (self.received, self.started),
            "preprocess": (self.started, self.prepared),
            "inference": (self.prepared, self.inferred),
            "refine": (self.inferred, self.refined),
            "postprocess": (self.refined, self.finished),
            "publish": (self.finished, self.published),
        }
        return {
            stage: (end - start) * 1e3
            for stage, (start, end) in ends.items()
            if start is not None and end is not None
        }


class LatencyWindow:
    """The last `size` frames' times. Every method may be called from any thread."""

    def __init__(self, size: int) -> None:
        self._frames: deque[dict[str, float]] = deque(maxlen=size)
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """Frames held now, at most `size`."""
        return len(self._frames)

    def add(self, stages: dict[str, float]) -> None:
        """Add a frame's `FrameTimes.stages`; the oldest one leaves a full window."""
        with self._lock:
            self._frames.append(stages)

    def clear(self) -> None:
        """Forget every frame."""
        with self._lock:
            self._frames.clear()

    def frames(self) -> list[dict[str, float]]:
        """The stages of each frame that is held, oldest first."""
        with self._lock:
            return list(self._frames)

    def percentiles(self) -> dict[str, dict[str, float]]:
        """{stage: {"p50", "p95", "p99"}} in ms, linear interpolation; NaN without any value."""
        frames = self.frames()
        result = {}
        for stage in STAGES:
            values = [frame[stage] for frame in frames if stage in frame] or [np.nan]
            p50, p95, p99 = np.percentile(values, (50, 95, 99)).tolist()
            result[stage] = {"p50": p50, "p95": p95, "p99": p99}
        return result
