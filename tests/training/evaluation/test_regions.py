# SPDX-License-Identifier: Apache-2.0
import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxseg_ros.inference.pipeline import Model
from ctxseg_ros.inference.runtimes import open_runtime
from ctxseg_ros.model.model_file import read_model_info
from ctxseg_ros.refinement.crf import refine
from ctxseg_ros.refinement.merging import hierarchy
from training.data.bsds import bsds_pairs, pair_truths, read_truths
from training.data.files import DataError, read_image
from training.evaluation import running
from training.evaluation.regions import (
    LEVELS,
    evaluate_regions,
    score_hierarchy,
    score_image,
    score_set,
)
from training.evaluation.running import RunOptions

pytestmark = pytest.mark.slow

HALVES = np.repeat([[1, 1, 2, 2]], 4, 0)  # 4x4: left and right
CORNER = np.where((np.indices((4, 4)) < 2).all(0), 5, 3)  # 4x4: its upper left quarter, the rest


@pytest.mark.parametrize(
    ("truth", "regions", "covering", "rand", "information"),
    [
        # Rows against columns, 2x2: each overlap is 1 of 3 pixels. Of the 6 pairs, the 2 diagonals
        # are apart in both. One bit of entropy each, nothing shared.
        ([[1, 1], [2, 2]], [[1, 2], [1, 2]], 1 / 3, 1 / 3, 2),
        # One region against four: IoU 1/4; together in the truth, apart here: every pair.
        # Joint entropy 2 bits, that of the regions 2, of the truth 0.
        ([[1, 1], [1, 1]], [[1, 2], [3, 4]], 1 / 4, 0, 2),
        # Overlaps: left with corner 4 of 8 (with the rest 4 of 16), right with the rest 8 of 12:
        # (8 * 1/2 + 8 * 2/3) / 16. Pixels by pair 4, 4, 8; regions 4, 12; halves 8, 8; so
        # (16 + 144 + 64 + 64) / 2 - (16 + 16 + 64) = 48 of the 120 pairs differ. Entropies:
        # joint 3/2, halves 1, regions 1/2 + 3/4 log2(4/3).
        (HALVES, CORNER, 7 / 12, 0.6, 1.5 - 0.75 * math.log2(4 / 3)),
    ],
    ids=["rows and columns", "one and four", "halves and corner"],
)
def test_worked_by_hand(truth, regions, covering, rand, information):
    found = score_image([np.array(truth)], np.array(regions))
    assert found.covered / found.pixels == pytest.approx([covering])
    assert found.pri == pytest.approx([rand])
    assert found.vi == pytest.approx([information])


def test_several_truths_by_hand():
    """Halves against halves (covering 1, Rand 1, VI 0) and against the corner's truth."""
    found = score_image([HALVES, CORNER], HALVES)
    # Corner's regions by the halves: 4 * 4/8 + 12 * 8/12 = 10 of 16 pixels.
    assert found.covered == pytest.approx([16 + 10])
    assert found.pixels == 32
    assert found.pri == pytest.approx([(1 + 0.6) / 2])
    assert found.vi == pytest.approx([(1.5 - 0.75 * math.log2(4 / 3)) / 2])


def slow_scores(truth, regions):
    """Covering, Rand index and VI of one pair of segmentations, straight from the definitions."""
    t, r = truth.ravel().tolist(), regions.ravel().tolist()
    pixels = range(len(t))
    covered = 0.0
    for a in set(t):
        mine = {i for i in pixels if t[i] == a}
        theirs = [{i for i in pixels if r[i] == b} for b in set(r)]
        covered += len(mine) * max(len(mine & x) / len(mine | x) for x in theirs)
    pairs = list(itertools.combinations(pixels, 2))
    agree = sum((t[i] == t[j]) == (r[i] == r[j]) for i, j in pairs)

    def entropy(ids):
        return -sum(n / len(t) * math.log2(n / len(t)) for n in Counter(ids).values())

    joint = entropy(zip(t, r, strict=True))
    return covered / len(t), agree / len(pairs), 2 * joint - entropy(t) - entropy(r)


@st.composite
def partitions(draw, count):
    """`count` random segmentations of one size, ids anywhere."""
    shape = draw(st.integers(1, 5)), draw(st.integers(2, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ids = rng.choice(1000, 6, replace=False)
    return [ids[rng.integers(0, rng.integers(1, 7), shape)] for _ in range(count)]


@given(partitions(4))
@settings(deadline=None, max_examples=50)
def test_scores_are_their_definitions(segmentations):
    regions, *truths = segmentations
    found = score_image(truths, regions)
    slow = np.mean([slow_scores(truth, regions) for truth in truths], 0)
    assert found.covered[0] / found.pixels == pytest.approx(slow[0])
    assert found.pri[0] == pytest.approx(slow[1])
    assert found.vi[0] == pytest.approx(slow[2], abs=1e-9)


@given(partitions(2), st.permutations(range(1000)))
@settings(deadline=None, max_examples=50)
def test_properties(segmentations, names):
    truth, regions = segmentations
    itself = score_image([truth], truth)
    assert itself.covered == itself.pixels
    assert itself.pri == 1
    assert itself.vi == pytest.approx(0, abs=1e-9)
    assert itself.vi >= 0
    found = score_image([truth], regions)
    renamed = score_image([np.array(names)[truth]], np.array(names)[regions])
    reverse = score_image([regions], truth)
    assert renamed.covered == pytest.approx(found.covered)
    assert renamed.pri == pytest.approx(found.pri)
    assert reverse.pri == pytest.approx(found.pri)
    assert renamed.vi == pytest.approx(found.vi)
    assert reverse.vi == pytest.approx(found.vi, abs=1e-9)


class Tree:
    """A hierarchy of 12 regions: at level l the 12, 6, 3 or 1 regions that hold 1, 2, 4 or all."""

    finest = np.random.default_rng(5).permutation(np.repeat(np.arange(12), 6)).reshape(8, 9)

    def assignment(self, level):
        return np.arange(12) // int(level)


def test_a_hierarchy_is_scored_like_each_of_its_levels():
    rng = np.random.default_rng(0)
    truths = [rng.integers(1, 5, (8, 9)) for _ in range(3)]
    levels = [1, 2, 2, 4, 12]
    found = score_hierarchy(truths, Tree(), levels)
    for i, level in enumerate(levels):
        alone = score_image(truths, Tree.finest // level)
        assert found.covered[i] == pytest.approx(alone.covered[0])
        assert found.pri[i] == pytest.approx(alone.pri[0])
        assert found.vi[i] == pytest.approx(alone.vi[0])
    best = 0.0
    for truth, level_maps in ((t, [Tree.finest // level for level in levels]) for t in truths):
        for a in np.unique(truth):
            mine = truth == a
            best += mine.sum() * max(
                (mine & (m == b)).sum() / (mine | (m == b)).sum()
                for m in level_maps
                for b in np.unique(m)
            )
    assert found.best == pytest.approx(best)


def test_set_by_hand():
    """Two images, two levels: one region, or rows. Image 0 is one region in truth, image 1 rows."""
    rows = np.array([[0, 0], [1, 1]])
    levels = [np.array([0, 1]), np.array([0, 0])]  # rows, then one region
    one = np.ones((2, 2), int)
    images = [score_image([one], rows, levels), score_image([rows, rows], rows, levels)]
    found = score_set(images, [0.2, 0.7])
    # Rows cover image 0 half and image 1 (two truths: 8 pixels) fully: (2 + 8) / 12.
    # One region: 4 + 4 of 12. Each image at its best: all.
    assert found["covering"] == {"ods": 10 / 12, "ois": 1, "best": 1, "level": 0.2}
    # Rand of one region against rows: 2 of 6 pairs agree; the images weigh the same.
    assert found["pri"] == {"ods": pytest.approx((1 / 3 + 1) / 2), "ois": 1, "level": 0.2}
    assert found["vi"] == {"ods": 0.5, "ois": 0, "level": 0.2}
    assert score_set(images[:1], [0.2, 0.7])["vi"] == {"ods": 0, "ois": 0, "level": 0.7}
    assert "level" not in score_set(images)["pri"]


def test_truths_that_cannot_be():
    with pytest.raises(ValueError, match="no truth"):
        score_image([], HALVES)
    with pytest.raises(ValueError, match=r"truth 1 is \[2, 2\], the segmentation \[4, 4\]"):
        score_image([HALVES, np.ones((2, 2), int)], HALVES)


def test_people_agree_as_far_as_published(data_dir):
    """One of the people against the others, 100 images; published over BSDS500: .72, .88, 1.17."""
    truths = [read_truths(pair.label) for pair in bsds_pairs(data_dir / "bsds500", "val")]
    found = score_set(score_image(others, one) for one, *others in truths)
    assert found["covering"]["ods"] == pytest.approx(0.72, abs=0.03)
    assert found["pri"]["ods"] == pytest.approx(0.88, abs=0.03)
    assert found["vi"]["ods"] == pytest.approx(1.17, abs=0.12)


@pytest.mark.parametrize("asked", [None, (32, 32)])
def test_regions_are_those_of_the_models_labels(segmented, model_factory, asked):
    info = read_model_info(model_factory(task="clusters"))
    pairs = pair_truths(segmented / "images", segmented / "truth")
    found = evaluate_regions(info, pairs, RunOptions(asked, "cpu"))
    scores = {"plain": [], "crf": [], "merged": []}
    # The nearest multiples of 16 to 40x70: no image is turned or squeezed.
    for name, size in (("tall", (64, 32)), ("wide", (32, 64))):
        segmenter = Model(open_runtime(info, asked or size, "cpu"))
        image = read_image(segmented / "images" / f"{name}.png")
        truths = read_truths(segmented / "truth" / f"{name}.mat")
        said = segmenter.segment(image)
        refined = refine(image, said.labels, said.confidence, 4)
        tree = hierarchy(image, refined)
        scores["plain"].append(score_image(truths, said.labels))
        scores["crf"].append(score_image(truths, refined.argmax(0)))
        scores["merged"].append(score_hierarchy(truths, tree))
        for i in (0, 30, 98):
            cut = score_image(truths, tree.at(LEVELS[i]))
            assert scores["merged"][-1].pri[i] == pytest.approx(cut.pri[0])
    for kind, images in scores.items():
        expected = score_set(images, LEVELS if kind == "merged" else None)
        for measure, values in expected.items():
            assert found[kind][measure] == pytest.approx(values, abs=1e-9), (kind, measure)
    assert found["images"] == 2


def test_broken_truth_is_named_before_the_model_runs(
    segmented, model_factory, tmp_path, monkeypatch
):
    for name in ("wide", "tall"):
        (tmp_path / f"{name}.mat").write_bytes(b"no")
    monkeypatch.setattr(running, "open_runtime", lambda *_: pytest.fail("the model was opened"))
    with pytest.raises(DataError) as refused:
        evaluate_regions(
            read_model_info(model_factory()), pair_truths(segmented / "images", tmp_path)
        )
    assert "wide.mat: cannot be read as a .mat file" in str(refused.value)
    assert "tall.mat: cannot be read as a .mat file" in str(refused.value)


def test_attention_models_have_no_regions_to_score(model_factory, segmented):
    pairs = pair_truths(segmented / "images", segmented / "truth")
    with pytest.raises(ValueError, match="task attention"):
        evaluate_regions(read_model_info(model_factory(task="attention")), pairs)
