# SPDX-License-Identifier: Apache-2.0
"""Pictures of labels and attention. Images are uint8 [H, W, 3] RGB, labels uint8 [H, W]."""

from bisect import bisect_right
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from ctxseg_ros.model.model_file import ClassInfo
from ctxseg_ros.model.prediction import UNLABELLED

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_CUT = "..."  # OpenCV 4's font is ASCII only
_HEAT = cv2.cvtColor(
    cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_INFERNO),
    cv2.COLOR_BGR2RGB,
)[:, 0]  # uint8 [256, 3]


def colour_map(labels: NDArray[np.uint8], colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Each pixel's class colour, uint8 [H, W, 3]; `colours` is uint8 [256, 3] by id."""
    # Eight times faster than indexing; it keeps the channels' order.
    return cv2.applyColorMap(labels, colours[:, None])  # type: ignore[return-value]


def overlay(
    rgb: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    colours: NDArray[np.uint8],
    alpha: float,
) -> NDArray[np.uint8]:
    """The class colours over the image, `alpha` of 1 hides the image; unlabelled pixels show it.

    Raises ValueError if the sizes differ or alpha is not in 0..1.
    """
    painted = _blend(rgb, colour_map(labels, colours), alpha)
    cv2.copyTo(rgb, (labels == UNLABELLED).view(np.uint8), painted)
    return painted


def heat_map(attention: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Attention, uint8 [H, W], as colours from black (0) over red to pale yellow (255)."""
    return colour_map(attention, _HEAT)  # type: ignore[arg-type]


def heat_overlay(
    rgb: NDArray[np.uint8], attention: NDArray[np.uint8], alpha: float
) -> NDArray[np.uint8]:
    """The colours of `heat_map` over the image, `alpha` of 1 hides the image.

    Raises ValueError if the sizes differ or alpha is not in 0..1.
    """
    return _blend(rgb, heat_map(attention), alpha)


def _blend(rgb: NDArray[np.uint8], colours: NDArray[np.uint8], alpha: float) -> NDArray[np.uint8]:
    if rgb.shape != colours.shape:
        raise ValueError(
            f"image {rgb.shape[:2]} and what is over it {colours.shape[:2]} differ in size"
        )
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be 0 to 1, not {alpha}")
    return cv2.addWeighted(rgb, 1 - alpha, colours, alpha, 0)  # type: ignore[return-value]


def legend(image: NDArray[np.uint8], classes: Sequence[ClassInfo]) -> NDArray[np.uint8]:
    """The image above a strip that names the given classes beside their colours.

    The strip's height depends on the image's width and the classes only, so that the frames of
    a video keep one size; it is even, as video codecs want it. Raises ValueError without any class.
    """
    if not classes:
        raise ValueError("a legend needs at least one class")
    width = image.shape[1]
    glyph = 16
    entries = _Entries(classes, glyph, width - 3 * glyph)
    columns = max(1, (width - entries.gap) // entries.width)
    rows = -(-len(classes) // columns)
    strip = np.full((rows * entries.height + entries.gap, width, 3), 24, np.uint8)
    for index in range(len(classes)):
        y, x = entries.corner(index, columns)
        entries.draw(index, strip[y:, x:])
    return np.vstack((image, strip))


class Legend:
    """A legend drawn into images of one size, in a dark box in the upper left corner.

    It takes the upper third at most. Where all classes fit in, all are always listed, each at its
    own place. Where they do not, those that the labels show are listed, in the order of `classes`;
    of more than fit, those of the largest areas. An image too small for a readable entry gets none.
    One thread at a time: the box is kept from frame to frame.
    """

    def __init__(self, classes: Sequence[ClassInfo], height: int, width: int) -> None:
        """`height` and `width` of the images, in pixels."""
        self._size = (height, width)
        self._ids = np.array([item.id for item in classes], np.intp)
        glyph = max(12, round(12 + (height - 360) / 60))  # 12 is readable, 24 suits 1080p
        self._entries = entries = _Entries(classes, glyph, 10 * glyph)
        columns = max(0, (width - 3 * entries.gap) // entries.width)
        rows = max(0, (height // 3 - 2 * entries.gap) // entries.height)
        self._capacity = columns * rows
        self._lists_all = 0 < len(classes) <= self._capacity
        if self._lists_all:  # in rows of about one length
            columns = -(-len(classes) // -(-len(classes) // columns))
        self._columns = columns
        self._tiles = np.zeros((len(classes), entries.height, entries.width, 3), np.uint8)
        for index, tile in enumerate(self._tiles):
            entries.draw(index, tile)
        self._shown: tuple[int, ...] = ()
        self._covered = self._added = np.zeros((0, 0, 3), np.uint8)

    def draw(self, image: NDArray[np.uint8], labels: NDArray[np.uint8] | None) -> None:
        """Draw the legend into the image, in place.

        `labels` of any size say which classes there are, where not all fit; without labels none
        is listed then. Areas are sampled, so a class of few pixels may be missed.
        Raises ValueError if the image is not uint8 [height, width, 3] of this legend's size.
        """
        if image.shape != (*self._size, 3) or image.dtype != np.uint8:
            raise ValueError(
                f"this legend is for uint8 [{self._size[0]}, {self._size[1]}, 3], "
                f"not {image.dtype} {list(image.shape)}"
            )
        shown = tuple(range(len(self._ids))) if self._lists_all else self._largest(labels)
        if not shown:
            return
        if shown != self._shown:
            self._shown = shown
            self._compose()
        gap = self._entries.gap
        height, width = self._added.shape[:2]
        box = image[gap : gap + height, gap : gap + width]
        np.right_shift(box, 2, out=box)
        cv2.subtract(box, self._covered, dst=box)
        cv2.add(box, self._added, dst=box)

    def _largest(self, labels: NDArray[np.uint8] | None) -> tuple[int, ...]:
        """The classes to list, as indices into the sequence of classes, ascending."""
        if labels is None:
            return ()
        step = max(1, labels.shape[0] // 90)
        areas = np.bincount(labels[::step, ::step].ravel(), minlength=256)[self._ids]
        largest_first = np.argsort(-areas, kind="stable")[: self._capacity]
        return tuple(sorted(index for index in largest_first.tolist() if areas[index]))

    def _compose(self) -> None:
        """Make the box: what lies under a swatch, 255, and what to add to the darkened image.

        Darkening to a quarter and two passes over bytes take half the time of a weighted sum.
        """
        entries = self._entries
        columns = min(self._columns, len(self._shown))
        rows = -(-len(self._shown) // columns)
        size = (rows * entries.height + entries.gap, columns * entries.width + entries.gap, 3)
        self._added, self._covered = np.zeros((2, *size), np.uint8)
        for place, index in enumerate(self._shown):
            y, x = entries.corner(place, columns)
            self._added[y : y + entries.height, x : x + entries.width] = self._tiles[index]
            self._covered[y : y + entries.glyph, x : x + entries.glyph] = 255


class _Entries:
    """A legend's entries, a swatch and a name each, in cells of one height and width."""

    def __init__(self, classes: Sequence[ClassInfo], glyph: int, longest: int) -> None:
        """`glyph`: the letters' height; `longest`: the width from which names are shortened."""
        self.glyph = glyph
        self.gap = glyph // 2
        self._scale = cv2.getFontScaleFromHeight(_FONT, glyph, 1)
        self._thickness = max(1, glyph // 9)
        self._colours = [item.colour for item in classes]
        self._names = [self._shorten(item.name, longest) for item in classes]
        self.height = glyph + self.gap
        widths = (self._text_width(name) for name in self._names)
        self.width = glyph + self.gap + max(widths, default=0) + glyph

    def corner(self, place: int, columns: int) -> tuple[int, int]:
        """(y, x) of a place's cell in a box of so many columns, with a gap around the cells."""
        row, column = divmod(place, columns)
        return self.gap + row * self.height, self.gap + column * self.width

    def draw(self, index: int, canvas: NDArray[np.uint8]) -> None:
        """Draw a class's entry into the canvas's upper left corner."""
        end = self.glyph - 1
        cv2.rectangle(canvas, (0, 0), (end, end), self._colours[index], cv2.FILLED)
        cv2.rectangle(canvas, (0, 0), (end, end), (128, 128, 128), 1)
        cv2.putText(
            canvas,
            self._names[index],
            (self.glyph + self.gap, end),
            _FONT,
            self._scale,
            (235, 235, 235),
            self._thickness,
            cv2.LINE_AA,
        )

    def _shorten(self, name: str, longest: int) -> str:
        if self._text_width(name) <= longest:
            return name
        ends = range(1, len(name))
        fitting = bisect_right(
            ends, longest, key=lambda end: self._text_width(f"{name[:end]}{_CUT}")
        )
        return f"{name[:fitting]}{_CUT}" if fitting else ""

    def _text_width(self, text: str) -> int:
        return cv2.getTextSize(text, _FONT, self._scale, self._thickness)[0][0]
