# SPDX-License-Identifier: Apache-2.0
"""Which input size holds a latency budget: the largest one, down at once, up with patience."""

import math
from collections import deque
from collections.abc import Sequence
from itertools import accumulate, pairwise
from statistics import median
from typing import NamedTuple

RECENT = 100  # frames behind `p95_ms` and behind what other sizes are expected to take
LATELY = 10  # frames behind what inference takes now
IN_A_ROW = 3  # frames over the budget that break it; a hiccup makes one or two late
SPARE = 4  # frames over the budget beyond one in 20 that break it; at 3 in 100, once in 3500 frames
START = 0.8  # of the budget: what inference may take at the start, the rest is not known yet
MARGIN = 0.9  # of the budget: what another size may be expected to take before it is chosen
CALM_FRAMES = 60
CALM_S, LONGEST_CALM_S = 5.0, 300.0
TRIAL_S = 300.0  # a climb that holds so long was right
LONGEST_STEP_S = 1.0  # what the time between two frames counts: a pause is no evidence


class Move(NamedTuple):
    """A change of the size, and why."""

    start: int
    end: int
    p95_ms: float
    """Of the frames at `start` that decided it: over the budget on the way to a smaller size."""
    expected_ms: float
    """What these frames let expect at `end`, as a 95th percentile."""


class _Frame(NamedTuple):
    stamp_s: float
    latency_ms: float
    inference_ms: float
    publish_ms: float

    @property
    def rest_ms(self) -> float:
        return self.latency_ms - self.inference_ms


class _Strain:
    """Tells when frames break a limit that one in 20 may break."""

    def __init__(self) -> None:
        self.frames = 0  # since the trouble began
        self._debt = 0  # frames over the limit beyond one in 20, in twentieths of a frame
        self._in_a_row = 0

    def broken(self, over: bool) -> bool:
        """Count a frame. True: the limit is broken, with this frame or already before."""
        self._in_a_row = self._in_a_row + 1 if over else 0
        self._debt = max(0, self._debt + (19 if over else -1))
        self.frames = self.frames + 1 if self._debt else 0
        return self._in_a_row >= IN_A_ROW or self._debt > 20 * SPARE


class SizeController:
    """Chooses the input size of the next frame.

    It moves to a smaller size as soon as IN_A_ROW frames in a row, or one in 20 and SPARE more,
    are over the budget: to the largest one that is expected to hold. It moves to the next larger
    size after a calm spell, during which that size was expected to hold all the time. A climb that
    breaks within TRIAL_S doubles the spell before the next one; a climb that does not makes it
    short again. So no load makes it flap.

    One thread calls `observe`; any thread may read the attributes.

    index: the size to use for the next frame, 0 is the largest.
    p95_ms: what one in 20 of the recent frames at this size exceeds, NaN before any.
    needed_ms: the budget that would do, where even the smallest size breaks this one; else None.
    """

    def __init__(self, costs_ms: Sequence[float], budget_ms: float) -> None:
        """`costs_ms`: the time of inference, with refinement, at each size on the same load,
        largest size first; only their ratios count later. `budget_ms` 0: always the largest size.
        Raises ValueError for costs that are not positive, and for a negative budget.
        """
        if not costs_ms or not all(0 < cost < math.inf for cost in costs_ms):
            raise ValueError(f"costs_ms must be positive times, one for each size, not {costs_ms}")
        if not 0 <= budget_ms < math.inf:
            raise ValueError(f"budget_ms must be 0 or more, not {budget_ms}")
        # A smaller size that took longer was disturbed.
        self._costs = list(accumulate(costs_ms, min))
        self._budget_ms = budget_ms or math.inf
        self._smallest = len(self._costs) - 1
        fits = (i for i, cost in enumerate(self._costs) if cost <= START * self._budget_ms)
        self.index = next(fits, self._smallest)
        self.p95_ms = math.nan
        self.needed_ms: float | None = None
        self._last_s: float | None = None
        self._spell_s = CALM_S
        self._on_trial = False  # the last move was a climb, less than TRIAL_S ago
        self._waited_behind_larger = False
        self._arrive()

    def _arrive(self) -> None:
        """What was seen at another size does not count at this one."""
        self._frames: deque[_Frame] = deque(maxlen=RECENT)
        self._held_s = 0.0
        self._strain = _Strain()
        self.p95_ms = math.nan
        self._unsettle()

    def _unsettle(self) -> None:
        self._calm_frames, self._calm_s = 0, 0.0
        self._strain_above = _Strain()  # as expected at the next larger size

    def observe(
        self, now_s: float, latency_ms: float, inference_ms: float, publish_ms: float = 0.0
    ) -> Move | None:
        """Count a frame labelled at the present size; returns the move if that changes `index`.

        now_s: when it was published, on any clock; a jump of it counts as a pause. latency_ms: its
        age then. inference_ms: the part of that which depends on the size. publish_ms: what else it
        kept the worker busy. A frame with NaN or infinity in any of them is ignored.
        """
        if not all(map(math.isfinite, (now_s, latency_ms, inference_ms, publish_ms))):
            return None
        step_s = self._step(now_s)
        if self._waited_behind_larger:
            self._waited_behind_larger = False
            return None
        stamp_s = now_s - latency_ms / 1e3
        self._frames.append(_Frame(stamp_s, latency_ms, inference_ms, publish_ms))
        self._report()
        if self._strain.broken(latency_ms > self._budget_ms) and self.index < self._smallest:
            return self._descend()
        if self.index and self._calm_after(step_s):
            return self._move(self.index - 1, list(self._frames)[-self._calm_frames :])
        return None

    def _step(self, now_s: float) -> float:
        last_s = now_s if self._last_s is None else self._last_s
        self._last_s = now_s
        step_s = min(max(now_s - last_s, 0.0), LONGEST_STEP_S)
        self._held_s += step_s
        if self._on_trial and self._held_s >= TRIAL_S:
            self._on_trial = False
            self._spell_s = CALM_S
        return step_s

    def _report(self) -> None:
        latencies = [frame.latency_ms for frame in self._frames]
        self.p95_ms = _p95(latencies)
        over = sum(latency > self._budget_ms for latency in latencies)
        broken = over >= IN_A_ROW and self.p95_ms > self._budget_ms
        self.needed_ms = self.p95_ms if broken and self.index == self._smallest else None

    def _calm_after(self, step_s: float) -> bool:
        """Count a frame. True: the next larger size has been expected to hold for long enough."""
        expected_ms = self._expect(self.index - 1, list(self._frames)[-LATELY:])[-1]
        if self._strain_above.broken(expected_ms > MARGIN * self._budget_ms):
            self._unsettle()
            return False
        self._calm_frames += 1
        self._calm_s += step_s
        return self._calm_frames >= CALM_FRAMES and self._calm_s >= self._spell_s

    def _descend(self) -> Move:
        recent = list(self._frames)[-self._strain.frames :]
        limit_ms = MARGIN * self._budget_ms
        smaller = range(self.index + 1, self._smallest)
        holding = (i for i in smaller if _p95(self._expect(i, recent)) <= limit_ms)
        if self._on_trial:
            self._spell_s = min(2 * self._spell_s, LONGEST_CALM_S)
        return self._move(next(holding, self._smallest), recent)

    def _move(self, end: int, frames: Sequence[_Frame]) -> Move:
        p95_ms = _p95([frame.latency_ms for frame in frames])
        move = Move(self.index, end, p95_ms, _p95(self._expect(end, frames)))
        self._on_trial = end < self.index
        self._waited_behind_larger = end > self.index
        self.index = end
        self._arrive()
        return move

    def _expect(self, index: int, frames: Sequence[_Frame]) -> list[float]:
        """The frames' latencies if they had been inferred at another size.

        A frame waits for the one before it, up to a period of the camera, where the worker is busy
        for longer than that period. The rest of its latency (transport, publishing) stays.
        """
        ratio = self._costs[index] / self._costs[self.index]
        period_ms = self._period_ms()
        inference_ms = median(frame.inference_ms for frame in frames)
        spare_ms = period_ms - median(frame.publish_ms for frame in frames)
        waits = (inference_ms * ratio > spare_ms) - (inference_ms > spare_ms)
        least_ms = min(frame.rest_ms for frame in self._frames)
        return [
            frame.inference_ms * ratio + max(frame.rest_ms + waits * period_ms, least_ms)
            for frame in frames
        ]

    def _period_ms(self) -> float:
        stamps = [frame.stamp_s for frame in self._frames]
        periods = sorted((after - before) * 1e3 for before, after in pairwise(stamps))
        # Not the median: where the worker skips frames, most periods are multiples.
        return periods[len(periods) // 20] if periods else math.inf


def _p95(values: Sequence[float]) -> float:
    """The value that at most one in 20 exceeds."""
    return sorted(values, reverse=True)[len(values) // 20]
