# SPDX-License-Identifier: Apache-2.0
"""launch.logging: loggers, and the folder of one launch's logs."""

import logging
import tempfile
from functools import cached_property

logging.basicConfig(format="[%(levelname)s] [%(name)s]: %(message)s", level=logging.INFO)


def get_logger(name: str | None = None) -> logging.Logger:
    return logging.getLogger(name)


class LaunchConfig:
    @cached_property
    def log_dir(self) -> str:
        return tempfile.mkdtemp(prefix="launch_log_")


launch_config = LaunchConfig()
