# SPDX-License-Identifier: Apache-2.0
"""What a camera's stamps are worth: their order, and whether its clock is this machine's."""

from collections import deque

AHEAD_S = 0.02
"""Stamps this far in the future are more than clocks that drift between two synchronisations."""
SIMULATED_AHEAD_S = 1.0
"""The same under simulated time, which only moves when /clock does, and any number of times as
fast as the time that a message takes."""
BEHIND_S = 1.0
"""Frames this old, each of them, come from a clock that is behind rather than from a slow line."""
_CERTAIN_AHEAD = 5  # frames in a row; a stamp in the future is impossible
_CERTAIN_BEHIND = 10  # an old one may be a queue that is being emptied
_NEW_TIMELINE = 3  # frames in a row behind the newest: the camera's clock was set back


class ClockWatch:
    """Compares a camera's stamps with this machine's clock, real or `simulated`."""

    def __init__(self, simulated: bool = False) -> None:
        self._ahead_s = SIMULATED_AHEAD_S if simulated else AHEAD_S
        self._delays: deque[float] = deque(maxlen=_CERTAIN_BEHIND)
        self.offset_s: float | None = None
        """How far this machine's clock is ahead of the camera's (negative: behind it), at least, as
        the last frames tell; None while the two go together."""
        self.doubtful = False
        """Whether the last frame's age may be the clock's fault: it is old, and that is not yet
        explained."""

    def observe(self, delay_s: float) -> float:
        """Take one frame's time from its stamp to its arrival; gives the time to count, >= 0.

        That is 0 while the clocks do not go together: the age then counts from the arrival.
        """
        self._delays.append(delay_s)
        recent = list(self._delays)
        newest = recent[-_CERTAIN_AHEAD:]
        if len(newest) == _CERTAIN_AHEAD and max(newest) < -self._ahead_s:
            self.offset_s = max(newest)
        elif len(recent) == _CERTAIN_BEHIND and min(recent) > BEHIND_S:
            self.offset_s = min(recent)
        elif len(newest) == _CERTAIN_AHEAD and all(-self._ahead_s <= d <= BEHIND_S for d in newest):
            self.offset_s = None
        self.doubtful = self.offset_s is None and delay_s > BEHIND_S
        return max(delay_s, 0.0) if self.offset_s is None else 0.0


class StampOrder:
    """Lets frames through in the order of their stamps.

    One that is older than the newest so far is refused, unless it is the third in a row in an
    order of their own: then the camera's clock was set back, and they are the new timeline.
    """

    def __init__(self) -> None:
        self._newest = 0
        self._behind: list[int] = []

    def accepts(self, stamp_ns: int) -> bool:
        """Whether a frame with this stamp may follow those before. 0, no stamp, always may."""
        if not stamp_ns:
            return True
        if stamp_ns < self._newest:
            if self._behind and stamp_ns <= self._behind[-1]:
                self._behind.clear()
            self._behind.append(stamp_ns)
            if len(self._behind) < _NEW_TIMELINE:
                return False
        self._behind.clear()
        self._newest = stamp_ns
        return True
