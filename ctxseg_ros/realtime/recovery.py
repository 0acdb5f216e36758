# SPDX-License-Identifier: Apache-2.0
"""What to do after an inference failed: open the model again, and then on another device."""

from collections.abc import Callable, Iterator, Sequence

RETRIES_S = (0.0, 0.5, 2.0)
"""How long to wait before each attempt on the device that failed."""
LAST_RESORT_S = 10.0
"""Between attempts once every device has failed: they go round for ever."""
CALM_FRAMES = 100
"""Frames without a failure after which the device counts as sound again."""


class Recovery:
    """Says which device to open next, and after how long. Knows nothing of models."""

    def __init__(self, device: str, devices: Callable[[], Sequence[str]]) -> None:
        """`device` runs now; `devices` gives all that are there, best first. It is not asked
        before they are needed: looking for a device loads its library."""
        self._first = device
        self._devices = devices
        self._calm = 0
        self._attempts = self._all_attempts()

    def _all_attempts(self) -> Iterator[tuple[float, str]]:
        yield from ((wait_s, self._first) for wait_s in RETRIES_S)
        others = [device for device in self._devices() if device != self._first]
        yield from ((0.0, device) for device in others)
        while True:
            yield from ((LAST_RESORT_S, device) for device in (self._first, *others))

    def next(self) -> tuple[float, str]:
        """(seconds to wait, device to open) after a failure, be it to open or to run."""
        self._calm = 0
        return next(self._attempts)

    def frame_done(self, device: str) -> None:
        """A frame was predicted on `device`."""
        self._calm += 1
        if self._calm == CALM_FRAMES:
            self._first = device
            self._attempts = self._all_attempts()
