# SPDX-License-Identifier: Apache-2.0
"""OpenVINO on the CPU, in bf16 where that is faster and is known not to cost accuracy."""

import functools
import importlib
import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctxseg_ros.inference.runtimes.base import check_image, fastest_ms, to_prediction
from ctxseg_ros.inference.runtimes.precision import cost, recorded
from ctxseg_ros.model.model_file import ModelInfo
from ctxseg_ros.model.prediction import Prediction

_chosen: dict[str, str] = {}  # SHA-256 of a model -> the precision that was faster here


def why_not() -> str | None:
    """None if OpenVINO is there, else the reason with what installs it."""
    try:
        importlib.import_module("openvino")
    except ImportError as error:
        return f"openvino cannot be imported: {error} (pip install openvino)"
    return None


@functools.cache
def core() -> Any:
    """The process's one ``openvino.Core``, which lives as long as the process.

    The CPU plugin of each Core gives the thread that loads it a stack for signal handlers (AMX
    needs a large one) and takes it back with the Core. Of two Cores, the one made first leaves the
    other one's stack behind if it also goes first: the next signal, such as Ctrl-C, is then a
    segmentation fault.
    """
    import openvino

    return openvino.Core()


def capabilities() -> list[str]:
    """What the processor is made for, in OpenVINO's words: FP32, BF16, ..."""
    return core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def bf16_missing() -> str | None:
    """None if the processor has bf16, else why bf16 cannot be used."""
    return None if "BF16" in capabilities() else "the processor has no bf16"


class OpenVinoRuntime:
    """A model compiled by OpenVINO at a fixed size and precision (fp32, bf16); see `Runtime`."""

    device = "openvino"
    reason = ""

    def __init__(
        self, model: bytes, info: ModelInfo, size: tuple[int, int], precision: str = "fp32"
    ) -> None:
        self.info = info
        self.size = size
        self.precision = precision
        graph = core().read_model(model)
        graph.reshape({"image": [1, *size, 3]})
        # Left to itself OpenVINO takes bf16 wherever the processor has it.
        hint = {"bf16": "bf16", "fp32": "f32"}[precision]
        compiled = core().compile_model(
            graph, "CPU", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
        )
        self._outputs = {name: compiled.output(name) for name in info.outputs}
        self._request = compiled.create_infer_request()

    def run(self, image: NDArray[np.uint8]) -> Prediction:
        """See `Runtime.run`."""
        if self._request is None:
            raise RuntimeError("the runtime is closed")
        check_image(image, self.size)
        # The input is read where it lies; the outputs are copied out of the request's buffers.
        outputs = self._request.infer({"image": image[None]}, share_inputs=True)
        return to_prediction({name: outputs[port] for name, port in self._outputs.items()})

    def close(self) -> None:
        """See `Runtime.close`."""
        self._request = None


def open_openvino(
    model: bytes,
    info: ModelInfo,
    size: tuple[int, int],
    log: logging.Logger,
    precision: str = "auto",
) -> OpenVinoRuntime:
    """Open in `precision`; "auto": the faster of fp32 and, where the model may run in it, bf16.

    Processors with AMX or fast AVX-512 bf16 gain nearly half from it; others have the
    instructions and lose (one Xeon: 113 ms against 69 ms), so it is measured, once for a model:
    its other sizes take the precision that the first one took.
    """
    if precision != "auto":
        return OpenVinoRuntime(model, info, size, precision)
    if info.sha256 not in _chosen:
        runtime = _open_the_faster(model, info, size, log)
        _chosen[info.sha256] = runtime.precision
        return runtime
    return OpenVinoRuntime(model, info, size, _chosen[info.sha256])


def _open_the_faster(
    model: bytes, info: ModelInfo, size: tuple[int, int], log: logging.Logger
) -> OpenVinoRuntime:
    full = OpenVinoRuntime(model, info, size, "fp32")
    if reason := bf16_missing() or cost(recorded(info), info.task, "bf16"):
        log.info(f"{info.name}: fp32, because {reason}")
        return full
    half = OpenVinoRuntime(model, info, size, "bf16")
    costs_ms = dict(zip((full, half), fastest_ms((full, half)), strict=True))
    faster, slower = sorted(costs_ms, key=lambda runtime: costs_ms[runtime])
    log.info(
        f"{info.name}: {faster.precision}, because it takes {costs_ms[faster]:.1f} ms and "
        f"{slower.precision} {costs_ms[slower]:.1f} ms"
    )
    slower.close()
    return faster
