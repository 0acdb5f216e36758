# SPDX-License-Identifier: Apache-2.0
"""Labelled systems on a mixture: average of the weights, unlabelled frames, exact resume, DDP."""

import csv
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml

from tests.training.conftest import fit, start
from tests.training.data.test_mixture import street  # noqa: F401
from training.__main__ import main
from training.networks.encoder import Encoder
from training.networks.weights import read_weights
from training.systems.registry import load_system
from training.systems.segmenter import SegmenterSystem
from training.systems.unet import UNetSystem

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

SIZE = [64, 96]


@pytest.fixture
def mixed(small_run, small_camvid, street, tmp_path):  # noqa: F811
    """mixed(run, **overrides) -> the command line of a small `fit` on a mixture with footage."""
    camvid = {"labels": "camvid", "root": str(small_camvid)}
    facade = {
        "labels": str(street / "classes.yaml"),
        "root": str(street),
        "splits": ["train", "val"],
        "classes": {"plants": ["tree", "pavement"], "thing": ["building"]},
    }
    data = {
        "sources": [{**camvid, "weight": 2}, {**facade, "without": ["madrid*"]}],
        "val": [{**camvid, "splits": ["val"]}, {**facade, "only": ["madrid*"], "name": "places"}],
        "unlabelled": [str(street / "images")],
        "size": SIZE,
        "frames": 12,
        "batch_size": 4,
        "unlabelled_batch": 2,
        "workers": 0,
    }
    file = tmp_path / "mixture.yaml"
    class_path = "training.data.mixture.Mixture"
    file.write_text(yaml.safe_dump({"data": {"class_path": class_path, "init_args": data}}))
    options = {
        "config": file,
        "model": "training.systems.segmenter.SegmenterSystem",
        "model.init_args.backbone": "test_vit",
        "model.init_args.size": SIZE,
        "model.init_args.decoder_dim": 64,
        "model.init_args.subpatch": 2,
        "model.init_args.lovasz": 1.0,
        "model.init_args.lr": 0.01,
        "model.init_args.ema": 0.9,
        "model.init_args.consistency": 1.0,
        # Low, so that a network of a few steps is sure of something.
        "model.init_args.sure": 0.2,
    }
    return lambda run, **overrides: small_run(run, options, overrides)


def logged(run: Path, name: str) -> list[float]:
    with (run / "log" / "version_0" / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def saved(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "last.ckpt", map_location="cpu", weights_only=True)["state_dict"]


def test_two_processes_train_like_one(mixed, tmp_path):
    fit(mixed("one"))
    process = start(mixed("two", trainer__devices=2, trainer__strategy="ddp"))
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    losses = logged(tmp_path / "one", "train/loss")
    assert len(losses) == 6
    assert logged(tmp_path / "two", "train/loss") == pytest.approx(losses, rel=1e-4)
    for name in ("val/miou", "val/places/miou", "train/consistency"):
        expected = logged(tmp_path / "one", name)
        assert expected and logged(tmp_path / "two", name) == pytest.approx(expected, abs=5e-3)
    assert max(logged(tmp_path / "one", "train/consistency")) > 0
    one, two = saved(tmp_path / "one"), saved(tmp_path / "two")
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=3e-4, rtol=2e-3, msg=name)


def test_resumed_equals_unbroken(mixed, tmp_path):
    options = {"model__init_args__dropout": 0.2, "trainer__max_epochs": 4}
    every = {"trainer__callbacks__filename": "{epoch}", "trainer__callbacks__save_top_k": -1}
    assert main(mixed("unbroken", **options, **every)) == 0
    half = tmp_path / "unbroken" / "epoch=1.ckpt"
    assert main([*mixed("resumed", **options), f"--ckpt_path={half}"]) == 0
    whole = torch.load(tmp_path / "unbroken" / "epoch=3.ckpt", weights_only=True)["state_dict"]
    found = saved(tmp_path / "resumed")
    assert any(name.startswith("average.") for name in whole)
    for name in whole:
        assert torch.equal(found[name], whole[name]), name


def test_model_file_and_next_run_begin_from_the_average(mixed, tmp_path):
    assert main(mixed("run", model__init_args__ema=0.999)) == 0
    system, run = load_system(tmp_path / "run" / "last.ckpt")
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    with torch.inference_mode():
        averaged, last = system.average.module(images), system.network(images)
        assert not torch.allclose(averaged, last)
        assert torch.equal(system.logits(images), averaged)
        labels, _ = system.graph()(images.permute(0, 2, 3, 1))
        assert (labels == averaged.argmax(1)).float().mean() > 0.999
    assert run["steps"] == 6
    data, terms = system.origin()
    assert "8 frames of camvid" in data and "3 frames of street" in data
    assert "6 unlabelled frames" in data and "CamVid: research use" in terms
    read_weights(tmp_path / "run" / "last.ckpt")
    again = Encoder("test_vit", tuple(SIZE), weights=tmp_path / "run" / "last.ckpt").eval()
    with torch.inference_mode():
        tokens = again(images)
        # The graph, above, has written out the average's attention: it is rounded otherwise.
        torch.testing.assert_close(
            tokens, system.average.module.encoder(images), atol=1e-4, rtol=1e-4
        )
        assert (tokens - system.network.encoder(images)).abs().max() > 1e-2


def test_average_follows_the_published_recurrence():
    """a <- d a + (1 - d) w, with d = min(decay, (1 + n) / (10 + n)); BatchNorm's figures too."""
    torch.manual_seed(0)
    system = UNetSystem(width=0.05, size=(32, 32), ema=0.5)
    expected = None
    for n in range(12):
        for value in system.network.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.randn_like(value))
        current = {k: v.clone() for k, v in system.network.state_dict().items()}
        decay = 0 if expected is None else min(0.5, (1 + n) / (10 + n))
        if expected is None:
            expected = current
        for name, value in current.items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * value
        system.on_train_batch_end(None, None, n)
    found = system.average.module.state_dict()
    for name, value in expected.items():
        if value.is_floating_point():
            torch.testing.assert_close(found[name], value, msg=name)


def test_consistency_is_the_cross_entropy_of_what_the_average_is_sure_of():
    torch.manual_seed(0)
    system = SegmenterSystem(
        "test_vit", size=(64, 96), decoder_dim=64, ema=0.9, consistency=1.0, sure=0.4
    )
    system.log = lambda *args, **kwargs: None
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    logits = torch.randn(2, 11, 64, 96, requires_grad=True)
    found = system.consistency_loss(logits, images)
    with torch.no_grad():
        teacher = system.average.module(images).softmax(1)
    sure, labels = teacher.max(1)
    assert 0 < (sure >= 0.4).float().mean() < 1
    entropy = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(found, (entropy * (sure >= 0.4)).mean())
    found.backward()
    assert (logits.grad.abs().sum(1) > 0).eq(sure >= 0.4).all()
    assert all(p.grad is None for p in system.average.parameters())


def test_learns_from_unlabelled_frames_and_scores_both_sets(mixed, tmp_path):
    options = {
        "model__init_args__optimizer": "adamw",
        "model__init_args__lr": 0.003,
        "model__init_args__consistency": 0.1,
        "model__init_args__sure": 0.6,
        "trainer__max_epochs": 20,
    }
    assert main(mixed("run", **options)) == 0
    right = logged(tmp_path / "run", "val/pixel_accuracy")
    assert max(right[-3:]) > 1.5 * max(right[:2])
    places = logged(tmp_path / "run", "val/places/miou")
    assert len(places) == 20 and all(0 <= value <= 1 for value in places)
    # The mean over the classes that have labels there: sky and building.
    parts = [logged(tmp_path / "run", f"val/places/iou_{name}")[-1] for name in ("sky", "building")]
    assert places[-1] == pytest.approx(math.fsum(parts) / 2, abs=1e-6)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model__init_args__consistency": 0.0}, "unlabelled frames and their loss go together"),
        ({"data__init_args__unlabelled": "null"}, "unlabelled frames and their loss go together"),
        ({"model__init_args__ema": 0.0}, "set --model.init_args.ema"),
        ({"model__init_args__classes": "stanford"}, "the network has the classes stanford"),
    ],
)
def test_settings_that_do_not_fit_are_refused(overrides, message, mixed, capfd):
    assert main(mixed("run", **overrides)) != 0
    assert message in capfd.readouterr().err
