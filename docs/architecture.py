# SPDX-License-Identifier: Apache-2.0
"""Draws ``docs/architecture.svg``, the rooms and which imports which, from the imports themselves.

``python docs/architecture.py`` after a room was added; a test compares the picture with the code.
An arrow that follows from others is left out (A uses B, B uses C: no arrow from A to C).
"""

from __future__ import annotations

import ast
from pathlib import Path

import matplotlib
import networkx as nx
from matplotlib import pyplot
from matplotlib.patches import FancyBboxPatch

ROOT = Path(__file__).resolve().parents[1]
PICTURE = Path(__file__).with_suffix(".svg")
#: What each room is for, in a few words.
PURPOSES = {
    "ctxseg_ros.system": "files, output, machine",
    "ctxseg_ros.model": "model file, store, groups",
    "ctxseg_ros.image": "frames, drawing",
    "ctxseg_ros.refinement": "CRF, merging",
    "ctxseg_ros.inference": "runtimes, engine, Model",
    "ctxseg_ros.realtime": "budget, latency, stamps",
    "ctxseg_ros.ros": "the nodes",
    "ctxseg_ros.demo": "make demo",
    "training.data": "data sets, augmentation",
    "training.losses": "soft N-cut, Lovász, DINO",
    "training.networks": "ViT, U-Net, W-Net",
    "training.evaluation": "scores",
    "training.systems": "the five systems",
    "training.export": "checkpoint to model file",
    "training.clusters": "clusters of features",
    "training.calibration": "temperature of the softmax",
}
#: The column of each room; its row is how many rooms it needs below it.
COLUMNS = {
    "ctxseg_ros.system": 1,
    "ctxseg_ros.model": 1,
    "ctxseg_ros.image": 0,
    "ctxseg_ros.refinement": 1,
    "ctxseg_ros.inference": 1,
    "ctxseg_ros.realtime": 0,
    "ctxseg_ros.ros": 0,
    "ctxseg_ros.demo": 0,
    "training.data": 2,
    "training.losses": 4,
    "training.networks": 3,
    "training.evaluation": 2,
    "training.systems": 3,
    "training.export": 2,
    "training.clusters": 2,
    "training.calibration": 3,
}
BESIDE = {
    "ctxseg_ros.realtime": "ctxseg_ros.inference",
    "training.losses": "training.data",
    "training.networks": "training.data",
}
COLOURS = {"ctxseg_ros": "#dbe9f6", "training": "#fdebd0"}
WIDTH, HEIGHT = 2.3, 0.62


def room_of(module: str) -> str | None:
    """The room that a dotted name is in."""
    return next((room for room in PURPOSES if f"{module}.".startswith(f"{room}.")), None)


def uses() -> set[tuple[str, str]]:
    """Every pair (room, room that a module of it imports)."""
    pairs = set()
    for room in PURPOSES:
        for path in (ROOT / room.replace(".", "/")).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = []
                if isinstance(node, ast.ImportFrom):
                    names = [f"{node.module}.{alias.name}" for alias in node.names]
                elif isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                pairs |= {(room, other) for name in names if (other := room_of(name))}
    return {(one, other) for one, other in pairs if one != other}


def arrows() -> list[tuple[str, str]]:
    """The pairs that do not follow from others, sorted."""
    return sorted(nx.transitive_reduction(nx.DiGraph(sorted(uses()))).edges)


def draw() -> None:
    """Write the picture; the same imports give the same file."""
    matplotlib.rcParams.update({"svg.hashsalt": "rooms", "svg.fonttype": "none"})
    graph = nx.DiGraph(arrows())
    graph.add_nodes_from(PURPOSES)
    rows: dict[str, int] = {}
    for room in reversed(list(nx.topological_sort(graph))):
        rows[room] = max((rows[below] + 1 for below in graph.successors(room)), default=0)
    # They need nothing below them, and belong just below what uses them.
    for room, beside in BESIDE.items():
        rows[room] = rows[beside]
    figure, axes = pyplot.subplots(figsize=(12, 7.5))
    places = {room: (2.6 * COLUMNS[room], rows[room]) for room in PURPOSES}
    for room, (x, y) in places.items():
        package, _, name = room.partition(".")
        box = FancyBboxPatch(
            (x - WIDTH / 2, y - HEIGHT / 2),
            WIDTH,
            HEIGHT,
            boxstyle="round,pad=0,rounding_size=0.08",
            facecolor=COLOURS[package],
            edgecolor="#555555",
        )
        axes.add_patch(box)
        axes.text(x, y + 0.1, name, ha="center", va="center", weight="bold", size=11)
        axes.text(x, y - 0.15, PURPOSES[room], ha="center", va="center", size=8.5)
    for one, other in arrows():
        start, end = places[one], places[other]
        axes.annotate(
            "",
            xy=(end[0] + 0.25 * (start[0] - end[0]) / 2.6, end[1] + HEIGHT / 2),
            xytext=(start[0] + 0.25 * (end[0] - start[0]) / 2.6, start[1] - HEIGHT / 2),
            arrowprops={"arrowstyle": "-|>", "color": "#777777", "shrinkA": 0, "shrinkB": 0},
        )
    top = max(rows.values())
    axes.text(0, top, "ctxseg_ros", size=15, ha="center", color="#3b6ea5")
    axes.text(2.6 * 4, top, "training", size=15, ha="center", color="#b9770e")
    axes.set_xlim(-1.3, 11.7)
    axes.set_ylim(-0.5, top + 0.5)
    axes.axis("off")
    described = "; ".join(f"{one} -> {other}" for one, other in arrows())
    figure.savefig(PICTURE, bbox_inches="tight", metadata={"Date": None, "Description": described})


if __name__ == "__main__":
    draw()
