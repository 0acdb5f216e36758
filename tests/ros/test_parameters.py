# SPDX-License-Identifier: Apache-2.0
"""Parameters are checked at the door."""

import math
import re
import tempfile
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rclpy.context import Context
from rclpy.node import Node
from rclpy.parameter import Parameter

from ctxseg_ros.ros import camera, startup
from ctxseg_ros.ros.parameters import (
    Setting,
    Settings,
    choice,
    integer,
    names,
    nearest,
    number,
    path,
    sizes,
    switch,
    text,
)
from ctxseg_ros.ros.settings import SETTINGS

TABLE = {
    "share": number(0.5, 0.0, 1.0, "a share"),
    "kind": choice("raw", ("raw", "compressed"), "a kind", fixed=True),
    "name": text("a", "a name"),
    "file": path("", "a file"),
    "start": switch(True, "a switch", read_only=True),
    "sizes": sizes("some sizes"),
    "head": integer(-1, -1, 5, "a head"),
    "names": names("some names"),
}
EVERY = {**{f"camera {k}": v for k, v in camera.SETTINGS.items()}, **SETTINGS, **TABLE}
"""All parameters of both nodes, and one of each kind."""


@pytest.mark.parametrize(
    ("name", "given", "result"),
    [
        ("share", 1, 1.0),
        ("share", 0.25, 0.25),
        ("share", "0.25", 0.25),
        ("share", "1e-1", 0.1),
        ("kind", "compressed", "compressed"),
        ("name", "b", "b"),
        ("name", 7, "7"),
        ("name", -7, "-7"),
        ("name", "\U0001f697.avi", "\U0001f697.avi"),
        ("start", False, False),
        ("start", "False", False),
        ("start", "on", True),
        ("start", "NO", False),
        ("sizes", ["352x480", "32x64"], [(352, 480), (32, 64)]),
        ("sizes", "352x480", [(352, 480)]),
        ("sizes", "352x480, 32x64", [(352, 480), (32, 64)]),
        ("sizes", [""], []),
        ("head", 5, 5),
        ("head", 5.0, 5),
        ("head", "-1", -1),
        ("names", ["front", "left_2"], ["front", "left_2"]),
        ("names", "front", ["front"]),
        ("names", "front,left", ["front", "left"]),
        ("names", "", []),
        ("names", [""], []),
    ],
)
def test_good_values(name: str, given: Any, result: Any) -> None:
    found = TABLE[name].value(name, given)
    assert found == result and type(found) is type(result)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("given", [[], array("q"), "null", "~", "NULL"])
def test_nothing_given_is_the_default(name: str, given: Any) -> None:
    setting = EVERY[name]
    assert setting.value(name, given) == setting.check(setting.default)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("share", 1.01),
        ("share", -1),
        ("share", math.nan),
        ("share", math.inf),
        ("share", True),
        ("share", "half"),
        ("share", "nan"),
        ("share", [0.5]),
        ("share", None),
        ("kind", "jpeg"),
        ("kind", 1),
        ("name", ["a"]),
        ("name", 1.5),
        ("name", True),
        ("name", None),
        ("name", "a\0b"),
        ("start", 1),
        ("start", "perhaps"),
        ("sizes", ["352"]),
        ("sizes", ["0x10"]),
        ("sizes", [3]),
        ("sizes", 352),
        ("sizes", None),
        ("head", 6),
        ("head", -2),
        ("head", 1.5),
        ("head", math.inf),
        ("head", math.nan),
        ("head", "1.5"),
        ("head", True),
        ("names", ["front", "front"]),
        ("names", "front,front"),
        ("names", ["front camera"]),
        ("names", ["2nd"]),
        ("names", ["a/b"]),
        ("names", [1]),
        ("names", [True]),
        ("names", 1),
        ("names", None),
    ],
)
def test_bad_values_are_refused_with_what_is_allowed(name: str, given: Any) -> None:
    with pytest.raises(ValueError) as caught:
        TABLE[name].value(name, given)
    assert name in str(caught.value) and TABLE[name].allowed in str(caught.value)


def test_words_that_yaml_takes_for_something_else_are_explained() -> None:
    for taken, cause in ((True, "yes, no, on, off"), (1e3, "for a number")):
        with pytest.raises(ValueError, match=cause):
            TABLE["name"].value("name", taken)
    with pytest.raises(ValueError, match="yes, no, on, off"):
        TABLE["kind"].value("kind", False)


def test_a_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for setting in (TABLE["file"], SETTINGS["model"], SETTINGS["label_groups"]):
        assert setting.value("x", "~/a b.onnx") == f"{tmp_path}/a b.onnx"
        assert setting.value("x", "a~b") == "a~b"
    assert camera.SETTINGS["source"].value("source", "~/\U0001f697.avi").startswith(str(tmp_path))
    assert TABLE["name"].value("name", "~/x") == "~/x"


# What a ROS parameter can be.
INTEGERS = st.integers(-(2**63), 2**63 - 1)
WORDS = st.one_of(
    st.text(),
    st.from_regex(r"[0-9]{1,4}x[0-9]{1,4}(,[0-9]{1,3}x[0-9]{1,3})*", fullmatch=True),
    st.from_regex(r"-?[0-9]{0,3}\.?[0-9]{1,3}(e-?[0-9])?", fullmatch=True),
    st.sampled_from(["~", "null", "on", "True", "auto", "raw", "front", "front,left", "~root/x"]),
    st.sampled_from([word for setting in EVERY.values() for word in setting.allowed.split(", ")]),
)
GIVEN = st.one_of(
    st.none(),
    st.booleans(),
    INTEGERS,
    st.integers(-2, 70),
    st.floats(),
    WORDS,
    st.lists(st.booleans()),
    st.lists(INTEGERS),
    st.lists(st.floats()),
    st.lists(WORDS),
    st.lists(st.binary(min_size=1, max_size=1)),
    st.lists(INTEGERS).map(lambda items: array("q", items)),
    st.lists(st.floats()).map(lambda items: array("d", items)),
)


def is_documented(setting: Setting, value: Any) -> bool:
    """Whether a value is one that the parameter's own text allows."""
    if setting.limits is not None:
        low, high = setting.limits
        return type(value) is type(low) and low <= value <= high
    if isinstance(setting.default, bool):
        return isinstance(value, bool)
    if isinstance(setting.default, list):
        if value is None:  # auto, of the sizes
            return "auto" in setting.allowed
        items = [re.fullmatch("[A-Za-z0-9_]+", str(item)) or len(item) == 2 for item in value]
        return isinstance(value, list) and all(items)
    if setting.allowed.startswith("one of "):
        return value in setting.allowed.removeprefix("one of ").split(", ")
    return isinstance(value, str)


@given(GIVEN)
@example("1" * 5000)  # more digits than Python reads
@example(["1x1"] * 1000)
def test_every_parameter_takes_every_value_or_says_why_not(given: Any) -> None:
    for name, setting in EVERY.items():
        try:
            value = setting.value(name, given)
        except ValueError as error:
            assert name in str(error) and setting.allowed in str(error)
            assert len(str(error)) < 600
        else:
            assert is_documented(setting, value), (name, given, value)
            # What `ros2 param get` shows may be set again, and is the same.
            stored = setting.stored(value)
            assert type(stored) is type(setting.default) and stored != []
            assert setting.value(name, stored) == value


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("latency_budget", "latency_budget_ms"),
        ("modell", "model"),
        ("Model", "model"),
        ("min-confidence", "min_confidence"),
        ("max.age.ms", "max_age_ms"),
        ("label_group", "label_groups"),
        ("camera", "cameras"),
        ("robot_description", None),
    ],
)
def test_the_nearest_name(asked: str, meant: str | None) -> None:
    assert nearest(asked, SETTINGS) == meant


@pytest.fixture
def node(graph: Any) -> Iterator[Node]:
    node = Node("settings")
    yield node
    node.destroy_node()


ONE_TYPE = [st.booleans(), INTEGERS, st.floats(allow_nan=False), WORDS]
WRITTEN = st.one_of(st.none(), *ONE_TYPE, *(st.lists(items, max_size=4) for items in ONE_TYPE))
"""What people write in a params file; of lists that mix types ROS says itself that it has none."""


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(sorted(TABLE)), WRITTEN, min_size=1))
@example({"names": [], "sizes": [], "name": [], "share": [], "head": [], "start": [], "kind": []})
@example({"names": None, "sizes": None, "name": None, "share": None})
@example({"name": "\U0001f697.avi", "file": "~/\U0001f697.avi", "names": "front"})
@example({"name": 7, "share": "0.5", "start": "on", "sizes": "352x480"})
def test_every_params_file_gives_values_or_faults(written: dict[str, Any]) -> None:
    context = Context()
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump({"/**": {"ros__parameters": written}}, file, allow_unicode=True)
        file.flush()
        try:
            context.init(["--ros-args", "--params-file", file.name])
        except Exception as error:  # ROS's own parser, such as for control characters
            assert "params file" in startup.unreadable(error, [])
            return
    node = Node("settings", context=context)
    try:
        made = Settings(node, TABLE)
        assert set(made.faults) <= set(written)
        for name, setting in TABLE.items():
            shown = node.get_parameter(name).value
            if name in made.faults:
                assert name in made.faults[name] and setting.allowed in made.faults[name]
                assert shown == setting.default
            assert setting.value(name, shown) == made[name]
            assert is_documented(setting, made[name])
            if name not in written or written[name] in (None, []):
                assert made[name] == setting.check(setting.default)
    finally:
        node.destroy_node()
        context.shutdown()


def test_every_value_that_is_set_is_taken_or_refused(node: Node) -> None:
    made = Settings(node, TABLE)

    @settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.sampled_from(sorted(TABLE)), GIVEN)
    def one(name: str, given: Any) -> None:
        try:
            parameter = Parameter(name, value=given)
            parameter.to_parameter_msg()
        except (TypeError, ValueError, AssertionError, UnicodeError):
            return  # no ROS parameter can be that
        before = made[name]
        result = node.set_parameters([parameter])[0]
        if result.successful:
            assert made[name] == TABLE[name].value(name, given)
            assert TABLE[name].value(name, node.get_parameter(name).value) == made[name]
        else:
            assert name in result.reason
            assert made[name] == before

    one()


def test_a_bad_start_value_leaves_the_default_and_a_fault(graph_with: Callable[..., Any]) -> None:
    graph_with(share=7, kind="jpeg", name="other")
    node = Node("settings")
    made = Settings(node, TABLE)
    assert (made["share"], made["kind"], made["name"]) == (0.5, "raw", "other")
    assert sorted(made.faults) == ["kind", "share"]
    assert "a number from 0 to 1" in made.faults["share"]
    assert "raw, compressed" in made.faults["kind"]
    assert node.get_parameter("share").value == 0.5
    node.set_parameters([Parameter("share", value=0.75)])
    assert made["share"] == 0.75 and list(made.faults) == ["kind"]
    node.destroy_node()


def test_a_refused_value_changes_nothing(node: Node) -> None:
    locked = False
    made = Settings(node, TABLE, locked=lambda: locked)

    def put(name: str, value: Any) -> Any:
        return node.set_parameters([Parameter(name, value=value)])[0]

    assert put("share", 1).successful  # a whole number is a number
    assert node.get_parameter("share").value == 1.0
    assert put("names", "front,left").successful
    assert node.get_parameter("names").value == ["front", "left"]
    assert put("names", []).successful
    assert (node.get_parameter("names").value, made["names"]) == ([""], [])
    refused = put("share", 2)
    assert not refused.successful and "from 0 to 1" in refused.reason
    assert not put("share", 1.5).successful  # here rclpy's own range check is first
    assert made["share"] == 1.0
    assert not put("start", False).successful  # read-only
    assert not node.set_parameters([Parameter("name")])[0].successful  # deletes it
    assert put("kind", "compressed").successful
    locked = True
    refused = put("kind", "raw")
    assert not refused.successful and "clean up" in refused.reason
    assert put("share", 0.1).successful
    assert (made["kind"], made["share"]) == ("compressed", 0.1)


def test_values_of_one_moment_do_not_change(node: Node) -> None:
    """A frame in work goes on with the values that it began with, all from the same moment."""
    made = Settings(node, TABLE)
    before = made.now()
    share = before["share"]
    result = node.set_parameters_atomically(
        [Parameter("share", value=0.75), Parameter("name", value="other")]
    )
    assert result.successful
    assert (before["share"], made.now()["share"], made.now()["name"]) == (share, 0.75, "other")
