# SPDX-License-Identifier: Apache-2.0
"""What the demo measured: as JSON, and as a table."""

import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ctxseg_ros.demo.recording import Recording
from ctxseg_ros.image.source import FrameSource
from ctxseg_ros.system import machine
from ctxseg_ros.system.files import shown

FILE = "latency.json"
POINTS = ("p50", "p95", "p99")
STAGES = ("transport", "queue", "preprocess", "inference", "refine", "postprocess", "publish")


def summarise(recording: Recording, source: FrameSource, budget_ms: float) -> dict[str, Any]:
    """The content of latency.json: times in milliseconds, rates in Hz, counts of frames.

    A time is None where no frame was labelled at the last input size, `fps` where fewer than two
    were labelled at all.
    """
    values, camera = recording.values("labels"), recording.values("frames")
    times = recording.label_times

    def points(name: str) -> dict[str, float | None]:
        numbers = {point: float(values[f"{name}_{point}_ms"]) for point in POINTS}
        return {point: ms if math.isfinite(ms) else None for point, ms in numbers.items()}

    latency = points("latency")
    return {
        "model": values["model"],
        "device": values["device"],
        "precision": values["precision"],
        "input_size": values["input_size"],
        "source": Path(shown(source.name)).name,
        "frames_unreadable": int(camera["frames_unreadable"]),
        "frames_missing": int(camera["frames_missing"]),
        "outages": int(camera["outages"]),
        "outage_s": float(camera["outage_s"]),
        # Behind the state, sentences on what was lost.
        "source_trouble": recording.status["frames"].message.partition("; ")[2],
        "frames_sent": recording.sent,
        "frames_received": recording.received,
        "frames_labelled": recording.labelled,
        "lost_transport": recording.sent - recording.received,
        "dropped": recording.dropped,
        "fps": round((len(times) - 1) / (times[-1] - times[0]), 2) if len(times) > 1 else None,
        "latency_ms": latency,
        "stages_ms": {stage: points(stage) for stage in STAGES},
        "budget_ms": budget_ms,
        "budget_held": latency["p95"] is not None and latency["p95"] <= budget_ms,
        "machine": machine.describe(),
    }


def show(result: dict[str, Any], console: Console) -> None:
    """Print what was measured, and everything that was lost."""
    view = Table(
        title=f"{result['model']} at {result['input_size']} on {result['device']} "
        f"({result['precision']}): {escape(result['source'])}",
        min_width=64,
    )
    view.add_column("milliseconds")
    for point in POINTS:
        view.add_column(point, justify="right")
    for name, points in {**result["stages_ms"], "stamp to label": result["latency_ms"]}.items():
        if name == "stamp to label":
            view.add_section()
        view.add_row(name, *("-" if (ms := points[p]) is None else f"{ms:.1f}" for p in POINTS))
    console.print(view)
    for line in _lines(result):
        console.print(line, soft_wrap=True)


def _lines(result: dict[str, Any]) -> list[str]:
    fps = result["fps"]
    rate = "" if fps is None else f": [bold]{fps:.1f} FPS[/]"
    drops = ", ".join(f"{count} {cause}" for cause, count in result["dropped"].items())
    lines = [
        f"frames    {result['frames_sent']} sent, {result['frames_received']} received, "
        f"{result['frames_labelled']} labelled{rate}",
        f"lost      {result['lost_transport']} in transport",
        f"dropped   {drops}",
    ]
    losses = [
        f"{result[key]:g} {what}"
        for key, what in (
            ("frames_unreadable", "unreadable"),
            ("frames_missing", "missing at the end"),
            ("outages", "outages"),
            ("outage_s", "s of outage"),
        )
        if result[key]
    ]
    if losses or result["source_trouble"]:
        said = ": ".join(filter(None, [", ".join(losses), escape(result["source_trouble"])]))
        lines.append(f"[red]source    {said}[/]")
    if result["latency_ms"]["p95"] is None:  # the node measures anew for each input size
        verdict = f"[red]not measured: too few frames were labelled at {result['input_size']}[/]"
    else:
        verdict = "[green]held[/]" if result["budget_held"] else "[red]broken[/]"
        if losses:
            verdict += " [red](over the frames that could be read)[/]"
    lines.append(f"budget    {result['budget_ms']:g} ms at p95: {verdict}")
    return lines
