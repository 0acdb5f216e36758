# SPDX-License-Identifier: Apache-2.0
"""What a measurement was made on."""

import json
import subprocess
import sys

import numpy as np
import pytest

from ctxseg_ros.system import machine

pytestmark = pytest.mark.slow


def test_description_has_the_keys_of_every_benchmark():
    found = machine.describe()
    assert {"cpu", "cores", "gpu", "memory", "libraries"} <= found.keys()
    assert found["cpu"]
    assert found["cores"] >= 1
    assert found["gpu"] is None or isinstance(found["gpu"], str)
    assert float(found["memory"].removesuffix(" GiB")) > 0.1
    assert found["libraries"]["numpy"] == np.__version__
    json.dumps(found)


def test_no_driver_is_no_gpu(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(machine.ctypes, "CDLL", missing)
    assert machine.gpu_name() is None


class Driver:
    """libcuda.so.1 with `count` devices; `status` is what cuInit returns."""

    def __init__(self, status=0, count=1):
        self.status, self.count = status, count

    def cuInit(self, flags):
        return self.status

    def cuDeviceGetCount(self, pointer):
        pointer._obj.value = self.count
        return 0

    def cuDeviceGet(self, pointer, index):
        return 0

    def cuDeviceGetName(self, name, size, device):
        name.value = b"NVIDIA Test"
        return 0


@pytest.mark.parametrize(
    ("driver", "expected"),
    [(Driver(), "NVIDIA Test"), (Driver(status=100), None), (Driver(count=0), None)],
)
def test_gpu_is_what_the_driver_offers(monkeypatch, driver, expected):
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: driver)
    assert machine.gpu_name() == expected


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A git checkout with a committed file that stands for the module."""

    def git(*arguments):
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.com")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    file = tmp_path / "machine.py"
    file.write_text("one\n")
    git("init", "-q")
    monkeypatch.setattr(machine, "__file__", str(file))
    return git, file


def test_commit_of_a_checkout(repository):
    git, file = repository
    assert machine.commit() is None  # nothing is committed
    git("add", "machine.py")
    assert machine.commit() is None
    git("commit", "-qm", "one")
    head = git("rev-parse", "HEAD")
    assert machine.commit() == head
    (file.parent / "untracked").touch()
    assert machine.commit() == head
    file.write_text("two\n")
    assert machine.commit() == f"{head}-dirty"


def test_no_commit_inside_somebody_elses_checkout(repository, monkeypatch):
    git, file = repository
    git("add", "machine.py")
    git("commit", "-qm", "one")
    (file.parent / "installed.py").touch()
    monkeypatch.setattr(machine, "__file__", str(file.parent / "installed.py"))
    assert machine.commit() is None


def test_no_commit_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert machine.commit() is None


def test_peak_memory_is_this_processs_own():
    """A child of a process that holds 300 MB has not held them itself."""
    ballast = np.ones(300_000_000, np.uint8)
    assert machine.peak_memory_mb() > 300
    code = "from ctxseg_ros.system import machine; print(machine.peak_memory_mb())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 1 < float(done.stdout) < 200
    del ballast
