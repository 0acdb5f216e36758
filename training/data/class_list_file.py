# SPDX-License-Identifier: Apache-2.0
"""Class lists as people and tools write them: YAML, JSON, CSV, text.

YAML (or JSON), one row for each class::

    - {name: building, colours: [[128, 0, 0], [0, 0, 128]]}   # walls and windows
    - {name: road, colour: "#804000"}
    - {name: sky, id: 3, colour: [0, 128, 128]}                # ids: all classes, or none
    - {name: various, colour: [0, 0, 0], ignore: true}

or names alone (``[road, sky]``), or ``{0: road, 1: sky}``, or ``{road: [128, 64, 0]}``; any of
these also under the key ``classes``, ``names``, ``labels`` (Mapillary), ``categories`` (COCO) or
``id2label`` (Hugging Face), beside which ``ignore`` may list names, colours and ids that are not to
be learnt, ``ignore: [various, [0, 0, 0], 255]``, and ``palette`` the colours of names.

CSV (comma, semicolon or tab) has a line of headings: ``name`` (or label, class), ``id``, ``r``,
``g``, ``b`` or ``colour``, ``ignore``; ``name,r,g,b`` is Kaggle's. Text has a name a line
(labelme), ``name:r,g,b::`` (CVAT's labelmap.txt), ``r g b name`` (CamVid's label_colors.txt),
``name r g b`` or ``id name``; or it is a table as in CSV.

A colour is three numbers of 0 to 255, three of 0 to 1 with decimal points throughout the file, or
``#rrggbb``. Classes called void, ignore, ``__ignore__``, unlabelled or unlabeled are ignored
unless the row says ``ignore: false``. An ignored row that has no pixels may have the id -1.
"""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from ctxseg_ros.system.files import shown
from training.data.class_list import ClassList, Colour, Entry
from training.data.files import DataError
from training.data.label_files import IGNORE
from training.places import expanded

_VOID = {"void", "ignore", "unlabelled", "unlabeled"}
_HEADINGS = {
    "name": {"name", "label", "class", "classname", "class_name", "label_name", "category"}
    | {"title"},
    "id": {"id", "idx", "index", "value", "pixel value", "pixel_value", "class_id", "label_id"}
    | {"trainid"},
    "colour": {"colour", "color", "rgb", "hex", "colours", "colors", "color_rgb"},
    "r": {"r", "red"},
    "g": {"g", "green"},
    "b": {"b", "blue"},
    "ignore": {"ignore", "ignored", "void", "ignoreineval"},
}
_KEYS = {heading: key for key, headings in _HEADINGS.items() for heading in headings}
_LISTS = ("classes", "names", "labels", "categories", "id2label")
#: What COCO, Mapillary, Supervisely and CVAT write beside a name and a colour.
_OTHER_KEYS = {"supercategory", "isthing", "instances", "readable", "shape", "hotkey", "type"} | {
    "geometry_config",
    "attributes",
}
#: Keys of rows whose id is that of a server (Supervisely, CVAT), not of pixels.
_SERVER_KEYS = {"title", "attributes"}
_TRUE, _FALSE = {"1", "true", "yes"}, {"0", "false", "no", ""}
_CVAT = re.compile(r"(?P<name>[^:]+):(?P<colour>\d+,\s*\d+,\s*\d+)?:[^:]*:.*")
_ID_NAME = re.compile(r"(?P<id>\d+)\s*[:\s]\s*(?P<name>[^\d\s].*)")
_NAME_COLOUR = re.compile(r"(?P<name>[^\d\s].*?)\s+(?P<colour>\d+[\s,]+\d+[\s,]+\d+)")
_CAMVID = re.compile(r"(?P<colour>\d+\s+\d+\s+\d+)\s+(?P<name>\S.*)")

#: A row as it stands in a file, by the keys of _HEADINGS; colours as they are written.
_Row = dict[str, Any]


class _Refused(Exception):
    """What is wrong with the content of a class list, for the message."""


def _refuse(reason: str) -> NoReturn:
    raise _Refused(reason)


def read_class_list(path: str | Path) -> ClassList:
    """Read a class list; the suffix says how: .yaml, .yml, .json, .csv, .tsv, .txt or .names.

    Raises:
        DataError: the file cannot be read, or is not as above; see also ``ClassList``.
    """
    path = expanded(path)
    readers = {
        **dict.fromkeys((".yaml", ".yml", ".json"), _yaml_rows),
        **dict.fromkeys((".csv", ".tsv"), _csv_rows),
        **dict.fromkeys((".txt", ".names"), _text_rows),
    }
    if path.suffix.lower() not in readers:
        raise DataError(f"{shown(path)}: a class list is a file that ends in {', '.join(readers)}")
    try:
        rows = readers[path.suffix.lower()](_text(path))
        entries = _entries(rows)
    except _Refused as error:
        raise DataError(f"{shown(path)}: {error}") from error
    if not entries:
        raise DataError(f"{shown(path)}: no classes in it")
    return ClassList(entries, shown(path))


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):  # Excel's "Unicode text"
            return data.decode("utf-16")
        return data.decode("utf-8-sig")
    except OSError as error:
        _refuse(f"cannot be read ({error.strerror})")
    except UnicodeDecodeError as error:
        _refuse(f"not UTF-8 at byte {error.start}; save it as UTF-8")


def _yaml_rows(text: str) -> list[_Row]:
    try:
        content = yaml.safe_load(text)
    except Exception as error:  # PyYAML lets several unrelated types through
        _refuse(f"not valid YAML: {' '.join(str(error).split())}")
    ignored: Any = []
    if isinstance(content, dict):
        for key in _LISTS:
            if isinstance(content.get(key), list | dict):
                _check_beside(content)
                content, ignored = _coloured(content[key], content), content.get("ignore", [])
                break
    if isinstance(content, dict):
        content = [_of_pair(key, value) for key, value in content.items()]
    if not isinstance(content, list):
        _refuse("it must be a list of classes")
    rows = [row for item in content for row in _of_item(item)]
    for value in ignored if isinstance(ignored, list) else [ignored]:
        rows = _with_ignored(rows, value)
    return rows


def _check_beside(content: Mapping[Any, Any]) -> None:
    """Refuse what may stand for ``ignore``, which would train what is not to be learnt."""
    for key in content:
        text = str(key).lower()
        if key != "ignore" and (
            text.startswith("ignore") or difflib.get_close_matches(text, ["ignore"], cutoff=0.7)
        ):
            _refuse(f"it has the key {key!r}; did you mean ignore?")


def _coloured(classes: Any, content: Mapping[Any, Any]) -> Any:
    """Names with the colours of a palette beside them, as MMSegmentation writes both."""
    palette = content.get("palette")
    if palette is None or not isinstance(classes, list):
        return classes
    if not isinstance(palette, list) or len(palette) != len(classes):
        _refuse(f"palette is not a list of {len(classes)} colours, one for each class")
    return [{"name": name, "colour": colour} for name, colour in zip(classes, palette, strict=True)]


def _with_ignored(rows: list[_Row], value: Any) -> list[_Row]:
    """The rows, with a name, a colour or an id that is to be ignored."""
    if isinstance(value, int) and not isinstance(value, bool):
        return [*rows, {"name": "void", "id": value, "ignore": True}]
    if isinstance(value, list) or (isinstance(value, str) and value.startswith("#")):
        return [*rows, {"name": "void", "colour": value, "ignore": True}]
    if value not in [row.get("name") for row in rows]:
        _refuse(f"ignore has {value!r}, which is not the name of a class, a colour or an id")
    return [{**row, "ignore": True} if row.get("name") == value else row for row in rows]


def _of_pair(key: Any, value: Any) -> Any:
    """A class of a mapping: by its id, or by its name."""
    if str(key).isdigit():
        given = value if isinstance(value, dict) else {"name": value}
        return {"id": int(key), **given}
    if isinstance(value, dict):
        return {"name": key, **value}
    return {"name": key, "id" if isinstance(value, int) else "colour": value}


def _of_item(item: Any) -> Iterator[_Row]:
    if not isinstance(item, dict):
        item = {"name": item}
    if len(item) == 1 and _KEYS.get(str(next(iter(item))).lower()) != "name":
        ((key, value),) = item.items()  # - road: [128, 64, 128]
        item = _of_pair(key, value)
    row: _Row = {}
    for key, value in item.items():
        if key in _OTHER_KEYS or (key == "id" and _SERVER_KEYS & item.keys()):
            continue
        if key == "evaluate":  # Mapillary
            row["ignore"] = value is False
            continue
        known = _KEYS.get(str(key).lower())
        if known is None:
            known_keys = "name, id, colour or colours, ignore"
            _refuse(f"the row {item} has the key {key!r}; the keys are {known_keys}")
        if value is None:
            _refuse(f"{key} is empty in the row {item}; colours such as '#804000' need quotes")
        if known in row:
            _refuse(f"the row {item} has two keys for the {known}")
        row[known] = value
    colours = row.pop("colour", None)
    if isinstance(colours, list) and colours and all(isinstance(c, list | str) for c in colours):
        for number, colour in enumerate(colours):
            # The id belongs to one row only.
            yield {k: v for k, v in row.items() if number == 0 or k != "id"} | {"colour": colour}
    else:
        yield row if colours is None else {**row, "colour": colours}


def _csv_rows(text: str) -> list[_Row]:
    first = text.lstrip().partition("\n")[0]
    separator = max(",;\t", key=first.count)
    lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    cells = [[cell.strip() for cell in line] for line in lines]
    cells = [line for line in cells if any(line)]
    if not cells:
        return []
    first_line = cells[0]
    headings = [_KEYS.get(cell.lower()) for cell in first_line]
    if "name" in map(str.lower, first_line):  # beside it, Cityscapes' category is another thing
        headings = [
            None if key == "name" != cell.lower() else key
            for key, cell in zip(headings, first_line, strict=True)
        ]
    if "name" not in headings:
        if len(first_line) == 4 and all(map(_is_number, first_line[1:])):
            headings = ["name", "r", "g", "b"]
        else:
            _refuse(
                f"the first line is {', '.join(first_line)}; it must be headings, one of them "
                "name, such as name,r,g,b or id,name,colour"
            )
    else:
        cells = cells[1:]
    colours = [key for key in headings if key in ("r", "g", "b")]
    if len(colours) not in (0, 3):
        _refuse("of the columns r, g and b one is missing")
    if twice := [key for key in headings if key and headings.count(key) > 1]:
        columns = [c for c, key in zip(first_line, headings, strict=True) if key == twice[0]]
        _refuse(f"two columns for the {twice[0]}: remove all but one of {', '.join(columns)}")
    rows = []
    for line in cells:
        if len(line) < len(headings):
            _refuse(f"the line {separator.join(line)!r} has {len(line)} of {len(headings)} columns")
        row: _Row = {key: cell for key, cell in zip(headings, line, strict=False) if key}
        if colours:
            row["colour"] = [row.pop(key) for key in "rgb"]
        rows.append({key: value for key, value in row.items() if value != "" or key == "name"})
    return rows


def _text_rows(text: str) -> list[_Row]:
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if lines and _is_table(lines[0]):
        return _csv_rows("\n".join(lines))
    for form in (_ID_NAME, _NAME_COLOUR):
        matches = [match for line in lines if (match := form.fullmatch(line))]
        if lines and len(matches) == len(lines):
            return [match.groupdict() for match in matches]
    rows: list[_Row] = []
    for line in lines:
        if match := _CVAT.fullmatch(line) or _CAMVID.fullmatch(line):
            found = {key: value for key, value in match.groupdict().items() if value}
            rows.append(found)
        else:
            rows.append({"name": line})
    if lines and lines[0] == "__ignore__":  # labelme: 255 in the files, and 0 is the next
        rows = [{**row, "id": number - 1 if number else IGNORE} for number, row in enumerate(rows)]
    return rows


def _is_table(line: str) -> bool:
    """Whether a line is one of headings, or has a name and a colour, with separators."""
    cells = [cell.strip() for cell in re.split(r"[,;\t]", line)]
    keys = {_KEYS.get(cell.lower()) for cell in cells}
    colour = len(cells) == 4 and all(map(_is_number, cells[1:]))
    return len(cells) > 1 and ("name" in keys or colour)


def _entries(rows: Sequence[_Row]) -> list[Entry]:
    colours = [_numbers(row) for row in rows]
    scale = _scale(colours)
    entries = []
    for row, numbers in zip(rows, colours, strict=True):
        name = row.get("name")
        if not isinstance(name, str):
            _refuse(f"the name {name!r} is not text; put it in quotes")
        name = name.strip()
        colour: Colour | None = None
        if numbers is not None:
            red, green, blue = (round(scale * float(number)) for number in numbers)
            colour = red, green, blue
        ignored = name.casefold().strip("_") in _VOID
        if "ignore" in row:
            ignored = _flag(name, row["ignore"])
        if ignored and str(row.get("id")) == "-1":  # Cityscapes: no pixel has it
            row = {key: value for key, value in row.items() if key != "id"}
        entries.append(Entry(name, _id(name, row), colour, ignored))
    return entries


def _id(name: str, row: Mapping[str, Any]) -> int | None:
    if (value := row.get("id")) is None:
        return None
    if isinstance(value, bool) or not re.fullmatch(r"\d+(\.0*)?", str(value)):
        _refuse(f"the id {value!r} of {name!r} is not a whole number of 0 or more")
    return int(float(value))


def _flag(name: str, value: Any) -> bool:
    text = str(value).lower()
    if text not in _TRUE | _FALSE:
        _refuse(f"ignore of {name!r} is {value!r}, not true or false")
    return text in _TRUE


def _numbers(row: Mapping[str, Any]) -> list[str] | None:
    """The three numbers of a colour, as they are written."""
    colour = row.get("colour")
    if colour is None:
        return None
    if isinstance(colour, str):
        if match := re.fullmatch(r"#?([0-9a-fA-F]{6})(?:[fF]{2})?", colour.strip()):
            return [str(part) for part in bytes.fromhex(match[1])]
        colour = re.split(r"[\s,;]+", colour.strip().strip("()[]").strip())
    if not isinstance(colour, list | tuple):
        colour = [colour]
    numbers = [str(part).strip() for part in colour]
    if len(numbers) != 3 or not all(map(_is_number, numbers)):
        _refuse(
            f"the colour {row['colour']!r} of {row.get('name')!r} is not three numbers of 0 to "
            "255 or #rrggbb"
        )
    return numbers


def _scale(colours: Sequence[Sequence[str] | None]) -> int:
    """1 where colours are 0 to 255, 255 where they are 0 to 1 with decimal points."""
    numbers = [number for colour in colours if colour for number in colour]
    fractions = [number for number in numbers if "." in number]
    if fractions and all(float(number) <= 1 for number in numbers):
        return 255
    if odd := [number for number in fractions if not float(number).is_integer()]:
        _refuse(f"colours are 0 to 255, or all of them 0 to 1; there are both, such as {odd[0]}")
    return 1


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\d+(\.\d*)?|\.\d+", text) is not None
