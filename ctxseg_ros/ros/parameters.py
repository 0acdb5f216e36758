# SPDX-License-Identifier: Apache-2.0
"""Parameters that are checked at the door: a bad value is refused with what is allowed.

A value is taken as a person writes it in a YAML file, on a command line or for `ros2 param set`,
although YAML gives it another type: 7 for a text, "0.5" for a number, `front` or `front,left` for
a list, an empty list or null for the default.
"""

import os
import re
import reprlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.node import Node
from rclpy.parameter import Parameter

from ctxseg_ros.model.model_file import format_size, parse_size
from ctxseg_ros.system.spelling import nearest

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SWITCH = {
    **dict.fromkeys(("true", "yes", "on", "y", "1"), True),
    **dict.fromkeys(("false", "no", "off", "n", "0"), False),
}
_TEXT = "text"
_NULL = ("null", "Null", "NULL", "~")
_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = 100


@dataclass(frozen=True)
class Setting:
    """One parameter. `check` gives the value to use, or raises ValueError saying what is allowed.

    `stored` gives the parameter's own value, which `ros2 param get` shows, from the value to use.
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
    stored: Callable[[Any], Any] = lambda value: value

    def value(self, name: str, given: Any) -> Any:
        """The value to use for what was given; null and an empty list stand for the default.

        Raises ValueError, with the parameter's name.
        """
        # ROS takes YAML's null for a text.
        if (isinstance(given, str) and given in _NULL) or _is_empty_list(given):
            given = self.default
        try:
            return self.check(given)
        except ValueError as error:
            raise ValueError(
                f"{name} must be {error}, not {_SHOWN.repr(given)}{self._cause(given)}"
            ) from None

    def _cause(self, given: Any) -> str:
        """What may have made this value of another one."""
        items = given if isinstance(given, list) else [given]
        if isinstance(self.default, str | list) and any(isinstance(item, bool) for item in items):
            return " (YAML takes yes, no, on, off, y and n for true or false: quote the text)"
        if self.allowed == _TEXT and isinstance(given, float):
            return " (YAML takes it for a number: quote the text)"
        return ""

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
    """A number from `low` to `high`, both included; whole numbers and numbers in quotes count."""
    allowed = f"a number from {low:g} to {high:g}"

    def check(value: Any) -> float:
        try:
            if isinstance(value, bool) or not isinstance(value, int | float | str):
                raise ValueError
            found = float(value)
        except (ValueError, OverflowError):
            raise ValueError(allowed) from None
        if not low <= found <= high:
            raise ValueError(allowed)
        return found

    return Setting(default, description, check, allowed, read_only=read_only, limits=(low, high))


def integer(
    default: int, low: int, high: int, description: str, *, read_only: bool = False
) -> Setting:
    """A whole number from `low` to `high`, both included; 3.0 and "3" count as 3."""
    allowed = f"a whole number from {low} to {high}"

    def check(value: Any) -> int:
        try:
            if isinstance(value, bool) or not isinstance(value, int | float | str):
                raise ValueError
            found = int(value)
        except (ValueError, OverflowError):
            raise ValueError(allowed) from None
        if (isinstance(value, float) and found != value) or not low <= found <= high:
            raise ValueError(allowed)
        return found

    return Setting(default, description, check, allowed, read_only=read_only, limits=(low, high))


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
    """Any text; a whole number is its digits."""
    return Setting(default, description, _text, _TEXT, read_only=read_only)


def path(default: str, description: str, *, read_only: bool = False) -> Setting:
    """A text that may be a path: ~ and ~USER at its start are the home folders."""

    def check(value: Any) -> str:
        return os.path.expanduser(_text(value))

    return Setting(default, description, check, _TEXT, read_only=read_only)


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str) or "\0" in str(value):
        raise ValueError(_TEXT)
    return str(value)


def switch(default: bool, description: str, *, read_only: bool = False) -> Setting:
    """True or false, in quotes too and in all of YAML's words; in quotes also 1 and 0, as launch
    has them."""

    def check(value: Any) -> bool:
        if isinstance(value, bool):
            return value
        if not isinstance(value, str) or value.lower() not in _SWITCH:
            raise ValueError("true or false")
        return _SWITCH[value.lower()]

    return Setting(default, description, check, "true or false", read_only=read_only)


def sizes(description: str) -> Setting:
    """A list of HxW, or auto; the value is a list of (height, width), or None for auto."""
    allowed = 'a list of HEIGHTxWIDTH, such as ["352x480", "256x352"], or auto'

    def check(value: Any) -> list[tuple[int, int]] | None:
        try:
            words = _texts(value)
            return None if words == ["auto"] else [parse_size(item) for item in words]
        except ValueError:
            raise ValueError(allowed) from None

    def stored(value: list[tuple[int, int]] | None) -> list[str]:
        return ["auto"] if value is None else [format_size(size) for size in value] or [""]

    # An empty list would have no element type, and tools show it as bytes.
    return Setting([""], description, check, allowed, stored=stored)


def names(description: str, *, fixed: bool = False) -> Setting:
    """A list of names that may stand in a topic, each once."""
    allowed = "a list of names of letters, digits and _, each once, such as [front, left]"

    def check(value: Any) -> list[str]:
        try:
            found = _texts(value)
        except ValueError:
            raise ValueError(allowed) from None
        if not all(_NAME.fullmatch(item) for item in found) or len(set(found)) < len(found):
            raise ValueError(allowed)
        return found

    def stored(value: list[str]) -> list[str]:
        return value or [""]

    return Setting([""], description, check, allowed, fixed, stored=stored)


def _texts(value: Any) -> list[str]:
    """The texts of a list, or of one text with commas between them, without the empty ones.

    Raises ValueError if there is anything but texts.
    """
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, list | tuple | array) or not all(isinstance(v, str) for v in value):
        raise ValueError
    return [item.strip() for item in value if item.strip()]


def _is_empty_list(value: Any) -> bool:
    return isinstance(value, list | tuple | array) and not value


Values = Mapping[str, Any]
"""Values of settings by name, which never change."""


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
        self._node = node
        self._table = table
        self._locked = locked
        self._check = check
        self._changed = changed
        self._values: Values = {}
        self._declared = False
        self.faults: dict[str, str] = {}
        with node.handle:
            self._given = {
                name: parameter.value
                for name, parameter in node.handle.get_parameters(Parameter).items()
            }
        node.add_pre_set_parameters_callback(self._as_stored)
        node.add_on_set_parameters_callback(self._on_set)
        node.add_post_set_parameters_callback(self._after_set)
        for name, setting in table.items():
            value, fault = self._start_value(name, setting)
            node.declare_parameter(name, value, setting.descriptor(), ignore_override=True)
            if fault:
                self.faults[name] = fault
        self._declared = True
        self._warn_of_ignored()

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def now(self) -> Values:
        """All values together, for work that must not see a change halfway."""
        return self._values

    def after(self, parameters: Sequence[Parameter]) -> dict[str, Any]:
        """All values as they would be with these parameters set. Raises ValueError if one of them
        is refused for itself."""
        values = dict(self._values)
        for parameter in parameters:
            setting = self._table.get(parameter.name)
            if setting is None:  # use_sim_time, qos_overrides: rclpy's own
                continue
            value = setting.value(parameter.name, parameter.value)
            if setting.fixed and self._locked() and value != values[parameter.name]:
                raise ValueError(
                    f"{parameter.name} is fixed while the node is configured: "
                    "deactivate and clean up the node first"
                )
            values[parameter.name] = value
        return values

    def _start_value(self, name: str, setting: Setting) -> tuple[Any, str]:
        """The parameter's first value, and why not the one that was given."""
        if name not in self._given or setting.computed:
            return setting.default, ""
        given = self._given[name]
        try:
            # Without elements a list has no type, and ROS keeps nothing of it.
            return setting.stored(setting.value(name, [] if given is None else given)), ""
        except ValueError as error:
            return setting.default, str(error)

    def _warn_of_ignored(self) -> None:
        """Name the start values that nobody reads, with the parameter that may be meant."""
        for name in self._given:
            if name in self._table and self._table[name].computed:
                self._node.get_logger().warning(
                    f"the start value of {name} is ignored: the node itself sets this parameter"
                )
            # QoS overrides become parameters with their publisher.
            elif not self._node.has_parameter(name) and not name.startswith("qos_overrides."):
                near = nearest(name, self._table)
                hint = f"did you mean {near}?" if near else f"it has {', '.join(self._table)}"
                self._node.get_logger().warning(
                    f"{self._node.get_fully_qualified_name()} has no parameter {name!r}, its "
                    f"start value is ignored: {hint}"
                )

    def warn_of_unused_qos(self) -> None:
        """Name the QoS overrides that no publisher took, once all of them are there."""
        for name in self._given:
            if name.startswith("qos_overrides.") and not self._node.has_parameter(name):
                self._node.get_logger().warning(
                    f"{name} is ignored: no publisher of this node takes it; check the full name "
                    "of the topic and the policy"
                )

    def _as_stored(self, parameters: list[Parameter]) -> list[Parameter]:
        return [self._one_as_stored(parameter) for parameter in parameters]

    def _one_as_stored(self, parameter: Parameter) -> Parameter:
        setting = self._table.get(parameter.name)
        if setting is None or parameter.value is None:
            return parameter
        try:
            value = setting.stored(setting.value(parameter.name, parameter.value))
        except ValueError:  # `_on_set` refuses it
            return parameter
        return Parameter(parameter.name, value=value)

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
        values = {}
        for parameter in parameters:
            if parameter.name in known:
                setting = self._table[parameter.name]
                values[parameter.name] = setting.value(parameter.name, parameter.value)
                self.faults.pop(parameter.name, None)
        self._values = {**self._values, **values}  # another one: `now` was handed out
        if known and self._declared:
            self._changed(known)
