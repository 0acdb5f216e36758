# SPDX-License-Identifier: Apache-2.0
"""Parameters are checked at the door."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rclpy.node import Node
from rclpy.parameter import Parameter

from ctxseg_ros.ros.parameters import (
    Settings,
    choice,
    integer,
    names,
    number,
    sizes,
    switch,
    text,
)

TABLE = {
    "share": number(0.5, 0.0, 1.0, "a share"),
    "kind": choice("raw", ("raw", "compressed"), "a kind", fixed=True),
    "name": text("a", "a name"),
    "start": switch(True, "a switch", read_only=True),
    "sizes": sizes("some sizes"),
    "head": integer(-1, -1, 5, "a head"),
    "names": names("some names"),
}


@pytest.mark.parametrize(
    ("name", "value", "result"),
    [
        ("share", 1, 1.0),
        ("share", 0.25, 0.25),
        ("kind", "compressed", "compressed"),
        ("start", False, False),
        ("sizes", ["352x480", "32x64"], [(352, 480), (32, 64)]),
        ("sizes", [""], []),
        ("sizes", [], []),
        ("head", 5, 5),
        ("names", ["front", "left_2"], ["front", "left_2"]),
        ("names", [""], []),
    ],
)
def test_good_values(name: str, value: Any, result: Any) -> None:
    found = TABLE[name].check(value)
    assert found == result and type(found) is type(result)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("share", 1.01),
        ("share", -1),
        ("share", float("nan")),
        ("share", True),
        ("share", "0.5"),
        ("share", None),
        ("kind", "jpeg"),
        ("kind", 1),
        ("name", 3),
        ("name", None),
        ("start", 1),
        ("sizes", "352x480"),
        ("sizes", ["352"]),
        ("sizes", ["0x10"]),
        ("sizes", [3]),
        ("sizes", None),
        ("head", 6),
        ("head", -2),
        ("head", 1.0),
        ("head", True),
        ("names", "front"),
        ("names", ["front", "front"]),
        ("names", ["front camera"]),
        ("names", ["2nd"]),
        ("names", ["a/b"]),
        ("names", [1]),
        ("names", None),
    ],
)
def test_bad_values_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError):
        TABLE[name].check(value)


@given(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.text()))
)
def test_checks_raise_value_error_and_nothing_else(value: Any) -> None:
    for setting in TABLE.values():
        try:
            setting.check(value)
        except ValueError as error:
            assert str(error)


def test_a_bad_start_value_leaves_the_default_and_a_fault(graph_with: Callable[..., Any]) -> None:
    graph_with(share=7, kind="jpeg", name="other")
    node = Node("settings")
    settings = Settings(node, TABLE)
    assert (settings["share"], settings["kind"], settings["name"]) == (0.5, "raw", "other")
    assert sorted(settings.faults) == ["kind", "share"]
    assert "a number from 0 to 1" in settings.faults["share"]
    assert "raw, compressed" in settings.faults["kind"]
    node.set_parameters([Parameter("share", value=0.75)])
    assert settings["share"] == 0.75 and list(settings.faults) == ["kind"]
    node.destroy_node()


def test_a_refused_value_changes_nothing(graph: Any) -> None:
    node = Node("settings")
    locked = False
    settings = Settings(node, TABLE, locked=lambda: locked)

    def put(name: str, value: Any) -> Any:
        return node.set_parameters([Parameter(name, value=value)])[0]

    assert put("share", 1).successful  # a whole number is a number
    refused = put("share", 2)
    assert not refused.successful and "from 0 to 1" in refused.reason
    assert not put("share", 1.5).successful  # here rclpy's own range check is first
    assert settings["share"] == 1.0
    assert not put("start", False).successful  # read-only
    assert not node.set_parameters([Parameter("name")])[0].successful  # deletes it
    assert put("kind", "compressed").successful
    locked = True
    refused = put("kind", "raw")
    assert not refused.successful and "clean up" in refused.reason
    assert put("share", 0.1).successful
    assert (settings["kind"], settings["share"]) == ("compressed", 0.1)
    node.destroy_node()
