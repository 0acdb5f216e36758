# SPDX-License-Identifier: Apache-2.0
"""Which class the ids and the colours of label images stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ctxseg_ros.model.model_file import MAX_CLASSES
from ctxseg_ros.system.files import shown
from training.data.files import DataError
from training.data.label_files import IGNORE, LabelImage, read_label_image

#: Red, green, blue, 0 to 255.
Colour = tuple[int, int, int]

#: The label of a colour or an id that a list does not have.
UNKNOWN = -1

#: More unknown ids or colours than this are not those of classes that a list forgot.
_MANY = 16
_SHOWN = 5  # unknown ids or colours that a message lists


@dataclass(frozen=True)
class Entry:
    """One row of a class list. Rows of one name are one class.

    ``id``: the value of its pixels in grey and palette masks, 0 to 65535. ``colour``: of its
    pixels in RGB masks. ``ignored``: its pixels neither train nor score.
    """

    name: str
    id: int | None = None
    colour: Colour | None = None
    ignored: bool = False


class ClassList:
    """Classes, and the labels of mask files by them.

    In a list without ids, the id of a row is its position, from 0. How masks are read:

    - RGB: by colour. If the list gives ids and a colour is unknown, a file whose three channels
      are equal is read by id.
    - Grey and palette, where the list gives ids: by id; by colour if an id is unknown.
    - Grey, where the list has colours only: as grey colours (0 and 255 of a binary mask) or by
      position, whichever fits.
    - Palette, where the list has colours only: by the palette's colours; by position if the list
      has none of them but black.

    Grey masks without ids in the list, and palettes with them, are refused if they fit both ways
    and the ways differ. The value 255 in grey and palette masks is
    void, unless the list gives it a meaning.

    Args:
        entries: the rows. source: where they are from, for messages.

    Raises:
        DataError: there is no class, or more than a model can have; two rows that are not both
            ignored share an id or a colour; a name is not printable text, or ignored in one row
            only; or only some classes have an id or a colour.
    """

    def __init__(self, entries: Sequence[Entry], source: str | Path) -> None:
        self.source = source
        self.has_ids = any(entry.id is not None for entry in entries if not entry.ignored)
        if not self.has_ids:
            entries = [
                entry if entry.id is not None else replace(entry, id=position)
                for position, entry in enumerate(entries)
            ]
        self.entries = tuple(entries)
        _check(self.entries, source)
        kept = [entry for entry in self.entries if not entry.ignored]
        self.has_colours = any(entry.colour is not None for entry in kept)
        if self.has_ids:
            kept.sort(key=lambda entry: 65536 if entry.id is None else entry.id)
        self.names = list(dict.fromkeys(entry.name for entry in kept))
        self.ignored = list(dict.fromkeys(e.name for e in self.entries if e.ignored))

    @cached_property
    def classes(self) -> tuple[tuple[str, Colour], ...]:
        """Name and colour by label: by id if there are ids, otherwise in the list's order.

        A class of several colours is shown in its first; one without gets one that is far from
        the others'.
        """
        colours = {e.name: e.colour for e in reversed(self.entries) if e.colour and not e.ignored}
        if not colours:
            # Here, because matplotlib is slow to import and few lists lack colours.
            from training.data.palette import cluster_colours

            listed = cluster_colours(len(self.names)).tolist()
            colours = {name: (r, g, b) for name, (r, g, b) in zip(self.names, listed, strict=True)}
        return tuple((name, colours[name]) for name in self.names)

    def read(self, path: Path) -> np.ndarray:
        """The labels of a mask file, uint8 [H, W], IGNORE where there is no class.

        Raises:
            DataError: the file cannot be read, see ``read_label_image``; or it holds ids or
                colours that the list does not have, or can be read in two ways.
        """
        image = read_label_image(path)
        return (self._of_rgb if image.kind == "rgb" else self._of_values)(path, image)

    def by_colour(self, rgb: np.ndarray) -> np.ndarray:
        """The labels of colours uint8 [..., 3], int16 [...], UNKNOWN where the list has none."""
        return self._colour_labels[packed(rgb)]

    def _of_rgb(self, path: Path, image: LabelImage) -> np.ndarray:
        assert image.rgb is not None
        if self.has_colours:
            by_colour = self.by_colour(image.rgb)
            if (by_colour != UNKNOWN).all():
                return by_colour.astype(np.uint8)
            by_id = self._by_id(image) if self.has_ids else None
            if by_id is not None:
                return by_id
            hint = "" if image.values is None else "; if its values are ids, add ids to the list"
            raise DataError(f"{shown(path)}: {self._unknown_colours(image.rgb, by_colour)}{hint}")
        if image.values is None:
            raise DataError(
                f"{shown(path)}: its pixels are colours, and {self.source} has no colours; add "
                "them to it, or use masks of ids"
            )
        return self._by_id_or_refuse(path, image)

    def _of_values(self, path: Path, image: LabelImage) -> np.ndarray:
        if image.kind == "palette" and self.has_colours and not self.has_ids:
            return self._of_palette(path, image)
        by_id, by_colour = self._by_id(image, void=False), self._by_table(image)
        if by_id is not None and by_colour is not None and self._doubtful(image, by_id, by_colour):
            raise self._two_readings(path, image, by_id, by_colour)
        for labels in (by_id, by_colour):
            if labels is not None:
                return labels
        return self._by_id_or_refuse(path, image)

    def _doubtful(self, image: LabelImage, by_id: np.ndarray, by_colour: np.ndarray) -> bool:
        """Whether two readings differ in a way that the ids of the list do not settle."""
        apart = by_id != by_colour
        if not self.has_ids:
            return bool(apart.any())
        assert image.table is not None and image.values is not None
        # The first colour of a palette is black, whatever the id 0 stands for.
        return image.kind == "palette" and bool(image.table[image.values[apart]].any())

    def _of_palette(self, path: Path, image: LabelImage) -> np.ndarray:
        """By a list of colours without ids."""
        assert image.values is not None and image.table is not None
        labels = self.by_colour(image.table)
        used = np.unique(image.values)
        known = labels[used] != UNKNOWN
        if not known[used != IGNORE].all():
            if not (known & image.table[used].any(-1)).any():
                return self._by_id_or_refuse(path, image)
            rgb = image.table[image.values]
            raise DataError(f"{shown(path)}: {self._unknown_colours(rgb, labels[image.values])}")
        if labels[IGNORE] == UNKNOWN:  # PASCAL VOC draws its void in a colour
            labels[IGNORE] = IGNORE
        return labels[image.values].astype(np.uint8)

    def _by_id(self, image: LabelImage, void: bool = True) -> np.ndarray | None:
        """Labels by id; None where one is unknown, which 255 is not if it may stand for void."""
        if image.values is None:
            return None
        table = self._id_labels
        if void and table[IGNORE] == UNKNOWN:
            table = table.copy()
            table[IGNORE] = IGNORE
        labels = table[image.values]
        return None if (labels == UNKNOWN).any() else labels.astype(np.uint8)

    def _by_table(self, image: LabelImage) -> np.ndarray | None:
        """Labels by the colours that the values are shown in; None where one is unknown."""
        if image.table is None or not self.has_colours:
            return None
        assert image.values is not None
        labels = self.by_colour(image.table)[image.values]
        return None if (labels == UNKNOWN).any() else labels.astype(np.uint8)

    def _by_id_or_refuse(self, path: Path, image: LabelImage) -> np.ndarray:
        labels = self._by_id(image)
        if labels is None:
            assert image.values is not None
            raise DataError(f"{shown(path)}: {self._unknown_ids(image.values)}")
        return labels

    @cached_property
    def _index(self) -> dict[str, int]:
        kept = {name: number for number, name in enumerate(self.names)}
        return {**dict.fromkeys(self.ignored, IGNORE), **kept}

    @cached_property
    def _id_labels(self) -> np.ndarray:
        """Label by id, int16 [65536]."""
        table = np.full(65536, UNKNOWN, np.int16)
        for entry in self.entries:
            if entry.id is not None:
                table[entry.id] = self._index[entry.name]
        return table

    @cached_property
    def _colour_labels(self) -> np.ndarray:
        """Label by packed colour, int16 [2**24]."""
        table = np.full(1 << 24, UNKNOWN, np.int16)
        for entry in self.entries:
            if entry.colour is not None:
                table[packed(np.array(entry.colour, np.uint8))] = self._index[entry.name]
        return table

    def _two_readings(
        self, path: Path, image: LabelImage, by_id: np.ndarray, by_colour: np.ndarray
    ) -> DataError:
        assert image.values is not None and image.table is not None
        value = image.values[by_id != by_colour].max()
        named = {IGNORE: "void", **dict(enumerate(self.names))}
        as_id = named[int(by_id[image.values == value][0])]
        as_colour = named[int(by_colour[image.values == value][0])]
        fix = "the ids or the colours of" if self.has_ids else "ids in"
        return DataError(
            f"{shown(path)}: the value {value} can be read in two ways: as an id it is {as_id}, as "
            f"the colour {tuple(image.table[value].tolist())} it is {as_colour}; correct {fix} "
            f"{self.source}"
        )

    def _unknown_ids(self, values: np.ndarray) -> str:
        found, counts = np.unique(values, return_counts=True)
        odd = self._id_labels[found] == UNKNOWN
        odd &= found != IGNORE
        found, counts = found[odd], counts[odd]
        if len(found) > _MANY:
            return _not_classes(len(found), "ids", int(counts.sum()), values.size, self.source)
        ids = np.flatnonzero(self._id_labels != UNKNOWN).tolist()
        listed = [f"{v} on {counted(int(n))}" for v, n in zip(found, counts, strict=True)]
        known = f"0 to {len(ids) - 1}" if ids == list(range(len(ids))) else _shortened(ids, _MANY)
        return f"{self.source} has no id {_shortened(listed, _SHOWN)}; its ids are {known}"

    def _unknown_colours(self, rgb: np.ndarray, labels: np.ndarray) -> str:
        codes, counts = np.unique(packed(rgb)[labels == UNKNOWN], return_counts=True)
        if len(codes) > _MANY:
            total = labels.size
            return _not_classes(len(codes), "colours", int(counts.sum()), total, self.source)
        order = np.argsort(-counts, kind="stable")
        listed = [
            f"{_unpacked(int(codes[i]))} on {counted(int(counts[i]))}"
            f" (did you mean {self._nearest(_unpacked(int(codes[i])))}?)"
            for i in order
        ]
        return f"{self.source} has no colour {_shortened(listed, _SHOWN)}"

    def _nearest(self, colour: Colour) -> str:
        known = [entry for entry in self.entries if entry.colour is not None]
        apart = [np.abs(np.subtract(entry.colour, colour)).sum() for entry in known]  # type: ignore[arg-type]
        nearest = known[int(np.argmin(apart))]
        return f"{nearest.name}, {nearest.colour}"


def packed(rgb: np.ndarray) -> np.ndarray:
    """Colours uint8 [..., 3] as one number each, int32 [...]."""
    wide = rgb.astype(np.int32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def _unpacked(code: int) -> Colour:
    return code >> 16, code >> 8 & 255, code & 255


def counted(pixels: int) -> str:
    """A number of pixels in words."""
    return f"{pixels} pixel{'' if pixels == 1 else 's'}"


def _not_classes(number: int, what: str, pixels: int, total: int, source: str | Path) -> str:
    return (
        f"{number} {what} that {source} does not have, on {100 * pixels / total:.1f} % of the "
        "pixels: the mask was drawn with anti-aliasing, resized with interpolation, saved as JPEG "
        "on its way, or is not a mask; export it again as PNG, and resize masks by nearest "
        "neighbour"
    )


def _shortened(items: Sequence[object], most: int) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(str, items[:most])) + more


def _check(entries: Sequence[Entry], source: str | Path) -> None:
    def refuse(reason: str) -> None:
        raise DataError(f"{source}: {reason}")

    for entry in entries:
        if not entry.name.strip() or not entry.name.isprintable():
            refuse(f"the name {entry.name!r} is not printable text")
        if entry.id is not None and not 0 <= entry.id <= 65535:
            refuse(f"the id {entry.id} of {entry.name!r} is not in 0 to 65535")
        if entry.colour is not None and not all(0 <= part <= 255 for part in entry.colour):
            refuse(f"the colour {entry.colour} of {entry.name!r} is not in 0 to 255")
    kept = [entry for entry in entries if not entry.ignored]
    names = {entry.name for entry in kept}
    if not names:
        refuse("it has no class")
    if len(names) > MAX_CLASSES:
        refuse(f"{len(names)} classes; a model has {MAX_CLASSES} at most")
    if both := names & {entry.name for entry in entries if entry.ignored}:
        refuse(f"{min(both)!r} is ignored in one row and a class in another")
    for what in ("id", "colour"):
        given = {e.name for e in kept if getattr(e, what) is not None}
        if given and (without := names - given):
            refuse(f"{min(without)!r} has no {what}, and {min(given)!r} has; give all or none one")
        seen: dict[object, Entry] = {}
        for entry in entries:
            value = getattr(entry, what)
            other = seen.setdefault(value, entry)
            if value is None or other is entry or (other.ignored and entry.ignored):
                continue
            refuse(f"{other.name!r} and {entry.name!r} have the same {what}, {value}")
