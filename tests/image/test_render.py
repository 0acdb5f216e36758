# SPDX-License-Identifier: Apache-2.0
"""Pictures of labels and attention."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctxseg_ros.image.render import Legend, colour_map, heat_map, heat_overlay, legend, overlay
from ctxseg_ros.model.model_file import ClassInfo

pytestmark = pytest.mark.slow


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


def test_heat_grows_lighter_from_black_over_red_to_yellow():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    found = heat_map(levels)
    assert found.dtype == np.uint8 and found.shape == (16, 16, 3)
    lightness = cv2.cvtColor(found.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)[..., 0].ravel()
    assert np.diff(lightness).min() > -0.3 and lightness[0] < 1 and lightness[-1] > 95
    assert np.diff(lightness[::16]).min() > 3
    black, red, yellow = found.reshape(-1, 3)[[0, 128, 255]].tolist()
    assert max(black) < 5
    assert red[0] > 2 * max(red[1:])
    assert min(yellow[:2]) > yellow[2] + 60


@cases
def test_heat_overlay_mixes_image_and_heat(seed, height, width):
    rgb, attention, _ = random_images(seed, height, width)
    before = rgb.copy()
    found = heat_overlay(rgb, attention, 0.25)
    assert found.dtype == np.uint8 and found.shape == rgb.shape
    assert np.abs(found - (0.75 * rgb + 0.25 * heat_map(attention))).max() <= 0.51
    assert np.array_equal(rgb, before)


def test_heat_overlay_refuses_other_sizes_and_alphas():
    rgb, attention, _ = random_images(0, 8, 8)
    with pytest.raises(ValueError, match="differ in size"):
        heat_overlay(rgb, attention[:4], 0.5)
    with pytest.raises(ValueError, match=r"alpha must be 0 to 1, not -1"):
        heat_overlay(rgb, attention, -1)


@pytest.mark.parametrize("width", [40, 320, 960])
def test_legend_shows_every_colour_below_the_image(width):
    image = random_images(0, 30, width)[0]
    classes = [ClassInfo(i, f"class {i}", (i, 250 - i, 99)) for i in range(12)]
    found = legend(image, classes)
    assert found.shape[1:] == (width, 3) and found.dtype == np.uint8
    assert np.array_equal(found[:30], image)
    assert len(found) % 2 == 0
    strip = {tuple(pixel) for pixel in found[30:].reshape(-1, 3).tolist()}
    assert {item.colour for item in classes} <= strip


def test_legend_needs_a_class():
    with pytest.raises(ValueError, match="at least one class"):
        legend(np.zeros((4, 4, 3), np.uint8), [])


FEW = [ClassInfo(i, f"class {i}", (10 * i + 5, 250 - i, 99)) for i in range(11)]
MANY = [ClassInfo(i, f"class {i}", (i, 250 - i, 201)) for i in range(150)]
SIZES = pytest.mark.parametrize(
    ("height", "width"), [(360, 480), (480, 640), (720, 1280), (1080, 1920), (1920, 1080)]
)


def with_legend(classes, labels, background=0):
    """What a legend draws on a plain image of the labels' size."""
    image = np.full((*labels.shape, 3), background, np.uint8)
    Legend(classes, *labels.shape).draw(image, labels)
    return image


def swatches(image, classes):
    """(id, top, left, bottom, right) of each class whose colour is there, in reading order."""
    codes = image[: len(image) // 3].astype(int) @ (65536, 256, 1)
    found = []
    for item in classes:
        ys, xs = np.nonzero(codes == np.dot(item.colour, (65536, 256, 1)))
        if len(ys):
            found.append((item.id, ys.min(), xs.min(), ys.max() + 1, xs.max() + 1))
    return sorted(found, key=lambda entry: entry[1:3])


@SIZES
@pytest.mark.parametrize("background", [0, 140, 255])
def test_few_classes_are_all_listed_in_the_upper_third(height, width, background):
    labels = np.zeros((height, width), np.uint8)
    image = with_legend(FEW, labels, background)
    found = swatches(image, FEW)
    assert [entry[0] for entry in found] == list(range(11))
    for _, top, left, bottom, right in found:
        assert bottom - top == right - left >= 10  # the border is not counted
    rows, columns = (len({entry[axis] for entry in found}) for axis in (1, 2))
    assert columns == -(-11 // rows)  # no row is much longer than another
    ys, xs = np.nonzero((image != background).any(axis=2))
    assert ys.max() < height // 3 and xs.max() < width - 1
    box = image[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    if background:
        assert (box == background // 4).all(axis=2).mean() > 0.5


def test_few_classes_keep_their_places():
    drawn = Legend(FEW, 360, 480)
    pictures = []
    for labels in (None, np.full((360, 480), 3, np.uint8), np.full((360, 480), 255, np.uint8)):
        image = np.zeros((360, 480, 3), np.uint8)
        drawn.draw(image, labels)
        pictures.append(image)
    assert pictures[0].any()
    assert all(np.array_equal(picture, pictures[0]) for picture in pictures)


@pytest.mark.parametrize(("height", "smallest", "largest"), [(360, 8, 13), (1080, 16, 26)])
def test_letters_are_readable_and_grow_with_the_image(height, smallest, largest):
    image = with_legend([ClassInfo(0, "H", (9, 9, 9))], np.zeros((height, height), np.uint8))
    ys, _ = np.nonzero((image > 200).all(axis=2))
    assert smallest <= np.ptp(ys) + 1 <= largest


def test_entries_bear_their_names():
    labels = np.zeros((360, 480), np.uint8)
    first, second = (
        with_legend([ClassInfo(0, name, (9, 9, 9))], labels) for name in ("water", "floor")
    )
    assert (first != second).any()


@pytest.mark.parametrize("name", ["W" * 300, "long " * 60, "é" * 300])
def test_long_names_are_cut_to_fit(name):
    labels = np.zeros((360, 480), np.uint8)
    image = with_legend([ClassInfo(0, name, (9, 9, 9))], labels)
    assert image.any() and not image[:, 240:].any()
    if name.isascii():
        other = with_legend([ClassInfo(0, name[:-1] + "z", (9, 9, 9))], labels)
        assert np.array_equal(image, other)


@SIZES
def test_of_many_classes_those_in_the_picture_are_listed_by_id(height, width):
    labels = np.full((height, width), 255, np.uint8)
    for stripe, number in enumerate((149, 7, 60, 200)):  # 200 is no class
        labels[:, stripe * width // 5 : (stripe + 1) * width // 5] = number
    found = swatches(with_legend(MANY, labels), MANY)
    assert [entry[0] for entry in found] == [7, 60, 149]


@SIZES
def test_of_more_than_fit_the_largest_are_listed(height, width):
    large = {3, 4, 17, 20, 60, 61, 77, 99, 100, 120, 148, 149}
    likely = np.array([10 if number in large else 1 for number in range(150)])
    random = np.random.default_rng(height)
    labels = random.choice(150, (height, width), p=likely / likely.sum()).astype(np.uint8)
    found = [entry[0] for entry in swatches(with_legend(MANY, labels), MANY)]
    assert found == sorted(found) and len(found) < 150
    assert large < set(found)


def test_changing_classes_leave_nothing_behind():
    drawn = Legend(MANY, 360, 480)
    for number in (3, 140, 3, 255, 3):
        labels = np.full((360, 480), number, np.uint8)
        image = np.zeros((360, 480, 3), np.uint8)
        drawn.draw(image, labels)
        assert np.array_equal(image, with_legend(MANY, labels))
        assert [entry[0] for entry in swatches(image, MANY)] == [number][: number < 255]


def test_without_labels_many_classes_are_not_guessed():
    image = np.full((360, 480, 3), 77, np.uint8)
    Legend(MANY, 360, 480).draw(image, None)
    assert (image == 77).all()


@pytest.mark.parametrize("size", [(1, 1), (32, 48), (48, 2000), (2000, 40)])
@pytest.mark.parametrize("classes", [FEW, MANY], ids=["few", "many"])
def test_image_too_small_for_an_entry_gets_none(size, classes):
    assert (with_legend(classes, np.zeros(size, np.uint8), 77) == 77).all()


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 150))
def test_any_size_and_number_of_classes(height, width, count):
    labels = np.random.default_rng(count).integers(0, 256, (height, width), np.uint8)
    image = with_legend(MANY[:count], labels, 77)
    assert (image[max(1, height // 3) :] == 77).all()
    assert (image[:, -1] == 77).all()


def test_labels_may_have_another_size():
    image = np.zeros((360, 480, 3), np.uint8)
    Legend(MANY, 360, 480).draw(image, np.array([[5, 9]], np.uint8))
    assert [entry[0] for entry in swatches(image, MANY)] == [5, 9]


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((480, 360, 3), np.uint8),
        np.zeros((360, 480), np.uint8),
        np.zeros((360, 480, 3), np.float32),
    ],
    ids=["size", "channels", "type"],
)
def test_legend_is_for_images_of_one_size(image):
    with pytest.raises(ValueError, match=r"this legend is for uint8 \[360, 480, 3\], not"):
        Legend(FEW, 360, 480).draw(image, None)
