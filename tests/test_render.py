# SPDX-License-Identifier: Apache-2.0
"""Pictures of labels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctxseg_ros.model_file import ClassInfo
from ctxseg_ros.render import colour_map, legend, overlay


def random_images(seed, height, width):
    random = np.random.default_rng(seed)
    rgb = random.integers(0, 256, (height, width, 3), np.uint8)
    labels = random.integers(0, 256, (height, width), np.uint8)
    colours = random.integers(0, 256, (256, 3), np.uint8)
    return rgb, labels, colours


cases = given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40))


@cases
def test_colour_map_is_the_table_by_label(seed, height, width):
    _, labels, colours = random_images(seed, height, width)
    colours.flags.writeable = False
    assert np.array_equal(colour_map(labels, colours), colours[labels])


@cases
def test_overlay_mixes_labelled_pixels_and_keeps_the_others(seed, height, width):
    rgb, labels, colours = random_images(seed, height, width)
    labels[labels > 200] = 255
    before = rgb.copy()
    found = overlay(rgb, labels, colours, 0.25)
    mixed = 0.75 * rgb + 0.25 * colours[labels]
    expected = np.where((labels == 255)[..., None], rgb, mixed)
    assert found.dtype == np.uint8 and found.shape == rgb.shape
    assert np.abs(found - expected).max() <= 0.51
    assert np.array_equal(rgb, before)


def test_overlay_of_nothing_and_of_everything():
    rgb, labels, colours = random_images(0, 8, 8)
    labels[labels == 255] = 0
    assert np.array_equal(overlay(rgb, labels, colours, 0), rgb)
    assert np.array_equal(overlay(rgb, labels, colours, 1), colours[labels])


def test_overlay_refuses_other_sizes_and_alphas():
    rgb, labels, colours = random_images(0, 8, 8)
    with pytest.raises(ValueError, match="differ in size"):
        overlay(rgb, labels[:4], colours, 0.5)
    with pytest.raises(ValueError, match=r"alpha must be 0 to 1, not 1.5"):
        overlay(rgb, labels, colours, 1.5)


@pytest.mark.parametrize("width", [40, 320, 960])
def test_legend_shows_every_colour_below_the_image(width):
    image = random_images(0, 30, width)[0]
    classes = [ClassInfo(i, f"class {i}", (i, 250 - i, 99)) for i in range(12)]
    found = legend(image, classes)
    assert found.shape[1:] == (width, 3) and found.dtype == np.uint8
    assert np.array_equal(found[:30], image)
    strip = {tuple(pixel) for pixel in found[30:].reshape(-1, 3).tolist()}
    assert {item.colour for item in classes} <= strip


def test_legend_needs_a_class():
    with pytest.raises(ValueError, match="at least one class"):
        legend(np.zeros((4, 4, 3), np.uint8), [])
