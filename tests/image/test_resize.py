# SPDX-License-Identifier: Apache-2.0
"""Resizing against slow oracles."""

import tracemalloc

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ctxseg_ros.image.resize import resized

pytestmark = pytest.mark.slow

SIDE = st.integers(1, 70)
SIZE = st.tuples(SIDE, SIDE)
DTYPE = st.sampled_from([np.uint8, np.uint16])
CHANNELS = st.sampled_from([(), (1,), (3,), (4,)])


def box_weights(have: int, want: int) -> np.ndarray:
    """[want, have]: the share of each old pixel in each new one, by the length they share."""
    ratio = have / want
    weights = np.zeros((want, have))
    for new in range(want):
        for old in range(have):
            shared = min((new + 1) * ratio, old + 1) - max(new * ratio, old)
            weights[new, old] = max(shared, 0) / ratio
    return weights


def linear_weights(have: int, want: int) -> np.ndarray:
    """[want, have]: bilinear, with pixels as squares: their centres are at 0.5, 1.5, ..."""
    weights = np.zeros((want, have))
    for new in range(want):
        place = np.clip((new + 0.5) * have / want - 0.5, 0, have - 1)
        left = int(place)
        weights[new, left] += 1 - (place - left)
        weights[new, min(left + 1, have - 1)] += place - left
    return weights


def apply(image: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return np.einsum("ih,jw,hw...->ij...", rows, columns, image.astype(float))


def random_image(shape: tuple[int, ...], dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, np.iinfo(dtype).max, shape, dtype)


@given(SIZE, SIZE, CHANNELS, DTYPE)
@settings(max_examples=300, deadline=None)
def test_shape_dtype_and_range(
    have: tuple[int, int], want: tuple[int, int], channels: tuple[int, ...], dtype: type
) -> None:
    image = random_image((*have, *channels), dtype)
    result = resized(image, want)
    assert result.shape == (*want, *channels)
    assert result.dtype == dtype and result.flags.c_contiguous
    assert image.min() <= result.min() and result.max() <= image.max()
    out = np.zeros_like(result)
    assert resized(image, want, out) is out
    np.testing.assert_array_equal(out, result)


@given(SIZE, SIZE)
@example((64, 64), (16, 8))  # halves alone
@example((66, 64), (16, 15))  # a half, then a little
@example((63, 61), (16, 15))  # odd
@example((64, 10), (5, 33))  # shrinks and grows
@settings(max_examples=300, deadline=None)
def test_nothing_shifts(have: tuple[int, int], want: tuple[int, int]) -> None:
    """A slope keeps its place and its slant, down and across."""
    for axis in (0, 1):
        ratio = have[axis] / want[axis]
        slope = 900 * (np.arange(have[axis]) + 0.5)
        image = np.broadcast_to(np.expand_dims(slope, 1 - axis), have).astype(np.uint16)
        result = resized(image, want).mean(axis=1 - axis)
        places = (np.arange(want[axis]) + 0.5) * ratio
        # The first and last half pixel have no neighbour to interpolate with.
        inside = (places >= 0.5) & (places <= have[axis] - 0.5)
        # The mean over a part of a pixel is up to an eighth of a pixel off the slope.
        tolerance = 900 * max(ratio, 1) / 8 + 2
        np.testing.assert_allclose(result[inside], 900 * places[inside], atol=tolerance)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("have", [(64, 96), (32, 48)])
def test_exact_halves_are_means(have: tuple[int, int], dtype: type) -> None:
    image = random_image((*have, 3), dtype)
    expected = apply(image, box_weights(have[0], 16), box_weights(have[1], 24))
    np.testing.assert_allclose(resized(image, (16, 24)), expected, atol=1.5)


@pytest.mark.parametrize(("have", "want"), [((61, 75), (20, 24)), ((63, 40), (30, 13))])
def test_odd_sizes_are_means(have: tuple[int, int], want: tuple[int, int]) -> None:
    image = random_image((*have, 3))
    expected = apply(image, box_weights(have[0], want[0]), box_weights(have[1], want[1]))
    np.testing.assert_allclose(resized(image, want), expected, atol=1.01)


@given(SIZE, SIZE, CHANNELS)
@settings(max_examples=200, deadline=None)
def test_growing_and_little_shrinking_are_bilinear(
    have: tuple[int, int], want: tuple[int, int], channels: tuple[int, ...]
) -> None:
    want = (max(want[0], have[0] // 2 + 1), max(want[1], have[1] // 2 + 1))
    image = random_image((*have, *channels))
    expected = apply(image, linear_weights(have[0], want[0]), linear_weights(have[1], want[1]))
    np.testing.assert_allclose(resized(image, want), expected, atol=1.5)


def test_both_steps_together() -> None:
    image = random_image((64, 100, 3))
    half = apply(image, box_weights(64, 32), box_weights(100, 50))
    expected = apply(half, linear_weights(32, 20), linear_weights(50, 30))
    np.testing.assert_allclose(resized(image, (20, 30)), expected, atol=2)


def test_one_side_grows_while_the_other_shrinks() -> None:
    image = random_image((90, 10))
    rows, columns = box_weights(90, 20), linear_weights(10, 25)
    np.testing.assert_allclose(resized(image, (20, 25)), apply(image, rows, columns), atol=2)


@pytest.mark.parametrize("have", [(96, 128), (95, 127), (240, 320), (241, 323)])
def test_fine_stripes_become_grey(have: tuple[int, int]) -> None:
    image = np.zeros((*have, 3), np.uint8)
    image[:, ::2] = 255
    grey = resized(image, (40, 50))
    assert grey.min() > 80 and grey.max() < 175
    aliased = cv2.resize(image, (50, 40), interpolation=cv2.INTER_NEAREST)
    assert aliased.min() == 0 and aliased.max() == 255


@pytest.mark.parametrize("want", [(60, 80), (100, 120), (33, 41), (300, 300), (121, 161)])
@pytest.mark.parametrize("padding", [1, 7, 64])
def test_padded_rows_are_read_without_a_copy(want: tuple[int, int], padding: int) -> None:
    height, width = 1210, 1610
    data = np.zeros((height, width * 3 + padding), np.uint8)
    image = np.ndarray((height, width, 3), np.uint8, data, strides=(data.shape[1], 3, 1))
    image[:] = np.random.default_rng(1).integers(0, 256, (1, width, 3), np.uint8)
    tracemalloc.start()  # OpenCV's copies are NumPy arrays
    try:
        result = resized(image, want)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < image.size / 2
    np.testing.assert_array_equal(result, resized(np.ascontiguousarray(image), want))


def test_the_same_size_is_the_image_itself() -> None:
    image = random_image((4, 5, 3))
    assert resized(image, (4, 5)) is image
    out = np.zeros_like(image)
    assert resized(image, (4, 5), out) is out
    np.testing.assert_array_equal(out, image)


def test_the_same_size_with_padded_rows_is_packed() -> None:
    image = random_image((4, 9, 3))[:, :5]
    packed = resized(image, (4, 5))
    assert packed.flags.c_contiguous
    np.testing.assert_array_equal(packed, image)


@pytest.mark.parametrize(
    "out",
    [
        np.zeros((2, 4, 3), np.uint8),
        np.zeros((2, 3), np.uint8),
        np.zeros((2, 3, 3), np.uint16),
        np.zeros((2, 6, 3), np.uint8)[:, ::2],
    ],
)
def test_an_out_that_does_not_fit_is_refused(out: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"out must be C-contiguous uint8 \[2, 3, 3\]"):
        resized(random_image((8, 9, 3)), (2, 3), out)
    assert not out.any()
