# SPDX-License-Identifier: Apache-2.0
"""Label groups: a model's classes regrouped into what a robot needs, as a YAML file says.

    groups:                       # their ids are 0, 1, 2, ... in this order
      - {name: drivable, colour: [128, 64, 128], classes: [road]}
      - {name: obstacle, colour: [220, 20, 60], classes: [car, pedestrian]}
      - {name: other, colour: [128, 128, 128], classes: rest}
    unlabelled: [sky]             # optional: these classes become 255

Every class of the model has its place: in one group, or among `unlabelled`, or in the group whose
classes are `rest`, which takes all that the file names nowhere (there may be none left for it).
"""

import difflib
import reprlib
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from ctxseg_ros.model.model_file import MAX_CLASSES, ClassInfo, read_fix
from ctxseg_ros.model.prediction import UNLABELLED

REST = "rest"
_LISTED = 20  # more classes than this would drown the message


class LabelGroupsError(ValueError):
    """A label group file that cannot be used; the message names file, cause and fix."""


@dataclass(frozen=True)
class LabelGroups:
    """The groups as classes, in the order of their ids, and the way to them.

    `table`: uint8 [256], read-only, a group's id by class id; 255 (unlabelled) for the classes
    that the file leaves unlabelled, and for ids that are no class.
    """

    classes: tuple[ClassInfo, ...]
    table: NDArray[np.uint8]


def read_label_groups(path: str | Path, classes: Sequence[ClassInfo]) -> LabelGroups:
    """Read and check a label group file for a model of these classes.

    Raises LabelGroupsError, and nothing else, if the file does not fit the format or the classes.
    """
    try:
        return _label_groups(_read(path), classes)
    except LabelGroupsError as error:
        raise LabelGroupsError(f"{path}: {error}") from error.__cause__


def _read(path: str | Path) -> Any:
    try:
        data = Path(path).expanduser().read_bytes()
    except (OSError, RuntimeError) as error:  # RuntimeError: no such user's home
        reason = getattr(error, "strerror", None) or error
        fix = read_fix(error) if isinstance(error, OSError) else "Check the path"
        raise LabelGroupsError(f"cannot read the label groups: {reason}. {fix}") from error
    try:
        return yaml.safe_load(data)
    except Exception as error:  # PyYAML lets several unrelated types through
        reason = " ".join(str(error).split()) or type(error).__name__
        raise LabelGroupsError(f"the file is not valid YAML: {reason}. Correct it there") from error


@dataclass(frozen=True)
class _Group:
    """A group as the file gives it; `members` is None for the rest."""

    name: str
    colour: tuple[int, int, int]
    members: list[str] | None


def _label_groups(content: Any, classes: Sequence[ClassInfo]) -> LabelGroups:
    if not classes:
        raise LabelGroupsError(
            "this model has no classes to group. Choose a model with classes, or no label groups"
        )
    _check_keys("the file", content, {"groups"}, {"unlabelled"})
    groups = _groups(content["groups"])
    unlabelled = _class_names("unlabelled", content.get("unlabelled", []))
    places = _places(groups, unlabelled, [item.name for item in classes])
    table = np.full(256, UNLABELLED, np.uint8)
    for item in classes:
        table[item.id] = places[item.name]
    table.flags.writeable = False
    found = (ClassInfo(number, group.name, group.colour) for number, group in enumerate(groups))
    return LabelGroups(tuple(found), table)


def _groups(value: Any) -> list[_Group]:
    if not isinstance(value, list) or not value:
        raise LabelGroupsError(
            f"groups is {reprlib.repr(value)}. Make it a list of name, colour and classes"
        )
    if len(value) > MAX_CLASSES:
        raise LabelGroupsError(f"there are {len(value)} groups. Keep to {MAX_CLASSES}")
    groups = [_group(number, item) for number, item in enumerate(value)]
    names = [group.name for group in groups]
    if twice := [name for name in names if names.count(name) > 1]:
        raise LabelGroupsError(f"two groups are called {twice[0]!r}. Rename one or join them")
    rests = [group.name for group in groups if group.members is None]
    if len(rests) > 1:
        raise LabelGroupsError(
            f"groups {rests[0]!r} and {rests[1]!r} both take the {REST}. List the classes of one"
        )
    return groups


def _group(number: int, item: Any) -> _Group:
    _check_keys(f"group {number}", item, {"name", "colour", "classes"})
    name, colour, members = item["name"], item["colour"], item["classes"]
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise LabelGroupsError(
            f"the name {reprlib.repr(name)} of group {number} is no printable text. "
            "Write letters, in quotes if YAML reads the word as something else"
        )
    if not (
        isinstance(colour, list)
        and len(colour) == 3
        and all(type(part) is int and 0 <= part <= 255 for part in colour)
    ):
        raise LabelGroupsError(
            f"the colour {reprlib.repr(colour)} of group {name!r} is not [red, green, blue]. "
            "Give three integers of 0 to 255"
        )
    if members == REST:
        members = None
    else:
        members = _class_names(f"group {name!r}", members)
        if not members:
            raise LabelGroupsError(f"group {name!r} has no classes. Name some or remove it")
    return _Group(name, (colour[0], colour[1], colour[2]), members)


def _check_keys(place: str, value: Any, needed: Set[str], optional: Set[str] = frozenset()) -> None:
    known = needed | optional
    if not isinstance(value, dict):
        raise LabelGroupsError(
            f"{place} is {reprlib.repr(value)}. Give it the keys {', '.join(sorted(known))}"
        )
    if unknown := [key for key in value if key not in known]:
        raise LabelGroupsError(
            f"{place} has the unknown key {reprlib.repr(unknown[0])}. "
            f"The keys are {', '.join(sorted(known))}"
        )
    if missing := sorted(needed - value.keys()):
        raise LabelGroupsError(f"{place} has no key {missing[0]!r}. Add it")


def _class_names(place: str, value: Any) -> list[str]:
    if not isinstance(value, list):
        raise LabelGroupsError(
            f"the classes of {place} are {reprlib.repr(value)}. Make them a list of class names, "
            f"or the word {REST} in one group"
        )
    if odd := [name for name in value if not isinstance(name, str)]:
        raise LabelGroupsError(
            f"the classes of {place} include {reprlib.repr(odd[0])}, which is no text. "
            "Put names that YAML reads as something else in quotes"
        )
    return value


def _places(
    groups: Sequence[_Group], unlabelled: Sequence[str], classes: Sequence[str]
) -> dict[str, int]:
    """The new id of each class name."""
    places: dict[str, int] = {}
    for number, members in [
        *((number, group.members or []) for number, group in enumerate(groups)),
        (UNLABELLED, unlabelled),
    ]:
        for name in members:
            if name not in classes:
                raise LabelGroupsError(
                    f"this model has no class {reprlib.repr(name)}. {_advice(name, classes)}"
                )
            if name in places:
                raise LabelGroupsError(
                    f"class {name!r} is named twice: in {_place(places[name], groups)} and in "
                    f"{_place(number, groups)}. Name it once"
                )
            places[name] = number
    left = [name for name in classes if name not in places]
    rest = [number for number, group in enumerate(groups) if group.members is None]
    if left and not rest:
        raise LabelGroupsError(
            f"no group has {_listed(left)}. Add what is missing to a group or to unlabelled, or "
            f"give one group the classes {REST}"
        )
    places.update((name, rest[0]) for name in left)
    return places


def _place(number: int, groups: Sequence[_Group]) -> str:
    return "unlabelled" if number == UNLABELLED else f"group {groups[number].name!r}"


def _advice(name: str, classes: Sequence[str]) -> str:
    lowered = {known.lower(): known for known in classes}
    nearest = difflib.get_close_matches(name.lower(), lowered, n=1)
    hint = f"Did you mean {lowered[nearest[0]]!r}? " if nearest else ""
    return f"{hint}Its classes are {_listed(classes)}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
