# SPDX-License-Identifier: Apache-2.0
"""Pictures and masks from attention."""

import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from ctxseg_ros.image.attention import attention_image, head_map, mask_image, mass_mask

shapes = array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=8)
shares = arrays(np.float32, shapes, elements=st.floats(0, 1, width=32))
# Sums of these, and their products with 64ths, are exact: so ties are ties.
counts = arrays(np.float32, shapes, elements=st.integers(0, 9))
sixty_fourths = st.integers(1, 64).map(lambda part: part / 64)


def bilinear(plane, height, width):
    """Enlarge with the pixels' centres at half positions and the border's value beyond it."""

    def sources(count, size):
        place = np.clip((np.arange(count) + 0.5) * size / count - 0.5, 0, size - 1)
        low = np.floor(place).astype(int)
        return low, np.minimum(low + 1, size - 1), place - low

    above, below, down = sources(height, plane.shape[0])
    left, right, across = sources(width, plane.shape[1])
    rows = plane[above] * (1 - down)[:, None] + plane[below] * down[:, None]
    return rows[:, left] * (1 - across) + rows[:, right] * across


def fewest(plane, mass):
    """Try 0, 1, 2, ... of the patches by value, equal ones by place."""
    values = [Fraction(value) for value in plane.ravel().tolist()]
    order = sorted(range(len(values)), key=lambda place: (-values[place], place))
    count = 0
    while sum(values[place] for place in order[:count]) < Fraction(mass) * sum(values):
        count += 1
    mask = np.zeros(len(values), bool)
    mask[order[:count]] = True
    return mask.reshape(plane.shape)


@given(arrays(np.float32, (3, 4, 5), elements=st.floats(0, 1, width=32)))
def test_head_map_is_a_head_or_their_mean(attention):
    for head in range(3):
        assert np.array_equal(head_map(attention, head), attention[head])
    mean = head_map(attention, -1)
    assert mean.dtype == np.float32 and mean.shape == (4, 5)
    assert np.allclose(mean, sum(attention.astype(float)) / 3, atol=1e-6)


@pytest.mark.parametrize("head", [-2, 3, 100])
def test_head_map_names_the_range(head):
    with pytest.raises(ValueError, match=rf"0 to 2, or -1 for the mean of the 3 .*not {head}"):
        head_map(np.ones((3, 4, 5), np.float32), head)


@given(shares, st.integers(8, 50), st.integers(8, 50))
def test_attention_image_is_bilinear_and_as_bright_as_its_share(plane, height, width):
    found = attention_image(plane, height, width)
    assert found.dtype == np.uint8 and found.shape == (height, width)
    peak = float(plane.max())
    wanted = bilinear(plane / peak * 255.0 if peak else plane, height, width)
    assert np.abs(found - np.rint(wanted)).max() <= 1


def test_attention_image_is_linear_from_zero():
    plane = np.array([[0.01, 0.02], [0.005, 0.04]], np.float32)
    assert attention_image(plane, 2, 2).tolist() == [[64, 128], [32, 255]]


@pytest.mark.parametrize("value", [0, np.nan, np.inf, -np.inf, -0.5])
def test_no_attention_is_black_and_without_a_mask(value):
    plane = np.full((3, 4), value, np.float32)
    for planes in (plane, np.where(np.eye(3, 4, dtype=bool), plane, np.float32(min(value, 0)))):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not attention_image(planes, 30, 40).any()
            assert not mass_mask(planes, 0.6).any()


def test_one_value_that_is_not_finite_spoils_the_plane():
    plane = np.full((3, 4), 0.1, np.float32)
    plane[1, 1] = np.nan
    assert not attention_image(plane, 30, 40).any()
    assert not mass_mask(plane, 0.6).any()


def test_less_than_no_attention_is_none():
    plane = np.array([[-5, 2], [1, 4]], np.float32)
    assert attention_image(plane, 2, 2).tolist() == [[0, 128], [64, 255]]
    assert mass_mask(plane, 0.5).tolist() == [[False, False], [False, True]]
    assert mass_mask(plane, 1).tolist() == [[False, True], [True, True]]


def test_many_small_shares_add_up():
    plane = np.full((60, 80), 2**-26, np.float32)  # 1 + 2**-26 is 1 in float32
    plane[0, 0] = 1
    assert mass_mask(plane, 1).all()


def test_smallest_numbers_do_not_overflow():
    plane = np.array([[1e-45, 3e-38]], np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert attention_image(plane, 1, 2).tolist() == [[0, 255]]
        assert mass_mask(plane, 0.6).tolist() == [[False, True]]


@given(counts, sixty_fourths)
def test_mass_mask_is_the_fewest_patches(plane, mass):
    found = mass_mask(plane, mass)
    assert found.dtype == np.bool_
    assert np.array_equal(found, fewest(plane, mass))


@given(shares, st.floats(0.01, 1))
def test_mass_mask_holds_its_mass_and_no_patch_too_many(plane, mass):
    mask = mass_mask(plane, mass)
    wanted, kept = mass * plane.sum(dtype=float), np.sort(plane[mask].astype(float))
    assert kept.sum() >= wanted * (1 - 1e-9)
    if len(kept):
        assert kept[1:].sum() <= wanted * (1 + 1e-9)
        assert kept[0] >= np.append(plane[~mask], 0).max()


def test_equal_patches_are_taken_in_reading_order():
    mask = mass_mask(np.ones((3, 4), np.float32), 0.5)
    assert mask.tolist() == [[True] * 4, [True, True, False, False], [False] * 4]


@pytest.mark.parametrize("mass", [0, -0.1, 1.01, np.nan, np.inf])
def test_mass_is_a_share(mass):
    with pytest.raises(ValueError, match="above 0 and up to 1, not"):
        mass_mask(np.ones((2, 2), np.float32), mass)


@given(arrays(np.bool_, shapes), st.integers(1, 50), st.integers(1, 50))
def test_mask_image_repeats_the_nearest_patch(mask, height, width):
    """Both neighbours are right where a pixel's centre lies on the edge between patches."""
    rows, columns = (
        [
            ((2 * place + 1) * count // (2 * size), (2 * place + 1) * count % (2 * size) == 0)
            for place in range(size)
        ]
        for count, size in ((mask.shape[0], height), (mask.shape[1], width))
    )
    found = mask_image(mask, height, width)
    assert found.dtype == np.uint8 and found.shape == (height, width)
    for y, (row, row_edge) in enumerate(rows):
        for x, (column, column_edge) in enumerate(columns):
            patches = mask[row - row_edge : row + 1, column - column_edge : column + 1]
            assert found[y, x] in 255 * patches.astype(int)
