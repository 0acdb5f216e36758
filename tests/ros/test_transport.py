# SPDX-License-Identifier: Apache-2.0
"""The Fast DDS profile is chosen by what is free in /dev/shm."""

import os
import xml.etree.ElementTree
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctxseg_ros.ros import transport
from ctxseg_ros.ros.transport import PROFILE_VARIABLES, SharedMemory

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "config"
MIB = 2**20
DOCKER = SharedMemory("/dev/shm", 64 * MIB, 64 * MIB)
ROOMY = SharedMemory("/dev/shm", 8192 * MIB, 8192 * MIB)


def chosen(free: int) -> str:
    choice = transport.choose({}, SharedMemory("/dev/shm", 64 * MIB, free))
    assert set(choice.variables) == set(PROFILE_VARIABLES)
    (path,) = set(choice.variables.values())
    assert Path(path).is_file()
    return Path(path).name


@given(st.integers(0, 1024 * MIB))
def test_what_is_chosen_fits_and_nothing_larger_would(free: int) -> None:
    name = chosen(free)
    sizes = {item.name: transport.segment_bytes(item) for item in CONFIG.glob("fastdds*.xml")}
    assert len(sizes) == 3
    assert transport.PROCESSES * sizes[name] <= free
    for other, size in sizes.items():
        # A segment takes up to a tenth more than its size.
        if size > sizes[name]:
            assert transport.PROCESSES * size * 1.1 > free, other


def test_a_roomy_machine_gets_whole_frames_and_no_message() -> None:
    choice = transport.choose({}, ROOMY)
    assert set(choice.variables.values()) == {str(CONFIG / "fastdds.xml")}
    assert choice.message == ""


def test_a_container_gets_what_fits_and_is_told_the_options_of_docker() -> None:
    choice = transport.choose({}, DOCKER)
    assert set(choice.variables.values()) == {str(CONFIG / "fastdds_small.xml")}
    assert "--shm-size" in choice.message and "--ipc=host" in choice.message
    assert str(CONFIG / "fastdds_small.xml") in choice.message  # other cameras need it as well


@pytest.mark.parametrize("memory", [SharedMemory("/dev/shm", 64 * MIB, MIB), None])
def test_without_room_it_is_udp(memory: SharedMemory | None, tmp_path: Path) -> None:
    missing = SharedMemory.look(str(tmp_path / "missing"))
    choice = transport.choose({}, memory or missing)
    assert set(choice.variables.values()) == {str(CONFIG / "fastdds_udp.xml")}
    assert "--shm-size" in choice.message


@pytest.mark.parametrize("variable", PROFILE_VARIABLES)
def test_a_profile_of_the_users_own_stays(variable: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine.xml"
    mine.write_text((CONFIG / "fastdds.xml").read_text())
    choice = transport.choose({variable: str(mine)}, ROOMY)
    assert choice == transport.Choice({})
    assert (
        "--shm-size"
        in transport.choose({variable: str(mine)}, SharedMemory("/dev/shm", 64 * MIB, MIB)).message
    )


def test_a_process_is_told_when_its_own_segment_does_not_fit() -> None:
    large = {PROFILE_VARIABLES[0]: str(CONFIG / "fastdds.xml")}
    small = {PROFILE_VARIABLES[0]: str(CONFIG / "fastdds_small.xml")}
    left = SharedMemory("/dev/shm", 64 * MIB, 30 * MIB)  # another process has the large profile
    assert transport.shortage(large, DOCKER) == ""
    assert "--ipc=host" in transport.shortage(large, left)
    assert transport.shortage(small, left) == ""
    assert transport.shortage({}, left) == ""
    assert transport.shortage({PROFILE_VARIABLES[0]: str(CONFIG / "fastdds_udp.xml")}, left) == ""


def test_other_middleware_is_left_alone() -> None:
    none = SharedMemory("/dev/shm", 0, 0)
    large = {PROFILE_VARIABLES[0]: str(CONFIG / "fastdds.xml")}
    for name in ("rmw_cyclonedds_cpp", "rmw_zenoh_cpp"):
        assert transport.choose({"RMW_IMPLEMENTATION": name}, none) == transport.Choice({})
        assert transport.shortage({"RMW_IMPLEMENTATION": name, **large}, none) == ""
    for name in ("rmw_fastrtps_cpp", "rmw_fastrtps_dynamic_cpp", ""):  # empty: ROS's default
        assert transport.shortage({"RMW_IMPLEMENTATION": name, **large}, none)


def test_a_profile_that_does_not_exist_is_named(tmp_path: Path) -> None:
    said = transport.shortage({PROFILE_VARIABLES[1]: str(tmp_path / "gone.xml")}, ROOMY)
    assert str(tmp_path / "gone.xml") in said and "does not exist" in said


def test_lost_frames_get_the_advice_that_helps() -> None:
    large = {PROFILE_VARIABLES[0]: str(CONFIG / "fastdds.xml")}
    assert "the camera's process" in transport.loss_advice(large, ROOMY)
    assert "this node" in transport.loss_advice({}, ROOMY)
    full = SharedMemory("/dev/shm", 64 * MIB, 0)
    assert "--shm-size" in transport.loss_advice(large, full)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("no XML <", 512 * 1024),
        ("<dds><profiles/></dds>", 512 * 1024),
        ("<a><useBuiltinTransports>false</useBuiltinTransports></a>", 0),
        (
            "<a><transport_descriptor><type>SHM</type></transport_descriptor>"
            "<useBuiltinTransports>false</useBuiltinTransports></a>",
            512 * 1024,
        ),
    ],
)
def test_the_segment_of_any_profile(text: str, size: int, tmp_path: Path) -> None:
    path = tmp_path / "profile.xml"
    path.write_text(text)
    assert transport.segment_bytes(path) == size


def test_the_profiles_hold_whole_frames() -> None:
    for name, frame in (
        ("fastdds.xml", 1920 * 1080 * 3 * 5),
        ("fastdds_small.xml", 640 * 480 * 24),
    ):
        path = CONFIG / name
        assert transport.segment_bytes(path) > frame
        root = xml.etree.ElementTree.parse(path).getroot()
        names = [item.text for item in root.iter() if item.tag.endswith("useBuiltinTransports")]
        assert names == ["false"]


def test_this_machine_can_be_looked_at() -> None:
    memory = SharedMemory.look(str(ROOT))
    assert 0 <= memory.free <= memory.total
    assert str(ROOT) in str(memory)
    assert SharedMemory.look(os.devnull + "/none").total == 0
