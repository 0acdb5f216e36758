# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the parts of ros2/launch that this project's launch files use.

It serves machines without ROS, because PyPI has no wheel of ros2/launch. It executes descriptions
as ros2/launch does (arguments, included files, processes, actions at their end), and raises the
same errors.
"""

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Any

from . import logging as logging

_ESCALATION_S = 5.0


class LaunchContext:
    """The state of a launch: the command line's arguments and the values of all arguments."""

    def __init__(self, *, argv: Sequence[str] = ()) -> None:
        self.argv = list(argv)
        self.launch_configurations: dict[str, str] = {}
        self.processes: list[Any] = []  # the stand-in's own: Nodes in their order
        self.ending = asyncio.Event()


class LaunchDescriptionEntity:
    """What a description consists of."""

    def execute(self, context: LaunchContext) -> list["LaunchDescriptionEntity"] | None:
        raise NotImplementedError


class LaunchDescription(LaunchDescriptionEntity):
    """A list of entities, executed in their order."""

    def __init__(self, entities: Sequence[LaunchDescriptionEntity] = ()) -> None:
        self.entities = list(entities)

    def execute(self, context: LaunchContext) -> list[LaunchDescriptionEntity]:
        return self.entities


def visit(entity: LaunchDescriptionEntity, context: LaunchContext) -> None:
    """Execute an entity, and at once what it gives."""
    for item in entity.execute(context) or []:
        visit(item, context)


class LaunchService:
    """Executes a description, and runs its processes until SIGINT, SIGTERM or Shutdown."""

    def __init__(self, *, argv: Sequence[str] = (), noninteractive: bool = False) -> None:
        self.context = LaunchContext(argv=argv)
        self._description = LaunchDescription()

    def include_launch_description(self, description: LaunchDescription) -> None:
        self._description = description

    def run(self) -> int:
        """1: the description could not be executed. Else 0, however its processes ended."""
        return asyncio.run(self._run())

    async def _run(self) -> int:
        try:
            visit(self._description, self.context)
        except Exception as error:
            print(f"[ERROR] [launch]: Caught exception in launch: {error}", flush=True)
            return 1
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.context.ending.set)
        await asyncio.gather(*(self._follow(node) for node in self.context.processes))
        return 0

    async def _follow(self, node: Any) -> None:
        """Run one node's process, again and again if it is to respawn."""
        ending = self.context.ending
        while not ending.is_set():
            await self._run_once(node)
            if node.on_exit is not None:
                visit(node.on_exit, self.context)
            if not node.respawn:
                return
            await asyncio.wait([asyncio.create_task(ending.wait())], timeout=node.respawn_delay)

    async def _run_once(self, node: Any) -> None:
        environment: Mapping[str, str] = os.environ | node.additional_env
        process = await asyncio.create_subprocess_exec(*node.command(self.context), env=environment)
        ended = asyncio.create_task(process.wait())
        asked = asyncio.create_task(self.context.ending.wait())
        await asyncio.wait([ended, asked], return_when=asyncio.FIRST_COMPLETED)
        # A signal may be lost while an interpreter starts; ros2/launch goes on to the next as well.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            if not ended.done():
                process.send_signal(number)
                await asyncio.wait([ended], timeout=_ESCALATION_S)
        if await ended:
            print(f"[ERROR] [{node.executable}]: process has died", flush=True)
        asked.cancel()
