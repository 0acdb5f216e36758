# SPDX-License-Identifier: Apache-2.0
"""Where frames wait for the worker."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class LatestSlots(Generic[T]):
    """A slot for each camera that holds its newest item only.

    One thread puts, another iterates until `close`. Whose turn it is goes round: a camera that
    was served waits until every other one that has an item was served.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._order = list(names)  # longest not served first
        self._items: dict[str, T] = {}
        self._closed = False
        self._changed = threading.Condition()

    def put(self, name: str, item: T) -> bool:
        """Put a camera's newest item. True: nobody took the one before, it is lost (or this one
        is, after `close`)."""
        with self._changed:
            lost = name in self._items or self._closed
            if not self._closed:
                self._items[name] = item
                self._changed.notify()
            return lost

    def close(self) -> list[str]:
        """End the iteration; gives the cameras whose item was still waiting, it is lost."""
        with self._changed:
            lost = list(self._items)
            self._items.clear()
            self._closed = True
            self._changed.notify()
            return lost

    def pause(self, timeout_s: float, over: Callable[[], bool]) -> bool:
        """Wait, for the thread that iterates. True if meanwhile `close` came, or `wake` and
        `over()` is true."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closed or over(), timeout_s)

    def wake(self) -> None:
        """Let `pause` look whether it is over."""
        with self._changed:
            self._changed.notify()

    def __iter__(self) -> Iterator[tuple[str, T]]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._closed)
                if self._closed:
                    return
                name = next(name for name in self._order if name in self._items)
                item = self._items.pop(name)
                self._order.remove(name)
                self._order.append(name)
            yield name, item
            del item  # a frame is megabytes: not held while the next one is awaited
