# SPDX-License-Identifier: Apache-2.0
"""Parameters that are checked at the door: a bad value is refused with what is allowed."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.exceptions import InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter

from ctxseg_ros.model_file import parse_size

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Setting:
    """One parameter. `check` gives the value to use, or raises ValueError saying what is allowed.

    `fixed`: it may change only while nothing is built on it (Settings' `locked`). `read_only`: it
    is set at the start or never. `computed`: the node itself sets it, a start value is ignored.
    """

    default: Any
    description: str
    check: Callable[[Any], Any]
    allowed: str
    fixed: bool = False
    read_only: bool = False
    limits: tuple[float, float] | tuple[int, int] | None = None
    computed: bool = False

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
            if isinstance(low, int) and isinstance(high, int):
                descriptor.integer_range = [IntegerRange(from_value=low, to_value=high, step=1)]
            else:
                descriptor.floating_point_range = [
                    FloatingPointRange(from_value=low, to_value=high)
                ]
        return descriptor


def number(
    default: float,
    low: float,
    high: float,
    description: str,
    *,
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

    return Setting(default, description, check, allowed, read_only=read_only, limits=(low, high))


def integer(default: int, low: int, high: int, description: str) -> Setting:
    """A whole number from `low` to `high`, both included."""
    allowed = f"a whole number from {low} to {high}"

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(allowed)
        return value

    return Setting(default, description, check, allowed, limits=(low, high))


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


def text(default: str, description: str, *, read_only: bool = False) -> Setting:
    """Any text."""

    def check(value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError("text")
        return value

    return Setting(default, description, check, "text", read_only=read_only)


def switch(default: bool, description: str, *, read_only: bool = False) -> Setting:
    """True or false."""

    def check(value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError("true or false")
        return value

    return Setting(default, description, check, "true or false", read_only=read_only)


def sizes(description: str) -> Setting:
    """A list of HxW; the value is a list of (height, width). Empty texts are left out."""
    allowed = 'a list of HEIGHTxWIDTH, such as ["352x480", "256x352"]'

    def check(value: Any) -> list[tuple[int, int]]:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ValueError(allowed)
        try:
            return [parse_size(item) for item in value if item != ""]
        except (TypeError, ValueError):
            raise ValueError(allowed) from None

    # An empty list would have no element type, and tools show it as bytes.
    return Setting([""], description, check, allowed)


def names(description: str, *, fixed: bool = False) -> Setting:
    """A list of names that may stand in a topic, each once. Empty texts are left out."""
    allowed = "a list of names of letters, digits and _, each once, such as [front, left]"

    def check(value: Any) -> list[str]:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ValueError(allowed)
        found = [item for item in value if item != ""]
        if not all(isinstance(item, str) and _NAME.fullmatch(item) for item in found):
            raise ValueError(allowed)
        if len(set(found)) < len(found):
            raise ValueError(allowed)
        return found

    return Setting([""], description, check, allowed, fixed)


class Settings:
    """The declared parameters' values, by name.

    A start value (launch file, YAML, command line) that is refused leaves the default in place and
    its reason in `faults`, until somebody sets the parameter to something that is allowed.
    """

    def __init__(
        self,
        node: Node,
        table: Mapping[str, Setting],
        locked: Callable[[], bool] = lambda: False,
        check: Callable[[Mapping[str, Any]], None] = lambda _: None,
        changed: Callable[[set[str]], None] = lambda _: None,
    ) -> None:
        """`locked`: whether `fixed` settings may not change now. `check` gets all values as a
        change would leave them, and raises ValueError, with the whole reason, to refuse it.
        `changed` gets the names after a change. Neither is called for the start values.
        """
        self._table = table
        self._locked = locked
        self._check = check
        self._changed = changed
        self._values: dict[str, Any] = {}
        self._declared = False
        self.faults: dict[str, str] = {}
        node.add_on_set_parameters_callback(self._on_set)
        node.add_post_set_parameters_callback(self._after_set)
        for name, setting in table.items():
            try:
                node.declare_parameter(
                    name, setting.default, setting.descriptor(), ignore_override=setting.computed
                )
            except InvalidParameterValueException as error:
                # rclpy's own range check is first, and its message gives the range as well.
                node.declare_parameter(
                    name, setting.default, setting.descriptor(), ignore_override=True
                )
                self.faults[name] = str(error)
        self._declared = True

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def after(self, parameters: Sequence[Parameter]) -> dict[str, Any]:
        """All values as they would be with these parameters set. Raises ValueError if one of them
        is refused for itself."""
        values = dict(self._values)
        for parameter in parameters:
            setting = self._table.get(parameter.name)
            if setting is None:  # use_sim_time, qos_overrides: rclpy's own
                continue
            try:
                value = setting.check(parameter.value)
            except ValueError as error:
                raise ValueError(
                    f"{parameter.name} must be {error}, not {parameter.value!r}"
                ) from None
            if setting.fixed and self._locked() and value != values[parameter.name]:
                raise ValueError(
                    f"{parameter.name} is fixed while the node is configured: "
                    "deactivate and clean up the node first"
                )
            values[parameter.name] = value
        return values

    def _on_set(self, parameters: list[Parameter]) -> SetParametersResult:
        try:
            values = self.after(parameters)
            if self._declared:
                self._check(values)
        except ValueError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _after_set(self, parameters: list[Parameter]) -> None:
        known = {item.name for item in parameters if item.name in self._table}
        for parameter in parameters:
            if parameter.name in known:
                setting = self._table[parameter.name]
                self._values[parameter.name] = setting.check(parameter.value)
                self.faults.pop(parameter.name, None)
        if known and self._declared:
            self._changed(known)
