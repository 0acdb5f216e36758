# SPDX-License-Identifier: Apache-2.0
"""Class lists: masks are read back as they were written; files of every tool; what is refused."""

import json

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from training.data.class_list import ClassList, Entry
from training.data.class_list_file import read_class_list
from training.data.files import DataError
from training.data.label_files import IGNORE

NAMES = ["road", "car", "sky", "void"]
COLOURS = [(128, 64, 128), (64, 0, 128), (128, 128, 128), (0, 0, 0)]

colours = st.tuples(*3 * [st.integers(0, 255)])


@st.composite
def class_lists(draw):
    """A list with ids, colours, both or neither; some rows ignored, some of one class."""
    count = draw(st.integers(2, 12))
    names = draw(st.lists(st.sampled_from("abcdefgh"), min_size=count, max_size=count))
    ignored = draw(st.sets(st.sampled_from(sorted(set(names)))))
    if ignored >= set(names):
        ignored = set()
    has_ids = draw(st.booleans())
    ids = draw(st.lists(st.integers(0, 254), min_size=count, max_size=count, unique=True))
    has_colours = draw(st.booleans())
    given = draw(st.lists(colours, min_size=count, max_size=count, unique=True))
    entries = [
        Entry(name, ids[i] if has_ids else None, given[i] if has_colours else None, name in ignored)
        for i, name in enumerate(names)
    ]
    return ClassList(entries, "classes.yaml")


def expected(listed: ClassList, rows: np.ndarray) -> np.ndarray:
    labels = {name: number for number, (name, _) in enumerate(listed.classes)}
    table = [IGNORE if e.ignored else labels[e.name] for e in listed.entries]
    return np.array(table, np.uint8)[rows]


def write(path, listed: ClassList, rows: np.ndarray, how: str) -> None:
    """A mask whose pixels are rows of a list, as colours, a palette, or grey ids."""
    ids = np.array([e.id for e in listed.entries], np.uint8)[rows]
    shown = np.array([e.colour or (0, 0, 0) for e in listed.entries], np.uint8)[rows]
    if how == "rgb":
        Image.fromarray(shown).save(path)
    elif how == "palette":
        image = Image.fromarray(ids, "P")
        table = np.random.default_rng(1).integers(0, 256, (256, 3), np.uint8)
        if listed.has_colours:
            table[ids.ravel()] = shown.reshape(-1, 3)
        image.putpalette(table.ravel().tolist())
        image.save(path)
    else:
        pixels = {"grey": ids, "grey16": ids.astype(np.uint16), "grey as rgb": np.dstack(3 * [ids])}
        cv2.imwrite(str(path), pixels[how])


@settings(deadline=None)  # the first list imports matplotlib
@given(class_lists(), st.integers(0, 2**32 - 1))
def test_masks_are_read_back_as_they_were_written(tmp_path_factory, listed, seed):
    path = tmp_path_factory.mktemp("mask") / "a.png"
    rows = np.random.default_rng(seed).integers(0, len(listed.entries), (5, 7))
    hows = ["rgb", "palette"] if listed.has_colours else []
    if not listed.has_colours:
        hows += ["palette", "grey", "grey16", "grey as rgb"]
    elif listed.has_ids:
        hows += ["grey16"]
    for how in hows:
        write(path, listed, rows, how)
        labels = listed.read(path)
        assert labels.dtype == np.uint8
        assert np.array_equal(labels, expected(listed, rows)), how


@settings(deadline=None)
@given(class_lists(), st.data())
def test_one_wrong_pixel_is_refused_with_its_value(tmp_path_factory, listed, data):
    path = tmp_path_factory.mktemp("mask") / "wrong.png"
    rows = np.zeros((5, 7), int)
    known = {e.colour for e in listed.entries} if listed.has_colours else set()
    if listed.has_colours:
        wrong = data.draw(colours.filter(lambda c: c not in known and len(set(c)) > 1))
        write(path, listed, rows, "rgb")
        pixels = np.array(Image.open(path))
        value = tuple(wrong)
    else:
        ids = {e.id for e in listed.entries}
        value = data.draw(st.integers(0, 254).filter(lambda i: i not in ids))
        write(path, listed, rows, "grey")
        pixels = np.array(Image.open(path))
    pixels[2, 3] = value
    Image.fromarray(pixels).save(path)
    with pytest.raises(DataError) as caught:
        listed.read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and f"{value} on 1 pixel" in message


def test_the_nearest_colour_is_named(tmp_path):
    listed = ClassList([Entry(n, None, c) for n, c in zip(NAMES, COLOURS, strict=True)], "list")
    Image.fromarray(np.full((2, 3, 3), (66, 0, 128), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png.*\(66, 0, 128\) on 6 pixels.*car, \(64, 0, 128\)"):
        listed.read(tmp_path / "a.png")


def test_resized_masks_and_photographs_get_a_sentence_of_their_own(tmp_path, street_frames):
    listed = ClassList([Entry(n, None, c) for n, c in zip(NAMES, COLOURS, strict=True)], "list")
    mask = np.zeros((16, 16, 3), np.uint8)
    mask[4:12, 4:12] = COLOURS[0]
    smooth = cv2.resize(mask, (77, 77), interpolation=cv2.INTER_CUBIC)
    for pixels in (smooth, street_frames[0], street_frames[0][..., 0]):
        Image.fromarray(pixels).save(tmp_path / "a.png")
        with pytest.raises(DataError, match=r"a\.png: \d+ \w+ that list does not have.*anti-alias"):
            listed.read(tmp_path / "a.png")


def binary(*ids):
    rows = zip(["background", "crack"], ids, [(0, 0, 0), (255, 255, 255)], strict=True)
    return ClassList([Entry(*row) for row in rows], "list")


@pytest.mark.parametrize("listed", [binary(None, None), binary(0, 1), binary(0, 255)])
def test_binary_masks_of_0_and_255(tmp_path, listed):
    cv2.imwrite(str(tmp_path / "a.png"), np.array([[0, 255, 0]], np.uint8))
    assert listed.read(tmp_path / "a.png").tolist() == [[0, 1, 0]]
    cv2.imwrite(str(tmp_path / "a.png"), np.array([[0, 1, 1]], np.uint8))
    if listed.entries[1].id == 1:
        assert listed.read(tmp_path / "a.png").tolist() == [[0, 1, 1]]


def test_255_is_void_where_the_list_does_not_say_otherwise(tmp_path):
    listed = ClassList([Entry("a"), Entry("b")], "list")
    cv2.imwrite(str(tmp_path / "a.png"), np.array([[0, 1, 255]], np.uint8))
    assert listed.read(tmp_path / "a.png").tolist() == [[0, 1, IGNORE]]


def test_what_can_be_read_in_two_ways_is_refused(tmp_path):
    # The value 0 is the first row, and black, which is the second.
    listed = ClassList([Entry("a", None, (9, 9, 9)), Entry("b", None, (0, 0, 0))], "list")
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((2, 2), np.uint8))
    with pytest.raises(DataError, match=r"a\.png: the value 0 .*id it is a.*\(0, 0, 0\) it is b"):
        listed.read(tmp_path / "a.png")
    with_ids = ClassList([Entry("a", 0, (9, 8, 7)), Entry("b", 1, (7, 8, 9))], "list")
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([7, 8, 9, 9, 8, 7])
    image.save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: the value 1"):
        with_ids.read(tmp_path / "a.png")


def test_black_in_a_palette_is_no_contradiction_to_the_id_0(tmp_path):
    """Palettes begin with black, which lists often give to void."""
    listed = ClassList([Entry("a", 0, (9, 8, 7)), Entry("void", 1, (0, 0, 0), True)], "list")
    image = Image.fromarray(np.zeros((1, 2), np.uint8), "P")
    image.putpalette([0, 0, 0, 9, 8, 7])
    image.save(tmp_path / "a.png")
    Image.fromarray(np.zeros((1, 2), np.uint8)).save(tmp_path / "grey.png")
    for name in ("a.png", "grey.png"):
        assert listed.read(tmp_path / name).tolist() == [[0, 0]]


def test_a_palette_that_an_image_editor_reordered_is_read_by_its_colours(tmp_path):
    listed = ClassList([Entry(n, None, c) for n, c in zip(NAMES, COLOURS, strict=True)], "list")
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([part for colour in COLOURS[::-1] for part in colour])
    image.save(tmp_path / "a.png")
    assert listed.read(tmp_path / "a.png").tolist() == [[3, 2, 1]]
    image.putpalette([1, 2, 3, 4, 5, 6, 0, 0, 0])  # colours for display only
    image.save(tmp_path / "a.png")
    assert listed.read(tmp_path / "a.png").tolist() == [[0, 1, 2]]


KAGGLE = "name,r,g,b\nroad,128,64,128\ncar,64, 0, 128\nsky,128,128,128\nVoid,0,0,0\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", KAGGLE),
        ("a.csv", "\ufeff" + KAGGLE.replace("\n", "\r\n")),
        ("a.csv", KAGGLE.replace(",", ";")),
        ("a.tsv", KAGGLE.replace(",", "\t")),
        ("a.csv", KAGGLE.partition("\n")[2]),
        ("a.csv", KAGGLE.encode("utf-16")),
        (
            "a.csv",
            'label;colour\nroad;"128,64,128"\ncar;#400080\nsky;(128 128 128)\nvoid;#000000\n',
        ),
        (
            "a.csv",
            "id,Class,Red,Green,Blue,ignore\n2,sky,128,128,128,0\n0,road,128,64,128,\n"
            "1,car,64,0,128,\n3,Void,0,0,0,1\n",
        ),
        (
            "a.csv",
            "name,r,g,b\nroad,0.50196,0.25098,0.50196\ncar,0.25098,0.0,0.50196\n"
            "sky,0.50196,0.50196,0.50196\nvoid,0,0,0\n",
        ),
        (
            "a.txt",
            "# label:color_rgb:parts:actions\n"
            + "".join(
                f"{name}:{','.join(map(str, colour))}::\n"
                for name, colour in zip(NAMES, COLOURS, strict=True)
            ),
        ),
        ("label_colors.txt", "128 64 128\troad\n64 0 128\t\tcar\n128 128 128\tsky\n0 0 0\tvoid\n"),
        (
            "a.yaml",
            "- {name: road, colour: [128, 64, 128]}\n- {name: car, color: '#400080'}\n"
            "- {name: sky, rgb: '128, 128, 128'}\n"
            "- {name: various, colour: [0,0,0], ignore: true}\n",
        ),
        (
            "a.yml",
            "classes:\n  road: [128, 64, 128]\n  car: [64, 0, 128]\n  sky: [128, 128, 128]\n"
            "  various: [0, 0, 0]\nignore: [various]\n",
        ),
        (
            "a.yaml",
            "classes:\n  0: {name: road, colour: [128, 64, 128]}\n"
            "  1: {name: car, colour: [64, 0, 128]}\n  2: {name: sky, colour: [128, 128, 128]}\n"
            "ignore: [[0, 0, 0]]\n",
        ),
        (
            "a.json",
            '[{"name": "road", "colour": [128, 64, 128]}, {"name": "car", "colour": [64, 0, 128]},'
            '{"name": "sky", "colour": [128, 128, 128]}, {"name": "void", "colour": [0, 0, 0]}]',
        ),
        ("mmseg.json", json.dumps({"classes": NAMES, "palette": COLOURS})),
        (  # Mapillary
            "config.json",
            json.dumps(
                {
                    "labels": [
                        {"name": n, "readable": n, "color": c, "evaluate": n != "void"}
                        | {"instances": False}
                        for n, c in zip(NAMES, COLOURS, strict=True)
                    ],
                    "version": "1.2",
                }
            ),
        ),
        (  # Supervisely: the ids are its server's
            "meta.json",
            json.dumps(
                {
                    "classes": [
                        {"title": n, "id": 9_000_000 - i, "shape": "bitmap", "hotkey": ""}
                        | {"color": "#{:02X}{:02x}{:02X}".format(*c), "geometry_config": {}}
                        for i, (n, c) in enumerate(zip(NAMES, COLOURS, strict=True))
                    ],
                    "tags": [],
                }
            ),
        ),
        (  # CVAT's raw labels
            "cvat.json",
            json.dumps(
                [
                    {"name": n, "id": 44 - i, "type": "any", "attributes": []}
                    | {"color": "#{:02x}{:02x}{:02x}".format(*c)}
                    for i, (n, c) in enumerate(zip(NAMES, COLOURS, strict=True))
                ]
            ),
        ),
        (  # Cityscapes' labels: the ignored ones share an id and a colour
            "cityscapes.csv",
            "name,trainId,category,catId,hasInstances,ignoreInEval,color\n"
            'unlabeled,255,void,0,False,True,"(0, 0, 0)"\n'
            'ego vehicle,255,void,0,False,True,"(0, 0, 0)"\n'
            'road,0,flat,1,False,False,"(128, 64,128)"\ncar,1,vehicle,7,True,False,"(64,0,128)"\n'
            'sky,2,sky,5,False,False,"(128,128,128)"\n'
            'license plate,-1,vehicle,7,False,True,"(0, 0,142)"\n',
        ),
        (
            "a.yaml",
            "- road: [128, 64, 128]\n- car: '#400080ff'\n- sky: '#808080'\n- void: '#000000'",
        ),
        ("a.txt", KAGGLE),
        ("a.txt", KAGGLE.partition("\n")[2]),
        ("a.txt", "road 128 64 128\ncar 64 0 128\nsky 128 128 128\nvoid 0 0 0\n"),
    ],
)
def test_lists_of_every_tool(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    listed = read_class_list(path)
    assert listed.classes == tuple(zip(NAMES[:3], COLOURS[:3], strict=True))
    Image.fromarray(np.array([COLOURS], np.uint8)).save(tmp_path / "a.png")
    assert listed.read(tmp_path / "a.png").tolist() == [[0, 1, 2, IGNORE]]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "road\ncar\n\nsky\n"),
        ("a.yaml", "[road, car, sky]"),
        ("a.yaml", "names: {0: road, 1: car, 2: sky}"),
        ("a.yaml", "{road: 0, car: 1, sky: 2}"),
        ("id2label.json", '{"0": "road", "1": "car", "2": "sky"}'),
        ("a.txt", "__ignore__\nroad\ncar\nsky\n"),
        ("a.txt", "2 sky\n0 road\n1 car\n"),
        ("a.txt", "1: car\n2: sky\n0: road\n"),
        ("_classes.csv", "Pixel Value, Class\n2, sky\n1, car\n0, road\n"),  # Roboflow
        ("config.json", '{"id2label": {"2": "sky", "0": "road", "1": "car"}, "num_labels": 3}'),
        (
            "coco.json",
            '{"info": {}, "images": [], "categories": [{"id": 0, "name": "road", "isthing": 0},'
            '{"id": 2, "name": "sky"}, {"id": 1, "name": "car", "supercategory": "vehicle"}]}',
        ),
        ("objects.txt", "Idx\tRatio\tName\n2\t0.2\tsky\n1\t0.1\tcar\n0\t0.5\troad\n"),
    ],
)
def test_names_alone_stand_for_ids_in_their_order(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    listed = read_class_list(tmp_path / name)
    cv2.imwrite(str(tmp_path / "a.png"), np.array([[0, 1, 2, 255]], np.uint8))
    assert listed.read(tmp_path / "a.png").tolist() == [[0, 1, 2, IGNORE]]
    assert [n for n, _ in listed.classes] == NAMES[:3]
    assert len({colour for _, colour in listed.classes}) == 3


def test_the_void_of_pascal_voc_has_a_colour(tmp_path):
    """255 in its palette is drawn in a colour that no class list has."""
    image = Image.fromarray(np.array([[0, 1, 255]], np.uint8), "P")
    image.putpalette([0, 0, 0, 128, 0, 0, *[9] * 253 * 3, 224, 224, 192])
    image.save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("background:0,0,0::\naeroplane:128,0,0::\n")
    listed = read_class_list(tmp_path / "a.txt")
    assert listed.read(tmp_path / "a.png").tolist() == [[0, 1, IGNORE]]
    # Colours for display only: the list has none of them but black.
    image.putpalette([0, 0, 0, 1, 2, 3, *[9] * 253 * 3, 224, 224, 192])
    image.save(tmp_path / "a.png")
    assert listed.read(tmp_path / "a.png").tolist() == [[0, 1, IGNORE]]


def test_several_colours_are_one_class(tmp_path):
    (tmp_path / "a.csv").write_text(
        "name,r,g,b\nbuilding,128,0,0\nroad,1,2,3\nbuilding,0,0,128\n"  # walls and windows
    )
    (tmp_path / "a.yaml").write_text(
        "- {name: building, colours: [[128, 0, 0], [0, 0, 128]]}\n"
        "- {name: road, colour: [1, 2, 3]}\n"
    )
    pixels = np.array([[(128, 0, 0), (1, 2, 3), (0, 0, 128)]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for name in ("a.csv", "a.yaml"):
        listed = read_class_list(tmp_path / name)
        assert listed.classes == (("building", (128, 0, 0)), ("road", (1, 2, 3)))
        assert listed.read(tmp_path / "a.png").tolist() == [[0, 1, 0]]


def test_ids_beyond_eight_bits_and_out_of_order(tmp_path):
    (tmp_path / "a.csv").write_text("id,name\n33001,car\n7,road\n")
    cv2.imwrite(str(tmp_path / "a.png"), np.array([[7, 33001]], np.uint16))
    listed = read_class_list(tmp_path / "a.csv")
    assert [name for name, _ in listed.classes] == ["road", "car"]
    assert listed.read(tmp_path / "a.png").tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("a.csv", "name,r,g,b\na,1,2,3\nb,1,2,3\n", "'a' and 'b' have the same colour"),
        ("a.csv", "id,name\n1,a\n1,b\n", "'a' and 'b' have the same id, 1"),
        ("a.csv", "name,r,g\na,1,2\n", "one is missing"),
        ("a.csv", "colour\n#000000\n", "headings"),
        ("a.csv", "name,r,g,b\na,1,2\n", "3 of 4 columns"),
        ("a.csv", "name,r,g,b\na,1,2,three\n", "three"),
        ("a.csv", "name,r,g,b\na,1,2,300\n", "0 to 255"),
        ("a.csv", "name,r,g,b\na,0.5,200,0\n", "0 to 1"),
        ("a.csv", "name,name\na,b\n", "two columns"),
        ("a.csv", "", "no classes"),
        ("a.csv", "name,r,g,b\n", "no classes"),
        ("a.csv", "id,name\nx,a\n", "'x'"),
        ("a.csv", "id,name\n70000,a\n", "70000"),
        ("a.csv", "name,id\na,1\nb,\n", "'b' has no id"),
        ("a.csv", "name,ignore\na,maybe\n", "'maybe'"),
        ("a.txt", b"stra\xdfe\n", "UTF-8"),
        ("a.txt", "a\nvoid\n\x07b\n", "printable"),
        ("a.txt", "void\n", "no class"),
        ("a.txt", "\n".join(f"class {i}" for i in range(300)), "300 classes"),
        ("a.yaml", "- {name: [}", "YAML"),
        ("a.yaml", "road", "list of classes"),
        ("a.yaml", "- no\n- yes", "quotes"),
        ("a.yaml", "- {nmae: road}", "'nmae'"),
        ("a.yaml", "- {name: a, color: [1, 2, 3], colour: [1, 2, 3]}", "two keys"),
        ("a.yaml", "- name: a\n  colour: #804000\n", "quotes"),
        ("a.yaml", "- {name: a, colour: [1, 2]}", "three numbers"),
        ("a.yaml", "- {name: a, colour: [1, 2, 3]}\n- b", "'b' has no colour"),
        ("a.yaml", "- {name: a, ignore: true}\n- {name: a, id: 3}\n", "'a' is ignored"),
        ("a.yaml", "classes: [a, b]\nignore: [c]", "'c'"),
        ("a.yaml", "classes: [a, b]\ningore: [b]", "did you mean ignore"),
        ("a.yaml", "names: [a, b]\nignore_index: 255", "did you mean ignore"),
        ("a.json", '{"classes": ["a", "b"], "palette": [[1, 2, 3]]}', "list of 2 colours"),
        ("a.csv", "name,id,trainId\na,7,0\n", "all but one of id, trainId"),
        ("a.csv", "name,id\na,-1\n", "'-1'"),
        ("a.csv", "name,id\na,1\nvoid,1\n", "'a' and 'void' have the same id"),
        ("a.xlsx", "PK", "ends in"),
        ("nowhere.csv", None, "No such file"),
    ],
)
def test_lists_that_cannot_be_used_are_refused_in_one_line(tmp_path, name, content, cause):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        read_class_list(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and cause in message and "\n" not in message
