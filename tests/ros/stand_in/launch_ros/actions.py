# SPDX-License-Identifier: Apache-2.0
"""launch_ros.actions."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ament_index_python.packages import get_package_prefix
from launch import LaunchContext, LaunchDescriptionEntity

from .parameter_descriptions import ParameterValue


class Node(LaunchDescriptionEntity):
    def __init__(
        self,
        *,
        package: str,
        executable: str,
        name: str | None = None,
        namespace: str | None = None,
        parameters: Sequence[str | Mapping[str, Any]] = (),
        remappings: Sequence[tuple[str, str]] = (),
        ros_arguments: Sequence[str] = (),
        arguments: Sequence[str] = (),
        additional_env: Mapping[str, str] | None = None,
        output: str = "log",
        respawn: bool = False,
        respawn_delay: float = 0.0,
        on_exit: LaunchDescriptionEntity | None = None,
    ) -> None:
        if output not in ("log", "screen", "both"):
            raise ValueError(f"{output} is not a valid standard output config")
        self.package, self.executable = package, executable
        self.name, self.namespace = name, namespace
        self.parameters, self.remappings = parameters, remappings
        self.ros_arguments, self.arguments = ros_arguments, arguments
        self.additional_env = dict(additional_env or {})
        self.respawn, self.respawn_delay, self.on_exit = respawn, respawn_delay, on_exit

    def execute(self, context: LaunchContext) -> None:
        self.command(context)  # raises where the package or its executable is missing
        context.processes.append(self)

    def command(self, context: LaunchContext) -> list[str]:
        """The words of the command line that starts the node."""
        path = Path(get_package_prefix(self.package), "lib", self.package, self.executable)
        if not path.is_file():
            raise RuntimeError(f"executable '{self.executable}' not found in {path.parent}")
        words = [str(path), *self.arguments, "--ros-args", *self.ros_arguments]
        if self.name:
            words += ["-r", f"__node:={self.name}"]
        base = context.launch_configurations.get("ros_namespace", "")
        if namespace := "/".join(filter(None, [base, self.namespace])):
            words += ["-r", f"__ns:=/{namespace.strip('/')}"]
        for item in self.parameters:
            if isinstance(item, Mapping):
                for name, value in item.items():
                    value = value.evaluate(context) if isinstance(value, ParameterValue) else value
                    words += ["-p", f"{name}:={json.dumps(value)}"]  # YAML with its types
            else:
                words += ["--params-file", str(item)]
        for rule in self.remappings:
            words += ["-r", ":=".join(rule)]
        return words
