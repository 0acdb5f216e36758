# SPDX-License-Identifier: Apache-2.0
from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from training.data.files import DataError
from training.evaluation.objects import (
    MASSES,
    FrameScore,
    centre_prior,
    jaccard,
    random_vit,
    read_mask,
    score_frame,
    score_objects,
    score_plane,
)

pytestmark = pytest.mark.slow

maps = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=2, max_dims=2, max_side=5),
    elements=st.floats(0, 1, width=16),
)


def slow_jaccard(plane, truth, mass) -> float:
    """Patch by patch, then pixel by pixel, as it is defined."""
    rows, columns = plane.shape
    total = sum(float(value) for value in plane.flat)
    order = sorted(np.ndindex(plane.shape), key=lambda at: -plane[at])
    taken, held = set(), 0.0
    while total and held < mass * total - 1e-12:
        taken.add(order[len(taken)])
        held += float(plane[order[len(taken) - 1]])
    height, width = truth.shape
    both = either = 0
    for y, x in np.ndindex(truth.shape):
        inside = (int((y + 0.5) * rows / height), int((x + 0.5) * columns / width)) in taken
        both += inside and truth[y, x]
        either += inside or truth[y, x]
    return both / either if either else 1.0


@given(plane=maps, mass=st.sampled_from([0.05, 0.31, 0.6, 0.95]), seed=st.integers(0, 99))
def test_a_map_is_scored_at_the_truths_size(plane, mass, seed):
    rng = np.random.default_rng(seed)
    truth = rng.random((plane.shape[0] * 3, plane.shape[1] * 5)) < 0.4
    assert score_plane(plane, truth, mass) == pytest.approx(slow_jaccard(plane, truth, mass))


def test_a_frame_has_its_mean_each_head_and_a_curve():
    rng = np.random.default_rng(0)
    attention = rng.random((3, 4, 6)).astype(np.float32) / 24
    truth = rng.random((12, 30)) < 0.3
    score = score_frame(attention, truth, 0.6)
    mean = attention.mean(0)
    assert score.mean == pytest.approx(slow_jaccard(mean, truth, 0.6))
    assert score.heads == pytest.approx([slow_jaccard(head, truth, 0.6) for head in attention])
    assert score.curve == pytest.approx([slow_jaccard(mean, truth, mass) for mass in MASSES])
    assert MASSES[0] == 0.05
    assert MASSES[-1] == 0.95
    assert np.diff(MASSES) == pytest.approx(0.05)


def test_jaccard():
    left = np.array([[1, 1, 0, 0]], bool)
    assert jaccard(left, np.array([[0, 1, 1, 0]], bool)) == pytest.approx(1 / 3)
    assert jaccard(left, left) == 1
    assert jaccard(left, ~left) == 0
    assert jaccard(left & False, left & False) == 1


def frame(mean, heads, curve=0.0) -> FrameScore:
    return FrameScore(mean, np.array(heads), np.broadcast_to(curve, len(MASSES)))


def test_best_head_is_of_each_frame_fixed_head_of_the_set():
    found = score_objects([frame(0.2, [0.9, 0.5]), frame(0.4, [0.1, 0.6]), frame(0.3, [0.3, 0.4])])
    assert found["jaccard_mean"] == pytest.approx(0.3)
    assert found["jaccard_best_head"] == pytest.approx((0.9 + 0.6 + 0.4) / 3)
    assert found["jaccard_fixed_head"] == pytest.approx(0.5)
    assert found["fixed_head"] == 1


def test_area_under_the_mass_curve():
    constant = score_objects([frame(0, [0], 0.37)])
    assert constant["mass_curve_area"] == pytest.approx(0.37)
    assert set(constant["mass_curve"].values()) == {0.37}
    bent = np.array(MASSES) ** 2
    found = score_objects([frame(0, [0], 2 * bent), frame(0, [0], 0.0)])
    strips = [0.05 * (a + b) / 2 for a, b in pairwise(bent)]
    assert found["mass_curve_area"] == pytest.approx(sum(strips) / 0.9, abs=1e-6)
    assert found["mass_curve"]["0.5"] == pytest.approx(0.25)
    assert list(found["mass_curve"])[::18] == ["0.05", "0.95"]


def test_what_is_not_black_is_the_object(tmp_path):
    grey = np.zeros((4, 5), np.uint8)
    grey[1, 2], grey[3, 0] = 255, 1
    blue = np.zeros((4, 5, 4), np.uint8)
    blue[..., 3] = 255
    blue[1, 2, 0] = blue[3, 0, 1] = 9
    deep = grey.astype(np.uint16)
    for name, pixels in (("grey", grey), ("colour and alpha", blue), ("16 bits", deep)):
        path = tmp_path / f"{name}.png"
        cv2.imwrite(str(path), pixels)
        mask = read_mask(path)
        assert mask.dtype == bool
        assert np.array_equal(mask, grey > 0), name
    (tmp_path / "no.png").write_bytes(b"no")
    with pytest.raises(DataError, match=r"no\.png: cannot be read as an image"):
        read_mask(tmp_path / "no.png")


@pytest.mark.parametrize(("height", "width"), [(34, 60), (24, 24), (35, 20)])
def test_the_centre_prior_is_a_centred_disc(height, width):
    plane = centre_prior(height, width)
    assert plane.shape == (1, height, width)
    assert plane.dtype == np.float32
    # Its mask at 0.6, by the radius that the docstring gives.
    y, x = np.mgrid[:height, :width]
    radius = np.hypot((y + 0.5) / height - 0.5, (x + 0.5) / width - 0.5)
    truth = radius <= 0.226
    assert score_plane(plane[0], truth, 0.6) > 0.9
    assert plane[0, 0].max() == pytest.approx(np.exp(-(3**2) / 2), abs=0.006)  # at the edge
    assert np.array_equal(plane, plane[:, ::-1, ::-1])


def test_a_random_vit_is_always_the_same_one(street_frames):
    import torch

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = random_vit()(street_frames[0], (3, 5))
    assert torch.rand(1) == expected  # the caller's random numbers are left alone
    assert first.shape == (3, 3, 5)
    assert (first > 0).all()
    assert (first.sum((1, 2)) < 1).all()
    assert np.array_equal(first, random_vit()(street_frames[0], (3, 5)))
    assert not np.array_equal(first, random_vit()(street_frames[1][::-1], (3, 5)))
