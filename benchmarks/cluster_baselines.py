# SPDX-License-Identifier: Apache-2.0
"""What clusters learned without labels are to beat: k-means on colour and position, and chance.

k-means runs once over pixels of all training frames, so that a cluster means the same in every
frame, like a network's. It sees no label. How much position counts beside colour is a choice that
would need one: every choice is measured, and the one that scores best is what is to be beaten.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from training.data.files import progress
from training.data.pairs import LabelReader, Pair, read_pair
from training.evaluation.labels import count_pixels, matched_scores
from training.evaluation.matching import MATCHES

#: CIELAB units that lie between opposite sides of a frame.
POSITIONS = (0, 25, 50, 100, 200, 400)
SEEDS = 5
#: Pixels that are taken from each training frame.
PIXELS = 400
MEASURES = ("miou", "pixel_accuracy")
_STEPS = 100

#: From `colour_and_place` of an image, [H, W, 5], to its clusters' ids, uint8 [H, W].
Labeller = Callable[[NDArray[np.float32]], NDArray[np.uint8]]
Key = TypeVar("Key")


def colour_and_place(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """CIELAB and the place (x, y) in shares of the sides, float32 [H, W, 5], of RGB [H, W, 3]."""
    height, width = image.shape[:2]
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return np.dstack((lab, (x + 0.5) / width, (y + 0.5) / height))


def sample(
    images: Iterable[NDArray[np.uint8]], count: int = PIXELS, seed: int = 0
) -> NDArray[np.float32]:
    """`colour_and_place` of `count` pixels of each image, drawn with replacement, [N, 5]."""
    rng = np.random.default_rng(seed)
    points = []
    for image in images:
        pixels = colour_and_place(image).reshape(-1, 5)
        points.append(pixels[rng.integers(len(pixels), size=count)])
    return np.concatenate(points)


@dataclass(frozen=True)
class KMeans:
    """Each pixel to the nearest centre, a `Labeller`.

    `centres`: float32 [K, 5], like `colour_and_place`, its place times `position`: the CIELAB units
    from side to side.
    """

    centres: NDArray[np.float32]
    position: float

    @staticmethod
    def fit(points: NDArray[np.float32], clusters: int, position: float, seed: int) -> "KMeans":
        """Of points [N, 5]: k-means++ from the seed, then until it stands still."""
        cv2.setRNGSeed(seed)
        end = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, _STEPS, 0.01)
        scaled = points * _scale(position)
        _, _, centres = cv2.kmeans(scaled, clusters, None, end, 1, cv2.KMEANS_PP_CENTERS)
        return KMeans(centres, position)

    def __call__(self, points: NDArray[np.float32]) -> NDArray[np.uint8]:
        # The point's own square is the same for every centre.
        products = points @ (self.centres * _scale(self.position)).T
        return ((self.centres**2).sum(1) - 2 * products).argmin(2).astype(np.uint8)


def _scale(position: float) -> NDArray[np.float32]:
    return np.array([1, 1, 1, position, position], np.float32)


@dataclass(frozen=True)
class Chance:
    """Each pixel to any of the clusters, a `Labeller`."""

    clusters: int
    rng: np.random.Generator

    def __call__(self, points: NDArray[np.float32]) -> NDArray[np.uint8]:
        return self.rng.integers(self.clusters, size=points.shape[:2], dtype=np.uint8)


def score_labellers(
    labellers: Mapping[Key, Labeller],
    clusters: int,
    pairs: Sequence[Pair],
    read: LabelReader,
    classes: int,
) -> dict[Key, dict[str, Any]]:
    """What `matched_scores` returns (Hungarian; majority as `other`) for each labeller.

    Raises DataError for a file that cannot be read, or without a pixel that counts.
    """
    pixels = {key: np.zeros((classes, clusters + 1), np.int64) for key in labellers}
    for pair in progress(pairs, "baselines", len(pairs)):
        image, truth, _ = read_pair(pair, read)
        points = colour_and_place(image)
        for key, labeller in labellers.items():
            pixels[key] += count_pixels(truth, labeller(points), classes, clusters)
    return {key: matched_scores(counted, "hungarian") for key, counted in pixels.items()}


def summary(name: str, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One row of several runs: by match and measure their `mean` and `best`, fractions of 1.

    `results`: each from `matched_scores` or `evaluate_labels`, matched by either.
    """
    row: dict[str, Any] = {"clusters": name, "runs": len(results)}
    for match in MATCHES:
        matched = [
            result if result["other"]["match"] != match else result["other"] for result in results
        ]
        row[match] = {
            measure: {
                "mean": round(float(np.mean([each[measure] for each in matched])), 6),
                "best": max(each[measure] for each in matched),
            }
            for measure in MEASURES
        }
    return row


def measure_baselines(
    train: Sequence[Pair],
    val: Sequence[Pair],
    read: LabelReader,
    classes: int,
    clusters: int,
    seeds: int = SEEDS,
) -> list[dict[str, Any]]:
    """A `summary` of k-means for each of POSITIONS, and of chance, each over so many seeds.

    `train`: their images alone are used. `val`: scored at the truth's size by `read`, whose ids
    are below `classes`. Raises DataError for a file that cannot be read.
    """
    images = (pair.rgb() for pair in train)
    points = sample(progress(images, "pixels for k-means", len(train)))
    labellers: dict[tuple[str, int], Labeller] = {}
    for position in POSITIONS:
        place = f"colour + position x {position}" if position else "colour alone"
        for seed in range(seeds):
            fitted = KMeans.fit(points, clusters, position, seed)
            labellers[f"k-means, {place}", seed] = fitted
    for seed in range(seeds):
        labellers["random", seed] = Chance(clusters, np.random.default_rng(seed))
    scores = score_labellers(labellers, clusters, val, read, classes)
    return [
        summary(name, [scores[name, seed] for seed in range(seeds)])
        for name in dict.fromkeys(name for name, _ in labellers)
    ]
