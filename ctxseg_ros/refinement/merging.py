# SPDX-License-Identifier: Apache-2.0
"""Regions merged by the weakness of the boundaries between them: a tree that is cut at any level.

After Arbelaez et al. 2011 (OWT-UCM): a watershed makes many small regions, then the two regions
with the weakest boundary become one, until one is left. Cutting the tree at a level keeps the
boundaries that are stronger, so what is one region at a level is one at every higher level. Unlike
there, a boundary is also the stronger, the more the two regions differ as wholes.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ctxseg_ros.model.model_file import MAX_CLASSES
from ctxseg_ros.refinement.boundaries import ANGLES, Cue, cues, global_boundaries, local_boundaries
from ctxseg_ros.refinement.extras import refining

Floats = NDArray[np.float32]
Ids = NDArray[np.int32]

# A boundary counts (share / _SHARE)^_GROWTH times, by its smaller region's share of the image:
# people draw around few small things. Covering on 54 training images: 0.646 at growth 0.05, 0.658
# at 0.08, 0.656 at 0.12.
_SHARE = 0.0065
_GROWTH = 0.08
_STEEPNESS = 4  # spreads the evidence of common boundaries over 0 to 1
_ALONG = 4.0  # pixels of a boundary to each side that tell its direction


@dataclass(frozen=True)
class Hierarchy:
    """Nested segmentations of an image.

    `finest`: int32 [H, W], the smallest regions, ids 0 to R - 1, each connected (4 neighbours).
    `merges`: int32 [R - 1, 2]. Merge i makes node R + i of two earlier nodes; nodes below R are
    the finest regions. `strengths`: float32 [R - 1], 0 to 1, ascending: how strong the boundary is
    that a merge removes. A strength means the same on every image: people's segmentations of
    photographs are met best at about 0.5.
    """

    finest: Ids
    merges: Ids
    strengths: Floats

    def assignment(self, level: float) -> Ids:
        """Region at `level` by finest region, int32 [R]; ids from 0 without gaps.

        Keeps the boundaries stronger than `level`: 1 leaves one region. Raises ValueError for a
        level outside 0 to 1.
        """
        if not 0 <= level <= 1:
            raise ValueError(f"the level is {level}. Give one from 0 (all regions) to 1 (one)")
        merged = int(np.searchsorted(self.strengths, np.float32(level), side="right"))
        nodes = self._parents()[: len(self.merges) + 1 + merged]
        nodes = np.where(nodes < len(nodes), nodes, np.arange(len(nodes)))
        while (nodes != nodes[nodes]).any():
            nodes = nodes[nodes]
        regions = nodes[: len(self.merges) + 1]
        return np.unique(regions, return_inverse=True)[1].astype(np.int32)

    def at(self, level: float) -> Ids:
        """The regions at `level`, int32 [H, W]; like `assignment`."""
        return self.assignment(level)[self.finest]

    @property
    def contours(self) -> Floats:
        """How strong the boundary is to the pixel on the right or below, float32 [H, W], 0 to 1.

        Above a level exactly where a region of that level ends. 0 inside regions.
        """
        regions = len(self.merges) + 1
        found = np.zeros(self.finest.shape, np.float32)
        parents = self._parents()
        for axis in (0, 1):
            one, other = _neighbours(self.finest, axis)
            apart = one != other
            strengths = self.strengths[_meeting(parents, one[apart], other[apart]) - regions]
            here = _neighbours(found, axis)[0]
            here[apart] = np.maximum(here[apart], strengths)
        return found

    def _parents(self) -> Ids:
        """The node that each node is merged into, int32 [2R - 1]; the last one's is itself."""
        regions = len(self.merges) + 1
        parents = np.arange(2 * regions - 1, dtype=np.int32)
        parents[self.merges] = np.arange(regions, 2 * regions - 1, dtype=np.int32)[:, None]
        return parents


def _meeting(parents: Ids, one: Ids, other: Ids) -> Ids:
    """The first node that holds both, for arrays of nodes. Parents have higher ids."""
    while (one != other).any():
        one, other = np.minimum(one, other), np.maximum(one, other)
        one = np.where(one < other, parents[one], one)
    return one


def hierarchy(image: NDArray[np.uint8], probabilities: Floats) -> Hierarchy:
    """The image's regions, and how they merge.

    `image`: uint8 [H, W, 3], RGB. `probabilities`: float32 [K, H, W], classes or clusters, each
    pixel's sum 1; all alike (K = 1) leave it to the image. About 1.4 s for 321x481 on one core.
    Raises ValueError for what does not fit, ImportError without the extra `refine`.
    """
    _check(image, probabilities)
    compared = cues(image, probabilities)
    local = local_boundaries(compared)
    crest = local.max(axis=0)
    finest = _watershed(crest)
    evidence = local + global_boundaries(crest)
    arcs = _arcs(finest, evidence)
    sizes, contents = np.bincount(finest.ravel()), region_contents(finest, compared)
    merges, strengths = merge_regions(sizes, arcs, contents)
    # 0 without evidence, one half at evidence 1, towards 1 beyond all doubt.
    odds = strengths**_STEEPNESS
    return Hierarchy(finest, merges, (odds / (1 + odds)).astype(np.float32))


def merged_labels(
    image: NDArray[np.uint8], probabilities: Floats, level: float
) -> NDArray[np.uint8]:
    """The most probable class of each region at `level`, uint8 [H, W].

    A label for every pixel, and one for each region: the top of its mean probabilities. Arguments,
    errors and cost as of `hierarchy` and `Hierarchy.assignment`.
    """
    regions = hierarchy(image, probabilities).at(level)
    sums = np.stack([np.bincount(regions.ravel(), plane.ravel()) for plane in probabilities])
    return sums.argmax(axis=0).astype(np.uint8)[regions]


def _check(image: NDArray[np.uint8], probabilities: Floats) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(
            f"the image is {image.dtype} {list(image.shape)}. "
            "Give it as uint8 [height, width, 3], RGB"
        )
    if probabilities.dtype != np.float32 or probabilities.ndim != 3 or not len(probabilities):
        raise ValueError(
            f"the probabilities are {probabilities.dtype} {list(probabilities.shape)}. "
            "Give them as float32 [classes, height, width]"
        )
    if len(probabilities) > MAX_CLASSES:
        raise ValueError(f"there are {len(probabilities)} classes. Give 1 to {MAX_CLASSES}")
    if probabilities.shape[1:] != image.shape[:2]:
        raise ValueError(
            f"the probabilities are {list(probabilities.shape)} beside an image of "
            f"{list(image.shape)}. Resize one to the other's height and width"
        )
    if not (np.isfinite(probabilities).all() and (probabilities >= 0).all()):
        raise ValueError("the probabilities are not all numbers >= 0. Give each pixel's shares")


def _watershed(crest: Floats) -> Ids:
    """Basins of the boundary evidence, int32 [H, W], ids from 0."""
    smooth = cv2.GaussianBlur(crest, (0, 0), 1.0, borderType=cv2.BORDER_REFLECT)
    # In steps: rounding errors would make basins of flat areas.
    steps = np.round(smooth * 1000).astype(np.int32)
    if steps.min() == steps.max():  # it has no minimum, and so no basin
        return np.zeros(crest.shape, np.int32)
    basins = refining("skimage.segmentation").watershed(steps)
    return (basins - 1).astype(np.int32)


@dataclass(frozen=True)
class _Arcs:
    """The boundaries between pairs of regions: ids [A], lengths in pixel sides, mean evidence."""

    one: NDArray[np.int64]
    other: NDArray[np.int64]
    length: NDArray[np.int64]
    evidence: NDArray[np.float64]


def _neighbours(plane: NDArray[Any], axis: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Views of all pixels with a next one along the axis, and of these next ones."""
    return (plane[:-1], plane[1:]) if axis == 0 else (plane[:, :-1], plane[:, 1:])


def _arcs(finest: Ids, evidence: Floats) -> _Arcs:
    """Every pair of neighbouring regions, with the evidence across its boundary's own direction."""
    regions = int(finest.max()) + 1
    ids = np.arange(finest.size).reshape(finest.shape)
    firsts, seconds, keys, normals = [], [], [], []
    for axis in (0, 1):
        one, other = _neighbours(finest, axis)
        apart = one != other
        first, second = (pixels[apart] for pixels in _neighbours(ids, axis))
        low, high = np.minimum(one, other)[apart], np.maximum(one, other)[apart]
        firsts.append(first)
        seconds.append(second)
        keys.append(low.astype(np.int64) * regions + high)
        # From the lower id to the higher.
        normal = np.zeros((len(first), 2))
        normal[:, axis] = np.where(one[apart] < other[apart], 1, -1)
        normals.append(normal)
    first, second = np.concatenate(firsts), np.concatenate(seconds)
    pairs, arc = np.unique(np.concatenate(keys), return_inverse=True)
    places = (_places(first, finest.shape) + _places(second, finest.shape)) / 2
    angle = _angles(places, np.concatenate(normals), arc)
    planes = evidence.reshape(ANGLES, -1)
    across = (planes[angle, first] + planes[angle, second]) / 2
    length = np.bincount(arc, minlength=len(pairs))
    total = np.bincount(arc, across, minlength=len(pairs))
    return _Arcs(pairs // regions, pairs % regions, length, total / length)


def _places(pixels: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    return np.stack(np.unravel_index(pixels, shape), axis=1).astype(np.float64)


def _angles(
    places: NDArray[np.float64], normals: NDArray[np.float64], arc: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The direction (0 to ANGLES - 1) of the boundary at each pixel side: its arc's mean nearby."""
    if not len(places):
        return np.zeros(0, np.int64)
    near = refining("scipy.spatial").cKDTree(places).query_pairs(_ALONG, output_type="ndarray")
    near = near[arc[near[:, 0]] == arc[near[:, 1]]]
    total = normals.copy()
    for here, there in (near.T, near.T[::-1]):
        for axis in (0, 1):
            total[:, axis] += np.bincount(here, normals[there, axis], minlength=len(total))
    turn = np.arctan2(total[:, 0], total[:, 1]) / np.pi
    return np.round(turn * ANGLES).astype(np.int64) % ANGLES


def region_contents(finest: Ids, compared: Sequence[Cue]) -> NDArray[np.float64]:
    """What a pixel of each region holds on average, weighted, float64 [R, bins of all cues].

    The Euclidean distance between the square roots of two regions' contents is that of their
    Hellinger distances by cue, each times its weight.
    """
    ids = finest.ravel()
    sums = [np.bincount(ids, plane.ravel()) for cue in compared for plane in cue.shares]
    weights = np.concatenate([np.full(len(cue.shares), cue.whole**2 / 2) for cue in compared])
    return np.stack(sums, axis=1) * weights / np.bincount(ids)[:, None]


def merge_regions(
    sizes: NDArray[np.int64], arcs: _Arcs, contents: NDArray[np.float64]
) -> tuple[Ids, NDArray[np.float64]]:
    """Join the two regions with the weakest boundary until one is left: pairs, and strengths.

    `sizes`: int [R], pixels. `contents`: see `region_contents`. The mean evidence of a joined
    region's boundary to another is that of what it joins, by length. A joined region may be more
    like another than its parts: that merge counts as strong as the one before, so that strengths
    ascend.
    """
    regions = len(sizes)
    # By node: the size, and the square roots of the contents.
    size = np.zeros(2 * regions - 1)
    size[:regions] = sizes / sizes.sum() / _SHARE
    roots = np.zeros((2 * regions - 1, contents.shape[1]))
    roots[:regions] = np.sqrt(contents)
    # By node: its neighbours, each with length and length times evidence of the boundary.
    around: list[dict[int, tuple[float, float]]] = [{} for _ in range(regions)]
    columns = (arcs.one, arcs.other, arcs.length, arcs.length * arcs.evidence)
    for one, other, length, total in zip(*(part.tolist() for part in columns), strict=True):
        around[one][other] = around[other][one] = (length, total)
    first = _strengths(arcs.evidence, size, roots, arcs.one, arcs.other)
    heap = list(zip(first.tolist(), arcs.one.tolist(), arcs.other.tolist(), strict=True))
    heapq.heapify(heap)
    gone = [False] * (2 * regions - 1)
    pairs, strengths = [], []
    weakest = 0.0
    while heap:
        strength, one, other = heapq.heappop(heap)
        if gone[one] or gone[other]:
            continue
        weakest = max(weakest, strength)
        pairs.append((one, other))
        strengths.append(weakest)
        gone[one] = gone[other] = True
        joined = len(around)
        size[joined] = size[one] + size[other]
        shares = np.array([size[one], size[other]]) / size[joined]
        roots[joined] = np.sqrt(shares @ roots[[one, other]] ** 2)
        ours = _joined(around, one, other)
        around.append(ours)
        evidence = np.array([total / length for length, total in ours.values()])
        found = _strengths(evidence, size, roots, np.array(list(ours), np.int64), joined)
        for (node, boundary), strength in zip(ours.items(), found.tolist(), strict=True):
            around[node][joined] = boundary
            heapq.heappush(heap, (strength, node, joined))
    return np.array(pairs, np.int32).reshape(-1, 2), np.array(strengths)


def _strengths(
    evidence: NDArray[np.float64],
    size: NDArray[np.float64],
    roots: NDArray[np.float64],
    one: NDArray[np.int64],
    other: NDArray[np.int64] | int,
) -> NDArray[np.float64]:
    """How strong boundaries are: by their evidence, how the regions differ, and the smaller one."""
    apart = np.linalg.norm(roots[one] - roots[other], axis=1)
    return (evidence + apart) * np.minimum(size[one], size[other]) ** _GROWTH


def _joined(
    around: list[dict[int, tuple[float, float]]], one: int, other: int
) -> dict[int, tuple[float, float]]:
    """The neighbours of two nodes together, which stop being anyone's neighbours themselves."""
    ours: dict[int, tuple[float, float]] = {}
    for part, counterpart in ((one, other), (other, one)):
        for node, (length, total) in around[part].items():
            if node != counterpart:
                del around[node][part]
                before = ours.get(node, (0.0, 0.0))
                ours[node] = (before[0] + length, before[1] + total)
        around[part] = {}
    return ours
