# SPDX-License-Identifier: Apache-2.0
"""Clusters of patch embeddings: their leading directions made even, k-means by cosine, merging.

Three steps, each for a reason that shows on CamVid. Hungarian mIoU (%) with 11 and 27 clusters of
DINOv2-S, 20x27 patches, on every 6th training frame, which was clustered and judged by, and on
every third of val; means of 2 or 3 seeds:

====================================  ============  ============
                                      train 11, 27  val 11, 27
====================================  ============  ============
k-means by cosine                     20.4, 15.9    21.8, 23.7
after whitening 16 directions         21.1, 15.6    26.3, 24.9
120 centroids merged, not whitened    13.5, 22.1    13.6, 22.7
120 centroids merged, whitened        23.9, 18.1    28.3, 30.8
====================================  ============  ============

A few directions have most of the variance, and say more of light and place than of things. k-means
makes clusters of about one size, and spends most of the K on what there is most of.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import cut_tree, linkage

#: Leading directions that are kept.
DIRECTIONS = 16
#: Centroids before the merging: so many, and at least so many for each cluster, as long as each
#: has so many vectors.
CENTROIDS = 120
CENTROIDS_EACH = 2
VECTORS_EACH = 10
#: Runs of k-means with other beginnings, of which the one with the lowest inertia is kept.
RUNS = 5
#: Rounds of a run at most. It ends before, when no vector changes its centroid.
ROUNDS = 100
#: Rounding leaves less than this between equal directions, and of the variance where there is none.
_NOTHING = 1e-6


@dataclass(frozen=True)
class Clustering:
    """K clusters of embeddings of D dimensions, the largest first.

    ``mean``: float32 [D]. ``projection``: float32 [D, d]. ``centroids``: float32 [F, d], of length
    1, those of a cluster side by side. ``counts``: int [K], how many each cluster has. ``shares``:
    float [K], of what was clustered. ``inertia``: mean of 1 - cosine with the nearest centroid.
    """

    mean: NDArray[np.float32]
    projection: NDArray[np.float32]
    centroids: NDArray[np.float32]
    counts: NDArray[np.int64]
    shares: NDArray[np.float64]
    inertia: float

    def cosines(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """The greatest cosine with a centroid of each cluster, [N, K], of embeddings [N, D]."""
        found = unit((unit(vectors) - self.mean) @ self.projection) @ self.centroids.T
        return np.maximum.reduceat(found, self.counts.cumsum() - self.counts, axis=-1)


def unit(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Vectors [..., D] brought to length 1; one of length 0 stays so."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def cluster(vectors: NDArray[np.floating], clusters: int, seed: int = 0) -> Clustering:
    """Cluster embeddings by their directions.

    Args:
        vectors: float [N, D]. clusters: K. seed: of the k-means' beginnings.

    Raises:
        ValueError: a value is not finite, or there are fewer different directions than clusters.
    """
    if not np.isfinite(vectors).all():
        raise ValueError("the embeddings to cluster are not finite: the weights are broken")
    directions, rng = unit(vectors), np.random.default_rng(seed)
    mean, projection = whitening(directions, DIRECTIONS)
    if not projection.size:
        raise ValueError("all patches are alike: take frames with more in them")
    white = unit((directions - mean) @ projection)
    wanted = max(CENTROIDS, CENTROIDS_EACH * clusters)
    wanted = max(clusters, min(wanted, len(white) // VECTORS_EACH))
    centroids, members, inertia = min(
        (spherical_kmeans(white, wanted, rng) for _ in range(RUNS)), key=lambda run: run[2]
    )
    if len(centroids) < clusters:
        raise ValueError(
            f"there are {len(centroids)} different patches only, for {clusters} clusters: take "
            "fewer clusters, or frames with more in them"
        )
    groups = merge(centroids, clusters)
    sizes = np.bincount(groups[members], minlength=clusters)
    rank = np.argsort(np.argsort(-sizes, kind="stable"))  # the largest is 0
    order = np.argsort(rank[groups], kind="stable")
    return Clustering(
        mean,
        projection,
        centroids[order],
        np.bincount(rank[groups]),
        np.sort(sizes)[::-1] / len(white),
        inertia,
    )


def whitening(
    vectors: NDArray[np.float32], directions: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean [D] and projection [D, d] onto principal directions, each with variance 1.

    Args:
        vectors: [N, D]. directions: d at most; fewer where the others have no variance.

    Returns:
        Both so that (vectors - mean) @ projection is white. Where all vectors are equal, d is 0.
    """
    mean = vectors.mean(0, dtype=np.float64)
    apart = vectors - mean
    variances, axes = np.linalg.eigh(apart.T @ apart / len(vectors))
    variances, axes = variances[::-1][:directions], axes[:, ::-1][:, :directions]
    varies = variances > _NOTHING * max(variances[0], _NOTHING)
    projection = axes[:, varies] / np.sqrt(variances[varies])
    return mean.astype(np.float32), projection.astype(np.float32)


def spherical_kmeans(
    vectors: NDArray[np.float32], clusters: int, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.int64], float]:
    """k-means by cosine, seeded as k-means++.

    OpenCV's and SciPy's k-means are Euclidean: their centroids are means, shorter the more a
    cluster scatters, and the nearest of those is not the one of greatest cosine.

    Args:
        vectors: [N, D], of length 1.

    Returns:
        Centroids [K, D], of length 1; fewer than ``clusters`` if there are not that many different
        vectors. The centroid of each vector, int64 [N]. The mean of 1 - cosine between them.
    """
    centroids = _beginning(vectors, clusters, rng)
    members, near = assign(vectors, centroids)
    for _ in range(ROUNDS):
        centroids = move(vectors, members, near, len(centroids))
        before = members
        members, near = assign(vectors, centroids)
        if (members == before).all():
            break
    return centroids, members, float(1 - near.mean())


def _beginning(
    vectors: NDArray[np.float32], clusters: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """k-means++ (Arthur & Vassilvitskii 2007): each next one by its squared distance, 2 - 2 cos."""
    chosen = [int(rng.integers(len(vectors)))]
    apart = np.full(len(vectors), np.inf)
    while len(chosen) < clusters:
        apart = np.minimum(apart, 1 - vectors @ vectors[chosen[-1]])
        chances = np.where(apart > _NOTHING, apart, 0)
        if not chances.any():
            break
        chosen.append(int(rng.choice(len(vectors), p=chances / chances.sum())))
    return vectors[chosen]


def assign(
    vectors: NDArray[np.float32], centroids: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The centroid of greatest cosine for each vector, int64 [N], and that cosine, [N]."""
    cosines = vectors @ centroids.T
    members = cosines.argmax(1)
    return members, np.take_along_axis(cosines, members[:, None], 1)[:, 0]


def move(
    vectors: NDArray[np.float32],
    members: NDArray[np.int64],
    near: NDArray[np.float32],
    clusters: int,
) -> NDArray[np.float32]:
    """The direction of each cluster's mean, [K, D]; where it has none, a vector far from its own.

    Args:
        members, near: from ``assign``.
    """
    order = np.argsort(members, kind="stable")
    present, first = np.unique(members[order], return_index=True)
    centroids = np.zeros((clusters, vectors.shape[1]), np.float32)
    centroids[present] = np.add.reduceat(vectors[order], first)
    lost = np.flatnonzero(~centroids.any(1))
    centroids[lost] = vectors[np.argsort(near)[: len(lost)]]
    return unit(centroids)


def merge(centroids: NDArray[np.float32], clusters: int) -> NDArray[np.int64]:
    """Merge centroids by average linkage until ``clusters`` are left: the number of each, [F]."""
    if len(centroids) == clusters:
        return np.arange(clusters)
    tree = linkage(centroids.astype(np.float64), "average")
    return cut_tree(tree, clusters)[:, 0].astype(np.int64)
