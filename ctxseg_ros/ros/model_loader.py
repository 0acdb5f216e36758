# SPDX-License-Identifier: Apache-2.0
"""Opens models while the executor goes on with other callbacks."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from rclpy.task import Future

T = TypeVar("T")


class ModelLoader:
    """One thread that loads, for coroutines of the executor: one load at a time.

    The node's services for parameters and transitions share a callback group that lets one of them
    run at a time, so no second load begins before the first is done.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        """`wake` makes the executor look again; it is called by the loading thread."""
        self._wake = wake
        self._thread: threading.Thread | None = None
        self._what = ""
        self._since = 0.0

    @property
    def progress(self) -> str:
        """What is being loaded and for how long; empty if nothing is."""
        if not self._what:
            return ""
        return f"{self._what}, {time.monotonic() - self._since:.0f} s so far"

    async def load(self, what: str, work: Callable[[], T]) -> T:
        """Do the work in a thread; `what` says in a few words what is being done."""
        future: Future = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except Exception as error:
                future.set_exception(error)
            self._wake()

        self._what, self._since = what, time.monotonic()
        self._thread = threading.Thread(target=run, name="loader", daemon=True)
        self._thread.start()
        try:
            return await future
        finally:
            self._what = ""

    def join(self, timeout_s: float) -> bool:
        """Wait for what is being loaded. False: it took too long."""
        if self._thread is not None:
            self._thread.join(timeout_s)
        return self._thread is None or not self._thread.is_alive()
