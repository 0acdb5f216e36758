# SPDX-License-Identifier: Apache-2.0
"""The arguments that the launch files share, and their checks.

Every parameter of segment_node is a launch argument of the same name; one that is not given leaves
the parameter as params_file has it. The values reach the node as text, which its parameters take,
and the node rejects bad ones with a reason. `ros2 launch` runs in an interpreter that may have
neither onnx nor OpenCV, so this module does not import the node's own table of parameters.
"""

import os
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import launch.logging
from launch import LaunchContext
from launch.actions import DeclareLaunchArgument
from launch_ros.parameter_descriptions import ParameterValue

from ctxseg_ros.ros import startup
from ctxseg_ros.system.spelling import nearest

PARAMETERS = {
    "model": "name of a shipped model, or path of an .onnx file",
    "device": "device that the model runs on",
    "input_sizes": "input sizes HxW of the model, largest first, such as 352x480,256x352; "
    "auto: the model's own and three smaller ones",
    "latency_budget_ms": "camera stamp to published labels, 95th percentile; 0: no budget",
    "max_age_ms": "frames older than this are dropped before inference; 0: off",
    "min_confidence": "0-1; pixels with a lower confidence become 255, unlabelled",
    "label_groups": "path of a YAML file that merges the model's classes",
    "refinement": "aligns labels with image edges",
    "merge_level": "0-1; refinement:=merge joins regions across boundaries up to this strength",
    "attention_mass": "0-1; attention models: share of the attention in attention_mask",
    "attention_head": "attention models: head to publish; -1: the mean of all heads",
    "overlay_alpha": "0-1; opacity of the colours in the overlay",
    "cameras": "namespaces of the cameras that share the model, such as front,left",
    "image_transport": "raw, or compressed: JPEG or PNG on IMAGE/compressed",
    "input_reliability": "QoS to request; auto: the one that the camera publishes with",
    "input_encoding": "pixel format of frames whose encoding does not state it, such as bgr8",
    "input_bits": "8-16; bits actually used in 16-bit frames",
    "always_infer": "true: run the model even while no output has a subscriber",
    "autostart": "true or false: configure and activate at startup",
}
"""The node's parameters by name, with the descriptions for --show-args."""

CHOICES = {
    "device": ("auto", "tensorrt", "cuda", "openvino", "cpu"),
    "refinement": ("none", "crf", "merge"),
    "image_transport": ("raw", "compressed"),
    "input_reliability": ("auto", "reliable", "best_effort"),
}

PROCESS = {
    "namespace": ("", "namespace of every node"),
    "log_level": ("", "debug, info, warn, error or fatal"),
    "respawn": ("false", "true or false: restart segment_node when it ends"),
    "rviz": (
        "false",
        "true or false: show camera and labels in RViz, and /diagnostics in rqt_runtime_monitor, "
        "if they are installed",
    ),
    "shm": (
        "true",
        "true or false: use the Fast DDS profile with the most shared memory that fits in "
        "/dev/shm; the camera's process needs the same profile (config/fastdds.xml)",
    ),
}
"""Arguments that are no parameters of the node: name, default, description."""

# ros2/launch and launch_ros read these wherever they are set.
_LAUNCHS_OWN = (
    *("launch-prefix", "launch-prefix-filter", "emulate_tty", "sigterm_timeout", "sigkill_timeout"),
    *("ros_namespace", "global_params", "ros_remaps"),
)
_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")
_NULL = ("null", "Null", "NULL", "~")
_LEVELS = ("debug", "info", "warn", "error", "fatal")
_RESPAWN_DELAY_S = 2.0


def parameter_arguments(
    without: Collection[str] = (), **defaults: str
) -> list[DeclareLaunchArgument]:
    """Arguments for the node's parameters but those of `without`; `defaults` by name."""
    return [
        DeclareLaunchArgument(
            name,
            default_value=defaults.get(name, ""),
            # launch's own check: before anything starts. The empty text is "not given".
            choices=["", *CHOICES[name]] if name in CHOICES else None,
            description=text if name in defaults else f"{text} (empty: as in params_file)",
        )
        for name, text in PARAMETERS.items()
        if name not in without
    ]


def process_arguments(
    without: Collection[str] = (), **defaults: str
) -> list[DeclareLaunchArgument]:
    """Arguments of PROCESS but those of `without`; `defaults` by name."""
    return [
        DeclareLaunchArgument(
            name, default_value=defaults.get(name, default), description=description
        )
        for name, (default, description) in PROCESS.items()
        if name not in without
    ]


def warn_of_unknown(
    context: LaunchContext, file: str, arguments: Iterable[DeclareLaunchArgument]
) -> None:
    """Name the arguments of the command line that `file`, if it is the one launched, does not have.

    ros2 launch ignores them. Those of a launch file that includes this one are its own business.
    """
    if not _is_launched(file):
        return
    known = [argument.name for argument in arguments]
    for word in context.argv:
        name, separator, _ = word.partition(":=")
        if separator and name not in (*known, *_LAUNCHS_OWN):
            near = nearest(name, known)
            hint = f"did you mean {near}? " if near else ""
            warn(
                f"{Path(file).name} has no argument {name}, so {word} changes nothing: {hint}"
                "--show-args lists the arguments"
            )


def _is_launched(file: str) -> bool:
    """Whether the command line names this launch file, by its path or in this package."""
    path = Path(file)
    return any(
        Path(word).resolve() == path.resolve() or (word == path.name and "ctxseg_ros" in sys.argv)
        for word in sys.argv[1:]
    )


def warn(sentence: str) -> None:
    """Put a warning on the terminal and into the launch log."""
    launch.logging.get_logger("launch.user").warning(sentence)


def switch(values: Mapping[str, str], name: str) -> bool:
    """An argument that is true or false, as Python, YAML and launch write it.

    Raises RuntimeError.
    """
    word = values[name].strip().lower()
    if word not in (*_TRUE, *_FALSE):
        raise RuntimeError(f"{name} must be true or false, not {values[name]!r}")
    return word in _TRUE


def listed(value: Any) -> list[str]:
    """The items of a list in a parameter file, or of a text such as "a,b", "[a, b]" or "['a']";
    none if all of them are empty or the text is YAML's null."""
    if not isinstance(value, list):
        text = str(value or "").strip()
        value = [] if text in _NULL else text.removeprefix("[").removesuffix("]").split(",")
    items = [str(item).strip(" \"'") for item in value]
    return items if any(items) else []


def absolute(path: str) -> str:
    """The path in full, so that messages show where it was looked for."""
    return str(Path(path).expanduser().absolute()) if path else ""


def absolute_source(source: str) -> str:
    """A camera's source: paths in full; indices and URLs as they are."""
    return source if source.isdecimal() or "://" in source else absolute(source)


def existing_file(values: Mapping[str, str], name: str) -> str:
    """The full path of an argument that must be a file. Raises RuntimeError."""
    path = absolute(values[name])
    if not path:
        raise RuntimeError(f"{name} is empty: give the path of a file, or leave the argument out")
    if not os.path.isfile(path):
        what = "is not a file" if os.path.exists(path) else "does not exist"
        raise RuntimeError(f"{name} is {path}, which {what}")
    return path


def given_parameters(values: Mapping[str, str]) -> dict[str, ParameterValue]:
    """The node's parameters that arguments set, as text: YAML would make numbers of names."""
    given = {name: values[name] for name in PARAMETERS if values.get(name, "").strip()}
    for name in given.keys() & {"cameras", "input_sizes"}:
        given[name] = ",".join(listed(given[name]))
    if given.get("model", "").endswith(".onnx"):
        given["model"] = absolute(given["model"])
    if "label_groups" in given:
        given["label_groups"] = absolute(given["label_groups"])
    return {name: ParameterValue(text, value_type=str) for name, text in given.items()}


def log_arguments(values: Mapping[str, str]) -> list[str]:
    """The ROS arguments that set the log level, of all or (NAME:=LEVEL) of one logger.

    Raises RuntimeError.
    """
    text = values["log_level"].strip()
    if not text:
        return []
    if text.rpartition(":=")[2].lower() not in _LEVELS:
        raise RuntimeError(f"log_level must be one of {', '.join(_LEVELS)}, not {text!r}")
    return ["--log-level", text]


def respawning(values: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a Node that start its process again, if the argument asks for it."""
    return {"respawn": switch(values, "respawn"), "respawn_delay": _RESPAWN_DELAY_S}


def full_namespace(values: Mapping[str, str]) -> str:
    """The namespace of the nodes as it will be, with that of an including launch file."""
    own = values["namespace"]
    base = "" if own.startswith("/") else values.get("ros_namespace", "")
    return "/" + "/".join(part.strip("/") for part in (base, own) if part.strip("/"))


def file_parameters(path: str, node: str) -> dict[str, Any]:
    """The parameters that a YAML file of ROS gives to the node of this full name.

    Of several keys that fit the node the last one counts, as in rcl. Raises RuntimeError if the
    file is not such a YAML.
    """
    try:
        sections = startup.sections(path)
    except (OSError, ValueError) as error:
        raise RuntimeError(f"params_file {path} cannot be read: {error}") from None
    if not sections:
        raise RuntimeError(
            f"params_file {path} has no parameters: it needs a node's name (or /**), in it "
            "ros__parameters, and in that the parameters, as config/segment.yaml has them"
        )
    matching = [parameters for name, parameters in sections if startup.matches(name, node)]
    if not matching:
        names = ", ".join(name for name, _ in sections)
        warn(
            f"params_file {path} has parameters for {names}, none for {node}: "
            f"rename the key to {node} or to /**"
        )
    return {name: value for parameters in matching for name, value in parameters.items()}


def check_cameras(cameras: Sequence[str]) -> None:
    """Raises RuntimeError where a camera's name cannot be part of a topic."""
    for camera in cameras:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", camera):
            raise RuntimeError(
                f"cameras holds {camera!r}, which cannot be a name in ROS: use letters, digits and "
                "_, not a digit first, separated by commas, as in cameras:=front,left"
            )
