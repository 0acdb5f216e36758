# SPDX-License-Identifier: Apache-2.0
"""`python -m training fit`, as real processes where it matters."""

import csv
import errno
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.training.conftest import fit, start
from training.__main__ import main
from training.data.camvid import VOID, camvid_pairs
from training.data.pairs import IGNORE, read_image, read_label
from training.systems.segmenter import SegmenterSystem

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

ROOT = Path(__file__).resolve().parents[3]


def weights(run: Path) -> dict[str, torch.Tensor]:
    saved = torch.load(run / "last.ckpt", map_location="cpu", weights_only=True)
    return saved["state_dict"]


def losses(run: Path) -> list[float]:
    with (run / "log" / "version_0" / "metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


@pytest.fixture(scope="module")
def steady():
    """A rate at which float32 rounding does not grow within two epochs."""
    return {"model__init_args__lr": 0.01}


def test_two_processes_train_like_one(config, tmp_path, steady):
    fit(config("one", **steady))
    process = start(config("two", **steady, trainer__devices=2, trainer__strategy="ddp"))
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == 4
    assert two == pytest.approx(one, rel=1e-4)
    expected, found = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in expected:
        torch.testing.assert_close(
            found[name], expected[name], atol=2e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
        )
    moved = weights(tmp_path / "one")["network.decoder.project.weight"]
    assert (moved - moved.mean()).abs().max() > 1e-3


def test_killed_and_resumed_equals_unbroken(config, tmp_path):
    """With dropout and augmentation: nothing may hang on a random state that the kill loses."""
    options = {"model__init_args__dropout": 0.2, "trainer__max_epochs": 6}
    fit(config("unbroken", **options))
    process = start(config("killed", **options))
    while process.poll() is None and not (tmp_path / "killed" / "last.ckpt").exists():
        time.sleep(0.01)
    time.sleep(0.1)  # let it write the file, and go on into the next epoch
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
    done = torch.load(tmp_path / "killed" / "last.ckpt", weights_only=True)["epoch"] + 1
    assert 1 <= done < 6
    fit([*config("killed", **options), f"--ckpt_path={tmp_path / 'killed' / 'last.ckpt'}"])
    expected, found = weights(tmp_path / "unbroken"), weights(tmp_path / "killed")
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def test_training_lowers_the_loss_and_scores_the_validation(config, small_camvid, tmp_path):
    fit(
        config(
            "run",
            model__init_args__optimizer="adamw",
            model__init_args__lr=0.003,
            model__init_args__lovasz=0.0,
            data__init_args__scale="[1.0, 1.0]",
            data__init_args__jitter=False,
            trainer__max_epochs=25,
        )
    )
    found = losses(tmp_path / "run")
    assert np.mean(found[-4:]) < 0.8 * np.mean(found[:4])
    with (tmp_path / "run" / "log" / "version_0" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["val/miou"]]
    assert len(rows) == 25
    system = SegmenterSystem.load_from_checkpoint(tmp_path / "run" / "last.ckpt", weights_only=True)
    right = []
    for pair in camvid_pairs(small_camvid, "val"):
        image, truth = read_image(pair.image), read_label(pair.label, 11, VOID)
        with torch.inference_mode():
            logits = system.eval().network(torch.from_numpy(image).permute(2, 0, 1)[None])
        right += (logits[0].argmax(0).numpy() == truth)[truth != IGNORE].tolist()
    assert float(rows[-1]["val/pixel_accuracy"]) == pytest.approx(np.mean(right), abs=1e-3)


def test_nan_stops_with_step_and_batch(config, capfd):
    assert main(config("nan", model__init_args__lr=1e38)) == 1
    output = capfd.readouterr().err
    assert "training: loss is nan at step" in output
    assert "of epoch 0, batch" in output
    assert any(f"00{i}" in output.split("batch", 1)[1] for i in range(8))
    assert "Traceback" not in output


def test_ctrl_c_and_a_full_disk_are_one_line(monkeypatch, capsys):
    def interrupted(*_, **__):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)  # as Lightning does

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for work, code, said in ((interrupted, 130, "interrupted"), (full, 2, "No space left")):
        monkeypatch.setattr("training.fit.CLI", work)
        assert main(["fit"]) == code
        error = capsys.readouterr().err
        assert error.startswith("training: ") and said in error and error.count("\n") == 1


def test_classes_of_another_set_are_refused(config, capfd):
    assert main(config("other", model__init_args__classes="stanford")) == 2
    output = capfd.readouterr().err
    assert "training: the network has the classes stanford (sky, tree, road" in output
    assert "set --model.init_args.classes camvid" in output


def test_bad_labels_stop_before_training(config, small_camvid, tmp_path, capfd):
    broken = shutil.copytree(small_camvid, tmp_path / "broken")
    cv2.imwrite(str(broken / "train" / "labels" / "003.png"), np.full((64, 96), 99, np.uint8))
    assert main(config("bad", data__init_args__root=broken)) == 2
    assert "003.png: CamVid has no id 99 on 6144 pixels" in capfd.readouterr().err
    assert not (tmp_path / "bad" / "log" / "version_0" / "metrics.csv").exists()


def test_unet_trains_on_stanford_background(street_frames, tmp_path, capfd):
    root = tmp_path / "iccv09Data"
    for part in ("images", "labels"):
        (root / part).mkdir(parents=True)
    for i in range(11):
        frame = street_frames[i % 6][:60, 10 * i : 10 * i + 80]
        cv2.imwrite(str(root / "images" / f"{i:07}.jpg"), frame[..., ::-1])
        regions = frame[..., 1].astype(int) // 29 - 1
        np.savetxt(root / "labels" / f"{i:07}.regions.txt", regions, "%d")
    options = {
        "config": ROOT / "training" / "configs" / "unet_stanford.yaml",
        "model.width": 0.0625,
        "data.root": root,
        "data.size": "[48, 64]",
        "data.workers": 0,
        "data.batch_size": 2,
        "trainer.accelerator": "cpu",
        "trainer.fast_dev_run": 1,
    }
    assert main(["fit", *(f"--{key}={value}" for key, value in options.items())]) == 0
    assert "val/miou" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("segmenter_tiny_camvid", ["--model.init_args.weights=null"]),
        ("segmenter_tiny_paper", ["--model.init_args.weights=null"]),
        ("unet_camvid", ["--model.init_args.width=0.125"]),
    ],
)
def test_shipped_recipes_train(recipe, options, small_camvid, capfd):
    """Two batches of each YAML in mixed precision, on small data and without the weights' file."""
    fit(
        [
            "fit",
            f"--config={ROOT / 'training' / 'configs' / f'{recipe}.yaml'}",
            *options,
            f"--data.init_args.root={small_camvid}",
            "--data.init_args.workers=0",
            "--data.init_args.batch_size=2",
            "--trainer.accelerator=cpu",
            "--trainer.precision=bf16-mixed",
            "--trainer.fast_dev_run=2",
        ]
    )
    assert "train/loss" in capfd.readouterr().out


def test_frames_that_patches_do_not_divide_are_refused(config, capfd):
    assert main(config("run", data__init_args__size=[60, 96])) == 2
    assert "--data.init_args.size: image size 60x96 is no multiple" in capfd.readouterr().err
