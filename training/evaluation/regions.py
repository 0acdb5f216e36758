# SPDX-License-Identifier: Apache-2.0
"""Regions scored against several human segmentations, as the BSDS500 benchmark defines them.

Covering, probabilistic Rand index and variation of information (Arbelaez et al. 2011), in bits as
in the benchmark's code. One image at a time, then the set::

    scores = []
    for image, truths in ...:  # truths: list of integer [H, W]
        scores.append(score_hierarchy(truths, hierarchy(image, probabilities)))
    score_set(scores, LEVELS)["covering"]["ods"]

A single segmentation of an image is ``score_image(truths, regions)``. A hierarchy costs one pass
over the pixels; each of its levels only merges the counted overlaps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from ctxseg_ros.inference.pipeline import Model
from ctxseg_ros.model.model_file import ModelInfo
from ctxseg_ros.refinement.crf import refine
from ctxseg_ros.refinement.merging import hierarchy
from training.data.bsds import check_pairs, read_truths
from training.data.pairs import Pair
from training.evaluation.running import AUTO, RunOptions, each_at_its_size

#: The levels that the benchmark cuts a hierarchy at.
LEVELS: tuple[float, ...] = tuple(i / 100 for i in range(1, 100))


def evaluate_regions(
    info: ModelInfo, pairs: Sequence[Pair], run: RunOptions = AUTO
) -> dict[str, Any]:
    """Scores of a model's regions against BSDS segmentations, at each image's own size.

    Args:
        info: the model. pairs: images and their ``.mat`` files.
        run: its size is by default, for each image, the nearest to its own that the model takes,
            so that none is squeezed.

    Returns:
        ``plain`` (the partition by label, connected or not), ``crf`` (the same after the CRF) and
        ``merged`` (the hierarchy of regions, cut at ``LEVELS``), each what ``score_set`` returns;
        ``images``.

    Raises:
        DataError: a file cannot be read or used; all such files are named, before the model runs.
        ValueError: the model has no labels, or the size does not fit it.
    """
    if info.task == "attention":
        raise ValueError(f"{info.name} is a model of task attention: it has no regions to score")
    check_pairs(pairs)
    scores: dict[str, list[ImageScores]] = {"plain": [], "crf": [], "merged": []}
    for pair, model in each_at_its_size(info, pairs, run):
        for name, score in _score_pair(model, pair, len(info.classes)).items():
            scores[name].append(score)
    return {
        "plain": score_set(scores["plain"]),
        "crf": score_set(scores["crf"]),
        "merged": score_set(scores["merged"], LEVELS),
        "images": len(pairs),
    }


def _score_pair(model: Model, pair: Pair, classes: int) -> dict[str, ImageScores]:
    image, truths = pair.rgb(), read_truths(pair.label)
    prediction = model.segment(image)
    assert prediction.labels is not None and prediction.confidence is not None
    refined = refine(image, prediction.labels, prediction.confidence, classes)
    return {
        "plain": score_image(truths, prediction.labels),
        "crf": score_image(truths, refined.argmax(0)),
        "merged": score_hierarchy(truths, hierarchy(image, refined)),
    }


class Hierarchy(Protocol):
    """Nested segmentations: the finest, int [H, W] with ids 0 to R - 1, and what it merges to."""

    @property
    def finest(self) -> NDArray[np.int32]: ...

    def assignment(self, level: float) -> NDArray[np.int32]:
        """Id of the merged region by id of the finest, int [R]."""


@dataclass(frozen=True)
class ImageScores:
    """One image against its truths, at each of L levels (one for a single segmentation).

    Args:
        covered: float [L], pixels of the truths' regions, each times its best overlap (IoU).
        pixels: the pixels of all truths together: ``covered / pixels`` is the covering.
        pri: float [L], mean Rand index over the truths, 0 to 1.
        vi: float [L], mean variation of information over the truths, in bits, >= 0.
        best: like ``covered``, where each region of a truth may take its own level.
    """

    covered: NDArray[np.float64]
    pixels: int
    pri: NDArray[np.float64]
    vi: NDArray[np.float64]
    best: float


def score_hierarchy(
    truths: Sequence[NDArray[Any]], hierarchy: Hierarchy, levels: Sequence[float] = LEVELS
) -> ImageScores:
    """Score a hierarchy, cut at ``levels``, against the truths (integer [H, W] each)."""
    return score_image(truths, hierarchy.finest, [hierarchy.assignment(each) for each in levels])


def score_image(
    truths: Sequence[NDArray[Any]],
    regions: NDArray[Any],
    assignments: Sequence[NDArray[Any]] | None = None,
) -> ImageScores:
    """Score the segmentation of one image.

    Args:
        truths: one or more segmentations by hand, integer [H, W], any ids.
        regions: integer [H, W], any ids; with ``assignments`` the ids are 0 to R - 1.
        assignments: for each level the merged region of each of the R regions, integer [R].
            None: one level, the regions themselves.

    Raises:
        ValueError: there is no truth, or one of another size than ``regions``.
    """
    if assignments is None:
        ids, regions = np.unique(regions, return_inverse=True)
        assignments = [np.arange(len(ids))]
    overlaps = _Overlaps.count(truths, np.asarray(regions))
    rows, previous = [], None
    for assignment in assignments:
        if previous is None or not np.array_equal(assignment, previous):
            rows.append(overlaps.scores(assignment))
        else:
            rows.append(rows[-1])
        previous = assignment
    overlap = np.array([row[0] for row in rows])
    return ImageScores(
        covered=overlap @ overlaps.truth_sizes,
        pixels=int(overlaps.truth_sizes.sum()),
        pri=np.array([row[1] for row in rows]),
        vi=np.array([row[2] for row in rows]),
        best=float(overlap.max(0) @ overlaps.truth_sizes),
    )


def score_set(
    images: Iterable[ImageScores], levels: Sequence[float] | None = None
) -> dict[str, dict[str, float]]:
    """Scores over a set: ``covering``, ``pri``, ``vi``, each with ``ods`` and ``ois``.

    ``ods`` is at the level that is best for the whole set (chosen for each measure on its own),
    ``ois`` at the best level of each image. Images weigh the same in ``pri`` and ``vi``, and as
    many pixels as their truths have in ``covering``; ``covering`` has also ``best``, where each
    region of the truth takes its own level.

    Args:
        images: scores that all have the same number of levels; at least one image.
        levels: the levels; their best is then given as ``level``.
    """
    images = list(images)
    pixels = sum(image.pixels for image in images)
    curves = {
        "covering": np.sum([image.covered for image in images], 0) / pixels,
        "pri": np.mean([image.pri for image in images], 0),
        "vi": np.mean([image.vi for image in images], 0),
    }
    at = {"covering": curves["covering"].argmax(), "pri": curves["pri"].argmax()}
    at["vi"] = curves["vi"].argmin()
    result = {name: {"ods": float(curve[at[name]])} for name, curve in curves.items()}
    result["covering"]["ois"] = float(sum(image.covered.max() for image in images) / pixels)
    result["covering"]["best"] = float(sum(image.best for image in images) / pixels)
    result["pri"]["ois"] = float(np.mean([image.pri.max() for image in images]))
    result["vi"]["ois"] = float(np.mean([image.vi.min() for image in images]))
    if levels is not None:
        for name, measure in result.items():
            measure["level"] = levels[at[name]]
    return result


@dataclass(frozen=True)
class _Overlaps:
    """Pixels by (region, region of a truth), only the pairs that meet.

    The regions of all truths are numbered through; ``truth_of`` says whose each is.
    """

    region: NDArray[np.int64]
    truth_region: NDArray[np.int64]
    pixels: NDArray[np.float64]
    truth_of: NDArray[np.int64]
    truth_sizes: NDArray[np.float64]
    sizes: NDArray[np.float64]

    @staticmethod
    def count(truths: Sequence[NDArray[Any]], regions: NDArray[Any]) -> _Overlaps:
        if not truths:
            raise ValueError("no truth to score against")
        flat = regions.ravel().astype(np.int64)
        sizes = np.bincount(flat).astype(float)
        region, truth_region, pixels = [], [], []
        truth_of: list[int] = []
        for i, truth in enumerate(truths):
            if truth.shape != regions.shape:
                raise ValueError(
                    f"truth {i} is {list(truth.shape)}, the segmentation {list(regions.shape)}"
                )
            # Region beside region in one number, so that equal pairs count as equal numbers.
            keys, counts = np.unique(
                truth.ravel().astype(np.int64) * len(sizes) + flat, return_counts=True
            )
            ids, column = np.unique(keys // len(sizes), return_inverse=True)
            region.append(keys % len(sizes))
            truth_region.append(column + len(truth_of))
            pixels.append(counts)
            truth_of += [i] * len(ids)
        columns, counted = np.concatenate(truth_region), np.concatenate(pixels).astype(float)
        return _Overlaps(
            region=np.concatenate(region),
            truth_region=columns,
            pixels=counted,
            truth_of=np.array(truth_of),
            truth_sizes=np.bincount(columns, counted).astype(float),
            sizes=sizes,
        )

    def scores(self, assignment: NDArray[Any]) -> tuple[NDArray[np.float64], float, float]:
        """Best overlap by region of a truth, then PRI and VI, of the merged regions."""
        count = len(self.truth_of)
        sizes = np.bincount(assignment, self.sizes)
        keys, where = np.unique(
            np.asarray(assignment, np.int64)[self.region] * count + self.truth_region,
            return_inverse=True,
        )
        pixels = np.bincount(where, self.pixels)
        column = keys % count
        truth_sizes = self.truth_sizes[column]
        overlap = np.zeros(count)
        np.maximum.at(overlap, column, pixels / (sizes[keys // count] + truth_sizes - pixels))

        total = sizes.sum()
        of = self.truth_of[column]
        same = np.bincount(of, pixels**2)
        split = np.bincount(self.truth_of, self.truth_sizes**2) / 2 + (sizes**2).sum() / 2 - same
        pairs = total * (total - 1) / 2
        rand = 1 - split / pairs if pairs else np.ones(len(split))
        joint = np.bincount(of, _entropy(pixels / total))
        truth_entropy = np.bincount(self.truth_of, _entropy(self.truth_sizes / total))
        information = 2 * joint - truth_entropy - _entropy(sizes / total).sum()
        # Rounding leaves some 1e-16 below 0 where the segmentations agree.
        return overlap, float(rand.mean()), float(information.clip(0).mean())


def _entropy(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """-p log2 p; 0 at 0."""
    return -share * np.log2(np.where(share > 0, share, 1))


def regions_table(name: str, result: dict[str, Any]) -> Table:
    """``evaluate_regions``'s result for people; ``name``: of the model."""
    table = Table(title=f"{name}: {result['images']} images, ODS / OIS", title_justify="left")
    table.add_column("regions")
    for heading in ("covering", "PRI", "VI (bits)"):
        table.add_column(heading, justify="right")
    for kind in ("plain", "crf", "merged"):
        measures = [result[kind][m] for m in ("covering", "pri", "vi")]
        table.add_row(kind, *(f"{m['ods']:.3f} / {m['ois']:.3f}" for m in measures))
    return table
