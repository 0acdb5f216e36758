# SPDX-License-Identifier: Apache-2.0
"""Where a frame waits for the worker."""

import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class LatestSlot(Generic[T]):
    """Holds the newest item only: one thread puts, another iterates until `close`."""

    def __init__(self) -> None:
        self._item: T | None = None
        self._closed = False
        self._changed = threading.Condition()

    def put(self, item: T) -> bool:
        """Put the newest item. True: nobody took the one before, it is lost (or this one is, after
        `close`)."""
        with self._changed:
            lost = self._item is not None or self._closed
            if not self._closed:
                self._item = item
                self._changed.notify()
            return lost

    def close(self) -> bool:
        """End the iteration. True: an item was still waiting, it is lost."""
        with self._changed:
            lost = self._item is not None
            self._item = None
            self._closed = True
            self._changed.notify()
            return lost

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._item is not None or self._closed)
                item, self._item = self._item, None
            if item is None:
                return
            yield item
