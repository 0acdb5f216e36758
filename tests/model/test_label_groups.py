# SPDX-License-Identifier: Apache-2.0
"""Label groups: files, what they refuse, and predictions through them."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ctxseg_ros.model import store
from ctxseg_ros.model.label_groups import LabelGroupsError, read_label_groups
from ctxseg_ros.model.model_file import ClassInfo

CONFIG = Path(__file__).resolve().parents[2] / "config"
NAMES = ("sky", "road", "car", "person", "tree")
CLASSES = tuple(ClassInfo(number, name, (number, 0, 0)) for number, name in enumerate(NAMES))
# SceneParsing's objectInfo150.txt: the first name of each class, in the order of the ids.
ADE20K = """
    wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk,
    person, earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa,
    shelf, house, sea, mirror, rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp,
    bathtub, railing, cushion, base, box, column, signboard, chest of drawers, counter, sand,
    sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case,
    pool table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table,
    toilet, flower, book, hill, bench, countertop, stove, palm, kitchen island, computer,
    swivel chair, boat, bar, arcade machine, hovel, bus, towel, light, truck, tower, chandelier,
    awning, streetlight, booth, television receiver, airplane, dirt track, apparel, pole, land,
    bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain,
    conveyer belt, canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent,
    bag, minibike, cradle, oven, ball, food, step, tank, trade name, microwave, pot, animal,
    bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic light, tray,
    ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, clock,
    flag
"""
EXAMPLE = """
groups:
  - {name: drivable, colour: [128, 64, 128], classes: [road]}
  - {name: obstacle, colour: [220, 20, 60], classes: [person, car]}
  - {name: other, colour: [1, 2, 3], classes: rest}
unlabelled: [sky]
"""


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """read(text or bytes, classes=CLASSES) -> what read_label_groups makes of such a file."""
    path = tmp_path_factory.mktemp("groups") / "groups.yaml"

    def read(content, classes=CLASSES):
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_label_groups(path, classes)

    return read


def group(**changes):
    return {"name": "a", "colour": [1, 2, 3], "classes": "rest"} | changes


def dumped(*groups, **more):
    return yaml.safe_dump({"groups": list(groups)} | more, allow_unicode=True)


def test_groups_are_classes_in_the_files_order(read):
    found = read(EXAMPLE)
    assert found.classes == (
        ClassInfo(0, "drivable", (128, 64, 128)),
        ClassInfo(1, "obstacle", (220, 20, 60)),
        ClassInfo(2, "other", (1, 2, 3)),
    )
    assert found.table.dtype == np.uint8 and not found.table.flags.writeable
    assert found.table.tolist() == [255, 0, 1, 1, 2] + [255] * 251


def test_rest_may_be_left_without_classes(read):
    found = read(dumped(group(), group(name="b", classes=list(NAMES))))
    assert found.table[:5].tolist() == [1] * 5 and len(found.classes) == 2


@given(data=st.data(), count=st.integers(1, 255))
def test_table_follows_the_file(read, data, count):
    """Each class is dealt to a group, to unlabelled or to the rest; ids need not be in order."""
    ids = data.draw(st.permutations(range(count)))
    classes = [ClassInfo(number, f"class {number}", (0, 0, 0)) for number in ids]
    places = data.draw(st.lists(st.integers(-1, 6), min_size=count, max_size=count))
    used = sorted({place for place in places if place > 0})
    members = {place: [f"class {i}" for i in range(count) if places[i] == place] for place in used}
    groups = [group(name=str(place), classes=members[place]) for place in used]
    rest = data.draw(st.integers(0, len(groups)))
    groups.insert(rest, group(name="the rest"))
    unlabelled = [f"class {i}" for i in range(count) if places[i] == -1]
    found = read(dumped(*groups, unlabelled=unlabelled), classes)
    for number in range(256):
        place = places[number] if number < count else -1
        name = {-1: None, 0: "the rest"}.get(place, str(place))
        assert found.table[number] == next(
            (group.id for group in found.classes if group.name == name), 255
        )


REFUSED = {
    "not YAML": ("groups: [", "not valid YAML.*line 1"),
    "not text": (b"\xff\xfe\xff", "not valid YAML"),
    "odd tag": ("groups: !!bool maybe", "not valid YAML"),
    "code": ("groups: !!python/object/apply:os.getcwd []", "not valid YAML"),
    "too deep": ("[" * 1500, "not valid YAML"),
    "empty": ("", "the file is None. Give it the keys groups, unlabelled"),
    "list": ("- a", "the file is .*Give it the keys"),
    "no groups": ("unlabelled: [sky]", "no key 'groups'"),
    "groups empty": ("groups: []", r"groups is \[\]. Make it a list"),
    "groups no list": ("groups: {a: 1}", "groups is .*Make it a list"),
    "unknown key": (dumped(group(), ignore=[]), "unknown key 'ignore'. The keys are groups"),
    "group no mapping": (dumped("road"), "group 0 is 'road'. Give it the keys classes, colour"),
    "group's unknown key": (dumped(group(color=[1, 2, 3])), "group 0 has the unknown key 'color'"),
    "key no text": (dumped(group() | {7: 8}), "group 0 has the unknown key 7"),
    "no colour": (dumped({"name": "a", "classes": "rest"}), "group 0 has no key 'colour'"),
    "name number": (dumped(group(name=5)), "the name 5 of group 0 is no printable text"),
    "name blank": (dumped(group(name=" ")), "the name ' ' of group 0 is no printable text"),
    "name control": (dumped(group(name="a\x07")), r"'a\\x07' of group 0 is no printable text"),
    "colour short": (dumped(group(colour=[1, 2])), r"colour \[1, 2\] of group 'a'.*three integers"),
    "colour above": (dumped(group(colour=[1, 2, 256])), "three integers of 0 to 255"),
    "colour below": (dumped(group(colour=[1, 2, -1])), "three integers of 0 to 255"),
    "colour fraction": (dumped(group(colour=[0.5, 0.1, 1])), "three integers of 0 to 255"),
    "colour truth": (dumped(group(colour=[True, 1, 1])), "three integers of 0 to 255"),
    "colour name": (dumped(group(colour="red")), "colour 'red' of group 'a'"),
    "classes word": (dumped(group(classes="road")), "classes of group 'a' are 'road'. Make them"),
    "classes none": (dumped(group(classes=None)), "classes of group 'a' are None. Make them"),
    "classes empty": (dumped(group(classes=[])), "group 'a' has no classes. Name some or remove"),
    "class truth": (
        dumped(group(classes=[True])),
        "group 'a' include True, which is no text.*quot",
    ),
    "unlabelled word": (dumped(group(), unlabelled="sky"), "classes of unlabelled are 'sky'"),
    "typing error": (
        dumped(group(classes=["raod"])),
        "no class 'raod'. Did you mean 'road'\\? Its classes are sky, road, car, person, tree$",
    ),
    "capital": (dumped(group(classes=["CAR"])), "no class 'CAR'. Did you mean 'car'"),
    "foreign": (dumped(group(), unlabelled=["zzz"]), "no class 'zzz'. Its classes are sky, road"),
    "two groups": (
        dumped(group(classes=["car"]), group(name="b", classes=["road", "car"])),
        "class 'car' is named twice: in group 'a' and in group 'b'",
    ),
    "group and unlabelled": (
        dumped(group(classes=["car"]), unlabelled=["car"]),
        "class 'car' is named twice: in group 'a' and in unlabelled",
    ),
    "no group": (
        dumped(group(classes=["road", "person", "tree"])),
        "no group has sky, car. Add what is missing",
    ),
    "same name": (
        dumped(group(classes=["road"]), group()),
        "two groups are called 'a'. Rename one",
    ),
    "two rests": (dumped(group(), group(name="b")), "groups 'a' and 'b' both take the rest"),
    "too many": (
        dumped(*(group(name=str(number)) for number in range(256))),
        "there are 256 groups. Keep to 255",
    ),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_with_file_cause_and_fix(read, content, message):
    with pytest.raises(LabelGroupsError, match=rf"(?s)groups\.yaml: .*{message}") as caught:
        read(content)
    assert len(str(caught.value)) < 500


def test_many_classes_are_not_all_listed(read):
    classes = [ClassInfo(number, f"c{number}", (0, 0, 0)) for number in range(150)]
    with pytest.raises(LabelGroupsError, match=r"c19 and 130 more$"):
        read(dumped(group(classes=["zzz"])), classes)
    with pytest.raises(LabelGroupsError, match=r"no group has c1, .* c20 and 129 more\. Add"):
        read(dumped(group(classes=["c0"])), classes)


def test_model_without_classes_has_none_to_group(read):
    with pytest.raises(LabelGroupsError, match="no classes to group"):
        read(EXAMPLE, ())


@pytest.mark.parametrize("path", ["nowhere/groups.yaml", "~nobody_of_that_name/groups.yaml"])
def test_missing_file(path):
    with pytest.raises(LabelGroupsError, match=f"{path}: cannot read .*Check the path"):
        read_label_groups(path, CLASSES)


def test_unreadable_file(tmp_path):
    with pytest.raises(LabelGroupsError, match=r"cannot read .*directory.*Check the path"):
        read_label_groups(tmp_path, CLASSES)


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "groups.yaml").write_text(EXAMPLE)
    assert len(read_label_groups("~/groups.yaml", CLASSES).classes) == 3


scalars = st.none() | st.booleans() | st.integers(-1, 300) | st.sampled_from([*NAMES, "rest", "a"])
keys = st.sampled_from(["name", "colour", "classes", "groups", "unlabelled", 1, None])
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4)
)
almost = st.fixed_dictionaries(
    {
        "groups": values
        | st.lists(
            st.fixed_dictionaries({"name": scalars, "colour": values, "classes": values}),
            max_size=3,
        )
    },
    optional={"unlabelled": values},
)


@given(
    content=st.binary(max_size=60) | st.text(max_size=60) | (values | almost).map(yaml.safe_dump)
)
def test_any_file_is_read_or_refused(read, content):
    try:
        found = read(content)
    except LabelGroupsError:
        return
    assert set(found.table[:5].tolist()) <= {255, *range(len(found.classes))}


def test_camvids_groups_fit_the_shipped_model():
    classes = store.load("segmenter_tiny").classes
    found = read_label_groups(CONFIG / "label_groups_camvid.yaml", classes)
    groups = {item.id: item.name for item in found.classes}
    placed = {item.name: groups.get(found.table[item.id]) for item in classes}
    assert placed["road"] == "drivable"
    assert placed["pedestrian"] == placed["bicyclist"] == "person"
    assert [name for name, place in placed.items() if place is None] == ["sky"]


def test_ade20ks_groups_cover_its_150_classes():
    names = [" ".join(name.split()) for name in ADE20K.split(",")]
    assert len(set(names)) == len(names) == 150
    classes = [ClassInfo(number, name, (0, 0, 0)) for number, name in enumerate(names)]
    found = read_label_groups(CONFIG / "label_groups_ade20k.yaml", classes)
    assert set(found.table[:150].tolist()) == set(range(len(found.classes)))
    groups = {item.id: item.name for item in found.classes}
    placed = {name: groups[found.table[number]] for number, name in enumerate(names)}
    assert placed["floor"] == "walkable" and placed["stairs"] == "stairs"
    assert placed["chair"] == placed["box"] == "obstacle"


@pytest.mark.parametrize("path", sorted(CONFIG.glob("label_groups_*.yaml")), ids=lambda p: p.stem)
def test_groups_of_a_shipped_file_can_be_told_apart(path):
    colours = np.array([item["colour"] for item in yaml.safe_load(path.read_text())["groups"]])
    apart = np.abs(colours[:, None] - colours).sum(axis=2) + 1000 * np.eye(len(colours), dtype=int)
    assert apart.min() > 60
