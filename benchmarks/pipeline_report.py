# SPDX-License-Identifier: Apache-2.0
"""The pipeline benchmark's rows as a line, a table, a list of goals and a plot."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ctxseg_ros.system.output_files import replacing

Row = dict[str, Any]

RESOLUTIONS = {(640, 480): "VGA", (1280, 720): "720p", (1920, 1080): "1080p"}
COLUMNS = (
    "node", "input", "end to end p50", "p95", "p99", "inference p50", "own cost p50", "p95",
    "sent", "labelled", "lost in transport", "labels/s", "jitter", "CPU %", "others %", "peak Hz",
)  # fmt: skip
NUMBERS = ("rate_out_hz", "jitter_ms", "cpu_percent", "others_cpu_percent", "peak_rate_hz")
OWN_COST_RATE_HZ = 10  # low enough that no frame waits for the one before it
OWN_COST_GOALS = {"720p": 4.0, "1080p": 8.0}  # ms


def node_name(row: Row) -> str:
    """Such as "plain depth 10"."""
    if row["node"] == "ctxseg":
        return "ctxseg"
    return f"plain depth {row['depth']}" + (" with profile" if row["profile"] else "")


def resolution(row: Row) -> str:
    """Such as "VGA"."""
    size = row["width"], row["height"]
    return RESOLUTIONS.get(size, f"{size[0]}x{size[1]}")


def input_name(row: Row) -> str:
    """Such as "2 x VGA 30 Hz"."""
    cameras = f"{row['cameras']} x " if row["cameras"] > 1 else ""
    return f"{cameras}{resolution(row)} {row['rate_hz']:g} Hz"


def line(row: Row) -> str:
    """What matters most, for the one who waits."""
    total, cost = row["end_to_end_ms"], row["own_cost_ms"]
    return (
        f"end to end {_number(total['p50'])} ms (p95 {_number(total['p95'])}), own cost "
        f"{_number(cost['p50'])}, {row['frames_labelled']} of {row['frames_sent']} labelled "
        f"(others used {_number(row['others_cpu_percent'])} % of a core)"
    )


def table(found: dict[str, Any]) -> str:
    """Markdown: the rows, then the goals."""
    rows = found["results"]
    first = rows[0]
    lines = [
        f"# The pipeline: {first['model']} at {first['size']} on {first['device']} "
        f"({first['precision']})",
        "",
        f"{found['machine']['cpu']}, {found['machine']['cores']} cores, GPU: "
        f"{found['machine']['gpu'] or 'none'}; commit {found['commit']}; {found['note']}. "
        "Milliseconds, made by `python benchmarks/pipeline.py`, where the terms are explained.",
        "",
        _cells(COLUMNS),
        _cells(["---", "---", *["--:"] * (len(COLUMNS) - 2)]),
        *(_cells(_texts(row)) for row in rows),
        "",
        _cells(["goal", "measured", "limit", "held"]),
        _cells(["---", "--:", "--:", "---"]),
    ]
    for goal in found["goals"]:
        numbers = (_number(goal["measured"]), _number(goal["limit"]))
        lines.append(_cells([goal["goal"], *numbers, "yes" if goal["held"] else "**no**"]))
    return "\n".join(lines) + "\n"


def _texts(row: Row) -> list[str]:
    total, cost = row["end_to_end_ms"], row["own_cost_ms"]
    lost = row["lost_transport"]
    return [
        node_name(row),
        input_name(row),
        *(_number(total[point]) for point in ("p50", "p95", "p99")),
        _number(row["inference_ms"]["p50"]),
        *(_number(cost[point]) for point in ("p50", "p95")),
        str(row["frames_sent"]),
        str(row["frames_labelled"]),
        "?" if lost is None else str(lost),
        *(_number(row[key]) for key in NUMBERS),
    ]


def _cells(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if value % 1 else f"{value:.0f}"


def goals(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What the package promises of one camera, with what was measured; what was not is left out."""
    found: list[dict[str, Any]] = []

    def judge(goal: str, measured: float | None, limit: float, *, least: bool = False) -> None:
        if measured is not None:
            held = measured >= limit if least else measured <= limit
            found.append({"goal": goal, "measured": measured, "limit": limit, "held": held})

    single = [row for row in rows if row["cameras"] == 1]
    ours = [row for row in single if row["node"] == "ctxseg"]
    for row in ours:
        limit = OWN_COST_GOALS.get(resolution(row))
        if limit and row["rate_hz"] == OWN_COST_RATE_HZ:
            name = f"own cost at {resolution(row)}, p50, at most (ms)"
            judge(name, row["own_cost_ms"]["p50"], limit)
    for row in ours:
        inference = row["inference_ms"]["p50"]
        if row["rate_hz"] == 30 and inference:
            name = f"age at publish at {input_name(row)}, p95, at most twice the inference (ms)"
            judge(name, row["age_at_publish_ms"]["p95"], round(2 * inference, 2))
    lost = [row["lost_transport"] for row in ours if row["rate_hz"] <= 30]
    if lost:
        judge("frames lost in transport, up to 30 Hz", sum(lost), 0)
    ages = {
        node_name(row): row["end_to_end_ms"]["p50"]
        for row in single
        if input_name(row) == "VGA 30 Hz"
    }
    if ages.get("ctxseg") and ages.get("plain depth 10"):
        ratio = round(ages["plain depth 10"] / ages["ctxseg"], 2)
        judge("older labels of plain depth 10 at VGA 30 Hz, times, at least", ratio, 5, least=True)
    return found


def plot(rows: Sequence[Row], path: Path) -> None:
    """Two panels: end-to-end latency by case, and own cost by resolution."""
    nodes = list(dict.fromkeys(map(node_name, rows)))
    inputs = list(dict.fromkeys(map(input_name, rows)))
    palette = ["#0072b2", "#e69f00", "#cc3311", "#999999", "#666666"]  # apart for the colour-blind
    colours = dict(zip(nodes, palette, strict=False))
    figure = Figure(figsize=(13, max(4.5, 1.5 + 0.4 * len(inputs))), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _plot_latencies(left, rows, inputs, colours)
    _plot_own_cost(right, rows, colours)
    first = rows[0]
    figure.suptitle(f"{first['model']} at {first['size']} on {first['device']}")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    with replacing(path) as draft:
        figure.savefig(draft, dpi=120)


def _plot_latencies(
    axes: Axes, rows: Sequence[Row], inputs: list[str], colours: dict[str, str]
) -> None:
    """A line for each case and node from the median (dot) to the 95th percentile (bar)."""
    height = 0.8 / len(colours)
    for number, (node, colour) in enumerate(colours.items()):
        found = [row for row in rows if node_name(row) == node and row["end_to_end_ms"]["p50"]]
        y = [inputs.index(input_name(row)) + (number + 0.5) * height - 0.4 for row in found]
        median, high = ([row["end_to_end_ms"][point] for row in found] for point in ("p50", "p95"))
        axes.hlines(y, median, high, colour, lw=2)
        axes.plot(median, y, "o", color=colour, ms=5, label=node)
        axes.plot(high, y, "|", color=colour, ms=8, mew=2)
    for border in range(1, len(inputs)):
        axes.axhline(border - 0.5, color="0.85", lw=0.8)
    axes.set_yticks(range(len(inputs)), inputs)
    axes.set_ylim(len(inputs) - 0.5, -0.5)
    axes.set_xscale("log")
    ticks = [5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000]
    low, high = axes.get_xlim()
    axes.set_xticks(ticks, map(str, ticks))
    axes.set_xlim(low, high)
    axes.minorticks_off()
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.set_xlabel("camera's stamp to receipt of the labels, ms: dot p50, bar p95")
    axes.set_title("End-to-end latency")


def _plot_own_cost(axes: Axes, rows: Sequence[Row], colours: dict[str, str]) -> None:
    """Bars of the medians by resolution, one camera at 10 Hz, with the goals."""
    found = [row for row in rows if row["rate_hz"] == OWN_COST_RATE_HZ and row["cameras"] == 1]
    names = list(dict.fromkeys(map(resolution, found)))
    nodes = [node for node in colours if any(node_name(row) == node for row in found)]
    width = 0.8 / max(len(nodes), 1)
    for number, node in enumerate(nodes):
        for row in found:
            if node_name(row) == node and row["own_cost_ms"]["p50"] is not None:
                x = names.index(resolution(row)) + (number + 0.5) * width - 0.4
                cost = row["own_cost_ms"]["p50"]
                bar = axes.bar(x, cost, 0.92 * width, color=colours[node])
                axes.bar_label(bar, fmt="%.1f", fontsize=8)
    texts = list(names)
    for name, goal in OWN_COST_GOALS.items():
        if name in names:
            x = names.index(name)
            axes.hlines(goal, x - 0.45, x + 0.45, "black", "--", lw=1)
            texts[x] = f"{name}\ngoal: {goal:g}"
    axes.set_xticks(range(len(names)), texts)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylabel("end to end minus inference, p50, ms")
    axes.set_title(f"Own cost, one camera at {OWN_COST_RATE_HZ} Hz")
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
