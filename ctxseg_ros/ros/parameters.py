# SPDX-License-Identifier: Apache-2.0
"""Parameters that are checked at the door: a bad value is refused with what is allowed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter

from ctxseg_ros.model_file import parse_size


@dataclass(frozen=True)
class Setting:
    """One parameter. `check` gives the value to use, or raises ValueError saying what is allowed.

    `fixed`: it may change only while nothing is built on it (Settings' `locked`). `read_only`: it
    is set at the start or never.
    """

    default: Any
    description: str
    check: Callable[[Any], Any]
    allowed: str
    fixed: bool = False
    read_only: bool = False
    limits: tuple[float, float] | None = None

    def descriptor(self) -> ParameterDescriptor:
        """What `ros2 param describe` shows."""
        # Dynamic, because a static type refuses 100 where 100.0 is meant; `check` knows the type.
        descriptor = ParameterDescriptor(
            description=self.description,
            additional_constraints=self.allowed,
            read_only=self.read_only,
            dynamic_typing=True,
        )
        if self.limits is not None:
            low, high = self.limits
            descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
        return descriptor


def number(
    default: float,
    low: float,
    high: float,
    description: str,
    *,
    fixed: bool = False,
    read_only: bool = False,
) -> Setting:
    """A number from `low` to `high`, both included; whole numbers count as well."""
    allowed = f"a number from {low:g} to {high:g}"

    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(allowed)
        if not low <= value <= high:
            raise ValueError(allowed)
        return float(value)

    return Setting(default, description, check, allowed, fixed, read_only, (low, high))


def choice(
    default: str,
    options: Sequence[str],
    description: str,
    *,
    fixed: bool = False,
    read_only: bool = False,
) -> Setting:
    """One of a few words."""
    allowed = f"one of {', '.join(options)}"

    def check(value: Any) -> str:
        if value not in options:
            raise ValueError(allowed)
        return str(value)

    return Setting(default, description, check, allowed, fixed, read_only)


def text(
    default: str, description: str, *, fixed: bool = False, read_only: bool = False
) -> Setting:
    """Any text."""

    def check(value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError("text")
        return value

    return Setting(default, description, check, "text", fixed, read_only)


def switch(
    default: bool, description: str, *, fixed: bool = False, read_only: bool = False
) -> Setting:
    """True or false."""

    def check(value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError("true or false")
        return value

    return Setting(default, description, check, "true or false", fixed, read_only)


def sizes(description: str, *, fixed: bool = False, read_only: bool = False) -> Setting:
    """A list of HxW; the value is a list of (height, width). Empty texts are left out."""
    allowed = 'a list of HEIGHTxWIDTH, such as ["352x480"]'

    def check(value: Any) -> list[tuple[int, int]]:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ValueError(allowed)
        try:
            return [parse_size(item) for item in value if item != ""]
        except (TypeError, ValueError):
            raise ValueError(allowed) from None

    # An empty list would have no element type, and tools show it as bytes.
    return Setting([""], description, check, allowed, fixed, read_only)


class Settings:
    """The declared parameters' values, by name.

    A start value (launch file, YAML, command line) that is refused leaves the default in place and
    its reason in `faults`, until somebody sets the parameter to something that is allowed.
    """

    def __init__(
        self, node: Node, table: Mapping[str, Setting], locked: Callable[[], bool] = lambda: False
    ) -> None:
        self._table = table
        self._locked = locked
        self._values: dict[str, Any] = {}
        self.faults: dict[str, str] = {}
        node.add_on_set_parameters_callback(self._on_set)
        node.add_post_set_parameters_callback(self._after_set)
        for name, setting in table.items():
            try:
                node.declare_parameter(name, setting.default, setting.descriptor())
            except InvalidParameterValueException as error:
                # rclpy's own range check is first, and its message gives the range as well.
                node.declare_parameter(
                    name, setting.default, setting.descriptor(), ignore_override=True
                )
                self.faults[name] = str(error)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def _on_set(self, parameters: list[Parameter]) -> SetParametersResult:
        for parameter in parameters:
            setting = self._table.get(parameter.name)
            if setting is None:  # use_sim_time, qos_overrides: rclpy's own
                continue
            if setting.fixed and self._locked():
                return SetParametersResult(
                    successful=False,
                    reason=f"{parameter.name} is fixed while the node is configured: "
                    "deactivate and clean up the node first",
                )
            try:
                setting.check(parameter.value)
            except ValueError as error:
                return SetParametersResult(
                    successful=False,
                    reason=f"{parameter.name} must be {error}, not {parameter.value!r}",
                )
        return SetParametersResult(successful=True)

    def _after_set(self, parameters: list[Parameter]) -> None:
        for parameter in parameters:
            if setting := self._table.get(parameter.name):
                self._values[parameter.name] = setting.check(parameter.value)
                self.faults.pop(parameter.name, None)
