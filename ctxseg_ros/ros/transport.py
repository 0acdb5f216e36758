# SPDX-License-Identifier: Apache-2.0
"""Which Fast DDS profile fits into this machine's shared memory, and what to do if none does.

With a profile of config/, Fast DDS takes one segment of /dev/shm for each process. A container has
64 MB there by default. Where a segment does not fit, Fast DDS falls back to UDP, which loses and
delays camera frames, and logs only "SHM Transport is not supported in the current platform".

Launch files import this module in an interpreter that has neither onnx nor OpenCV.
"""

import os
import xml.etree.ElementTree
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
"""Fast DDS 2 (Jazzy) reads the first, Fast DDS 3 (Kilted and later) the second."""

SHARED_MEMORY = ("fastdds.xml", "fastdds_small.xml")
"""The profiles with shared memory, largest segment first."""
UDP = "fastdds_udp.xml"

PROCESSES = 4
"""Processes to leave room for: a camera, the segmenter, a viewer, a tool of the command line."""

MORE_ROOM = "in a container, give it more: docker run --shm-size=512m, or --ipc=host"

_MIB = 2**20
_DEFAULT_SEGMENT = _MIB // 2
_OVERHEAD = 1.07  # of a segment, and its share of the ports' files: 32 MiB take 34 MiB


@dataclass(frozen=True)
class SharedMemory:
    """A file system for shared memory: its size and what is free, in bytes; both 0 if unusable."""

    folder: str
    total: int
    free: int

    @classmethod
    def look(cls, folder: str = "/dev/shm") -> "SharedMemory":
        """The folder as it is now; it may be missing or closed to this user."""
        if not os.access(folder, os.W_OK):
            return cls(folder, 0, 0)
        status = os.statvfs(folder)
        return cls(folder, status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize)

    def __str__(self) -> str:
        if not self.total:
            return f"{self.folder} is missing or not writable"
        return f"{self.folder} has {self.free // _MIB} of {self.total // _MIB} MiB free"


@dataclass(frozen=True)
class Choice:
    """Environment variables for the processes to start, and what the user should know, if any."""

    variables: dict[str, str]
    message: str = ""


def choose(
    environment: Mapping[str, str] = os.environ, memory: SharedMemory | None = None
) -> Choice:
    """The profile for processes that this one starts: the user's own, if the environment names one,
    else the largest of which PROCESSES segments fit, else UDP; none for another middleware.

    Raises FileNotFoundError if the profiles are not where the package was installed.
    """
    memory = SharedMemory.look() if memory is None else memory
    if not _uses_fast_dds(environment):
        return Choice({})
    if own_profile(environment) is not None:
        return Choice({}, shortage(environment, memory))
    folder = config_folder()
    for name in SHARED_MEMORY:
        if PROCESSES * _needed(folder / name) <= memory.free:
            break
    else:
        name = UDP
    message = ""
    if name == UDP:
        message = f"{memory}, too little for camera frames: Fast DDS uses UDP, {MORE_ROOM}"
    elif name != SHARED_MEMORY[0]:
        size = segment_bytes(folder / name) // _MIB
        message = (
            f"{memory}: Fast DDS uses segments of {size} MiB, enough for VGA; larger frames may be "
            "lost on a busy machine. Give other cameras the same profile "
            f"({' or, newer than Jazzy, '.join(PROFILE_VARIABLES)}={folder / name}); or {MORE_ROOM}"
        )
    return Choice(dict.fromkeys(PROFILE_VARIABLES, str(folder / name)), message)


def shortage(
    environment: Mapping[str, str] = os.environ, memory: SharedMemory | None = None
) -> str:
    """Why the next process with this environment's profile cannot use shared memory, and what to
    do; empty if it can, or has no profile with shared memory."""
    memory = SharedMemory.look() if memory is None else memory
    own = own_profile(environment)
    if own is None or not _uses_fast_dds(environment):
        return ""
    variable, path = own
    if not path.is_file():
        return f"{variable} names {path}, which does not exist: Fast DDS uses its defaults"
    if _needed(path) <= memory.free:
        return ""
    return (
        f"{memory}, a segment of {path.name} needs {_needed(path) // _MIB + 1} MiB: without it "
        f"Fast DDS uses UDP, which loses and delays frames; {MORE_ROOM}, or take a smaller "
        f"profile: {SHARED_MEMORY[-1]} or {UDP}, beside fastdds.xml"
    )


def loss_advice(
    environment: Mapping[str, str] = os.environ, memory: SharedMemory | None = None
) -> str:
    """What to do where frames are lost between the camera's process and this one."""
    if reason := shortage(environment, memory):
        return reason
    which = "the camera's process" if own_profile(environment) else "this node and the camera"
    return (
        f"give {which} config/fastdds.xml (docs/troubleshooting.md: Frames are lost), or let the "
        "camera publish reliable"
    )


def own_profile(environment: Mapping[str, str]) -> tuple[str, Path] | None:
    """The first of PROFILE_VARIABLES that is set, and its file."""
    for name in PROFILE_VARIABLES:
        if path := environment.get(name):
            return name, Path(path).absolute()
    return None


def config_folder() -> Path:
    """The folder with fastdds.xml: of the checkout, or in share/ of the installation.

    Raises FileNotFoundError.
    """
    here = Path(__file__).resolve()
    candidates = [here.parents[2] / "config"]
    candidates += [parent / "share" / "ctxseg_ros" / "config" for parent in here.parents]
    for folder in candidates:
        if (folder / SHARED_MEMORY[0]).is_file():
            return folder
    raise FileNotFoundError(
        "config/fastdds.xml of ctxseg_ros is missing: install the package again"
    )


def segment_bytes(profile: Path) -> int:
    """The shared memory that the profile asks for: 0 if it has its own transports and none is SHM.

    A file that cannot be parsed gives Fast DDS's default, which it then uses.
    """
    try:
        root = xml.etree.ElementTree.parse(profile).getroot()
    except (OSError, xml.etree.ElementTree.ParseError):
        return _DEFAULT_SEGMENT
    sizes = [0]
    builtin = True
    for element in root.iter():
        name = element.tag.rpartition("}")[2]
        if name == "useBuiltinTransports":
            builtin = (element.text or "").strip().lower() not in ("false", "0")
        elif name == "transport_descriptor":
            fields = {item.tag.rpartition("}")[2]: (item.text or "").strip() for item in element}
            if fields.get("type") == "SHM":
                size = fields.get("segment_size", "")
                sizes.append(int(size) if size.isdecimal() else _DEFAULT_SEGMENT)
    return max(*sizes, _DEFAULT_SEGMENT if builtin else 0)


def _uses_fast_dds(environment: Mapping[str, str]) -> bool:
    # ROS takes its default where the variable is empty, too.
    return "fastrtps" in (environment.get("RMW_IMPLEMENTATION") or "rmw_fastrtps_cpp")


def _needed(profile: Path) -> int:
    return int(segment_bytes(profile) * _OVERHEAD)
