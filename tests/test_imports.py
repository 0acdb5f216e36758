# SPDX-License-Identifier: Apache-2.0
"""Imports point one way: demo -> ros -> core <- training, and one way within each."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
SYSTEM, MODEL, IMAGE, REFINEMENT, INFERENCE, REALTIME, ROS, DEMO = (
    f"ctxseg_ros.{room}"
    for room in ("system", "model", "image", "refinement", "inference", "realtime", "ros", "demo")
)
CORE = {SYSTEM, MODEL, IMAGE, REFINEMENT, INFERENCE, REALTIME}
DATA, LOSSES, NETWORKS, EVALUATION, SYSTEMS, EXPORT, CLUSTERS, CALIBRATION = (
    f"training.{room}"
    for room in (
        *("data", "losses", "networks", "evaluation", "systems", "export", "clusters"),
        "calibration",
    )
)
COMMAND, HELPERS, PLACES = "ctxseg_ros.command", "training.commands", "training.places"
#: What of ours each room may import, besides itself; docs/architecture.md says what lives there.
ROOMS = {
    SYSTEM: set(),
    MODEL: {SYSTEM},
    IMAGE: {SYSTEM, MODEL},
    REFINEMENT: {MODEL},
    INFERENCE: {SYSTEM, MODEL, IMAGE, REFINEMENT},
    REALTIME: set(),
    ROS: CORE,
    DEMO: CORE | {ROS, COMMAND},
    DATA: {SYSTEM, MODEL, IMAGE, COMMAND, PLACES},
    LOSSES: set(),
    NETWORKS: {SYSTEM, MODEL, PLACES},
    EVALUATION: CORE | {COMMAND, PLACES, DATA, NETWORKS},
    SYSTEMS: {SYSTEM, MODEL, IMAGE, COMMAND, DATA, LOSSES, NETWORKS, EVALUATION},
    EXPORT: CORE | {COMMAND, HELPERS, PLACES, DATA, NETWORKS, EVALUATION, SYSTEMS},
    CALIBRATION: CORE | {COMMAND, HELPERS, DATA, EVALUATION, EXPORT},
    CLUSTERS: CORE | {COMMAND, HELPERS, PLACES, DATA, NETWORKS, EVALUATION, SYSTEMS, EXPORT},
}
#: Libraries that a part of the project must run without.
FORBIDDEN = {
    "core": {"torch", "torchvision", "timm", "lightning", "rclpy"},
    "ros": {"torch", "torchvision", "timm", "lightning"},
    "training": {"rclpy"},
}


def room_of(module: str) -> str:
    """The room that a module of ours is in; the module itself if it is in none."""
    return next((room for room in ROOMS if f"{module}.".startswith(f"{room}.")), module)


def imported(path: Path) -> set[str]:
    """Every module that a file imports, at any depth, each with the packages that it is in."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = node.module or ""
            if node.level:
                parts = path.relative_to(ROOT).with_suffix("").parts[: -node.level]
                package = ".".join((*parts, package)).rstrip(".")
            modules.add(package)
            modules.update(f"{package}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            modules.update(arg.value for arg in node.args if isinstance(arg, ast.Constant))
    parts = [module.split(".") for module in modules]
    return {".".join(part[:end]) for part in parts for end in range(1, len(part) + 1)}


def files_of(room: str) -> list[Path]:
    return sorted((ROOT / room.replace(".", "/")).rglob("*.py"))


def is_module(name: str) -> bool:
    """Whether a dotted name is a module or a package of ours."""
    path = ROOT / name.replace(".", "/")
    ours = name.startswith(("ctxseg_ros.", "training."))
    return ours and (path.with_suffix(".py").is_file() or path.is_dir())


@pytest.mark.parametrize("room", ROOMS)
def test_room_imports_only_what_it_may(room):
    files = files_of(room)
    assert files
    for path in files:
        ours = {name for name in imported(path) if is_module(name)}
        outside = {room_of(name) for name in ours} - {room}
        assert outside <= ROOMS[room], path


def test_every_folder_is_a_room():
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for package in ("ctxseg_ros", "training")
        for path in (ROOT / package).glob("*/__init__.py")
    }
    assert folders == set(ROOMS)


@pytest.mark.parametrize("part", FORBIDDEN)
def test_each_part_runs_without_the_libraries_of_the_others(part):
    rooms = {
        "core": CORE | {"ctxseg_ros"},
        "ros": {ROS, DEMO},
        "training": {"training"},
    }[part]
    files = {path for room in rooms for path in files_of(room)}
    if part == "core":
        files -= {*files_of(ROS), *files_of(DEMO)}
    broken = {str(path.relative_to(ROOT)): imported(path) & FORBIDDEN[part] for path in files}
    assert {path: found for path, found in broken.items() if found} == {}


def test_the_check_sees_every_kind_of_import(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    folder = tmp_path / "ctxseg_ros" / "runtimes"
    folder.mkdir(parents=True)
    file = folder / "x.py"
    file.write_text(
        "import a.b\nfrom c import d\nfrom .. import ros\nfrom .e import f\n"
        "def late():\n    import torch\n    importlib.import_module('rclpy')\n"
    )
    found = imported(file)
    assert {"a", "a.b", "c", "ctxseg_ros.ros", "ctxseg_ros.runtimes.e", "torch", "rclpy"} <= found


def test_the_command_loads_neither_torch_nor_ros():
    code = (
        "import sys, ctxseg_ros.cli\n"
        "late = {'torch', 'rclpy', 'training', 'openvino', 'onnxruntime'}\n"
        "print(*sorted(late & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""
