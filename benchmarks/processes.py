# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' processes: how they start, talk and end, and what the kernel says of them.

Parent and child talk in lines of JSON on the child's stdin and stdout: a request, then its answer.
"""

import ctypes
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctxseg_ros.command import CommandFailed

ROOT = Path(__file__).resolve().parents[1]
PROFILE = ROOT / "config" / "fastdds.xml"
PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
END_S = 20.0

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
_ERROR = 2  # level of a DiagnosticStatus
_SHM = Path("/dev/shm")


# Of the domains that Linux's port ranges allow, the upper ones: few people use them.
DOMAINS = range(215, 233)


class BenchmarkError(CommandFailed):
    """A measurement cannot go on; the message says why, with the end of the process's log."""


def environment(profile: bool) -> dict[str, str]:
    """Variables for a child: a ROS domain of this run's own, with or without config/fastdds.xml."""
    kept = {key: value for key, value in os.environ.items() if key not in PROFILE_VARIABLES}
    if profile:
        kept |= dict.fromkeys(PROFILE_VARIABLES, str(PROFILE))
    # Other machines and containers are not heard, whatever domain they use.
    return kept | {
        "ROS_DOMAIN_ID": str(_own_domain()[0]),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
    }


@functools.cache
def _own_domain() -> tuple[int, socket.socket]:
    """A ROS domain that no other run on this network stack uses, and what reserves it.

    An abstract socket is seen by the same processes as DDS on localhost: by containers too that
    share the host's network, whose process ids may be equal. Raises BenchmarkError.
    """
    reserved = socket.socket(socket.AF_UNIX)
    for domain in DOMAINS:
        try:
            reserved.bind(f"\0ctxseg_ros_benchmark_{domain}")
        except OSError:
            continue
        return domain, reserved
    raise BenchmarkError(f"{len(DOMAINS)} benchmarks run on this machine: wait for one to end")


class Child:
    """A Python module in a process of its own; what it logs goes to `folder`/`name`.log.

    The process is in a session of its own, so that Ctrl-C reaches the parent alone, which ends its
    children in order; the kernel ends them if the parent is killed.
    """

    def __init__(
        self, name: str, module: str, arguments: Sequence[str], folder: Path, profile: bool
    ) -> None:
        self._name = name
        self._log = folder / f"{name}.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=ROOT,
                env=environment(profile),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def check(self) -> None:
        """Raise BenchmarkError if the process has ended."""
        if self._process.poll() is not None:
            raise self.failure(f"ended with exit code {self._process.returncode}")

    def failure(self, what: str) -> BenchmarkError:
        """An error about this process, with the end of its log."""
        said = self._log.read_text(errors="replace").splitlines()[-15:]
        return BenchmarkError("\n".join([f"{self._name} {what}", *said]))

    def send(self, **request: Any) -> None:
        """Send a request without waiting for its answer. Raises BenchmarkError."""
        try:
            self._requests.write(json.dumps(request) + "\n")
            self._requests.flush()
        except OSError:
            self._process.wait(END_S)
            self.check()

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """The next answer. Raises BenchmarkError if none comes in time or the process ends."""
        # One answer a request: nothing is left in Python's own buffer, where select cannot see it.
        if not select.select([self._answers], [], [], timeout_s)[0]:
            raise self.failure(f"gave no answer within {timeout_s:g} s")
        line = self._answers.readline()
        if not line:
            self._process.wait(END_S)
            self.check()
        return json.loads(line)

    def ask(self, timeout_s: float = 60.0, **request: Any) -> dict[str, Any]:
        """Send a request and give its answer. Raises BenchmarkError."""
        self.send(**request)
        return self.receive(timeout_s)

    def end(self) -> None:
        """Ask the process to end, and kill it if it does not."""
        self._process.terminate()  # not SIGINT, which background jobs of a shell ignore
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._requests.close()
        self._answers.close()


def _end_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def end_in_order() -> None:
    """Let SIGTERM unwind this process as Ctrl-C does, so that nothing is left behind."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


class Parent:
    """The other end, inside a child. SIGTERM ends it."""

    def __init__(self) -> None:
        end_in_order()
        # Answers alone are on the pipe: whatever a library prints goes to the log.
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def requests(self) -> Iterator[dict[str, Any]]:
        """Every request, until the parent closes its end."""
        for line in sys.stdin:
            yield json.loads(line)

    def answer(self, **values: Any) -> None:
        """Answer the last request."""
        self._answers.write(json.dumps(values) + "\n")
        self._answers.flush()


def segment_node(parameters: Mapping[str, str | int | float | list[str]], folder: Path) -> Child:
    """Start the package's node, with config/fastdds.xml as docs/troubleshooting.md asks."""
    arguments = ["--ros-args"]
    for key, value in parameters.items():
        arguments += ["-p", f"{key}:={json.dumps(value)}"]  # JSON is YAML
    return Child("segment_node", "ctxseg_ros.ros.segment_node", arguments, folder, profile=True)


def camera(
    topic: str, width: int, height: int, source: Path, folder: Path, *, profile: bool
) -> Child:
    """Start a camera; its first answer comes once somebody subscribes to `topic`."""
    arguments = [topic, str(width), str(height), str(source)]
    name = f"camera_{topic.replace('/', '_')}"
    return Child(name, "benchmarks.camera", arguments, folder, profile)


def monitor(topics: Sequence[str], folder: Path, *, profile: bool) -> Child:
    """Start the process that notes when labels arrive."""
    return Child("monitor", "benchmarks.monitor", topics, folder, profile)


def wait_until_active(node: Child, monitor: Child, timeout_s: float) -> None:
    """Wait for segment_node's report that it is active. Raises BenchmarkError."""
    deadline = time.monotonic() + timeout_s
    while True:
        status = monitor.ask(do="take")["status"]
        if status["values"].get("state") == "active":
            return
        node.check()
        if status["level"] == _ERROR or time.monotonic() > deadline:
            raise node.failure(f"is not active: {status['message']}")
        time.sleep(0.2)


def cpu_seconds(pid: int) -> float:
    """Processor time, of all cores, that a process has used since its start."""
    # The name in brackets may hold anything, spaces and brackets too.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_A_SECOND


def machine_cpu_seconds() -> float:
    """Processor time, of all cores, that the whole machine has used since its start."""
    first = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    user, nice, system, _idle, _iowait, interrupt, soft_interrupt, steal = map(int, first)
    return (user + nice + system + interrupt + soft_interrupt + steal) / _TICKS_A_SECOND


@dataclass(frozen=True)
class Usage:
    """What a process holds."""

    resident_bytes: int
    open_files: int
    threads: int


def usage(pid: int) -> Usage:
    """What a process holds now."""
    process = Path(f"/proc/{pid}")
    pages = int((process / "statm").read_text().split()[1])
    return Usage(
        resident_bytes=pages * os.sysconf("SC_PAGE_SIZE"),
        open_files=len(list((process / "fd").iterdir())),
        threads=len(list((process / "task").iterdir())),
    )


class ShmFiles:
    """Fast DDS's files in /dev/shm that some processes have mapped at any look since the first.

    A file that nobody maps any more but that is still there counts: it has leaked. Files of other
    programs on the machine do not.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        self._names: set[str] = set()

    def look(self) -> tuple[int, int]:
        """How many there are now, and their bytes."""
        for pid in self._pids:
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                if f"{_SHM}/" in line:
                    self._names.add(line.partition(f"{_SHM}/")[2].removesuffix(" (deleted)"))
        sizes = [path.stat().st_size for name in self._names if (path := _SHM / name).exists()]
        return len(sizes), sum(sizes)
