# SPDX-License-Identifier: Apache-2.0
"""Model files: what is valid is read back as written, what is broken is refused by name."""

import hashlib
import json
import os
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from ctxseg_ros.model.model_file import (
    KEYS,
    ClassInfo,
    ModelFileError,
    format_size,
    parse_size,
    read_model_info,
    write_metadata,
)

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def set_key(key, value):
    def edit(model):
        for item in model.metadata_props:
            if item.key == f"ctxseg.{key}":
                item.value = value if isinstance(value, str) else json.dumps(value)

    return edit


def drop_key(key):
    def edit(model):
        kept = [item for item in model.metadata_props if item.key != key]
        del model.metadata_props[:]
        model.metadata_props.extend(kept)

    return edit


def test_reads_what_the_file_says(model_factory):
    path = model_factory(name="tiny.a", classes=3, source={"scores": {"miou": 0.5}})
    info = read_model_info(str(path))
    assert info.path == path
    assert (info.name, info.task, info.stride, info.size) == ("tiny.a", "semantic", 16, (32, 48))
    assert info.fixed_size is None
    assert [item.id for item in info.classes] == [0, 1, 2]
    assert info.classes[1] == ClassInfo(1, "class 1", (1, 254, 7))
    assert info.source == {"scores": {"miou": 0.5}}
    assert info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert info.parameters == 3  # two thresholds and the factor
    assert info.outputs == ("labels", "confidence")


@pytest.mark.parametrize("task", ["semantic", "clusters", "attention"])
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("opset", [17, 18, 21])
def test_every_task_opset_and_kind_of_size_is_read(model_factory, task, fixed, opset):
    info = read_model_info(model_factory(task=task, fixed=fixed, opset=opset))
    assert info.task == task
    assert info.fixed_size == ((32, 48) if fixed else None)


def test_colours_are_black_without_a_class_and_cannot_be_changed(model_factory):
    colours = read_model_info(model_factory(classes=2)).colours
    assert colours.shape == (256, 3) and colours.dtype == np.uint8
    assert colours[:2].tolist() == [[0, 255, 0], [1, 254, 7]]
    assert not colours[2:].any()
    with pytest.raises(ValueError, match="read-only"):
        colours[0] = 1


def test_classes_may_stand_in_any_order_and_are_sorted(model_factory):
    listed = [{"id": i, "name": f"n{i}", "colour": [i, 0, 0]} for i in (2, 0, 1)]
    info = read_model_info(model_factory(edit=set_key("classes", listed)))
    assert [item.name for item in info.classes] == ["n0", "n1", "n2"]


# Sizes


def test_size_that_does_not_fit_is_refused_with_the_nearest(model_factory):
    info = read_model_info(model_factory())
    info.check_size((352, 480))
    with pytest.raises(ValueError, match=r"multiples of 16. Nearest: 352x480 or 368x480"):
        info.check_size((360, 480))
    with pytest.raises(ValueError, match=r"Nearest: 16x16$"):
        info.check_size((0, -4))
    with pytest.raises(ValueError, match="Nearest: 16x480 or 16x496"):
        info.check_size((5, 481))


def test_fixed_size_takes_no_other(model_factory):
    info = read_model_info(model_factory(fixed=True))
    info.check_size((32, 48))
    with pytest.raises(ValueError, match="takes 32x48 only, not 64x96"):
        info.check_size((64, 96))


@given(st.integers(1, 9999), st.integers(1, 9999))
def test_sizes_are_parsed_as_they_are_formatted(height, width):
    assert parse_size(format_size((height, width))) == (height, width)


@pytest.mark.parametrize("text", ["", "352", "352X480", "352x", "-1x5", "0x16", " 1x2", "1x2x3"])
def test_other_sizes_are_refused(text):
    with pytest.raises(ValueError, match=re.escape(f"{text!r} is not HEIGHTxWIDTH")):
        parse_size(text)


# Property: what is valid comes back

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,20}", fullmatch=True)
class_names = st.text(st.characters(codec="utf-8"), min_size=1).filter(
    lambda text: text.strip() and text.isprintable()
)
colours = st.tuples(*[st.integers(0, 255)] * 3)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(-1e9, 1e9) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
fractions = st.floats(0, 1)


@st.composite
def metadata(draw):
    task = draw(st.sampled_from(["semantic", "clusters", "attention"]))
    listed = draw(st.lists(class_names, min_size=1, max_size=12, unique=True))
    classes = tuple(ClassInfo(i, name, draw(colours)) for i, name in enumerate(listed))
    stride = draw(st.integers(1, 32))
    source = draw(st.dictionaries(st.text(), json_values, max_size=4))
    source["scores"] = {"miou": draw(fractions)}
    source["precision"] = {"bf16_label_agreement": draw(fractions)}
    return {
        "name": draw(names),
        "task": task,
        "classes": () if task == "attention" else classes,
        "stride": stride,
        "size": (stride * draw(st.integers(1, 60)), stride * draw(st.integers(1, 60))),
        "source": source,
    }


@given(values=metadata())
@relaxed
def test_valid_metadata_comes_back_as_written(model_factory, values):
    path = model_factory(task=values["task"], edit=lambda model: write_metadata(model, **values))
    info = read_model_info(path)
    assert {key: getattr(info, key) for key in values} == values


def test_writing_replaces_the_old_metadata_and_keeps_the_rest(model_factory):
    def edit(model):
        model.metadata_props.add(key="producer", value="me")
        model.metadata_props.add(key="ctxseg.stale", value="x")
        write_metadata(
            model, name="new", task="attention", classes=(), stride=8, size=(8, 8), source={}
        )

    path = model_factory(task="attention", edit=edit)
    keys = [item.key for item in onnx.load(path).metadata_props]
    assert keys == ["producer", *KEYS]
    assert read_model_info(path).name == "new"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "depth"}, "ctxseg.task"),
        ({"classes": [ClassInfo(1, "a", (0, 0, 0))]}, "ids must be 0 to 0"),
        ({"stride": 0}, "ctxseg.stride"),
        ({"size": (33, 48)}, "no multiple"),
        ({"source": {"x": float("nan")}}, "JSON"),
        ({"source": {"x": object()}}, "JSON"),
    ],
)
def test_writing_what_a_reader_would_refuse_is_refused(change, message):
    values = {
        "name": "x",
        "task": "semantic",
        "classes": [ClassInfo(0, "a", (0, 0, 0))],
        "stride": 16,
        "size": (32, 48),
        "source": {},
    }
    model = onnx.ModelProto()
    with pytest.raises(ModelFileError, match=message):
        write_metadata(model, **(values | change))
    assert not model.metadata_props


# What is broken is refused, by name


def refused(path, message):
    with pytest.raises(ModelFileError, match=message) as caught:
        read_model_info(path)
    assert str(path) in str(caught.value)


def image_shape(*shape, kind=TensorProto.UINT8, name="image"):
    def edit(model):
        del model.graph.input[:]
        model.graph.input.append(helper.make_tensor_value_info(name, kind, shape))

    return edit


def output(name, *shape, kind=TensorProto.UINT8):
    def edit(model):
        for index, value in enumerate(model.graph.output):
            if value.name == name:
                changed = helper.make_tensor_value_info(name, kind, shape)
                model.graph.output[index].CopyFrom(changed)

    return edit


def second_input(model):
    extra = helper.make_tensor_value_info("scale", TensorProto.FLOAT, [1])
    model.graph.input.append(extra)


def custom_operator(model):
    model.graph.node[0].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))


def hidden_custom_operator(model):
    """In the branch of a control-flow node."""
    node = helper.make_node("Foo", ["image"], ["y"], domain="com.example")
    branch = helper.make_graph([node], "branch", [], [helper.make_empty_tensor_value_info("y")])
    model.graph.node.append(
        helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch)
    )


def external_tensor(model):
    model.graph.initializer[1].data_location = TensorProto.EXTERNAL


def without_output(name):
    def edit(model):
        kept = [value for value in model.graph.output if value.name != name]
        del model.graph.output[:]
        model.graph.output.extend(kept)

    return edit


def extra_output(model):
    model.graph.output.append(helper.make_tensor_value_info("mean", TensorProto.FLOAT, None))


def no_opset(model):
    del model.opset_import[:]


def cut_weights(model):
    tensor = model.graph.initializer[1]
    tensor.raw_data = tensor.raw_data[:-1]


def classes(**change):
    listed = [{"id": i, "name": f"n{i}", "colour": [i, 0, 0]} for i in range(4)]
    listed[1] |= change
    return set_key("classes", listed)


def twice(model):
    model.metadata_props.add(key="ctxseg.task", value="semantic")


BROKEN = {
    "no opset": (no_opset, "no opset, 17 or newer"),
    "old opset": (lambda m: setattr(m.opset_import[0], "version", 16), "opset 16, 17 or newer"),
    "no graph": (lambda m: m.ClearField("graph"), "no ONNX graph"),
    "custom operator": (custom_operator, "custom operator com.example.Cast"),
    "hidden custom operator": (hidden_custom_operator, "custom operator com.example.Foo"),
    "unknown operator": (lambda m: setattr(m.graph.node[0], "op_type", "Foo"), "No Op .* Foo"),
    "external tensor": (external_tensor, "'thresholds' is stored in another file"),
    "weights cut": (cut_weights, "thresholds"),
    "weights empty": (lambda m: m.graph.initializer[1].ClearField("raw_data"), "thresholds"),
    "weights missing": (lambda m: m.graph.initializer.pop(), "'third'"),
    "node missing": (lambda m: m.graph.node.pop(), "'confidence' is not an output of any node"),
    "no input": (lambda m: m.graph.ClearField("input"), "only input must be 'image'; found: none"),
    "second input": (second_input, "found: image, scale"),
    "input name": (image_shape(1, "height", "width", 3, name="x"), "found: x"),
    "input type": (
        image_shape(1, "height", "width", 3, kind=TensorProto.FLOAT),
        r"'image' must be uint8 .* it is float \[1, height, width, 3\]",
    ),
    "input layout": (image_shape(1, 3, "height", "width"), r"it is uint8 \[1, 3, height, width\]"),
    "input batch": (image_shape("n", "height", "width", 3), r"it is uint8 \[n, height"),
    "input symbols": (image_shape(1, "h", "w", 3), r"it is uint8 \[1, h, w, 3\]"),
    "input half fixed": (image_shape(1, 32, "width", 3), r"it is uint8 \[1, 32, width"),
    "input zero": (image_shape(1, 0, 48, 3), r"it is uint8 \[1, 0, 48"),
    "input rank": (image_shape("height", "width", 3), r"it is uint8 \[height, width, 3\]"),
    "fixed size off the stride": (image_shape(1, 33, 48, 3), "33x48"),
    "labels missing": (without_output("labels"), "output 'labels' is missing"),
    "confidence missing": (without_output("confidence"), "output 'confidence' is missing"),
    "extra output": (extra_output, "'mean' is not one of task semantic"),
    "labels type": (
        output("labels", 1, "height", "width", kind=TensorProto.INT64),
        "'labels' must be uint8 .* it is int64",
    ),
    "labels rank": (output("labels", 1, 1, "height", "width"), r"'labels' .* \[1, 1, height"),
    "confidence batch": (output("confidence", 2, "height", "width"), r"'confidence' .* \[2,"),
    "confidence size": (output("confidence", 1, 32, 48), r"'confidence' .* \[1, 32, 48\]"),
    "key twice": (twice, "ctxseg.task is there 2 times"),
    "format": (set_key("format", "2"), "ctxseg.format is '2'.*Upgrade"),
    "task": (set_key("task", "depth"), "'depth' is none of semantic, clusters, attention"),
    "name": (set_key("name", "a/b"), "ctxseg.name"),
    "stride": (set_key("stride", "0"), "ctxseg.stride: '0'"),
    "size JSON": (set_key("size", "[32, 48"), "ctxseg.size: malformed JSON"),
    "size type": (set_key("size", "[32.0, 48]"), "ctxseg.size"),
    "size off the stride": (set_key("size", "[33, 48]"), "33x48 is no multiple of the stride 16"),
    "classes JSON": (set_key("classes", "{"), "ctxseg.classes: malformed JSON"),
    "classes not a list": (set_key("classes", {}), "must be a list"),
    "no classes": (set_key("classes", []), "0 classes, 1 to 255"),
    "class not an object": (set_key("classes", [5]), "5 is not an object"),
    "class id type": (classes(id=True), "True is no integer"),
    "class id twice": (classes(id=0), r"0 to 3, each once; found \[0, 0, 2, 3\]"),
    "class id gap": (classes(id=9), r"0 to 3, each once; found \[0, 2, 3, 9\]"),
    "class name empty": (classes(name=" "), "name ' ' of class 1"),
    "class name type": (classes(name=None), "name None of class 1"),
    "class name twice": (classes(name="n0"), "'n0' is there more than once"),
    "colour length": (classes(colour=[1, 2]), r"colour \[1, 2\] of class 1"),
    "colour range": (classes(colour=[1, 2, 256]), "256"),
    "colour type": (classes(colour="red"), "'red'"),
    "source JSON": (set_key("source", "{'a': 1}"), "ctxseg.source: malformed JSON"),
    "source NaN": (set_key("source", '{"a": NaN}'), "NaN"),
    "source type": (set_key("source", []), "must be an object"),
    "scores type": (set_key("source", {"scores": 1}), "'scores' must be an object"),
    "score in percent": (set_key("source", {"scores": {"miou": 71.5}}), "scores.miou 71.5"),
    "precision": (set_key("source", {"precision": {"bf16_label_agreement": "1"}}), "agreement '1'"),
    "precision of attention": (
        set_key("source", {"precision": {"bf16_map_correlation": 2}}),
        "bf16_map_correlation 2 is not a number from 0 to 1",
    ),
} | {f"no {key}": (drop_key(key), f"{key} is missing") for key in KEYS}


@pytest.mark.parametrize("broken", BROKEN)
def test_broken_point_is_named(model_factory, broken):
    edit, message = BROKEN[broken]
    refused(model_factory(edit=edit), message)


ATTENTION_BROKEN = {
    "type": (output("attention", 1, 3, 2, 3), "must be float32 .* it is uint8"),
    "rank": (output("attention", 1, 3, 6, kind=TensorProto.FLOAT), r"float \[1, 3, 6\]"),
    "missing": (without_output("attention"), "output 'attention' is missing"),
    "classes": (
        set_key("classes", [{"id": 0, "name": "a", "colour": [0, 0, 0]}]),
        "must be empty for task attention",
    ),
}


@pytest.mark.parametrize("broken", ATTENTION_BROKEN)
def test_broken_point_of_an_attention_model_is_named(model_factory, broken):
    edit, message = ATTENTION_BROKEN[broken]
    refused(model_factory(task="attention", edit=edit), message)


def test_missing_file_folder_and_empty_file(tmp_path):
    refused(tmp_path / "none.onnx", "No such file")
    refused(tmp_path, "Is a directory")
    empty = tmp_path / "empty.onnx"
    empty.touch()
    refused(empty, "is empty")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_unreadable_file(model_factory):
    path: Path = model_factory()
    path.chmod(0)
    refused(path, "Permission denied")


# Properties of what is broken

invalid_texts = {
    "format": st.text().filter(lambda text: text != "1"),
    "task": st.text().filter(lambda text: text not in ("semantic", "clusters")),
    "name": st.text(st.characters(exclude_characters="_.-", exclude_categories=["L", "N", "Cs"])),
    "stride": st.text().filter(lambda text: not re.fullmatch("[1-9][0-9]*", text))
    | st.integers(max_value=0).map(str),
    "size": json_values.filter(lambda value: not isinstance(value, list)).map(json.dumps),
    "classes": json_values.map(json.dumps) | st.text(),
    "source": json_values.filter(lambda value: not isinstance(value, dict)).map(json.dumps),
}


@given(data=st.data(), key=st.sampled_from(sorted(invalid_texts)))
@relaxed
def test_any_malformed_value_is_refused_by_its_key(model_factory, data, key):
    value = data.draw(invalid_texts[key])
    refused(model_factory(edit=set_key(key, value)), f"ctxseg.{key}")


@given(data=st.data())
@relaxed
def test_any_truncation_is_refused(model_factory, tmp_path_factory, data):
    task = data.draw(st.sampled_from(["semantic", "attention"]))
    whole = model_factory(task=task).read_bytes()
    path = tmp_path_factory.mktemp("cut") / "cut.onnx"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    refused(path, ".")


@given(data=st.data())
@relaxed
def test_no_damage_raises_anything_but_a_model_file_error(model_factory, tmp_path_factory, data):
    damaged = bytearray(model_factory().read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "damaged.onnx"
    path.write_bytes(damaged)
    try:
        read_model_info(path)
    except ModelFileError as error:
        assert str(path) in str(error)
