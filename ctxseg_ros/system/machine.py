# SPDX-License-Identifier: Apache-2.0
"""What a measurement was made on: the machine, the libraries, the commit. Linux."""

import contextlib
import ctypes
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

LIBRARIES = (
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "opencv-python-headless",
    "openvino",
    "tensorrt",
    "torch",
)


def describe() -> dict[str, Any]:
    """cpu, cores (that this process may use), gpu (None: none), memory (GiB), system, libraries."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": _cpu_name(),
        "cores": available_cores(),
        "gpu": gpu_name(),
        "memory": f"{pages / 2**30:.1f} GiB",
        "system": platform.platform(),
        "libraries": {"python": platform.python_version(), **_library_versions()},
    }


def commit() -> str | None:
    """The commit of this source tree, with "-dirty" after it if tracked files were changed.

    None where the package does not run from a git checkout of its own.
    """
    here = Path(__file__).resolve()
    # Installed inside somebody else's checkout, this file is not one of theirs.
    if _git("ls-files", "--error-unmatch", str(here)) is None:
        return None
    head = _git("rev-parse", "HEAD")
    if head is None:
        return None
    return f"{head}-dirty" if _git("status", "--porcelain", "--untracked-files=no") else head


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def memory_mb() -> float:
    """The memory (resident set, MB) that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def trim_memory() -> None:
    """Give memory that was freed back to the system, where the C library can (glibc)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def peak_memory_mb() -> float:
    """The most memory (resident set, MB) that this process has held.

    Not from getrusage: its figure starts at that of the process this one was forked from.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError("/proc/self/status has no VmHWM: this is not Linux")


def gpu_name() -> str | None:
    """The name of the first NVIDIA GPU that the driver offers this process, None without one."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count, device, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return None
    if driver.cuDeviceGet(ctypes.byref(device), 0) or driver.cuDeviceGetName(name, 256, device):
        return None
    return name.value.decode(errors="replace")


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _library_versions() -> dict[str, str]:
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _git(*arguments: str) -> str | None:
    """The output, None if git is not there or fails."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
