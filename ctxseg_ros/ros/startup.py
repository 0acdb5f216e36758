# SPDX-License-Identifier: Apache-2.0
"""What a node's process was started with: why it cannot start, and what it would ignore.

Imports no ROS, for ROS may be what is missing.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROS = Path("/opt/ros")
_PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
_ROS_NAMES = re.compile(r"rclpy|rcl_|_msgs|_interfaces|rosidl|rpyutils|ament_|rmw|librc")
_PIP_NAMES = {"cv2": "opencv-python-headless", "yaml": "PyYAML"}
_SOURCE_PLACES = re.compile(r",? at [^,]*?\.c:\d+")
_FIXES = {
    "Error opening YAML file": "check the path",
    "No value at line": 'write "" for an empty text, or leave the line out',
    "Sequence should be of same type": "quote every item of that list",
    "Cannot have a value before ros__parameters": "write NODE: {ros__parameters: {NAME: VALUE}}, "
    "with /** for any node",
    "UnknownROSArgsError": "write -p NAME:=VALUE for a parameter, -r FROM:=TO for a remapping",
    "parameter override rule": "write it as -p NAME:=VALUE, an empty text as -p 'NAME:=\"\"'",
    "Couldn't parse remap rule": "write it as -r FROM:=TO, or -r __ns:=/NAME: names of letters, "
    "digits, _ and /, no digit at the start of a part",
    "valid severity level": "debug, info, warn, error or fatal",
    "Will not support aliasing": "write the value itself in place of each & and *",
    "Error parsing a event": "it is not valid YAML: look for tabs, unclosed quotes and letters "
    "that are not UTF-8",
}
"""What helps against an error of ROS's own parser, by a part of its message."""


def missing_module(error: ImportError, ros: Path = ROS) -> str:
    """Why a node's import failed, and the command that helps. `ros`: where apt installs ROS."""
    message = " ".join(str(error).split())
    if not _ROS_NAMES.search(f"{error.name} {message}"):
        package = _PIP_NAMES.get(str(error.name), error.name)
        return (
            f"{message}. This is {sys.executable}; to install it there: {sys.executable} -m pip "
            f"install {package}, in an environment that was made with --system-site-packages and "
            "builds this package (docs/getting_started.md: With ROS)"
        )
    distributions = sorted(path.parent for path in ros.glob("*/setup.bash"))
    fitting = [path for path in distributions if _python_of(path) in (None, _PYTHON)]
    if distributions and not fitting:
        built = " and ".join(f"{path.name} is for {_python_of(path)}" for path in distributions)
        return (
            f"{message}. ROS 2 is installed for another Python: {built}, this is {sys.executable} "
            f"({_PYTHON}). Make the environment with /usr/bin/python3 -m venv "
            "--system-site-packages, and install this package there (docs/getting_started.md: "
            "With ROS)"
        )
    sourced = os.environ.get("ROS_DISTRO")
    if sourced and ros / sourced in fitting:
        package = f"ros-{sourced}-{str(error.name).partition('.')[0]}".replace("_", "-")
        return (
            f"{message}. ROS 2 {sourced} is sourced and lacks it: sudo apt install {package}; "
            f"if that is installed: source {ros / sourced}/setup.bash again"
        )
    if fitting:
        commands = " or ".join(f"source {path}/setup.bash" for path in fitting)
        return f"{message}. ROS 2 is installed but not sourced in this shell: {commands}"
    return (
        f"{message}. ROS 2 is not installed here ({ros} has no setup.bash to source). Install it "
        f"(docs.ros.org), or on Linux, x86-64: {sys.executable} -m pip install 'ctxseg_ros[ros]', "
        "or run `make demo` in a checkout, which makes an environment with it"
    )


def _python_of(distribution: Path) -> str | None:
    """Such as "python3.12", which a distribution's packages are for; None: cannot be told."""
    places = ("lib/python3*/*/rclpy", "local/lib/python3*/*/rclpy")
    found = [path.parents[1].name for place in places for path in distribution.glob(place)]
    return found[0] if found else None


def unreadable(error: Exception, arguments: Sequence[str]) -> str:
    """Why ROS does not start with these arguments, and what to write."""
    for argument in arguments:
        if argument != argument.encode(errors="replace").decode():
            return (
                f"the argument {argument!a} is not UTF-8, and ROS passes nothing else on: "
                "rename the file, or make a link to it with another name"
            )
    message = _SOURCE_PLACES.sub("", f"{type(error).__name__}: {' '.join(str(error).split())}")
    fixes = [fix for part, fix in _FIXES.items() if part in message]
    return message + (f". To correct it, {fixes[0]}" if fixes else "")


def ignored(arguments: Sequence[str], node: str, is_parameter: Callable[[str], bool]) -> list[str]:
    """A sentence for each part of a command line that does nothing for a node.

    `arguments`: without the program. `node`: the node's full name, such as /segment.
    `is_parameter`: whether it has a parameter of a name.
    """
    said: list[str] = []
    words = iter(arguments)
    ros = False
    for word in words:
        name, assigned, _ = word.partition(":=")
        if word in ("--ros-args", "--"):
            ros = word == "--ros-args"
        elif not ros and not assigned:
            said.append(f"the argument {word!r} is ignored")
        elif not ros and is_parameter(name):  # ROS remaps a topic of that name
            said.append(f"{word} does not set a parameter: use --ros-args -p {word}")
        elif word in ("-r", "--remap"):
            rule = next(words, "")
            if is_parameter(rule.partition(":=")[0]):
                said.append(f"-r {rule} does not set a parameter: use -p {rule}")
        elif word == "--params-file":
            said += _unused_sections(next(words, ""), node)
        elif word in ("-p", "--param"):
            rule = next(words, "")
            owner, colon, _ = rule.partition(":=")[0].rpartition(":")
            if colon and not matches(owner, node):
                said.append(f"-p {rule} is ignored: it is for {owner}, this node is {node}")
    return said


def sections(file: str) -> list[tuple[str, dict[str, Any]]]:
    """(node's name, its parameters) of each part of a parameter file, in order; names may be
    nested in the file, and are joined by / here. All values are texts, as they are written.

    Raises OSError, or ValueError if the file is not YAML.
    """
    import yaml  # may be missing, which a node's own imports say better

    try:
        # Of other loaders' types, such as dates, ROS does not know, and 2026-02-30 is an error.
        content = yaml.load(Path(file).read_bytes(), Loader=yaml.BaseLoader)
        return list(_sections(content, ""))
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def _unused_sections(file: str, node: str) -> list[str]:
    try:
        names = [name for name, _ in sections(file)]
    except (OSError, ValueError):  # ROS has read it, or has said why not
        return []
    # A file for several nodes may have others' sections, so those are only read as this node's
    # where it has none, or where their name is the executable's.
    others = [name for name in names if not matches(name, node)]
    if len(others) < len(names):
        others = [name for name in others if name.rpartition("/")[2] == f"{_base(node)}_node"]
    return [
        f"{file}: the parameters under {' and '.join(others)} are ignored, for this node is "
        f"{node}: write {_base(node)}: or /**: there"
    ] * bool(others)


def _sections(content: Any, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if not isinstance(content, dict):
        return
    for key, value in content.items():
        if key == "ros__parameters":
            yield prefix, value if isinstance(value, dict) else {}
        else:
            yield from _sections(value, f"{prefix}/{key}" if prefix else str(key))


def matches(pattern: str, node: str) -> bool:
    """Whether a node's name in a parameter file is this node's full name, as ROS compares them:
    ** stands for any number of names, * for one; the first / may be missing."""
    words = {"**": "(/[^/]+)*", "*": "/[^/]+"}
    parts = [part for part in pattern.split("/") if part]
    return re.fullmatch("".join(words.get(p, "/" + re.escape(p)) for p in parts), node) is not None


def _base(node: str) -> str:
    return node.rpartition("/")[2]
