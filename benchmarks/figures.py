# SPDX-License-Identifier: Apache-2.0
"""From what one play left behind to one row of the pipeline benchmark."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

POINTS = ("p50", "p95", "p99")
DROPS_ALLOWED = 0.05  # ros2_benchmark's peak rate: the highest with under 5 % drops
DONE = ("frames_labelled", "frames_idle", "dropped_")

Points = dict[str, float | None]


@dataclass
class Play:
    """Frames sent at one rate and what came of them.

    `sent`: for each camera its stamps; `labels`: for each camera (stamp, time of receipt), both in
    nanoseconds of the wall clock. `before`, `after`: ctxseg's diagnostics around the play, empty
    for the plain node. `frames`: (stamp, inference in ms) of each frame that reached the plain
    node's callback. CPU, of the node and of what is no part of the benchmark: 100 is one core.
    """

    rate_hz: float
    sent: list[list[int]]
    labels: list[list[tuple[int, int]]]
    before: Mapping[str, str]
    after: Mapping[str, str]
    frames: Sequence[tuple[int, float]]
    cpu_percent: float
    others_cpu_percent: float


def points(values: Sequence[float]) -> Points:
    """{"p50", "p95", "p99"} of the values, linear interpolation; None without any value."""
    if not len(values):
        return dict.fromkeys(POINTS)
    found = np.percentile(values, (50, 95, 99)).tolist()
    return {point: round(value, 2) for point, value in zip(POINTS, found, strict=True)}


def latencies_ms(play: Play) -> list[float]:
    """Camera's stamp to receipt of the labels, for every frame sent in this play."""
    return [
        (received - stamp) / 1e6
        for sent, labels in zip(play.sent, play.labels, strict=True)
        for stamp, received in _of_play(sent, labels)
    ]


def rate_out_hz(play: Play) -> float:
    """Labels a second, all cameras together, while frames were sent.

    From the intervals between receipts up to the last frame's stamp: neither a queue that empties
    after the camera's end counts, nor the frame in work at that moment.
    """
    total = 0.0
    for sent, labels in zip(play.sent, play.labels, strict=True):
        times = [received for _, received in _of_play(sent, labels) if received <= sent[-1]]
        if len(times) > 1:
            total += (len(times) - 1) / (times[-1] - times[0]) * 1e9
    return round(total, 2)


def jitter_ms(play: Play) -> float | None:
    """Standard deviation of the intervals between a camera's outputs, over all cameras.

    None without two intervals.
    """
    intervals = [
        interval / 1e6
        for sent, labels in zip(play.sent, play.labels, strict=True)
        for interval in np.diff([received for _, received in _of_play(sent, labels)])
    ]
    return round(float(np.std(intervals)), 2) if len(intervals) > 1 else None


def own_cost(end_to_end: Points, inference: Points) -> Points:
    """What is left of the end-to-end time without the inference, percentile by percentile.

    Transport in, conversions, resizing, waiting, publishing, transport out. The 95th percentiles'
    difference is no percentile of a difference: it is right where inference takes about the same
    time for each frame. At rates that the model cannot follow it is mostly waiting.
    """
    pairs = {point: (end_to_end[point], inference.get(point)) for point in ("p50", "p95")}
    return {
        point: None if total is None or part is None else round(total - part, 2)
        for point, (total, part) in pairs.items()
    }


def stages_ms(values: Mapping[str, str]) -> dict[str, Points]:
    """The percentiles in the diagnostics by stage, such as {"inference": {"p50": 41.2, ...}}."""
    stages: dict[str, Points] = {}
    for key, text in values.items():
        if match := re.fullmatch(r"(\w+)_(p50|p95|p99)_ms", key):
            stage, point = match.groups()
            value = float(text)
            stages.setdefault(stage, {})[point] = value if math.isfinite(value) else None
    return stages


def settled(values: Mapping[str, str]) -> bool:
    """Whether every frame that ctxseg received is labelled or dropped."""
    done = sum(int(value) for key, value in values.items() if key.startswith(DONE))
    return int(values["frames_received"]) == done


def summarise(play: Play) -> dict[str, Any]:
    """The measured part of a row."""
    end_to_end = points(latencies_ms(play))
    sent, labelled = sum(map(len, play.sent)), len(latencies_ms(play))
    node = _of_ctxseg(play, sent, labelled) if play.after else _of_plain(play, sent, labelled)
    return {
        "end_to_end_ms": end_to_end,
        "own_cost_ms": own_cost(end_to_end, node["inference_ms"]),
        "frames_sent": sent,
        "frames_labelled": labelled,
        "missed": sent - labelled,
        "rate_sent_hz": _rate_sent_hz(play),
        "rate_out_hz": rate_out_hz(play),
        "jitter_ms": jitter_ms(play),
        "cpu_percent": round(play.cpu_percent, 1),
        "others_cpu_percent": round(play.others_cpu_percent, 1),
        **node,
    }


def _of_ctxseg(play: Play, sent: int, labelled: int) -> dict[str, Any]:
    """From its own diagnostics. The percentiles are of its last 500 frames, warm-up included."""

    def count(key: str) -> int:
        return int(play.after[key]) - int(play.before[key])

    stages = stages_ms(play.after)
    age = stages.pop("latency")
    return {
        "inference_ms": stages.pop("inference"),
        "age_at_publish_ms": age,
        "stages_ms": stages,
        "lost_transport": sent - count("frames_received"),
        "dropped": {
            key.removeprefix("dropped_"): count(key)
            for key in play.after
            if key.startswith("dropped_")
        },
        "lost_output": count("frames_labelled") - labelled,
        "device": play.after["device"],
        "precision": play.after["precision"],
    }


def _of_plain(play: Play, sent: int, labelled: int) -> dict[str, Any]:
    """From its own notes. What never reached its callback was lost in transport or pushed out of
    its subscription's queue; nothing in the node tells which, so `lost_transport` is unknown.
    """
    stamps = {stamp for stamps in play.sent for stamp in stamps}
    inference = [ms for stamp, ms in play.frames if stamp in stamps]
    return {
        "inference_ms": points(inference),
        "lost_transport": None,
        "dropped": {"never_arrived": sent - len(inference)},
        "lost_output": len(inference) - labelled,
    }


def _of_play(sent: list[int], labels: list[tuple[int, int]]) -> list[tuple[int, int]]:
    stamps = set(sent)
    return [pair for pair in labels if pair[0] in stamps]


def _rate_sent_hz(play: Play) -> float:
    """Frames a second and camera; below the case's rate where the camera could not follow."""
    rates = [(len(sent) - 1) / (sent[-1] - sent[0]) * 1e9 for sent in play.sent if len(sent) > 1]
    return round(float(np.mean(rates)), 2) if rates else 0.0


def peak_rate(held: Callable[[float], bool], start_hz: float, steps: int) -> float | None:
    """The highest rate tried at which `held`: upwards by half, then by halving; None: none held."""
    best, low, high, rate = None, 0.0, math.inf, start_hz
    for _ in range(steps):
        if held(rate):
            best = low = rate
        else:
            high = rate
        rate = (low + high) / 2 if high < math.inf else rate * 1.5
    return None if best is None else round(best, 2)


def follows(play: Play) -> bool:
    """Whether under 5 % of the frames that were wanted got no labels in time."""
    return rate_out_hz(play) > (1 - DROPS_ALLOWED) * play.rate_hz * len(play.sent)
