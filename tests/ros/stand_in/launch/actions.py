# SPDX-License-Identifier: Apache-2.0
"""launch.actions."""

from collections.abc import Callable, Iterable, Sequence

from . import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from .launch_description_sources import PythonLaunchDescriptionSource


class DeclareLaunchArgument(LaunchDescriptionEntity):
    def __init__(
        self,
        name: str,
        *,
        default_value: str | None = None,
        description: str | None = None,
        choices: Sequence[str] | None = None,
    ) -> None:
        if choices is not None and default_value is not None and default_value not in choices:
            raise RuntimeError(f'default_value "{default_value}" is not in choices "{choices}".')
        self.name = name
        self.default_value = default_value
        self.description = description or "no description given"
        self.choices = choices

    def execute(self, context: LaunchContext) -> None:
        values = context.launch_configurations
        if self.name not in values:
            if self.default_value is None:
                raise RuntimeError(f'Required launch argument "{self.name}" was not provided.')
            values[self.name] = self.default_value
        if self.choices is not None and values[self.name] not in self.choices:
            raise RuntimeError(
                f'Argument "{self.name}" provided value "{values[self.name]}" is not valid. Valid '
                f"options are: {self.choices}"
            )


class OpaqueFunction(LaunchDescriptionEntity):
    def __init__(
        self, *, function: Callable[[LaunchContext], list[LaunchDescriptionEntity] | None]
    ) -> None:
        self._function = function

    def execute(self, context: LaunchContext) -> list[LaunchDescriptionEntity] | None:
        return self._function(context)


class IncludeLaunchDescription(LaunchDescriptionEntity):
    def __init__(
        self,
        launch_description_source: PythonLaunchDescriptionSource,
        *,
        launch_arguments: Iterable[tuple[str, str]] = (),
    ) -> None:
        self._source = launch_description_source
        self.launch_arguments = tuple(launch_arguments)

    def execute(self, context: LaunchContext) -> list[LaunchDescriptionEntity]:
        description: LaunchDescription = self._source.get_launch_description(context)
        context.launch_configurations.update(self.launch_arguments)
        return [description]


class Shutdown(LaunchDescriptionEntity):
    def __init__(self, *, reason: str = "reason not given") -> None:
        self.reason = reason

    def execute(self, context: LaunchContext) -> None:
        context.ending.set()
