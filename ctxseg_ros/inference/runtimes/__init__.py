# SPDX-License-Identifier: Apache-2.0
"""Open a model on a device: TensorRT, CUDA or CPU through ONNX Runtime, or OpenVINO."""

import hashlib
import logging
from collections.abc import Mapping

from ctxseg_ros.inference.runtimes import onnx_runtime, open_vino
from ctxseg_ros.inference.runtimes.base import Runtime, RuntimeUnavailable, warm_up
from ctxseg_ros.inference.runtimes.precision import PRECISIONS
from ctxseg_ros.model.model_file import ModelFileError, ModelInfo, format_size, read_fix
from ctxseg_ros.system.files import shown

__all__ = [
    "DEVICES",
    "PRECISIONS",
    "Runtime",
    "RuntimeUnavailable",
    "check_device",
    "devices",
    "open_runtime",
]

DEVICES = ("tensorrt", "cuda", "openvino", "cpu")
"""Best first, as far as one can know without measuring."""

_COMPUTES_IN = {
    "tensorrt": ("fp32", "fp16"),
    "cuda": ("fp32",),
    "openvino": ("fp32", "bf16"),
    "cpu": ("fp32",),
}

LOGGER = logging.getLogger("ctxseg_ros")


def devices() -> dict[str, str | None]:
    """Each device, best first: None if it is there, else why not and what installs it."""
    return {name: _why_not(name) for name in DEVICES}


def check_device(device: str) -> None:
    """Raise RuntimeUnavailable if a device, "auto" or one of DEVICES, is not there."""
    reasons = devices()
    if device != "auto" and reasons[device] is not None:
        available = ", ".join(name for name, reason in reasons.items() if reason is None)
        raise RuntimeUnavailable(
            f"device {device} is not available: {reasons[device]}. "
            f"Available devices: {available or 'none'}"
        )


def open_runtime(
    info: ModelInfo,
    size: tuple[int, int] | None = None,
    device: str = "auto",
    log: logging.Logger = LOGGER,
    precision: str = "auto",
) -> Runtime:
    """Open a model at `size` (height, width; None: its own) and warm it up.

    `device` is one of DEVICES, or "auto": the best one that opens; the log says which it is and
    why not the better ones. `precision` is one of PRECISIONS, or "auto": bf16 or fp16 where the
    device is faster in it and it costs no accuracy, see `precision.cost`; else fp32.

    Raises ValueError for a size, device or precision that does not exist, RuntimeUnavailable if
    the device is not there or does not compute in that precision, ModelFileError if the file is
    gone, has changed since `info` was read, or its outputs are not what it promises.
    """
    if device != "auto" and device not in DEVICES:
        raise ValueError(f"no device is called {device!r}; choose auto, {', '.join(DEVICES)}")
    if precision != "auto" and precision not in PRECISIONS:
        raise ValueError(
            f"no precision is called {precision!r}; choose auto, {', '.join(PRECISIONS)}"
        )
    size = size or info.fixed_size or info.size
    info.check_size(size)
    model = _read(info)
    reasons: dict[str, str] = {}
    for name in DEVICES if device == "auto" else (device,):
        reason = _why_not(name, precision)
        if reason is None:
            try:
                runtime = _open(name, model, info, size, log, precision)
            except ModelFileError:
                raise
            except Exception as error:  # each library raises its own kinds
                reason = f"it did not open: {' '.join(str(error).split())}"
                if device == "auto":
                    log.warning("device %s: %s", name, reason)
            else:
                sentence = f"{info.name} at {format_size(size)} runs on {name}"
                sentence += f" ({runtime.precision})"
                if device == "auto":
                    runtime.reason = _not_better(reasons) or "the best there is"
                    sentence += f", {runtime.reason}"
                else:
                    runtime.reason = "asked for by name"
                log.info(sentence)
                return runtime
        reasons[name] = reason
    failed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    others = [name for name in DEVICES if name not in reasons and _why_not(name, precision) is None]
    raise RuntimeUnavailable(
        f"model {info.name} cannot run on {device}. {failed}. "
        f"Devices that are there: {', '.join(others) or 'none'}"
    )


def _not_better(reasons: Mapping[str, str]) -> str:
    """Why it is none of these devices: each reason once, with all that it holds for."""
    devices_by_reason: dict[str, list[str]] = {}
    for device, reason in reasons.items():
        devices_by_reason.setdefault(reason, []).append(device)
    return "; ".join(
        f"not {' or '.join(names)}: {reason}" for reason, names in devices_by_reason.items()
    )


def _why_not(device: str, precision: str = "auto") -> str | None:
    reason = open_vino.why_not() if device == "openvino" else onnx_runtime.why_not(device)
    if reason is not None or precision == "auto":
        return reason
    if precision not in _COMPUTES_IN[device]:
        return f"it computes in {' or '.join(_COMPUTES_IN[device])}, not in {precision}"
    return open_vino.bf16_missing() if precision == "bf16" else None


def _read(info: ModelInfo) -> bytes:
    try:
        data = info.path.read_bytes()
    except OSError as error:
        raise ModelFileError(
            f"{shown(info.path)}: cannot read the model file: {error.strerror}. {read_fix(error)}"
        ) from error
    if hashlib.sha256(data).hexdigest() != info.sha256:
        raise ModelFileError(f"{shown(info.path)}: has changed since it was checked. Load it again")
    return data


def _open(
    device: str,
    model: bytes,
    info: ModelInfo,
    size: tuple[int, int],
    log: logging.Logger,
    precision: str,
) -> Runtime:
    runtime: Runtime
    if device == "openvino":
        runtime = open_vino.open_openvino(model, info, size, log, precision)
    elif device == "tensorrt":
        runtime = onnx_runtime.open_tensorrt(model, info, size, log, precision)
    else:
        runtime = onnx_runtime.OnnxRuntime(model, info, size, device)
    warm_up(runtime)
    return runtime
