# SPDX-License-Identifier: Apache-2.0
"""Self-distillation: the published recipe, as real processes where it matters."""

import copy
import csv
import math
import re
import signal
import time
import warnings
from pathlib import Path

import cv2
import lightning as L
import numpy as np
import pytest
import torch

from tests.training.conftest import fit, start
from training.__main__ import main
from training.data.crops import Crops
from training.data.files import DataError
from training.data.module import EpochSampler
from training.data.unlabelled import Frames
from training.systems import dino
from training.systems.dino import DinoSystem

ROOT = Path(__file__).resolve().parents[3]
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

SMALL = {
    "backbone": "test_vit",
    "size": (48, 48),
    "drop_path": 0.0,
    "outputs": 64,
    "hidden": 32,
    "bottleneck": 16,
    "momentum": 0.8,
    "lr": 0.128,
    "min_lr": 1e-5,
    "warmup": 1,
    "temperature_warmup": 2,
}
VIEWS = {"global_size": 48, "local_size": 32, "local_crops": 2, "batch_size": 4, "workers": 0}
CLIP = 0.05


@pytest.fixture
def command(small_run, small_camvid):
    """command(run, **overrides) -> the command line of a small `fit`."""
    options = {
        "model": "training.systems.dino.DinoSystem",
        **{f"model.init_args.{name}": value for name, value in SMALL.items()},
        "model.init_args.size": "[48, 48]",
        "data": "training.data.crops.Crops",
        "data.init_args.source": small_camvid / "train" / "images",
        **{f"data.init_args.{name}": value for name, value in VIEWS.items()},
        "trainer.gradient_clip_val": CLIP,
    }
    return lambda run, **overrides: small_run(run, options, overrides)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "last.ckpt", weights_only=True)["state_dict"]


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "log" / "version_0" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def half_cosine(start: float, end: float, steps: int) -> list[float]:
    return [end + (start - end) * (math.cos(math.pi * i / steps) + 1) / 2 for i in range(steps)]


def published(student, batches, epochs: int):
    """The specification as a plain loop in one process, a view at a time.

    Returns:
        student, teacher, centre, losses.
    """
    steps = len(batches)
    every = steps // epochs
    teacher, centre = copy.deepcopy(student), torch.zeros(SMALL["outputs"])
    named = list(student.named_parameters())
    plain = [p for n, p in named if n.endswith("bias") or p.ndim == 1]
    decayed = [p for n, p in named if not (n.endswith("bias") or p.ndim == 1)]
    adam = torch.optim.AdamW([{"params": decayed}, {"params": plain}])
    top = SMALL["lr"] * 4 / 256
    rates = [top * (i + 1) / every for i in range(every)]
    rates += half_cosine(top, SMALL["min_lr"], steps - every)
    decays = half_cosine(0.04, 0.4, steps)
    momenta = half_cosine(SMALL["momentum"], 1.0, steps)
    colds = [*np.linspace(0.04, 0.07, 2 * every + 1)[:-1], *[0.07] * steps][:steps]
    losses = []
    for step, (large, small) in enumerate(batches):
        views = [*large.unbind(1), *small.unbind(1)]
        with torch.no_grad():
            said = [teacher([view[:, None]])[0] for view in views[:2]]
        seen = [student([view[:, None]])[0] for view in views]
        terms = []
        for t, outputs in enumerate(said):
            p = torch.softmax((outputs - centre) / colds[step], -1)
            for s, answer in enumerate(seen):
                if s != t:
                    terms.append(-(p * torch.log_softmax(answer / 0.1, -1)).sum(-1).mean())
        loss = sum(terms) / len(terms)
        losses.append(float(loss))
        adam.zero_grad()
        loss.backward()
        for parameter in student.parameters():
            parameter.grad *= min(1.0, CLIP / (float(parameter.grad.norm()) + 1e-6))
        if step < every:
            student.head.last.weight.grad = None
        for group, decay in zip(adam.param_groups, (decays[step], 0.0), strict=True):
            group["lr"], group["weight_decay"] = rates[step], decay
        adam.step()
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.copy_(momenta[step] * slow + (1 - momenta[step]) * fast)
        centre = 0.9 * centre + 0.1 * torch.cat(said).mean(0)
    return student, teacher, centre, losses


@pytest.mark.parametrize("world", [1, 2])
def test_steps_are_those_of_the_specification(command, tmp_path, small_camvid, world):
    """And two processes do what one does with the same batch, the centre included."""
    arguments = command("run", trainer__devices=world, trainer__max_epochs=3)
    if world == 1:
        fit(arguments)
    else:
        process = start(arguments)
        output, _ = process.communicate(timeout=900)
        assert process.returncode == 0, output
    found = weights(tmp_path / "run")

    L.seed_everything(0)
    system = DinoSystem(**SMALL)
    begun = copy.deepcopy(system.student)
    data = Crops(str(small_camvid / "train" / "images"), **VIEWS)
    data.setup("fit")
    data.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    frames = data.train_dataloader().dataset
    batches = []
    for epoch in range(3):
        sampler = EpochSampler(frames, 1, 0, seed=0, drop_last=True)
        sampler.set_epoch(epoch)
        views = [frames[key][:2] for key in sampler]
        batches += [tuple(map(torch.stack, zip(*views[i : i + 4], strict=True))) for i in (0, 4)]
    student, teacher, centre, losses = published(system.student, batches, 3)
    logged = [float(row["train/loss"]) for row in rows(tmp_path / "run") if row["train/loss"]]
    assert logged == pytest.approx(losses, rel=1e-4)
    torch.testing.assert_close(found["centre"], centre, atol=1e-5, rtol=1e-4)
    assert found["centre"].abs().max() > 0.05
    for name, module in (("student", student), ("teacher", teacher)):
        for key, value in module.state_dict().items():
            result = found[f"{name}.{key}"]
            if key.endswith("qkv.bias"):
                # A key's bias changes no softmax: its gradient is rounding, which Adam enlarges.
                result, value = (x.unflatten(0, (3, -1))[[0, 2]] for x in (result, value))
            torch.testing.assert_close(
                result, value, atol=1e-4, rtol=1e-3, msg=lambda m, n=f"{name}.{key}": f"{n}: {m}"
            )
    for module in (student, teacher):
        for part in ("head.last.weight", "encoder.vit.blocks.0.mlp.fc1.weight"):
            moved = module.get_parameter(part) - begun.get_parameter(part)
            assert moved.abs().max() > 8e-4, part


def test_killed_and_resumed_equals_unbroken(command, tmp_path):
    options = {"model__init_args__drop_path": 0.3, "trainer__max_epochs": 6}
    assert main(command("unbroken", **options)) == 0
    process = start(command("killed", **options))
    while process.poll() is None and not (tmp_path / "killed" / "last.ckpt").exists():
        time.sleep(0.01)
    time.sleep(0.1)  # let it write the file, and go on into the next epoch
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
    saved = torch.load(tmp_path / "killed" / "last.ckpt", weights_only=True)
    assert 1 <= saved["epoch"] + 1 < 6
    assert saved["system"] == "DinoSystem" and saved["data"].startswith("8 frames of")
    checkpoint = tmp_path / "killed" / "last.ckpt"
    loaded = DinoSystem.load_from_checkpoint(checkpoint, weights_only=True, weights=None)
    assert loaded.origin()[0] == saved["data"]
    assert main([*command("killed", **options), f"--ckpt_path={checkpoint}"]) == 0
    expected, found = weights(tmp_path / "unbroken"), weights(tmp_path / "killed")
    assert len(expected) == len(found)
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def quiet_fit(system, data, **options) -> dict[str, torch.Tensor]:
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **options,
    )
    trainer.fit(system, data)
    return trainer.callback_metrics


def looked_at(small_camvid, monkeypatch, **options) -> list[str]:
    """What a run of 12 epochs warns of, with a look at every other step."""
    monkeypatch.setattr(dino, "LOOK_EVERY", 2)
    L.seed_everything(0)
    centre_momentum = options.pop("centre_momentum", 0.9)
    system = DinoSystem(**{**SMALL, "frozen": 0, **options})
    system.hparams.centre_momentum = centre_momentum
    data = Crops(str(small_camvid / "train" / "images"), **VIEWS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet_fit(system, data, max_epochs=12, limit_val_batches=0)
    return [str(w.message) for w in caught if "collapse" in str(w.message)]


def test_without_sharpening_outputs_become_uniform(small_camvid, monkeypatch):
    said = looked_at(
        small_camvid, monkeypatch, centre_momentum=0.5, teacher_temperature=(0.1, 0.1), lr=0.5
    )
    assert said and all("collapse to uniform outputs" in message for message in said)
    assert "lower teacher_temperature" in said[-1]


def test_without_centring_one_output_takes_everything(small_camvid, monkeypatch):
    said = looked_at(
        small_camvid, monkeypatch, centre_momentum=1.0, teacher_temperature=(0.04, 0.04), lr=0.5
    )
    assert said and all("collapse to one output" in message for message in said)
    assert "lower centre_momentum" in said[-1]


def test_with_both_no_collapse_is_reported(small_camvid, monkeypatch):
    assert not looked_at(
        small_camvid,
        monkeypatch,
        centre_momentum=0.5,
        teacher_temperature=(0.02, 0.02),
        momentum=0.99,
        lr=0.02,
    )


def test_the_teacher_is_measured_over_all_processes(monkeypatch):
    """Two processes, each of which says one thing: together they use two outputs."""
    system = DinoSystem(**SMALL)
    target = torch.zeros(2, 3, 64)
    target[..., 5] = 1
    other = torch.zeros(64)
    other[9] = 1
    seen = []

    class Trainer:
        current_epoch, global_step, world_size = 1, 7, 2
        loggers = property(lambda self: [self])
        strategy = property(lambda self: self)

        def reduce(self, mean, reduce_op):
            assert reduce_op == "mean"
            return (mean + other) / 2 if mean.ndim else mean

        def log_metrics(self, values, step):
            seen.append((step, values))

    system.trainer = Trainer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        system.look_for_collapse(target)
    ((step, values),) = seen
    assert step == 7 and values["train/teacher_entropy"] == 0
    assert values["train/teacher_kl_to_uniform"] == pytest.approx(math.log(64) - math.log(2))
    other[9], other[5] = 0, 1
    with pytest.warns(UserWarning, match="collapse to one output at step 7: .* 0.000 of at most"):
        system.look_for_collapse(target)
    with pytest.warns(UserWarning, match="collapse to uniform outputs .* 4.159 of at most 4.159"):
        system.look_for_collapse(torch.full((2, 3, 64), 1 / 64))


def test_run_draws_looks_and_scores_neighbours(command, tmp_path, street_frames, monkeypatch):
    monkeypatch.setattr(dino, "LOOK_EVERY", 2)
    for split in ("train", "val"):
        for i, frame in enumerate(street_frames[:4]):
            folder = tmp_path / "classes" / split / ("left" if i % 2 else "right")
            folder.mkdir(parents=True, exist_ok=True)
            part = frame[:, :300] if i % 2 else frame[:, 340:]
            cv2.imwrite(str(folder / f"{i}.png"), part)
    arguments = command(
        "run",
        trainer__max_epochs=12,
        model__init_args__lr=0.2,
        model__init_args__teacher_temperature="[0.02,0.02]",
    )
    knn = {
        "train": tmp_path / "classes" / "train",
        "val": tmp_path / "classes" / "val",
        "k": 2,
        "size": 48,
        "workers": 0,
    }
    arguments += [
        "--trainer.callbacks+=training.evaluation.knn.KNN",
        *(f"--trainer.callbacks.{name}={value}" for name, value in knn.items()),
    ]
    assert main(arguments) == 0
    found = rows(tmp_path / "run")
    scores = [float(row["val/knn"]) for row in found if row.get("val/knn")]
    assert len(scores) == 12 and scores[-1] == 1  # the same frames in both
    looks = [row for row in found if row.get("train/teacher_entropy")]
    assert len(looks) == 12
    assert all(0 < float(row["train/teacher_entropy"]) < math.log(64) for row in looks)
    pictures = sorted((tmp_path / "run" / "log" / "version_0" / "pictures").glob("val_*.png"))
    assert len(pictures) >= 12
    # The frame, the mean of the heads, and both heads.
    assert cv2.imread(str(pictures[-1])).shape == (4 * 48, 8 * 48, 3)


def test_what_is_deployed_is_the_teachers_attention():
    system = DinoSystem(**SMALL)
    with torch.no_grad():
        for parameter in system.student.parameters():
            parameter.zero_()
    assert system.task == "attention" and system.class_infos() == []
    image = torch.randint(0, 256, (1, 32, 64, 3), dtype=torch.uint8)
    frames = image.permute(0, 3, 1, 2)
    with torch.no_grad():
        tokens, row = system.teacher.encoder.features(frames)
        assert torch.equal(system.embed(frames), tokens[:, 0])
        found = system.graph()(image)
    torch.testing.assert_close(found.flatten(2), row, atol=1e-5, rtol=1e-4)
    assert row.std() > 0


def test_it_begins_from_weights_and_says_so(command, tmp_path, small_camvid):
    """Student and teacher both; the position embedding is resampled to the views' grid."""
    given = DinoSystem(**{**SMALL, "size": (96, 96)}).student.encoder.vit.state_dict()
    torch.save(given, tmp_path / "given.pth")
    system = DinoSystem(**SMALL, weights=str(tmp_path / "given.pth"))
    for branch in (system.student, system.teacher):
        assert torch.equal(branch.encoder.vit.cls_token, given["cls_token"])
        assert branch.encoder.vit.pos_embed.shape[1] == 10
    data = Crops(str(small_camvid / "train" / "images"), **VIEWS)
    quiet_fit(system, data, max_steps=1, limit_val_batches=0)
    assert system.origin()[0].endswith(", without labels, begun from given.pth")
    with pytest.raises(FileNotFoundError, match=r"none\.pth: no such file"):
        DinoSystem(**SMALL, weights=str(tmp_path / "none.pth"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher_temperature": (0.04, 0.2)}, "last teacher_temperature is 0.2: .* at most"),
        ({"teacher_temperature": (0.0, 0.07)}, "first teacher_temperature is 0.0: .* above 0"),
        ({"momentum": 1.0}, "momentum is 1.0: it must be from 0 to below 1"),
        ({"momentum": -0.1}, "momentum is -0.1"),
        ({"centre_momentum": 1.5}, "centre_momentum is 1.5"),
        ({"backbone": "test_vit2"}, "test_vit2 has no CLS token"),
        ({"size": (50, 48)}, "50x48 is no multiple of the patch 16; nearest fit: 48x48"),
    ],
)
def test_numbers_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        DinoSystem(**{**SMALL, **options})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data__init_args__global_size": 56}, "--data.global_size 56: .* nearest fit: 64x64"),
        ({"data__init_args__local_size": 20}, "--data.local_size 20: .* nearest fit: 16x16"),
        ({"data__init_args__local_size": 8}, "--data.local_size 8: .* nearest fit: 16x16"),
        ({"data__init_args__batch_size": 9}, "8 training frames are fewer than one batch of 9"),
        (
            {"data__init_args__global_size": 96, "data__init_args__local_size": 80},
            "8 frames are smaller than the local views of 80 pixels",
        ),
        ({"trainer__precision": "bf16-true"}, "set --trainer.precision bf16-mixed"),
    ],
)
def test_what_cannot_be_trained_stops_before_it_begins(command, capsys, overrides, message):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(command("bad", **overrides)) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "training: " in said
    assert re.search(message, said)


def test_data_of_another_kind_is_refused(small_camvid):
    data = Frames(str(small_camvid / "train" / "images"), (48, 48), batch_size=4, workers=0)
    with pytest.raises(DataError, match=r"several views of a frame, not on Frames: set --data"):
        quiet_fit(DinoSystem(**SMALL), data, max_steps=1)


def test_nan_stops_with_step_and_batch(command, capsys):
    assert main(command("nan", model__init_args__lr=1e38)) == 1
    assert "training: loss is nan at step" in capsys.readouterr().err


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("recipe", ["small_imagenet", "tiny_folder"])
def test_shipped_recipes_train(recipe, precision, small_camvid, capfd):
    """Two batches of each YAML in mixed precision, small."""
    arguments = {
        "config": ROOT / "training" / "configs" / f"dino_{recipe}.yaml",
        "model.weights": "null",
        "model.backbone": "test_vit",
        "model.size": "[48, 48]",
        "model.outputs": 512,
        "data.source": small_camvid / "train" / "images",
        **{f"data.{name}": value for name, value in VIEWS.items()},
        "trainer.accelerator": "cpu",
        "trainer.devices": 1,
        "trainer.strategy": "auto",
        "trainer.precision": precision,
        "trainer.fast_dev_run": 2,
    }
    assert main(["fit", *(f"--{key}={value}" for key, value in arguments.items())]) == 0
    assert "train/loss" in capfd.readouterr().out
