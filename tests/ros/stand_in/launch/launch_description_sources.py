# SPDX-License-Identifier: Apache-2.0
"""launch.launch_description_sources."""

import importlib.util

from . import LaunchContext, LaunchDescription


class PythonLaunchDescriptionSource:
    def __init__(self, location: str) -> None:
        self.location = location

    def get_launch_description(self, context: LaunchContext) -> LaunchDescription:
        spec = importlib.util.spec_from_file_location("included_launch_file", self.location)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.generate_launch_description()
