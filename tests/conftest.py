# SPDX-License-Identifier: Apache-2.0
"""Fixtures for every test, and a check that the tests leave their environment as it was."""

import importlib.metadata
import itertools
import os
import signal
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ctxseg_ros.model.model_file import ClassInfo, write_metadata

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = pytest.StashKey[set[str]]()


def environment() -> set[str]:
    """The packages and the commands of the environment that runs the tests."""
    packages = {
        f"{item.metadata['Name']} {item.version}" for item in importlib.metadata.distributions()
    }
    return packages | {path.name for path in Path(sysconfig.get_path("scripts")).iterdir()}


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[ENVIRONMENT] = environment()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run if a test installed or removed something."""
    changed = session.config.stash[ENVIRONMENT] ^ environment()
    if changed and not hasattr(session.config, "workerinput"):
        print(f"\nThe tests changed their own environment: {', '.join(sorted(changed))}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session", autouse=True)
def heeded_signals() -> None:
    """Signals as a terminal leaves them: nohup, or `&` in a script, has some ignored, and so would
    every process that a test starts."""
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGTERM, signal.SIG_DFL),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of the data sets; skips the test where it is missing."""
    path = Path(os.environ.get("CTXSEG_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no data at {path}: set CTXSEG_DATA")
    return path


@pytest.fixture(scope="session")
def model_factory(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """make(...) -> path of a new, tiny, valid model file; the arguments are those of `tiny_model`.

    `edit(model)` may break the graph before it is written, `path` says where to.
    """
    folder = tmp_path_factory.mktemp("models")
    number = itertools.count()

    def make(
        *,
        edit: Callable[[onnx.ModelProto], Any] | None = None,
        path: Path | None = None,
        **options: Any,
    ) -> Path:
        model = tiny_model(**options)
        if edit is not None:
            edit(model)
        path = path or folder / f"tiny{next(number)}.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    return make


def tiny_classes(count: int) -> list[ClassInfo]:
    return [ClassInfo(i, f"class {i}", (i, 255 - i, 7 * i % 256)) for i in range(count)]


def tiny_model(
    *,
    name: str = "tiny",
    task: str = "semantic",
    classes: int | Sequence[ClassInfo] = 4,
    stride: int = 16,
    size: tuple[int, int] = (32, 48),
    fixed: bool = False,
    opset: int = 17,
    source: dict[str, Any] | None = None,
    thresholds: Sequence[float] | None = None,
) -> onnx.ModelProto:
    """A model file that follows the contract.

    Labels: the number of thresholds that R + G + B exceeds; by default they split 0..765 evenly
    over the classes. Confidence: the mean of R, G and B, rounded down. Attention: for the three
    heads the means of R, G and B over each patch, as shares.
    """
    if isinstance(classes, int):
        classes = tiny_classes(0 if task == "attention" else classes)
    if thresholds is None:
        thresholds = np.linspace(0, 765, len(classes) + 1)[1:-1]
    sides = list(size) if fixed else ["height", "width"]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, [1, *sides, 3])
    nodes = [helper.make_node("Cast", ["image"], ["colours"], to=TensorProto.FLOAT)]
    constants = {"channel": np.array([3], np.int64)}
    if task == "attention":
        constants["axes"] = np.array([2, 3], np.int64)
        nodes += [
            helper.make_node("Transpose", ["colours"], ["planes"], perm=[0, 3, 1, 2]),
            helper.make_node(
                "AveragePool",
                ["planes"],
                ["patches"],
                kernel_shape=[stride, stride],
                strides=[stride, stride],
            ),
            helper.make_node("ReduceSum", ["patches", "axes"], ["sums"], keepdims=1),
            helper.make_node("Div", ["patches", "sums"], ["attention"]),
        ]
        grid = [side // stride for side in size] if fixed else ["rows", "columns"]
        outputs = [helper.make_tensor_value_info("attention", TensorProto.FLOAT, [1, 3, *grid])]
    else:
        constants |= {
            "thresholds": np.asarray(thresholds, np.float32),
            "third": np.array(1 / 3, np.float32),
        }
        nodes += [
            helper.make_node("ReduceSum", ["colours", "channel"], ["light"], keepdims=1),
            helper.make_node("Greater", ["light", "thresholds"], ["above"]),
            helper.make_node("Cast", ["above"], ["steps"], to=TensorProto.FLOAT),
            helper.make_node("ReduceSum", ["steps", "channel"], ["ids"], keepdims=0),
            helper.make_node("Cast", ["ids"], ["labels"], to=TensorProto.UINT8),
            helper.make_node("ReduceSum", ["colours", "channel"], ["flat"], keepdims=0),
            helper.make_node("Mul", ["flat", "third"], ["mean"]),
            helper.make_node("Cast", ["mean"], ["confidence"], to=TensorProto.UINT8),
        ]
        outputs = [
            helper.make_tensor_value_info(output, TensorProto.UINT8, [1, *sides])
            for output in ("labels", "confidence")
        ]
    stored = [numpy_helper.from_array(value, key) for key, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", [image], outputs, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    write_metadata(
        model,
        name=name,
        task=task,
        classes=classes,
        stride=stride,
        size=size,
        source={"data": "none", "licence": "Apache-2.0"} if source is None else source,
    )
    return model
