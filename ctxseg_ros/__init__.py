# SPDX-License-Identifier: Apache-2.0
"""Real-time semantic segmentation for ROS 2: model files, runtimes, nodes.

In Python, without ROS::

    import ctxseg_ros

    with ctxseg_ros.load_model("segmenter_tiny") as model:
        prediction = model.segment(rgb)  # uint8 [height, width, 3], RGB
        prediction.labels  # uint8 [height, width]: class ids, 255 = unlabelled
        prediction.confidence  # uint8 [height, width]: 255 x the probability of that class
        model.class_names, model.colours  # by id
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ctxseg_ros.inference.pipeline import Model as Model
    from ctxseg_ros.inference.pipeline import load_model as load_model
    from ctxseg_ros.model.prediction import Prediction as Prediction

    __version__: str

__all__ = ["Model", "Prediction", "load_model"]

_HOMES = {
    "Model": "ctxseg_ros.inference.pipeline",
    "Prediction": "ctxseg_ros.model.prediction",
    "load_model": "ctxseg_ros.inference.pipeline",
}


def __getattr__(name: str) -> Any:
    # Launch files import this package, and must not wait for OpenCV and onnx.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "__version__":  # as installed; package.xml has the number
        return import_module("importlib.metadata").version("ctxseg_ros")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
