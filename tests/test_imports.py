# SPDX-License-Identifier: Apache-2.0
"""Imports point one way: ros -> core <- training."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
ROS = sorted((ROOT / "ctxseg_ros" / "ros").rglob("*.py"))
CORE = sorted(set((ROOT / "ctxseg_ros").rglob("*.py")) - set(ROS))
TRAINING = sorted((ROOT / "training").rglob("*.py"))


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


@pytest.mark.parametrize(
    ("files", "forbidden"),
    [
        (
            CORE,
            {"torch", "torchvision", "timm", "lightning", "rclpy", "training", "ctxseg_ros.ros"},
        ),
        (ROS, {"torch", "torchvision", "timm", "lightning", "training"}),
        (TRAINING, {"rclpy", "ctxseg_ros.ros"}),
    ],
    ids=["core", "ros", "training"],
)
def test_layer_imports_only_what_it_may(files, forbidden):
    assert files
    broken = {str(path.relative_to(ROOT)): imported(path) & forbidden for path in files}
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
    assert {
        "a",
        "a.b",
        "c",
        "ctxseg_ros.ros",
        "ctxseg_ros.inference.runtimes.e",
        "torch",
        "rclpy",
    } <= found


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
