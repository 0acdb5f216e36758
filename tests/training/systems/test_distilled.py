# SPDX-License-Identifier: Apache-2.0
"""A student that learns a teacher's features and attention."""

import csv
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from scipy.optimize import brentq
from scipy.stats import entropy
from timm.models import register_model

from training.__main__ import main
from training.networks.encoder import Encoder
from training.systems.distilled import DistilledSystem, matching_powers

pytestmark = pytest.mark.slow

SIZE = [64, 96]


@register_model
def wider_vit(pretrained: bool = False, **options):
    """A student whose width and heads are not the teacher's; timm's own such ViTs have no CLS."""
    return timm.create_model("test_vit", pretrained, embed_dim=96, num_heads=3, **options)


@pytest.fixture(scope="module")
def teacher_weights(tmp_path_factory):
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    model = timm.create_model("test_vit", num_classes=0, img_size=(64, 64))
    for block in model.blocks:  # as drawn, attention is all but even: nothing could be learnt of it
        block.attn.qkv.weight.data *= 8
    save_file(model.state_dict(), path)
    return path


@pytest.fixture
def system(teacher_weights):
    torch.manual_seed(0)
    system = DistilledSystem(
        "wider_vit", teacher="test_vit", teacher_weights=str(teacher_weights), size=tuple(SIZE)
    )
    system.setup("fit")
    return system


@pytest.fixture
def frames(tmp_path, street_frames):
    folder = tmp_path / "frames"
    folder.mkdir()
    for i, frame in enumerate(street_frames):
        cv2.imwrite(str(folder / f"{i}.png"), frame[:128, 100:292, ::-1])
    return folder


@pytest.fixture
def command(small_run, frames, teacher_weights):
    options = {
        "model": "training.systems.distilled.DistilledSystem",
        "model.init_args.backbone": "wider_vit",
        "model.init_args.teacher": "test_vit",
        "model.init_args.teacher_weights": teacher_weights,
        "model.init_args.size": SIZE,
        "model.init_args.warmup": 2,
        "data": "training.data.unlabelled.Frames",
        "data.init_args.source": frames,
        "data.init_args.size": SIZE,
        "data.init_args.batch_size": 2,
        "data.init_args.workers": 0,
    }
    return lambda run, **overrides: small_run(run, options, overrides)


def test_losses_against_slow_sums(system, street_frames):
    images = torch.from_numpy(np.stack(street_frames[:2])[:, :64, :96]).permute(0, 3, 1, 2)
    system.eval()
    system.standardise.running_mean.normal_()
    system.standardise.running_var.uniform_(0.5, 2)
    with torch.inference_mode():
        losses, _, _ = system.losses(images)
        target, wanted = system.teach(images)
        tokens, found = system.network.features(images)
        features = system.head(tokens[:, system.network.vit.num_prefix_tokens :])
    target, wanted, found, features = (
        t.double().numpy() for t in (target, wanted, found, features)
    )
    mean = system.standardise.running_mean.double().numpy()
    deviation = np.sqrt(system.standardise.running_var.double().numpy() + system.standardise.eps)
    divergence, spread, angles = [], [], []
    for image in range(2):
        left, right = (
            [row / row.sum() for row in attention[image]] for attention in (wanted, found)
        )
        for p, q in zip([*left, np.mean(left, 0)], [*right, np.mean(right, 0)], strict=True):
            divergence.append(sum(a * np.log(a / b) for a, b in zip(p, q, strict=True)))
            divergence[-1] += sum(b * np.log(b / a) for a, b in zip(p, q, strict=True))
            spread.append(abs(sum(a * np.log(a) for a in p) - sum(b * np.log(b) for b in q)))
        for patch in range(target.shape[1]):
            a, b = features[image, patch], (target[image, patch] - mean) / deviation
            angles.append(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert float(losses["attention"]) == pytest.approx(np.mean(divergence), rel=1e-4)
    assert float(losses["entropy"]) == pytest.approx(np.mean(spread), rel=1e-3)
    assert float(losses["features"]) == pytest.approx(np.mean(angles), rel=1e-4)


def test_teacher_sees_the_same_grid_at_its_own_patch(system, street_frames):
    teacher = system.teacher
    system.network.patch = 32  # as if the student's patches were twice as large
    images = torch.from_numpy(street_frames[0][:128, :192]).permute(2, 0, 1)[None]
    tokens, attention = system.teach(images)
    assert tokens.shape[1] == attention.shape[2] == 4 * 6
    half = F.interpolate(images.float(), (64, 96), mode="bilinear", antialias=True)
    expected = teacher.features(half)[1]
    assert torch.allclose(attention, expected)


def test_student_has_the_teachers_heads(system):
    teacher = system.teacher
    heads = teacher.vit.blocks[-1].attn.num_heads
    assert system.network.vit.blocks[-1].attn.num_heads == heads
    row = system.network.features(torch.zeros(1, 3, *SIZE))[1]
    assert row.shape == (1, heads, 4 * 6)
    assert system.graph()(torch.zeros(1, *SIZE, 3, dtype=torch.uint8)).shape == (1, heads, 4, 6)


def test_teacher_stays_out_of_checkpoint_and_optimiser(system):
    assert not any("teacher" in name for name in system.state_dict())
    teacher = system.teacher
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not teacher.training
    system.train()
    assert not teacher.training


def test_it_learns_the_teachers_attention_and_features(command, tmp_path):
    options = {"model__init_args__lr": 3e-3, "trainer__max_epochs": 40}
    assert main(command("run", **options, trainer__check_val_every_n_epoch=39)) == 0
    with (tmp_path / "run/log/version_0/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    values = {
        name: np.array([float(row[f"train/{name}"]) for row in rows if row["train/features"]])
        for name in ("attention", "entropy", "features")
    }
    # A map may trade divergence for entropy: only their sum has to fall.
    for loss in (values["attention"] + 2 * values["entropy"], values["features"]):
        assert loss[-6:].mean() < 0.7 * loss[:6].mean()
    saved = torch.load(tmp_path / "run/last.ckpt", weights_only=True)
    assert saved["system"] == "DistilledSystem"
    assert saved["data"].startswith("6 frames of ")


def test_powers_that_match_the_teachers_entropy():
    rng = np.random.default_rng(0)
    logits = (
        rng.normal(size=(2, 5, 3, 40))
        * np.array([[1.0, 2.0, 0.2], [1.5, 1.0, 3.0]])[:, None, :, None]
    )
    found, wanted = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)

    def apart(power, head):
        return (
            entropy(found[:, head] ** power, axis=-1) - entropy(wanted[:, head], axis=-1)
        ).mean()

    powers = matching_powers(torch.from_numpy(found), torch.from_numpy(wanted)).numpy()
    for head in (0, 1):
        assert powers[head] == pytest.approx(brentq(apart, 0.1, 10, args=(head,)), rel=1e-4)
    assert powers[2] == pytest.approx(4, rel=1e-4)  # 15 times as even: no more than the bound


def test_validation_finds_the_sharpness(system, street_frames, monkeypatch):
    logged = {}
    monkeypatch.setattr(system, "log", lambda name, value, **_: logged.setdefault(name, value))
    monkeypatch.setattr("training.systems.distilled.log_picture", lambda *_: None)
    monkeypatch.setattr(DistilledSystem, "trainer", SimpleNamespace(is_global_zero=True))
    frames = torch.from_numpy(np.stack(street_frames[:4])[:, :64, :96]).permute(0, 3, 1, 2)
    system.eval()
    with torch.no_grad():
        system.network.vit.blocks[-1].attn.qkv.weight *= 3
        for index, images in enumerate(frames.split(2)):
            system.validation_step((images, ["a", "b"]), index)
        system.on_validation_epoch_end()
        _, found, wanted = system.losses(frames)
    for head, power in enumerate(system.sharpness.double().numpy()):
        rows = entropy(found[:, head].double().numpy() ** power, axis=-1)
        assert rows.mean() == pytest.approx(entropy(wanted[:, head], axis=-1).mean(), abs=1e-3)
    assert not torch.allclose(system.sharpness, torch.ones(len(system.sharpness)), atol=0.05)
    assert float(logged["val/sharpness"]) == pytest.approx(float(system.sharpness.mean()))


def test_resumed_equals_unbroken(command, tmp_path):
    every = {"trainer__callbacks__filename": "{epoch}", "trainer__callbacks__save_top_k": -1}
    assert main(command("whole", **every)) == 0
    resume = f"--ckpt_path={tmp_path / 'whole' / 'epoch=0.ckpt'}"
    assert main([*command("rest", **every), resume]) == 0
    left, right = (
        torch.load(tmp_path / run / "epoch=1.ckpt", weights_only=True)["state_dict"]
        for run in ("whole", "rest")
    )
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_shipped_recipe_trains(frames, teacher_weights, capfd):
    """Two batches of the YAML, with small networks and on small frames."""
    recipe = Path(__file__).parents[3] / "training/configs/dino_tiny_dinov2.yaml"
    options = {
        "config": recipe,
        "model.init_args.backbone": "wider_vit",
        "model.init_args.weights": "null",
        "model.init_args.teacher": "test_vit",
        "model.init_args.teacher_weights": teacher_weights,
        "model.init_args.size": SIZE,
        "data.init_args.source": frames,
        "data.init_args.val_source": "null",
        "data.init_args.size": SIZE,
        "data.init_args.batch_size": 2,
        "data.init_args.workers": 0,
        "trainer.accelerator": "cpu",
        "trainer.fast_dev_run": 2,
    }
    assert main(["fit", *(f"--{key}={value}" for key, value in options.items())]) == 0
    assert "train/attention" in capfd.readouterr().out


def test_labelled_data_is_refused(command, capfd, small_camvid):
    line = command("run")
    line = [part for part in line if not part.startswith("--data")]
    line += ["--data=training.data.module.CamVid", f"--data.init_args.root={small_camvid}"]
    assert main(line) == 2
    assert "frames without labels" in capfd.readouterr().err


@pytest.mark.parametrize("networks", [("test_vit2", "test_vit"), ("test_vit", "test_vit2")])
def test_networks_without_cls_token_are_refused(networks):
    student, teacher = networks
    with pytest.raises(ValueError, match="test_vit2 has no CLS token, whose attention is learnt"):
        DistilledSystem(student, teacher=teacher)


def test_bad_input_is_one_line(command, capfd, tmp_path):
    other = timm.create_model("test_vit3", num_classes=0)
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    for option, said in (
        ({"data__init_args__size": [60, 96]}, "--data.init_args.size: image size 60x96 is no"),
        ({"data__init_args__batch_size": 0}, "batch_size 0: give 1 or more"),
        ({"data__init_args__val_frames": 0}, "val_frames 0: give 1 or more"),
        ({"model__init_args__teacher_weights": tmp_path / "other.safetensors"}, "test_vit"),
    ):
        assert main(command("run", **option)) == 2
        error = [
            line for line in capfd.readouterr().err.splitlines() if line.startswith("training:")
        ]
        assert len(error) == 1 and said in error[0]


def test_what_taught_it_before_is_not_forgotten(command, frames, tmp_path):
    assert main(command("run")) == 0
    other = tmp_path / "others"
    other.mkdir()
    for i, path in enumerate(sorted(frames.iterdir())[:4]):
        (other / f"{i}.png").write_bytes(path.read_bytes())
    more = {"trainer__max_epochs": 9, "data__init_args__source": other}
    for _ in range(2):
        assert main(command("run", **more, ckpt_path=tmp_path / "run/last.ckpt")) == 0
        more["trainer__max_epochs"] += 1
    data = torch.load(tmp_path / "run/last.ckpt", weights_only=True)["data"]
    first, second = data.split("; then ")
    assert first.startswith("6 frames of ") and first.endswith("/frames, without labels")
    assert second.startswith("4 frames of ") and second.endswith("/others, without labels")


def test_heads_that_do_not_share_the_width_are_refused():
    with pytest.raises(ValueError, match="5 heads do not share 64 dimensions"):
        Encoder("test_vit", (64, 64), last_heads=5)
