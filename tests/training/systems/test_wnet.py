# SPDX-License-Identifier: Apache-2.0
"""W-Net's training: two updates a batch, as real processes where it matters."""

import copy
import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import lightning as L
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from tests.training.conftest import fit, start
from training.__main__ import main
from training.data.module import EpochSampler
from training.data.palette import cluster_colours
from training.data.unlabelled import CroppedFrames, Frames
from training.losses.soft_ncut import soft_ncut
from training.networks.wnet import WNet
from training.systems.pictures import wnet_sheet
from training.systems.unet import UNetSystem
from training.systems.wnet import WNetSystem

ROOT = Path(__file__).resolve().parents[3]
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
RATES = {"lr_encoder": 0.002, "lr_decoder": 0.003}


@pytest.fixture
def command(small_run, small_camvid):
    """command(run, **overrides) -> the command line of a small `fit` of a W-Net."""
    options = {
        "model": "training.systems.wnet.WNetSystem",
        "model.init_args.clusters": 4,
        "model.init_args.width": 0.0625,
        "model.init_args.lr_encoder": RATES["lr_encoder"],
        "model.init_args.lr_decoder": RATES["lr_decoder"],
        "data": "training.data.unlabelled.Frames",
        "data.init_args.source": small_camvid / "train" / "images",
        "data.init_args.size": "[48, 64]",
        "data.init_args.batch_size": 4,
        "data.init_args.workers": 0,
    }
    return lambda run, **overrides: small_run(run, options, overrides)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "last.ckpt", weights_only=True)["state_dict"]


def two_updates(networks: list[WNet], optimizers: list, batches: list[torch.Tensor]) -> None:
    """The specification, on one shard a process: gradients are averaged over the processes."""
    for part, optimizer in enumerate(optimizers):
        gradients = []
        for network, images in zip(networks, batches, strict=True):
            x = images.float() / 255
            if part == 0:
                luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
                grey = (images.float() * luma).sum(1, keepdim=True)
                loss = soft_ncut(network.segment(x), grey).mean()
                parameters = list(network.encoder.parameters())
            else:
                loss = F.mse_loss(network(x)[1], x)
                parameters = list(network.parameters())
            gradients.append(torch.autograd.grad(loss, parameters))
        for network in networks:
            chosen = network.encoder if part == 0 else network
            for parameter, *parts in zip(chosen.parameters(), *gradients, strict=True):
                parameter.grad = sum(parts) / len(parts)
        for adam in optimizer:
            adam.step()


def fit_counting(arguments: list[str], script: Path) -> list[int]:
    """`python -m training ARGUMENTS`, and how many pixels each process counted in each epoch."""
    script.write_text(
        "import sys\n"
        "from training.__main__ import main\n"
        "from training.systems.wnet import WNetSystem\n"
        "look = WNetSystem.look_for_collapse\n"
        "def watched(self):\n"
        # One string in one write: both processes print at once.
        "    print(f'counted {int(self.all_gather(self.use).sum())};')\n"
        "    look(self)\n"
        "WNetSystem.look_for_collapse = watched\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run(
        [sys.executable, script, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return [int(count) for count in re.findall(r"counted (\d+);", done.stdout)]


@pytest.mark.parametrize("world", [1, 2])
def test_updates_are_those_of_the_specification(command, tmp_path, small_camvid, world):
    """Alternating, not joint, and with several processes the mean of their gradients.

    A plain torch loop, with BatchNorm's statistics by process as in DDP. Over both processes all
    pixels of an epoch are counted, each once, to look for a collapse.
    """
    arguments = command("run", trainer__devices=world)
    if world == 1:
        fit(arguments)
    else:
        counted = fit_counting(arguments, tmp_path / "counting.py")
        assert counted == [8 * 48 * 64] * world * 2  # epochs
    found = weights(tmp_path / "run")

    L.seed_everything(0)
    system = WNetSystem(clusters=4, width=0.0625, **RATES)
    networks = [copy.deepcopy(system.network).train() for _ in range(world)]
    optimizers = [
        [torch.optim.Adam(n.encoder.parameters(), RATES["lr_encoder"]) for n in networks],
        [
            torch.optim.Adam(
                [
                    {"params": n.encoder.parameters(), "lr": RATES["lr_encoder"]},
                    {"params": n.decoder.parameters(), "lr": RATES["lr_decoder"]},
                ]
            )
            for n in networks
        ],
    ]
    data = Frames(str(small_camvid / "train" / "images"), (48, 64), batch_size=4, workers=0)
    data.setup("fit")
    frames = CroppedFrames(data.train, (48, 64), (1.0, 2.0), 0)
    for epoch in range(2):
        shards = []
        for rank in range(world):
            sampler = EpochSampler(frames, world, rank, seed=0, drop_last=True)
            sampler.set_epoch(epoch)
            shards.append([frames[key][0] for key in sampler])
        share = 4 // world
        for step in range(2):
            batches = [torch.stack(shard[step * share : (step + 1) * share]) for shard in shards]
            # What DDP does before a forward: the buffers are those of the first process.
            for network in networks[1:]:
                for mine, first in zip(network.buffers(), networks[0].buffers(), strict=True):
                    mine.data.copy_(first)
            two_updates(networks, optimizers, batches)
    for name, value in networks[0].state_dict().items():
        torch.testing.assert_close(
            found[f"network.{name}"], value, atol=2e-3, rtol=1e-2, msg=lambda m, n=name: f"{n}: {m}"
        )
    moved = networks[0].encoder.head.weight - system.network.encoder.head.weight
    assert moved.abs().max() > 4e-3


def test_killed_and_resumed_equals_unbroken(command, tmp_path):
    options = {"model__init_args__dropout": 0.2, "trainer__max_epochs": 6}
    fit(command("unbroken", **options))
    process = start(command("killed", **options))
    while process.poll() is None and not (tmp_path / "killed" / "last.ckpt").exists():
        time.sleep(0.01)
    time.sleep(0.1)  # let it write the file, and go on into the next epoch
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
    done = torch.load(tmp_path / "killed" / "last.ckpt", weights_only=True)["epoch"] + 1
    assert 1 <= done < 6
    fit([*command("killed", **options), f"--ckpt_path={tmp_path / 'killed' / 'last.ckpt'}"])
    expected, found = weights(tmp_path / "unbroken"), weights(tmp_path / "killed")
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def test_training_lowers_both_losses_and_draws(command, tmp_path):
    fit(command("run", trainer__max_epochs=15, model__init_args__lr_encoder=0.02))
    log = tmp_path / "run" / "log" / "version_0"
    with (log / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in ("train/soft_ncut", "train/reconstruction"):
        values = [float(row[name]) for row in rows if row[name]]
        assert len(values) == 30
        assert np.mean(values[-4:]) < 0.9 * np.mean(values[:4]), name
    assert {float(r["train/clusters_in_use"]) for r in rows if r["train/clusters_in_use"]} <= {
        *(1.0, 2.0, 3.0, 4.0)
    }
    pictures = sorted((log / "pictures").glob("val_*.png"))
    assert len(pictures) >= 15
    assert cv2.imread(str(pictures[-1])).shape == (3 * 48, 8 * 64, 3)


@pytest.mark.parametrize("limit", [{}, {"max_steps": 12}])
def test_poly_rates_fall_to_the_end_of_the_run_and_no_sooner(small_camvid, limit):
    rates = []

    class Watched(WNetSystem):
        def on_train_batch_start(self, batch, index):
            super().on_train_batch_start(batch, index)
            rates.append([group["lr"] for o in self.optimizers() for group in o.param_groups])

    data = Frames(str(small_camvid / "train" / "images"), (48, 64), batch_size=4, workers=0)
    trainer = quiet_trainer(max_epochs=4, **limit)
    trainer.fit(Watched(clusters=3, width=0.0625, schedule="poly", **RATES), data)
    batches = 6 if limit else 8  # max_steps counts the steps of both optimisers
    assert len(rates) == batches
    for batch, found in enumerate(rates):
        factor = (1 - batch / batches) ** 0.9
        encoder, decoder = RATES["lr_encoder"] * factor, RATES["lr_decoder"] * factor
        assert found == pytest.approx([encoder, encoder, decoder])


def quiet_trainer(**options) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **options,
    )


def test_a_collapse_is_reported_while_training(small_camvid, tmp_path):
    system = WNetSystem(clusters=3, width=0.0625)
    with torch.no_grad():
        system.network.encoder.head.bias[1] = 100  # it wins at every pixel
    data = Frames(str(small_camvid / "train" / "images"), (48, 64), batch_size=4, workers=0)
    trainer = quiet_trainer(max_epochs=1)
    with pytest.warns(UserWarning, match=r"collapse: cluster 1 holds 100.00% .* Lower lr_encoder"):
        trainer.fit(system, data)


def test_no_collapse_where_two_clusters_share(recwarn):
    seen = []
    system = WNetSystem(clusters=3, width=0.0625)
    system.trainer = SimpleNamespace(
        loggers=[SimpleNamespace(log_metrics=lambda values, step: seen.append(values))],
        global_step=7,
    )
    system.all_gather = lambda x: torch.stack([x, x])  # two processes
    system.use += torch.tensor([998, 2, 0])
    system.look_for_collapse()
    assert seen == [{"train/clusters_in_use": 2.0, "train/largest_cluster": pytest.approx(0.998)}]
    assert system.use.tolist() == [0, 0, 0]
    assert not [w for w in recwarn if "collapse" in str(w.message)]
    system.use += torch.tensor([9999, 1, 0])
    with pytest.warns(UserWarning, match="collapse: cluster 0 holds 99.99%"):
        system.look_for_collapse()


def test_data_that_does_not_fit_the_system_is_refused(command, small_camvid, capsys):
    arguments = command("run", data="training.data.module.CamVid")
    arguments = [a for a in arguments if ".source" not in a] + [f"--data.root={small_camvid}"]
    assert main(arguments) == 2
    assert "W-Net trains on frames without labels, not on CamVid" in capsys.readouterr().err


def test_damaged_checkpoints_are_refused(command, tmp_path, capsys):
    torch.save({"state_dict": {"x": torch.zeros(9999)}}, tmp_path / "cut.ckpt")
    whole = (tmp_path / "cut.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    (tmp_path / "empty.ckpt").touch()
    torch.save({"x": torch.zeros(3)}, tmp_path / "other.ckpt")
    for name in ("cut.ckpt", "text.ckpt", "empty.ckpt", "other.ckpt", "missing.ckpt"):
        assert main([*command("run"), f"--ckpt_path={tmp_path / name}"]) == 2
        lines = [
            line for line in capsys.readouterr().err.splitlines() if line.startswith("training: ")
        ]
        assert len(lines) == 1 and name in lines[0] and "weights_only" not in lines[0]


def test_pure_bfloat16_trains(small_camvid):
    data = Frames(str(small_camvid / "train" / "images"), (48, 64), batch_size=4, workers=0)
    system = WNetSystem(clusters=3, width=0.0625)
    quiet_trainer(max_epochs=1, precision="bf16-true").fit(system, data)
    assert system.network.encoder.head.weight.dtype == torch.bfloat16
    assert all(parameter.isfinite().all() for parameter in system.parameters())


def test_nan_stops_with_step_and_batch(command, capsys):
    arguments = command("nan", model__init_args__lr_decoder=1e30, trainer__max_epochs=9)
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert "training: loss is " in said
    assert any(f"00{i}" in said.split("batch", 1)[1] for i in range(8))


@pytest.mark.parametrize("recipe", ["ade20k", "bsds", "camvid", "camvid_vit", "folder", "stanford"])
def test_shipped_recipes_train(recipe, small_camvid, tmp_path, capfd):
    """A batch of each YAML in mixed precision, small."""
    vit = tmp_path / "vit.safetensors"
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), vit)
    arguments = {
        "config": ROOT / "training" / "configs" / f"wnet_{recipe}.yaml",
        "data.source": small_camvid / "train" / "images",
        **({"data.val_source": "null"} if recipe.startswith(("bsds", "camvid")) else {}),
        # An untaught ViT in place of the weights' file.
        **({"model.vit": "test_vit", "model.vit_weights": vit} if recipe == "camvid_vit" else {}),
        "data.size": "[48, 64]",
        "data.workers": 0,
        "data.batch_size": 2,
        "model.width": 0.0625,
        "trainer.accelerator": "cpu",
        "trainer.precision": "bf16-mixed",
        "trainer.fast_dev_run": 1,
    }
    assert main(["fit", *(f"--{key}={value}" for key, value in arguments.items())]) == 0
    assert "train/" in capfd.readouterr().out


@pytest.mark.parametrize("clusters", [1, 256])
def test_numbers_of_clusters_that_cannot_be(clusters):
    with pytest.raises(ValueError, match="clusters must be 2 to 255"):
        WNetSystem(clusters=clusters)


@pytest.mark.parametrize(("count", "least"), [(2, 60), (9, 60), (18, 19), (27, 19), (255, 17)])
def test_cluster_colours_differ(count, least):
    colours = cluster_colours(count).astype(int)
    apart = np.abs(colours[:, None] - colours).max(2)
    assert apart[~np.eye(count, dtype=bool)].min() >= least


@pytest.mark.parametrize("system", [WNetSystem, UNetSystem])
def test_sizes_that_no_model_file_can_have(system):
    with pytest.raises(ValueError, match=r"multiples of 16; the nearest are \[96, 128\]"):
        system(size=(100, 130))


def test_sheet_shows_image_clusters_and_reconstruction():
    images = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    probabilities = torch.zeros(2, 3, 4, 5)
    probabilities[0, 1], probabilities[1, 2] = 1, 1
    sheet = wnet_sheet(images, probabilities, images.float() / 255)
    assert sheet.shape == (12, 10, 3)
    assert np.array_equal(sheet[:4, 5:], images[1].permute(1, 2, 0).numpy())
    assert np.array_equal(sheet[8:], sheet[:4])
    colours = cluster_colours(3)
    assert (sheet[4:8, :5] == colours[1]).all()
    assert (sheet[4:8, 5:] == colours[2]).all()
