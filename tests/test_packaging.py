# SPDX-License-Identifier: Apache-2.0
"""Both installers bring everything to where ROS and pip users look for it."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from catkin_pkg.package import parse_package
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
EXECUTABLES = {"ctxseg", "segment_node", "camera_node"}
MODEL_FILES = {"probe.onnx", "probe.md", "SHA256SUMS"}
SHARED_FILES = {
    "package.xml",
    "launch/segment.launch.py",
    "launch/demo.launch.py",
    "launch/two_cameras.launch.py",
    "config/segment.yaml",
    "config/ctxseg.rviz",
    "config/two_cameras.rviz",
    "config/fastdds.xml",
    "config/fastdds_small.xml",
    "config/fastdds_udp.xml",
    "config/label_groups_camvid.yaml",
    "config/label_groups_ade20k.yaml",
}
TIMEOUT_S = 600


def run(*command: str | Path, cwd: Path, env: dict[str, str]) -> str:
    """Run a command; return what it printed, or fail with it."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def bare_environment(home: Path) -> dict[str, str]:
    """Return variables that know no virtual environment and no ROS installation."""
    return {"PATH": "/usr/bin:/bin", "HOME": str(home), "LANG": "C.UTF-8"}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the files a fresh clone has, plus a model of a known name."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    copy = tmp_path_factory.mktemp("workspace") / "src" / "ctxseg_ros"
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():  # not one that is deleted but still in the index
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    models = copy / "ctxseg_ros" / "models"
    models.mkdir(exist_ok=True)
    for name in MODEL_FILES:
        (models / name).touch()
    return copy


def ros_machine_environment(folder: Path) -> Path:
    """Make the environment of docs/getting_started.md offline; return its interpreter.

    The packages of the environment that runs the tests stand in for apt's and for what the recipe
    downloads. As with apt's python3-opencv, `cv2` can be imported and no distribution says so.
    """
    system = folder / "system"
    system.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        hidden = entry.name.startswith(("opencv_python", "ctxseg_ros", "__editable__"))
        if not hidden:
            (system / entry.name).symlink_to(entry)
    environment = folder / "ctxseg_env"
    venv.create(environment, system_site_packages=True, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    # addsitedir, not the bare path: the .pth files in there have to work as well.
    (environment / "lib" / version / "site-packages" / "system.pth").write_text(
        f"import site; site.addsitedir({str(system)!r})\n"
    )
    return environment / "bin" / "python"


@dataclass(frozen=True)
class Build:
    """A workspace that colcon built: its root and the interpreter that ran colcon."""

    workspace: Path
    python: Path

    @property
    def prefix(self) -> Path:
        return self.workspace / "install" / "ctxseg_ros"

    def call(self, *command: str | Path) -> str:
        """Run a command in a shell that has only sourced the workspace."""
        return run(
            "sh",
            "-c",
            '. install/local_setup.sh && exec "$@"',
            "sh",
            *command,
            cwd=self.workspace,
            env=bare_environment(self.workspace),
        )


@pytest.fixture(scope="module", params=["this environment", "ROS machine"])
def build(
    request: pytest.FixtureRequest, checkout: Path, tmp_path_factory: pytest.TempPathFactory
) -> Build:
    workspace = tmp_path_factory.mktemp("build")
    if request.param == "ROS machine":
        python = ros_machine_environment(tmp_path_factory.mktemp("ros_machine"))
    else:
        python = Path(sys.executable)
    run(
        *(python, "-m", "colcon", "--log-base", workspace / "log", "build"),
        *("--base-paths", checkout, "--packages-select", "ctxseg_ros"),
        cwd=workspace,
        env=bare_environment(workspace),
    )
    return Build(workspace, python)


def test_colcon_installs_what_ros_tools_look_for(build: Build) -> None:
    share = build.prefix / "share" / "ctxseg_ros"
    assert {name for name in SHARED_FILES if (share / name).is_file()} == SHARED_FILES
    marker = build.prefix / "share/ament_index/resource_index/packages/ctxseg_ros"
    assert marker.is_file()
    installed = build.prefix / "lib" / "ctxseg_ros"
    assert {path.name for path in installed.iterdir()} == EXECUTABLES
    assert all(os.access(installed / name, os.X_OK) for name in EXECUTABLES)


def test_colcon_executables_keep_the_interpreter_that_built_them(build: Build) -> None:
    for name in EXECUTABLES:
        lines = (build.prefix / "lib" / "ctxseg_ros" / name).read_text().splitlines()
        assert lines[0] == f"#!{build.python}"


def test_colcon_executable_runs_outside_the_environment(build: Build) -> None:
    printed = build.call(build.prefix / "lib" / "ctxseg_ros" / "ctxseg", "--help")
    assert "models" in printed
    assert "bench" in printed
    # The pipeline imports cv2, which on the ROS machine belongs to no distribution.
    imported = build.call(
        build.python, "-c", "import ctxseg_ros.inference.pipeline as p; print(p.__file__)"
    )
    assert Path(imported.strip()).is_relative_to(build.prefix)


@pytest.fixture(scope="module")
def archives(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sdist of the checkout, and the wheel that was built from that sdist."""
    folder = tmp_path_factory.mktemp("archives")
    # Writes build/ and *.egg-info beside setup.py: only a copy may be used.
    source = shutil.copytree(checkout, folder / "source")
    run(
        *(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", source),
        cwd=folder,
        env=bare_environment(folder),
    )
    return folder / "dist"


@dataclass(frozen=True)
class Installation:
    """A clean environment into which pip installed the package, and nothing else."""

    folder: Path

    @property
    def scripts(self) -> Path:
        return self.folder / "ctxseg_env" / "bin"

    @property
    def site_packages(self) -> Path:
        (found,) = self.folder.glob("ctxseg_env/lib/python3*/site-packages")
        return found

    def call(self, *command: str | Path) -> str:
        wide = {"COLUMNS": "200"}  # so that no table is cut
        return run(*command, cwd=self.folder, env=bare_environment(self.folder) | wide)


@pytest.fixture(scope="module", params=["pip install .", "wheel", "sdist"])
def installation(
    request: pytest.FixtureRequest,
    checkout: Path,
    archives: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Installation:
    folder = tmp_path_factory.mktemp("pip")
    if request.param == "pip install .":
        what = shutil.copytree(checkout, folder / "source")
    else:
        (what,) = archives.glob("*.whl" if request.param == "wheel" else "*.tar.gz")
    python = ros_machine_environment(folder)
    run(
        *(python, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", what),
        cwd=folder,
        env=bare_environment(folder),
    )
    return Installation(folder)


def test_pip_installs_models_and_commands(installation: Installation) -> None:
    package = installation.site_packages / "ctxseg_ros"
    assert {path.name for path in (package / "models").iterdir()} >= MODEL_FILES
    assert {path.name for path in installation.scripts.iterdir()} >= EXECUTABLES
    share = installation.folder / "ctxseg_env" / "share" / "ctxseg_ros"
    assert {name for name in SHARED_FILES if (share / name).is_file()} == SHARED_FILES


def test_pip_installs_nothing_but_the_package(installation: Installation) -> None:
    known = {"pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils-precedence.pth"}
    names = {path.name for path in installation.site_packages.iterdir()} - known - {"system.pth"}
    assert {name for name in names if not name.endswith(".dist-info")} == {"ctxseg_ros"}


def test_installed_command_finds_the_installed_models(installation: Installation) -> None:
    printed = installation.call(installation.scripts / "ctxseg", "models")
    for model in (ROOT / "ctxseg_ros" / "models").glob("*.onnx"):
        assert model.stem in printed
    module = installation.call(
        installation.scripts / "python", "-c", "import ctxseg_ros; print(ctxseg_ros.__file__)"
    )
    assert Path(module.strip()).is_relative_to(installation.site_packages)


def test_archives_hold_each_model_once(archives: Path) -> None:
    (wheel,) = archives.glob("*.whl")
    (sdist,) = archives.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as opened:
        in_wheel = [Path(name).name for name in opened.namelist() if name.endswith(".onnx")]
    with tarfile.open(sdist) as opened_sdist:
        in_sdist = [Path(name).name for name in opened_sdist.getnames() if name.endswith(".onnx")]
    models = sorted({path.name for path in (ROOT / "ctxseg_ros/models").glob("*.onnx")})
    assert sorted(in_wheel) == sorted(in_sdist) == sorted([*models, "probe.onnx"])


def test_manifests_agree(installation: Installation) -> None:
    manifest = parse_package(str(ROOT / "package.xml"))  # raises where the manifest is not valid
    (distribution,) = importlib.metadata.distributions(
        name="ctxseg_ros", path=[str(installation.site_packages)]
    )
    metadata = distribution.metadata
    assert metadata["Name"] == manifest.name == "ctxseg_ros"
    assert metadata["Version"] == manifest.version
    python = installation.scripts / "python"
    printed = installation.call(python, "-c", "import ctxseg_ros; print(ctxseg_ros.__version__)")
    assert printed.strip() == manifest.version
    assert manifest.licenses == ["Apache-2.0"]
    assert manifest.get_build_type() == "ament_python"
    extras = set(metadata.get_all("Provides-Extra") or [])
    assert extras >= {"gpu", "cpu", "ros", "refine", "train", "view", "demo", "docs", "test"}


def test_lock_pins_every_dependency() -> None:
    """Every requirement of setup.py, extras included, has a pin for every supported Python."""
    pins: dict[str, list[Requirement]] = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            pins.setdefault(canonicalize_name(pin.name), []).append(pin)
    for text in importlib.metadata.requires("ctxseg_ros") or []:
        requirement = Requirement(text)
        for minor in range(10, 15):
            environment = {"python_version": f"3.{minor}", "python_full_version": f"3.{minor}.0"}
            (pin,) = [
                item
                for item in pins[canonicalize_name(requirement.name)]
                if item.marker is None or item.marker.evaluate(environment)
            ]
            (version,) = [item.version for item in pin.specifier]
            assert requirement.specifier.contains(version), (text, str(pin))


def test_package_xml_names_every_import() -> None:
    """What the installed code imports is in package.xml, or is known to come from pip."""
    keys = {
        "numpy": "python3-numpy",
        "cv2": "python3-opencv",
        "yaml": "python3-yaml",
        "rich": "python3-rich",
        "PIL": "python3-pil",
    }
    from_pip = {"onnx", "google", "onnxruntime", "openvino", "skvideo"}
    imported: set[str] = set()
    for path in [*(ROOT / "ctxseg_ros").rglob("*.py"), *(ROOT / "launch").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                imported.add(node.module.partition(".")[0])
    wanted = imported - set(sys.stdlib_module_names) - from_pip - {"ctxseg_ros"}
    named = {entry.name for entry in parse_package(str(ROOT / "package.xml")).exec_depends}
    assert {keys.get(name, name) for name in wanted} - named == set()


def make(target: str, folder: Path, *variables: str, ros: str | None = None) -> str:
    """Return what `make` prints in a copy of the Makefile, whatever its exit status."""
    for name in ("Makefile", "setup.py", "requirements.lock"):
        shutil.copy(ROOT / name, folder)
    env = bare_environment(folder) | ({"ROS_DISTRO": ros} if ros else {})
    done = subprocess.run(
        ["make", target, *variables],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
    )
    return re.sub(r"[ \\]+\n?[ \t]+", " ", done.stdout)  # commands on one line, single spaces


def test_make_demo_installs_ros_wheels_and_no_training(tmp_path: Path) -> None:
    printed = make("demo", tmp_path, "SOURCE=a b.mp4", "DEVICE=cpu", "--dry-run")
    assert '-e ".[ros,cpu,demo]"' in printed
    assert '--source "a b.mp4"' in printed
    assert '--device "cpu"' in printed
    assert "--system-site-packages" not in printed


def test_make_demo_leaves_an_installed_ros_alone(tmp_path: Path) -> None:
    printed = make("demo", tmp_path, "--dry-run", ros="jazzy")
    assert '-e ".[cpu,demo]"' in printed
    assert "--system-site-packages" in printed
    # The pins are resolved again around the NumPy that is there.
    compiled = "-c .venv/numpy.txt --extra cpu --extra demo setup.py -o .venv/constraints.txt"
    assert compiled in printed
    assert "-c .venv/constraints.txt" in printed


@pytest.mark.parametrize(("target", "pins"), [("test", True), ("test-latest", False)])
def test_make_pins_unless_the_newest_is_asked_for(tmp_path: Path, target: str, pins: bool) -> None:
    printed = make(target, tmp_path, "--dry-run")
    assert ("cp requirements.lock" in printed) == pins
    assert ("--upgrade-strategy eager" in printed) != pins
    assert ("-m venv .venv-latest" in printed) != pins


@pytest.mark.parametrize(
    ("missing", "fix"),
    [("ensurepip", "apt install python3-venv"), ("version_info", "PYTHON=python3.12")],
)
def test_make_names_the_fix_for_an_unfit_python(tmp_path: Path, missing: str, fix: str) -> None:
    unfit = tmp_path / "python"
    unfit.write_text(f'#!/bin/sh\ncase "$*" in *{missing}*) exit 1;; esac\n')
    unfit.chmod(0o755)
    assert fix in make("demo", tmp_path, f"PYTHON={unfit}")
    assert not (tmp_path / ".venv").exists()
