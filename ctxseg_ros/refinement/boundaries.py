# SPDX-License-Identifier: Apache-2.0
"""How strongly an image, and a model's probabilities, say that a boundary runs through a pixel.

After Arbelaez et al. 2011 (gPb): at each pixel and for each of `ANGLES` directions, what lies on
the one side is compared with what lies on the other: distributions of brightness, colour, texture
and class. Then spectral clustering finds the boundaries that divide the image as a whole.

Evidence is a float >= 0 without unit. Near 1, people's boundaries part best from chance ones.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ctxseg_ros.refinement.extras import refining

ANGLES = 8
"""Direction i is that of a boundary whose normal has the angle i x 180 / ANGLES degrees."""

Floats = NDArray[Any]  # float32: OpenCV's types do not tell

# Weight of each comparison of a boundary's two sides, by their radius in pixels. Logistic
# regression of the share of people who drew a boundary, on the arcs of 27 images of BSDS500's
# training set with a W-Net's classes; scaled so that covering is best where about evidence 1 is
# kept. It gave the classes next to nothing: their weight is by hand, so that what only they show
# is found.
_BRIGHTNESS = {3: 0.60}
_COLOUR = {20: 0.22}
_TEXTURE = {10: 0.40, 20: 0.45}
_CLASSES = {20: 0.08}
_GLOBAL = 0.012

# Weight of each comparison of whole regions. By hand: covering on 54 training images was 0.624
# without them, 0.658 with these and 0.645 to 0.658 with one or all of them at 0.5 to 1.7 times.
_WHOLE = 0.30
_WHOLE_CLASSES = 0.22

# The spectral clustering: grid at a _SHRINK-th of the image's size, pairs up to _REACH grid points
# apart, each unit of evidence between them makes them e^_DIVIDE times less alike.
_SHRINK = 4
_REACH = 5
_VECTORS = 16
_DIVIDE = 6.0

_EDGE = np.ones((13, 13), np.uint8)  # what fits in here is the texture of one edge
_NOISE = 0.03  # of a filter's answer, on brightness of 0 to 1
_BINS = 12  # of brightness
_COLOUR_BINS = 24  # of a, and of b
_COLOUR_RANGE = 84.0  # of a and b, from minus to plus; stronger colours count as that


class Cue(NamedTuple):
    """What tells two places apart: each pixel's shares in bins, [bins, H, W], that sum to 1.

    `beside`: the weight by radius in pixels, where the two sides of a boundary are compared.
    `whole`: the weight where two whole regions are. `fill`: see `_valleys_filled`.
    """

    shares: Floats
    beside: dict[int, float]
    whole: float = _WHOLE
    fill: bool = False


def cues(image: NDArray[np.uint8], probabilities: Floats) -> list[Cue]:
    """Brightness, colour, texture and class.

    `image`: uint8 [H, W, 3], RGB. `probabilities`: float32 [K, H, W].
    """
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    brightness = lab[..., 0] / 100
    colours = [np.clip(lab[..., i] / (2 * _COLOUR_RANGE) + 0.5, 0, 1) for i in (1, 2)]
    return [
        Cue(_soft_histogram(brightness, _BINS), _BRIGHTNESS),
        *(Cue(_soft_histogram(colour, _COLOUR_BINS), _COLOUR) for colour in colours),
        Cue(_textons(brightness), _TEXTURE, fill=True),
        Cue(probabilities, _CLASSES, _WHOLE_CLASSES),
    ]


def local_boundaries(compared: Sequence[Cue]) -> Floats:
    """Evidence from the surroundings of each pixel, float32 [ANGLES, H, W]."""
    found = []
    for cue in compared:
        evidence = _evidence(cue.shares, cue.beside)
        found.append(_valleys_filled(evidence) if cue.fill else evidence)
    return np.sum(found, axis=0)


def _evidence(shares: Floats, weights: dict[int, float]) -> Floats:
    """The weighted contrasts of distributions, by radius; [ANGLES, H, W]."""
    return np.sum(
        [weight * _contrast(shares, radius) for radius, weight in weights.items()], axis=0
    )


def _valleys_filled(crests: Floats) -> Floats:
    """Fill the valley along an edge: the edge's own texture differs from both of its sides'.

    Without this the boundary would run beside the edge, twice. Covering on 24 training images rose
    from 0.593 to 0.620 with this, and radius 10 in place of 5.
    """
    return np.stack([cv2.morphologyEx(plane, cv2.MORPH_CLOSE, _EDGE) for plane in crests])


def _soft_histogram(values: Floats, bins: int) -> Floats:
    """Each pixel's share in each bin, [bins, H, W], of values in 0 to 1."""
    places = np.linspace(0, 1, bins, dtype=np.float32)[:, None, None]
    shares = np.exp(-0.5 * ((values - places) * (bins - 1)) ** 2)
    return shares / shares.sum(axis=0)


def _textons(brightness: Floats) -> Floats:
    """Which of the image's typical textures each pixel has, one-hot [textures, H, W].

    The responses of edge and line filters are clustered (k-means). Each cluster starts as the
    pixels that one filter answers most: the same image gives the same textures.
    """
    responses = _filtered(brightness)
    energy = np.sqrt((responses**2).sum(axis=0))
    # As the eye does: contrasts count by their logarithm, and those of noise not at all.
    responses *= np.log1p(energy / _NOISE) / np.maximum(energy, 1e-6)
    step = 3 if min(brightness.shape) > 30 else 1  # a sample is enough to find the clusters
    sample = np.ascontiguousarray(responses[:, ::step, ::step].reshape(len(responses), -1).T)
    if len(sample) < len(responses):  # too few pixels to have textures
        return np.ones((1, *brightness.shape), np.float32)
    stop = (cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, 15, 1e-4)
    starts = np.abs(sample).argmax(axis=1).astype(np.int32)
    centres = cv2.kmeans(sample, len(responses), starts, stop, 1, cv2.KMEANS_USE_INITIAL_LABELS)[2]
    points = responses.reshape(len(responses), -1)
    # The nearest centre: |x - c|^2 without |x|^2.
    nearest = ((centres**2).sum(axis=1)[:, None] - 2 * centres @ points).argmin(axis=0)
    ids = np.arange(len(centres))[:, None, None]
    return (nearest.reshape(brightness.shape) == ids).astype(np.float32)


def _filtered(brightness: Floats) -> Floats:
    """Answers of filters for edges, lines and spots at two scales, [filters, H, W]."""
    answers = []
    for sigma in (1.0, 2.0):
        smooth = cv2.GaussianBlur(brightness, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
        # Derivatives by pixel, from the kernels' sums; times sigma, as scale space has it.
        x, y = (_derivative(smooth, *order) * (sigma / 8) for order in ((1, 0), (0, 1)))
        xx, yy, xy = (
            _derivative(smooth, *order) * (sigma**2 / 4) for order in ((2, 0), (0, 2), (1, 1))
        )
        for angle in np.arange(4) * np.pi / 4:
            c, s = np.cos(angle), np.sin(angle)
            answers.append(np.abs(c * x + s * y))
            answers.append(c * c * xx + 2 * c * s * xy + s * s * yy)
        answers.append(xx + yy)
    return np.stack(answers).astype(np.float32)


def _derivative(image: Floats, x: int, y: int) -> Floats:
    return cv2.Sobel(image, cv2.CV_32F, x, y, ksize=3, borderType=cv2.BORDER_REFLECT)


def _contrast(shares: Floats, radius: int) -> Floats:
    """Hellinger distance (0 to 1) between the two sides of each pixel, [ANGLES, H, W].

    `shares`: [bins, H, W], each pixel's bins sum 1. A side is a Gaussian window beside the pixel:
    nearly as good as the half disc of `radius` pixels that it stands for, 15 times as fast.
    """
    height, width = shares.shape[1:]
    if radius >= 10 and min(height, width) > 1:
        # Half the size shows as much of wide windows.
        half = ((width + 1) // 2, (height + 1) // 2)
        small = np.stack([cv2.resize(x, half, interpolation=cv2.INTER_AREA) for x in shares])
        wide = _sides_apart(small, radius / 2)
        return np.stack([cv2.resize(x, (width, height)) for x in wide])
    return _sides_apart(shares, radius)


def _sides_apart(shares: Floats, radius: float) -> Floats:
    height, width = shares.shape[1:]
    margin = int(radius / 2) + 1
    roots = np.pad(shares, ((0, 0), (margin, margin), (margin, margin)), mode="symmetric")
    for plane in roots:
        plane[:] = cv2.GaussianBlur(plane, (0, 0), 0.4 * radius, borderType=cv2.BORDER_REFLECT)
    roots = np.sqrt(np.maximum(roots, 0))
    found = np.empty((ANGLES, height, width), np.float32)
    for angle in range(ANGLES):
        one, other = _sides(roots, margin, angle, radius / 2)
        apart = one - other
        found[angle] = np.sqrt(0.5 * np.einsum("khw,khw->hw", apart, apart))
    return found


def _sides(padded: Floats, margin: int, angle: int, distance: float) -> tuple[Floats, Floats]:
    """What lies `distance` pixels ahead and behind along the normal of `angle`, without margins."""
    turn = np.pi * angle / ANGLES
    x, y = round(distance * np.cos(turn)), round(distance * np.sin(turn))
    height, width = padded.shape[1] - 2 * margin, padded.shape[2] - 2 * margin
    ahead, behind = (
        padded[:, margin + dy : margin + dy + height, margin + dx : margin + dx + width]
        for dx, dy in ((x, y), (-x, -y))
    )
    return ahead, behind


def global_boundaries(local: Floats) -> Floats:
    """Evidence from the image as a whole, float32 [ANGLES, H, W].

    `local`: float32 [H, W], the local evidence at each pixel. Neighbours belong together as far as
    no boundary lies between them; the eigenvectors of the normalised cut's Laplacian change where
    the image falls apart best (Shi and Malik 2000). Zero for images too small for that.
    """
    height, width = local.shape
    size = (width // _SHRINK, height // _SHRINK)
    if size[0] * size[1] < 4 * _VECTORS:
        return np.zeros((ANGLES, height, width), np.float32)
    small = cv2.resize(local, size, interpolation=cv2.INTER_AREA)
    vectors = _eigenvectors(_affinity(small)).reshape(_VECTORS, *small.shape)
    found = np.zeros((ANGLES, height, width), np.float32)
    margin = 4
    for vector in vectors:
        plane = cv2.resize(vector, (width, height))
        plane = np.pad(plane, margin, mode="symmetric")
        plane = cv2.GaussianBlur(plane, (0, 0), 1.25, borderType=cv2.BORDER_REFLECT)
        for angle in range(ANGLES):
            ahead, behind = _sides(plane[None], margin, angle, 2.5)
            found[angle] += np.abs(ahead - behind)[0]
    return _GLOBAL * found


def _affinity(boundaries: Floats) -> Any:
    """How much pixels belong together, sparse [H W, H W]: less, the stronger what lies between."""
    height, width = boundaries.shape
    ids = np.arange(height * width).reshape(height, width)
    rows, columns, values = [], [], []
    for dy in range(_REACH + 1):
        for dx in range(-_REACH, _REACH + 1):
            if (dy, dx) <= (0, 0) or dy * dy + dx * dx > _REACH**2 or dy >= height:
                continue
            if abs(dx) >= width:
                continue
            left, right = max(0, -dx), width - max(0, dx)
            steps = max(dy, abs(dx))
            between = np.zeros((height - dy, right - left), np.float32)
            for step in range(steps + 1):
                y, x = round(dy * step / steps), round(dx * step / steps)
                here = boundaries[y : y + height - dy, left + x : right + x]
                between = np.maximum(between, here)
            rows.append(ids[: height - dy, left:right].ravel())
            columns.append(ids[dy:, left + dx : right + dx].ravel())
            values.append(np.exp(-_DIVIDE * between).ravel())
    pairs = (np.concatenate(rows), np.concatenate(columns))
    one_way = refining("scipy.sparse").coo_matrix(
        (np.concatenate(values), pairs), shape=(ids.size, ids.size)
    )
    return (one_way + one_way.T).tocsr()


def _eigenvectors(affinity: Any) -> Floats:
    """The first eigenvectors after the constant one, [_VECTORS, N], the slowest heaviest."""
    sparse = refining("scipy.sparse")
    scale = 1 / np.sqrt(np.asarray(affinity.sum(axis=1), np.float64).ravel())
    normalised = sparse.diags(scale) @ affinity @ sparse.diags(scale)
    # The largest of the normalised affinity are the smallest of the Laplacian, and quicker to find.
    values, vectors = refining("scipy.sparse.linalg").eigsh(
        normalised,
        k=_VECTORS + 1,
        which="LA",
        v0=np.ones(len(scale)),  # else a random start
        tol=1e-4,
        ncv=min(60, len(scale)),
    )
    cuts = np.maximum(1 - values[-2::-1], 1e-4)
    vectors = vectors[:, -2::-1] * scale[:, None]
    spread = np.maximum(np.ptp(vectors, axis=0), 1e-12)
    return (vectors / (spread * np.sqrt(cuts))).T.astype(np.float32)
