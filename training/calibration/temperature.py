# SPDX-License-Identifier: Apache-2.0
"""Temperature scaling (Guo et al. 2017): fitted to logits, one value or one by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

#: Cross-validation: parts of each data set, of frames that follow each other, since neighbours in
#: a video look alike.
FOLDS = 5
#: Standard errors by which a temperature of its own must be better.
CLEAR = 2
#: Temperatures that are tried.
_BOUNDS = (0.05, 20.0)


@dataclass(frozen=True)
class LogitSet:
    """Pixels of one data set.

    Args:
        logits: float32 [N, K]. truth: uint8 [N], rows of ``members``. frame: int [N], which frame
            each is of, 0 to F - 1 in the order of the files.
        members: bool [C, K], the classes that each class of the truth may be.
    """

    logits: NDArray[np.float32]
    truth: NDArray[np.uint8]
    frame: NDArray[np.int64]
    members: NDArray[np.bool_]

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """int [N], the class of each pixel's greatest logit."""
        return self.logits.argmax(1)

    @cached_property
    def fold(self) -> NDArray[np.int64]:
        """int [N], the part of the cross-validation that each pixel is in, 0 to FOLDS - 1."""
        return self.frame * FOLDS // (int(self.frame.max()) + 1)

    def take(self, chosen: NDArray[np.bool_]) -> LogitSet:
        """Some of the pixels, bool [N]."""
        return LogitSet(self.logits[chosen], self.truth[chosen], self.frame[chosen], self.members)

    def losses(self, temperature: NDArray[np.float64] | float) -> NDArray[np.float64]:
        """[N]: -log of the probability that the softmax gives to what the truth may be.

        ``temperature``: one, or [K] by the class of the greatest logit.
        """
        scale = 1 / self._by_pixel(temperature)
        below, possible, gap = self._below
        everything, allowed = (np.exp(each * scale).sum(1) for each in (below, possible))
        return np.log(everything) - np.log(allowed) + (gap * scale).ravel()

    @cached_property
    def _below(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Logits below their greatest, and below the greatest that the truth may be; the gap.

        float32 [N, K], [N, K] (-inf for what the truth cannot be), [N, 1]. With the greatest at 0
        no exponential overflows, and no sum of them is 0.
        """
        top = self.logits.max(1, keepdims=True)
        possible = np.where(self.members[self.truth], self.logits, np.float32(-np.inf))
        best = possible.max(1, keepdims=True)
        return self.logits - top, possible - best, top - best

    def confidence(self, temperature: NDArray[np.float64] | float) -> NDArray[np.uint8]:
        """[N]: 255 x the probability of the greatest logit, as the model file gives it."""
        scaled = self.logits / self._by_pixel(temperature)
        top = scaled.max(1, keepdims=True)
        return (255 / np.exp(scaled - top).sum(1) + 0.5).astype(np.uint8)

    def right(self) -> NDArray[np.bool_]:
        """[N]: whether the label is one that the truth may be."""
        return self.members[self.truth, self.labels]

    def _by_pixel(self, temperature: NDArray[np.float64] | float) -> NDArray[np.float32]:
        values = np.asarray(temperature, np.float32)
        return values[self.labels][:, None] if values.ndim else values


@dataclass(frozen=True)
class Fit:
    """``shared``: the temperature of the classes that have none of their own. ``own``: by class."""

    shared: float
    own: dict[int, float]

    def temperature(self, classes: int) -> NDArray[np.float64]:
        """What ``training.export.graph_logits.set_temperature`` takes: [], or [classes]."""
        if not self.own:
            return np.array(self.shared)
        return np.array([self.own.get(k, self.shared) for k in range(classes)])


def fit_temperature(sets: Sequence[LogitSet], own: Sequence[int] = ()) -> Fit:
    """The temperatures with the least mean loss, each set weighing the same.

    Args:
        own: the classes to be fitted each by itself, to the pixels that have it as their label.
            One without pixels gets the shared temperature.
    """
    rest = [part.take(~np.isin(part.labels, own)) for part in sets]
    weights = [1 / len(part.truth) for part in sets]
    everything = any(len(part.truth) for part in rest)
    shared = _least(rest if everything else list(sets), weights)
    found = {}
    for k in own:
        pixels = [part.take(part.labels == k) for part in sets]
        if any(len(part.truth) for part in pixels):
            found[k] = _least(pixels, weights)
    return Fit(shared, found)


def _least(sets: Sequence[LogitSet], weights: Sequence[float]) -> float:
    """The temperature with the least weighted sum of losses."""

    def loss(log: float) -> float:
        losses = (w * part.losses(np.exp(log)).sum() for part, w in zip(sets, weights, strict=True))
        return float(sum(losses))

    found = minimize_scalar(loss, bounds=np.log(_BOUNDS), method="bounded", options={"xatol": 1e-3})
    return float(np.exp(found.x))


def classes_that_pay(sets: Sequence[LogitSet]) -> list[int]:
    """The classes that a temperature of their own describes better, by cross-validation.

    Better: on frames that neither temperature was fitted to, the loss of the pixels that have the
    class as their label is lower, by more than CLEAR standard errors of that difference over the
    folds of the sets: frames of one fold are too much alike to count each.
    """
    classes = range(sets[0].logits.shape[1])
    gains = []
    for fold in range(FOLDS):
        kept = [part.take(part.fold != fold) for part in sets]
        shared, own = fit_temperature(kept), fit_temperature(kept, classes)
        for part in sets:
            held = part.take(part.fold == fold)
            gain = held.losses(shared.shared) - held.losses(own.temperature(len(classes)))
            # A class without pixels in `kept` cannot be better by this.
            gain[~np.isin(held.labels, list(own.own))] = 0
            share = gain / len(part.truth)
            gains.append(np.bincount(held.labels, share, minlength=len(classes)))
    means, errors = np.mean(gains, 0), np.std(gains, 0, ddof=1) / np.sqrt(len(gains))
    return np.flatnonzero(means > CLEAR * errors).tolist()


def held_out_confidence(sets: Sequence[LogitSet], own: Sequence[int]) -> list[NDArray[np.uint8]]:
    """For each set [N]: the confidence by the temperatures fitted to the other folds."""
    found = [np.zeros(len(part.truth), np.uint8) for part in sets]
    for fold in range(FOLDS):
        fit = fit_temperature([part.take(part.fold != fold) for part in sets], own)
        for part, confidence in zip(sets, found, strict=True):
            held = part.fold == fold
            temperature = fit.temperature(part.logits.shape[1])
            confidence[held] = part.take(held).confidence(temperature)
    return found
