# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime: on the CPU, on an NVIDIA GPU through CUDA, and on one through TensorRT."""

import contextlib
import ctypes
import ctypes.util
import importlib
import io
import logging
import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctxseg_ros.inference.runtimes.base import (
    RuntimeUnavailable,
    check_image,
    pattern_image,
    to_prediction,
)
from ctxseg_ros.inference.runtimes.precision import cost, measure
from ctxseg_ros.model.model_file import ModelInfo, format_size
from ctxseg_ros.model.prediction import Prediction
from ctxseg_ros.system.machine import available_cores, gpu_name

PROVIDERS = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
_INSTALL_GPU = 'pip uninstall onnxruntime; pip install "onnxruntime-gpu[cuda,cudnn]"'
_INSTALL = {
    "tensorrt": f"{_INSTALL_GPU}; pip install tensorrt",
    "cuda": _INSTALL_GPU,
    "cpu": "pip install onnxruntime",
}


def why_not(device: str) -> str | None:
    """None if `device` (tensorrt, cuda, cpu) seems to be there, else why not and the fix."""
    if device != "cpu" and gpu_name() is None:
        return "no NVIDIA GPU with a working driver (nvidia-smi must list one)"
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError as error:
        return f"onnxruntime cannot be imported: {error} ({_INSTALL[device]})"
    provider = PROVIDERS[device]
    if provider not in onnxruntime.get_available_providers():
        return f"the installed onnxruntime is built without {provider} ({_INSTALL[device]})"
    if device == "tensorrt" and tensorrt_version() is None:
        return f"TensorRT is not installed ({_INSTALL[device]})"
    return None


class OnnxRuntime:
    """A model in an ONNX Runtime session at a fixed size; see `Runtime`."""

    reason = ""

    def __init__(
        self,
        model: bytes,
        info: ModelInfo,
        size: tuple[int, int],
        device: str,
        fp16: bool = False,
    ) -> None:
        """Raises RuntimeUnavailable if ONNX Runtime leaves the device's provider out."""
        import onnxruntime

        self.info = info
        self.size = size
        self.device = device
        self.precision = "fp16" if fp16 else "fp32"
        self._names = list(info.outputs)
        if device != "cpu":
            # CUDA and cuDNN from pip lie outside the loader's path. It reports by print.
            with contextlib.redirect_stdout(io.StringIO()):
                onnxruntime.preload_dlls()
        self._session: Any = onnxruntime.InferenceSession(
            model,
            session_options(size),
            providers=providers(device, info, size, fp16),
            enable_fallback=0,
        )
        # A provider whose libraries do not load is dropped without an exception.
        if PROVIDERS[device] not in self._session.get_providers():
            raise RuntimeUnavailable(
                f"ONNX Runtime left {PROVIDERS[device]} out: its libraries do not load; what it "
                f"printed names them ({_INSTALL[device]})"
            )

    def run(self, image: NDArray[np.uint8]) -> Prediction:
        """See `Runtime.run`."""
        if self._session is None:
            raise RuntimeError("the runtime is closed")
        check_image(image, self.size)
        outputs = self._session.run(self._names, {"image": image[None]})
        return to_prediction(dict(zip(self._names, outputs, strict=True)))

    def close(self) -> None:
        """See `Runtime.close`."""
        self._session = None


def session_options(size: tuple[int, int]) -> Any:
    """onnxruntime.SessionOptions that pin the model to `size`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_free_dimension_override_by_name("height", size[0])
    options.add_free_dimension_override_by_name("width", size[1])
    options.intra_op_num_threads = available_cores()
    options.log_severity_level = 3
    # Threads that spin while they wait for work take the cores that the camera driver, DDS and
    # the other nodes need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def providers(
    device: str, info: ModelInfo, size: tuple[int, int], fp16: bool
) -> list[tuple[str, dict[str, str]]]:
    """The execution providers of `device` and those behind it, with their options."""
    cpu: tuple[str, dict[str, str]] = (PROVIDERS["cpu"], {})
    if device == "cpu":
        return [cpu]
    # TF32 would round products to 10 bits and still be called fp32.
    cuda = (PROVIDERS["cuda"], {"use_tf32": "0"})
    if device == "cuda":
        return [cuda, cpu]
    cache = str(engine_cache(info, size, fp16))
    tensorrt = {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": cache,
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": cache,
        "trt_fp16_enable": str(fp16),
        "trt_layer_norm_fp32_fallback": str(fp16),
    }
    return [(PROVIDERS["tensorrt"], tensorrt), cuda, cpu]


def engine_cache(info: ModelInfo, size: tuple[int, int], fp16: bool) -> Path:
    """The folder for this model's TensorRT engines.

    An engine is valid for one model, size, precision, ONNX Runtime, TensorRT and GPU only.
    """
    import onnxruntime

    key = "-".join(
        (
            info.sha256[:16],
            format_size(size),
            "fp16" if fp16 else "fp32",
            f"ort{onnxruntime.__version__}",
            f"trt{tensorrt_version()}",
            str(gpu_name()),
        )
    )
    # The XDG specification has relative paths ignored.
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    root = home if home.is_absolute() else Path.home() / ".cache"
    return root / "ctxseg_ros" / "tensorrt" / re.sub(r"[^A-Za-z0-9.-]+", "_", key)


def open_tensorrt(
    model: bytes,
    info: ModelInfo,
    size: tuple[int, int],
    log: logging.Logger,
    precision: str = "auto",
) -> OnnxRuntime:
    """Open in `precision`; "auto": in fp16, unless that changes what the CPU gives in fp32.

    TensorRT releases have built engines that are plainly wrong. So each engine is compared on a
    test image, by the limits that bf16 is judged by; see `precision.cost`.
    """
    if precision != "auto":
        return _build(model, info, size, precision == "fp16", log)
    runtime = _build(model, info, size, True, log)
    reason = _engine_fault(runtime, model)
    if reason is None:
        return runtime
    log.warning(f"{info.name}: TensorRT in fp32, because {reason}")
    runtime.close()
    return _build(model, info, size, False, log)


def _engine_fault(runtime: OnnxRuntime, model: bytes) -> str | None:
    """Why an fp16 engine must not be used; None if it gives what the CPU gives in fp32."""
    info, image = runtime.info, pattern_image(runtime.size)
    reference = OnnxRuntime(model, info, runtime.size, "cpu")
    measured = measure(reference.run(image), runtime.run(image))
    reference.close()
    return cost(measured, info.task, "fp16")


def _build(
    model: bytes, info: ModelInfo, size: tuple[int, int], fp16: bool, log: logging.Logger
) -> OnnxRuntime:
    cache = engine_cache(info, size, fp16)
    cache.mkdir(parents=True, exist_ok=True)
    if any(cache.glob("*.engine")):
        return OnnxRuntime(model, info, size, "tensorrt", fp16)
    log.info(f"building a TensorRT engine for {info.name}: this takes minutes, once; in {cache}")
    start = time.monotonic()
    runtime = OnnxRuntime(model, info, size, "tensorrt", fp16)
    log.info(f"the TensorRT engine for {info.name} took {time.monotonic() - start:.0f} s to build")
    return runtime


def tensorrt_version() -> str | None:
    """TensorRT's version, None if it is not installed."""
    try:
        # Importing the wheel loads its libraries too, which ONNX Runtime then finds.
        return str(importlib.import_module("tensorrt").__version__)
    except ImportError:
        name = ctypes.util.find_library("nvinfer")
    if name is None:
        return None
    try:
        return str(ctypes.CDLL(name).getInferLibVersion())
    except OSError:
        return None
