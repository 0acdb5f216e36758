# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of the pages from the code and from benchmarks/results.

``python docs/tables.py`` after a parameter, a topic, a launch argument, a command, a model or a
result was changed; a test compares the pages with the code. A table stands between the lines
``<!-- BEGIN name -->`` and ``<!-- END name -->`` of its page. Needs the extras ros and cpu.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))  # as a script it sees its own folder only

from ctxseg_ros.image.encodings import ENCODINGS  # noqa: E402
from ctxseg_ros.model import store  # noqa: E402
from ctxseg_ros.model.model_file import format_size  # noqa: E402
from ctxseg_ros.ros import camera, report  # noqa: E402
from ctxseg_ros.ros.camera_output import IMAGES  # noqa: E402
from ctxseg_ros.ros.parameters import Setting  # noqa: E402
from ctxseg_ros.ros.settings import SETTINGS  # noqa: E402
from training.__main__ import COMMANDS  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
#: Topics that no table of the code describes: name, type, description.
INPUTS = (
    ("image", "Image", "the camera's frames"),
    (
        "image/compressed",
        "CompressedImage",
        "read instead of `image` with `image_transport: compressed`: JPEG or PNG, also of Bayer "
        "mosaics (`bayer_rggb8; png compressed `). It follows a remapping of `image`; a remapping "
        "of `image/compressed` itself takes precedence",
    ),
    ("camera_info", "CameraInfo", "optional"),
)
OTHER_OUTPUTS = (
    ("~/labels/compressed", "CompressedImage", "the labels as PNG"),
    ("~/camera_info", "CameraInfo", "the camera's, with the header of the labels"),
    (
        "~/label_info",
        "vision_msgs/LabelInfo",
        "latched; lists 255 as `UNLABELED` if it can occur; published only if vision_msgs is "
        "installed, otherwise use the parameter `class_names`",
    ),
    ("/diagnostics", "DiagnosticArray", "1 Hz, see [Diagnostics](#diagnostics)"),
)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], right: Sequence[int] = ()) -> str:
    """A Markdown table; the columns of `right` are aligned to the right."""
    rules = ["--:" if column in right else "---" for column in range(len(head))]
    lines = [head, rules, *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in cells)} |" for cells in lines)


def default(value: Any) -> str:
    """A default value as it is written in YAML."""
    if value in ("", [""]):
        return "empty"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def parameters(settings: Mapping[str, Setting]) -> str:
    """Name, default, allowed values and description of each parameter."""

    def described(setting: Setting) -> str:
        text = f"{setting.description.replace('|', '/')}."
        if setting.fixed:
            return f"{text} Fixed while the node is configured."
        return f"{text} Read at startup only." if setting.read_only else text

    rows = [
        (f"`{name}`", default(item.default), item.allowed, described(item))
        for name, item in settings.items()
    ]
    return table(("parameter", "default", "allowed", "description"), rows)


def segment_parameters() -> str:
    """The parameters of segment_node, and the one that it sets itself."""
    computed = "| `class_names` | | | Class names by id, for systems without LabelInfo. Set by the "
    return f"{parameters(SETTINGS)}\n{computed}node. |"


def outputs() -> str:
    """The topics that segment_node publishes."""
    rows = [(f"~/{name}", "Image", text) for name, text in IMAGES.items()]
    rows += OTHER_OUTPUTS
    return table(("output", "type", "content"), [(f"`{name}`", *rest) for name, *rest in rows])


def values(*tables: Mapping[str, str], head: str = "value") -> str:
    """Values by name, each with its description."""
    rows = [(f"`{name}`", text) for texts in tables for name, text in texts.items()]
    return table((head, "description"), rows)


@cache
def launch_file(name: str) -> types.ModuleType:
    """A launch file as a module, by ROS's launch or by the stand-in of the tests."""
    runner = module(ROOT / "tests" / "ros" / "run_launch.py")
    runner.use_stand_in_if_missing()
    return module(ROOT / "launch" / name)


def module(path: Path) -> types.ModuleType:
    """A Python file outside the packages."""
    spec = importlib.util.spec_from_file_location(path.name.partition(".")[0], path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def arguments(name: str) -> dict[str, tuple[str | None, str]]:
    """The arguments of a launch file: default (None: it must be given) and description."""
    found = {}
    for item in launch_file(name).ARGUMENTS:
        parts = item.default_value  # of ROS's launch a list of substitutions
        value = None if parts is None else "".join(getattr(part, "text", part) for part in parts)
        if value is not None and Path(value).is_absolute():
            value = Path(value).relative_to(ROOT).as_posix()
        found[item.name] = (value, item.description)
    return found


def launch_arguments(name: str) -> str:
    """Those of segment.launch.py; of another launch file those in which it differs."""
    own = arguments(name)
    if name != "segment.launch.py":
        others = arguments("segment.launch.py")
        own = {key: value for key, value in own.items() if others.get(key) != value}
    rows = [
        (f"`{key}`", "required" if value is None else default(value), text.replace("|", "/"))
        for key, (value, text) in own.items()
    ]
    return table(("argument", "default", "description"), rows)


def commands() -> str:
    """The commands of `python -m training`."""
    rows = [(f"`{name}`", purpose) for name, (_, purpose) in COMMANDS.items()]
    return table(("command", "purpose"), rows)


def measured() -> dict[tuple[str, str, str], dict[str, Any]]:
    """The rows of `ctxseg bench` by model, size and device."""
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for name in ("bench.json", "bench_dino.json"):
        for row in json.loads((RESULTS / name).read_text())["results"]:
            rows[row["model"], row["size"], row["device"]] = row
    return rows


def models() -> str:
    """The shipped models, from their files, with their times at their own size."""
    rows = []
    for name in store.model_names():
        info = store.load(name)
        size = format_size(info.size)
        times = [
            "{p50_ms:.0f} / {p95_ms:.0f}".format(**measured()[name, size, device])
            for device in ("openvino", "cpu")
        ]
        classes = len(info.classes) or "-"
        card = f"[`{name}`](../ctxseg_ros/models/{name}.md)"
        figures = (f"{info.parameters / 1e6:.2f} M", f"{info.path.stat().st_size / 1e6:.1f} MB")
        rows.append((card, info.task, classes, size, *figures, *times))
    head = ("model", "task", "classes", "input size", "parameters", "file")
    return table((*head, "OpenVINO, ms", "ONNX Runtime, ms"), rows, range(2, 8))


def bench() -> str:
    """Every row of `ctxseg bench`."""
    points = ("p50_ms", "p95_ms", "p99_ms", "fps", "load_s", "peak_rss_mb")
    rows = [(*key, *(f"{row[point]:.1f}" for point in points)) for key, row in measured().items()]
    head = ("model", "input size", "device", "p50 ms", "p95 ms", "p99 ms", "frames/s")
    return table((*head, "load s", "peak MB"), rows, range(3, 9))


def result_table(file: str, first_column: str) -> str:
    """The table of a result's Markdown file whose first column has this head."""
    blocks = re.findall(r"(?:^\|.*\|\n?)+", (RESULTS / file).read_text(), re.MULTILINE)
    (found,) = [block for block in blocks if block.startswith(f"| {first_column} |")]
    return found.strip()


PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "node_reference.md": {
        "inputs": lambda: table(
            ("input", "type", "content"), [(f"`{name}`", *rest) for name, *rest in INPUTS]
        ),
        "encodings": lambda: ", ".join(f"`{name}`" for name in ENCODINGS),
        "outputs": outputs,
        "parameters": segment_parameters,
        "diagnostics": lambda: values(report.NODE_VALUES, report.COUNTS, report.CAMERA_VALUES),
        "latencies": lambda: values(report.LATENCIES, head="latency"),
        **{
            name: partial(launch_arguments, name)
            for name in ("segment.launch.py", "demo.launch.py", "two_cameras.launch.py")
        },
        "camera parameters": lambda: parameters(camera.SETTINGS),
        "camera diagnostics": lambda: values(camera.VALUES),
    },
    "models.md": {"models": models},
    "training.md": {"commands": commands},
    "performance.md": {
        "goals": partial(result_table, "pipeline.md", "goal"),
        "pipeline": partial(result_table, "pipeline.md", "node"),
        "bench": bench,
        "clusters": partial(result_table, "paper_figures.md", "clusters"),
        "regions": partial(result_table, "paper_figures.md", "regions"),
        "label efficiency": partial(result_table, "label_efficiency.md", "encoder"),
    },
}


def filled(page: str) -> str:
    """The text of a page with its tables made anew. Raises ValueError if one has no place."""
    text = (DOCS / page).read_text()
    for name, make in PAGES[page].items():
        begin, end = f"<!-- BEGIN {name} -->\n", f"<!-- END {name} -->"
        head, found, rest = text.partition(begin)
        _, found_end, tail = rest.partition(end)
        if not found or not found_end:
            raise ValueError(f"{page} has no place for the table {name}: {begin.strip()} ... {end}")
        text = f"{head}{begin}\n{make()}\n\n{end}{tail}"
    return text


if __name__ == "__main__":
    for page in PAGES:
        (DOCS / page).write_text(filled(page))
