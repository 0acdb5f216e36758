# SPDX-License-Identifier: Apache-2.0
"""Regions and how they merge: by hand, against a slow version, and what must always hold."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import label

from ctxseg_ros.refinement import merging
from ctxseg_ros.refinement.boundaries import ANGLES, Cue, cues, global_boundaries, local_boundaries
from ctxseg_ros.refinement.merging import Hierarchy, hierarchy, merged_labels

pytestmark = pytest.mark.slow

LEVELS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0)


SHARE, GROWTH = 0.0065, 0.08  # of the smaller region, in a boundary's strength


def no_classes(image):
    return np.ones((1, *image.shape[:2]), np.float32)


def painted(plane, colours):
    return np.array(colours, np.uint8)[np.array(plane, int)]


def halves(height=64, width=96, colours=((200, 60, 60), (40, 90, 200))):
    return painted(np.arange(width)[None].repeat(height, 0) >= width // 2, colours)


def same_partition(one, other):
    pairs = set(zip(np.ravel(one).tolist(), np.ravel(other).tolist(), strict=True))
    return len(pairs) == len(np.unique(one)) == len(np.unique(other))


def pieces(regions):
    """How many connected pieces the regions have."""
    return sum(label(regions == region)[1] for region in np.unique(regions))


def last_two(found):
    """The level that leaves two regions."""
    return (found.strengths[-2] + found.strengths[-1]) / 2 if len(found.strengths) > 1 else 0.0


def test_two_flat_halves_are_two_regions_up_to_a_high_level():
    found = hierarchy(halves(), no_classes(halves()))
    assert same_partition(found.finest, np.arange(96)[None].repeat(64, 0) >= 48)
    assert found.strengths.tolist() == [pytest.approx(0.9, abs=0.1)]
    assert (found.at(1.0) == 0).all()


def test_a_weaker_boundary_goes_first():
    plane = np.arange(144)[None].repeat(64, 0) // 48
    image = painted(plane, [(100, 100, 100), (112, 112, 112), (230, 230, 230)])
    found = hierarchy(image, no_classes(image))
    assert same_partition(found.at(last_two(found)), plane == 2)


def test_checkers_are_found():
    rows, columns = np.mgrid[:120, :120] // 40
    image = painted((rows + columns) % 2, [(230, 230, 230), (20, 20, 20)])
    # Squares of one colour touch at corners: at level 0.5 some of these are one region.
    found = hierarchy(image, no_classes(image)).at(0.45)
    squares = found[20::40, 20::40]  # their middles
    assert len(np.unique(squares)) == 9
    assert np.mean(found == squares.repeat(40, 0).repeat(40, 1)) > 0.9


def test_probabilities_show_boundaries_that_the_image_does_not():
    image = np.full((32, 48, 3), 90, np.uint8)
    right = np.arange(48)[None].repeat(32, 0) >= 24
    probabilities = np.stack((~right, right)).astype(np.float32)
    found = hierarchy(image, probabilities)
    assert same_partition(found.at(last_two(found)), right)
    assert hierarchy(image, no_classes(image)).finest.max() == 0


def test_a_label_of_each_region_is_its_mean_probabilitys_top():
    image = np.full((64, 96, 3), 90, np.uint8)
    probabilities = np.full((3, 64, 96), 0.05, np.float32)
    probabilities[1, :, :48], probabilities[2, :, 48:] = 0.9, 0.9
    probabilities[:, 4:8, 4:8] = np.array([0.9, 0.05, 0.05])[:, None, None]  # a small mistake
    level = last_two(hierarchy(image, probabilities))
    found = merged_labels(image, probabilities, level)
    assert found.dtype == np.uint8
    assert (found[:, :48] == 1).all() and (found[:, 48:] == 2).all()
    assert len(np.unique(merged_labels(image, probabilities, 1.0))) == 1


def test_each_regions_label_against_a_plain_loop():
    rng = np.random.default_rng(0)
    image = blotches(3, (24, 30))
    probabilities = rng.random((4, 24, 30)).astype(np.float32)
    found, regions = merged_labels(image, probabilities, 0.4), hierarchy(image, probabilities)
    for region in np.unique(regions.at(0.4)):
        inside = regions.at(0.4) == region
        means = [plane[inside].mean() for plane in probabilities]
        assert (found[inside] == int(np.argmax(means))).all()


def blotches(seed, size):
    """Noise at a few sizes, so that there are regions of every size."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 40, (*size, 3))
    for block in (4, 9):
        coarse = rng.integers(0, 100, (size[0] // block + 1, size[1] // block + 1, 3))
        image = image + coarse.repeat(block, 0).repeat(block, 1)[: size[0], : size[1]]
    return image.astype(np.uint8)


def slow_merge(arcs, sizes, contents):
    """Strengths, and the groups of regions after each merge; all pairs looked at before each."""
    groups = [{region} for region in range(len(sizes))]
    strengths, partitions = [0.0], []
    while len(groups) > 1:
        best = (np.inf, 0, 0)
        for i in range(len(groups)):
            for j in range(i):
                touching = [
                    (length, evidence)
                    for one, other, length, evidence in arcs
                    if (one in groups[i] and other in groups[j])
                    or (one in groups[j] and other in groups[i])
                ]
                if touching:
                    lengths, evidences = np.array(touching).T
                    small = min(sum(sizes[k] for k in groups[i]), sum(sizes[k] for k in groups[j]))
                    ours, theirs = (
                        sum(sizes[k] * contents[k] for k in group) / sum(sizes[k] for k in group)
                        for group in (groups[i], groups[j])
                    )
                    apart = np.sqrt(((np.sqrt(ours) - np.sqrt(theirs)) ** 2).sum())
                    mean = (lengths * evidences).sum() / lengths.sum()
                    value = (mean + apart) * (small / sum(sizes) / SHARE) ** GROWTH
                    best = min(best, (value, i, j))
        strength, i, j = best
        groups[j] |= groups.pop(i)
        strengths.append(max(strength, strengths[-1]))
        partitions.append(sorted(map(sorted, groups)))
    return strengths[1:], partitions


def random_arcs(seed, regions):
    """A connected graph: a chain of the regions, and some more pairs."""
    rng = np.random.default_rng(seed)
    pairs = {(i, i + 1) for i in range(regions - 1)}
    for one, other in rng.integers(0, regions, (regions, 2)):
        if one != other:
            pairs.add((min(one, other), max(one, other)))
    one, other = np.array(sorted(pairs)).T
    return merging._Arcs(one, other, rng.integers(1, 20, len(one)), rng.random(len(one)))


@pytest.mark.parametrize("seed", range(5))
def test_merging_is_the_slow_one(seed):
    arcs = random_arcs(seed, 12)
    rng = np.random.default_rng(seed)
    sizes, contents = rng.integers(1, 500, 12), rng.random((12, 5))
    merges, strengths = merging.merge_regions(sizes, arcs, contents)
    rows = list(zip(arcs.one, arcs.other, arcs.length, arcs.evidence, strict=True))
    expected, partitions = slow_merge(rows, sizes.tolist(), contents)
    np.testing.assert_allclose(strengths, expected, rtol=1e-9)
    groups = {region: {region} for region in range(12)}
    steps = zip(merges.tolist(), partitions, strict=True)
    for node, ((one, other), partition) in enumerate(steps, 12):
        groups[node] = groups.pop(one) | groups.pop(other)
        assert sorted(map(sorted, groups.values())) == partition


def test_contents_are_weighted_means():
    rng = np.random.default_rng(0)
    finest = np.array([[0, 0, 1], [2, 2, 1]])
    shares = [rng.random((bins, 2, 3)) for bins in (2, 3)]
    found = merging.region_contents(finest, [Cue(shares[0], {}, 2.0), Cue(shares[1], {}, 0.5)])
    for region in range(3):
        means = [plane[finest == region].mean() for cue in shares for plane in cue]
        np.testing.assert_allclose(found[region], np.array(means) * [2, 2, 0.125, 0.125, 0.125])


def test_like_regions_merge_before_unlike_ones():
    # Three regions in a row, both boundaries alike: the first two hold the same.
    arcs = merging._Arcs(np.array([0, 1]), np.array([1, 2]), np.array([5, 5]), np.array([0.5, 0.5]))
    contents = np.array([[0.2, 0.0], [0.2, 0.0], [0.0, 0.2]])
    for order in ([0, 1, 2], [2, 1, 0]):
        merges, strengths = merging.merge_regions(np.full(3, 100), arcs, contents[order])
        assert set(merges[0].tolist()) == {order.index(0), order.index(1)}
        assert strengths[0] < strengths[1]


images = st.builds(
    blotches, st.integers(0, 10**6), st.tuples(st.integers(1, 24), st.integers(1, 24))
)


@settings(max_examples=25, deadline=None)
@given(image=images)
def test_what_holds_for_every_image(image):
    found = hierarchy(image, no_classes(image))
    regions = int(found.finest.max()) + 1
    assert found.finest.dtype == np.int32 and found.finest.shape == image.shape[:2]
    assert (np.unique(found.finest) == np.arange(regions)).all()
    assert len(found.merges) == len(found.strengths) == regions - 1
    assert (np.diff(found.strengths) >= 0).all()
    assert ((found.strengths >= 0) & (found.strengths <= 1)).all()
    finer = found.finest
    for level in LEVELS:
        cut = found.at(level)
        count = int(cut.max()) + 1
        assert cut.dtype == np.int32 and (np.unique(cut) == np.arange(count)).all()
        assert pieces(cut) == count
        # Nested: a finer region lies in one coarser.
        assert len(np.unique(np.stack((finer.ravel(), cut.ravel())), axis=1).T) == finer.max() + 1
        assert (found.assignment(level)[found.finest] == cut).all()
        finer = cut
    assert (finer == 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_contours_are_where_regions_end(seed):
    image = blotches(seed, (30, 40))
    found = hierarchy(image, no_classes(image))
    assert found.contours.dtype == np.float32 and found.contours.shape == (30, 40)
    for level in (*LEVELS, *found.strengths.tolist()):
        cut = np.pad(found.at(level), ((0, 1), (0, 1)), mode="edge")
        ends = (cut[:-1, :-1] != cut[1:, :-1]) | (cut[:-1, :-1] != cut[:-1, 1:])
        assert ((found.contours > level) == ends).all()


def test_a_tree_by_hand():
    finest = np.array([[0, 1], [2, 3]], np.int32)
    merges = np.array([[2, 3], [0, 1], [4, 5]], np.int32)
    found = Hierarchy(finest, merges, np.array([0.25, 0.5, 0.75], np.float32))
    for level, cut in (
        (0.24, [[0, 1], [2, 3]]),
        (0.25, [[0, 1], [2, 2]]),
        (0.5, [[0, 0], [1, 1]]),
        (0.75, [[0, 0], [0, 0]]),
    ):
        assert same_partition(found.at(level), cut)
    assert found.contours.tolist() == [[0.75, 0.75], [0.25, 0.0]]


@pytest.mark.parametrize("level", [-0.01, 1.01, float("nan")])
def test_a_level_is_0_to_1(level):
    with pytest.raises(ValueError, match="from 0"):
        hierarchy(halves(), no_classes(halves())).at(level)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 3), (5, 5), (17, 16), (64, 48), (20, 200)])
def test_an_image_of_one_colour_is_one_region(size):
    image = np.full((*size, 3), (30, 90, 200), np.uint8)
    found = hierarchy(image, np.full((3, *size), 1 / 3, np.float32))
    assert (found.finest == 0).all() and found.at(0.0).max() == 0
    assert (found.contours == 0).all()


def test_grey_images_have_regions():
    image = halves(colours=((70, 70, 70), (160, 160, 160)))
    found = hierarchy(image, no_classes(image))
    assert same_partition(found.at(last_two(found)), image[..., 0] == 160)


def test_the_same_image_gives_the_same_tree():
    image = blotches(1, (70, 90))
    one, other = (hierarchy(image, no_classes(image)) for _ in range(2))
    assert (one.finest == other.finest).all() and (one.merges == other.merges).all()
    assert (one.strengths == other.strengths).all()


def test_a_boundary_answers_in_its_own_direction():
    image = halves(80, 80)
    for turned, angle in ((image, 0), (image.transpose(1, 0, 2), ANGLES // 2)):
        found = local_boundaries(cues(turned, no_classes(turned)))
        assert found.dtype == np.float32 and found.shape == (ANGLES, 80, 80)
        middle = found[:, 39:41, 39:41].mean(axis=(1, 2))
        assert middle.argmax() == angle
        assert middle[angle] > 2 * middle[(angle + ANGLES // 2) % ANGLES]
        assert found[:, :4, :4].max() < 0.1 * middle[angle]


def test_the_whole_image_strengthens_its_longest_boundary():
    # Two areas, and a short stroke as strong as the boundary between them.
    local = np.zeros((96, 128), np.float32)
    local[:, 62:66] = 1
    local[40:56, 30:34] = 1
    found = global_boundaries(local).max(axis=0)
    assert found[44:52, 62:66].max() > 2 * found[44:52, 30:34].max()
    assert (found >= 0).all()


IMAGE = np.zeros((4, 5, 3), np.uint8)
SHARES = np.ones((1, 4, 5), np.float32)


@pytest.mark.parametrize("function", [hierarchy, lambda *given: merged_labels(*given, 0.5)])
@pytest.mark.parametrize(
    ("image", "probabilities", "message"),
    [
        (IMAGE.astype(np.float32), SHARES, "image is float32"),
        (IMAGE[..., 0], SHARES, r"image is uint8 \[4, 5\]"),
        (IMAGE[:0], SHARES[:, :0], r"\[0, 5, 3\]"),
        (IMAGE, SHARES.astype(np.float64), "probabilities are float64"),
        (IMAGE, SHARES[0], r"probabilities are float32 \[4, 5\]"),
        (IMAGE, SHARES[:0], r"\[0, 4, 5\]"),
        (IMAGE, SHARES.repeat(256, 0), "256 classes"),
        (IMAGE, SHARES[:, 1:], "beside an image"),
        (IMAGE, SHARES * np.float32("nan"), "numbers >= 0"),
        (IMAGE, -SHARES, "numbers >= 0"),
    ],
)
def test_what_does_not_fit_is_refused(function, image, probabilities, message):
    with pytest.raises(ValueError, match=message):
        function(image, probabilities)


@pytest.mark.parametrize("missing", ["skimage.segmentation", "scipy.spatial", "scipy.sparse"])
def test_a_missing_library_is_named_with_the_way_to_get_it(monkeypatch, missing):
    image = blotches(0, (64, 64))
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r"pip install 'ctxseg_ros\[refine\]'"):
        hierarchy(image, no_classes(image))
