# SPDX-License-Identifier: Apache-2.0
"""launch_ros.parameter_descriptions."""

from typing import Any

from launch import LaunchContext


class ParameterValue:
    def __init__(self, value: Any, *, value_type: type) -> None:
        self._value = value
        self._type = value_type

    def evaluate(self, context: LaunchContext) -> Any:
        return self._type(self._value)
