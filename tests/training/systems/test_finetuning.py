# SPDX-License-Identifier: Apache-2.0
"""Segmenters on a given encoder: linear head, frozen encoder, few labels."""

from pathlib import Path

import lightning as L
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from training.__main__ import main
from training.data.files import DataError
from training.data.module import CamVid
from training.export.checkpoint import network_labels
from training.networks.linear_head import LinearHead
from training.networks.weights import WeightsError
from training.systems.distilled import DistilledSystem
from training.systems.registry import load_system
from training.systems.segmenter import SegmenterSystem

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]


def test_linear_head_scores_each_patch_by_itself():
    head = LinearHead(6, 4)
    tokens = torch.randn(2, 3 * 5, 6)
    masks = head(tokens, (3, 5))
    assert masks.shape == (2, 4, 3, 5)
    weight, bias = head.score.weight, head.score.bias
    for row in range(3):
        for column in range(5):
            expected = tokens[1, 5 * row + column] @ weight.T + bias
            assert torch.allclose(masks[1, :, row, column], expected, atol=1e-6)


@pytest.mark.parametrize("head", ["mask", "linear"])
def test_frozen_encoder_keeps_its_weights_and_the_head_learns(head, config, small_camvid, tmp_path):
    options = {"model__init_args__frozen": True, "model__init_args__head": head}
    more = {"model__init_args__dropout": 0.5, "model__init_args__lr": 0.5}
    assert main(config(head, **options, **more)) == 0
    saved = torch.load(tmp_path / head / "last.ckpt", weights_only=True)
    arguments = {k: v for k, v in saved["hyper_parameters"].items() if k[0] != "_"}
    torch.manual_seed(0)  # the seed of the command line: the same network before any step
    fresh = SegmenterSystem(**arguments).state_dict()
    for name, trained in saved["state_dict"].items():
        if name.startswith("network.encoder."):
            assert torch.equal(trained, fresh[name]), name
    learnt = [name for name in fresh if name.startswith("network.decoder.")]
    assert any(not torch.equal(saved["state_dict"][name], fresh[name]) for name in learnt)

    system = SegmenterSystem.load_from_checkpoint(tmp_path / head / "last.ckpt", weights_only=True)
    frames = CamVid(str(small_camvid), size=(64, 96))
    frames.setup("validate")
    labels = network_labels(system.eval(), frames.val[0][0])
    assert labels.shape == (64, 96)
    assert len(set(labels.ravel().tolist())) > 1


def test_frozen_encoder_drops_nothing_while_training(config):
    system = SegmenterSystem("test_vit", size=(64, 96), decoder_dim=64, dropout=0.5, frozen=True)
    system.train()
    system.on_train_epoch_start()
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    encoder = system.network.encoder
    assert torch.equal(encoder(images), encoder(images))
    assert not any(p.requires_grad for p in encoder.parameters())
    held = {id(p) for group in system.parameter_groups() for p in group["params"]}
    assert held == {id(p) for p in system.network.decoder.parameters()}


@pytest.mark.parametrize(
    ("share", "expected"), [(1.0, list(range(8))), (0.25, [2, 6]), (0.01, [4])]
)
def test_share_of_the_labels_is_spread_evenly(share, expected, small_camvid):
    frames = CamVid(str(small_camvid), share=share)
    frames.setup("fit")
    everything = CamVid(str(small_camvid))
    everything.setup("fit")
    assert [frames.train[i][2] for i in range(len(frames.train))] == [
        everything.train[i][2] for i in expected
    ]
    assert len(frames.val) == 3


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5])
def test_share_out_of_range_is_refused(share):
    with pytest.raises(DataError, match="above 0, up to 1"):
        CamVid("nowhere", share=share)


def saved(system: L.LightningModule, path: Path) -> Path:
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(system)
    trainer.save_checkpoint(path)
    return path


@pytest.fixture
def student(tmp_path):
    """(network, its checkpoint) of a student of width 64 whose last block has 16 heads."""
    torch.manual_seed(1)
    system = DistilledSystem("test_vit", teacher="vit_large_patch16_224", size=(64, 96))
    return system.network.eval(), saved(system, tmp_path / "student.ckpt")


def test_student_goes_on_with_its_teachers_heads(student, config, tmp_path, street_frames):
    network, checkpoint = student
    heads = network.vit.blocks[-1].attn.num_heads
    arguments = {"weights": checkpoint, "last_heads": heads, "frozen": True, "head": "linear"}
    options = {f"model__init_args__{key}": value for key, value in arguments.items()}
    assert main(config("tuned", **options, trainer__max_epochs=1)) == 0
    checkpoint.unlink()  # the system's own checkpoint is enough from here on
    images = torch.from_numpy(street_frames[0][:64, :96]).permute(2, 0, 1)[None]
    system, _ = load_system(tmp_path / "tuned" / "last.ckpt")
    with torch.inference_mode():
        assert torch.equal(system.network.encoder(images), network(images))

    again = SegmenterSystem(
        "test_vit",
        weights=str(tmp_path / "tuned" / "last.ckpt"),
        size=(64, 96),
        last_heads=heads,
    )
    with torch.inference_mode():
        assert torch.equal(again.eval().network.encoder(images), network(images))
    with pytest.raises(WeightsError, match=f"set last_heads to {heads}"):
        SegmenterSystem("test_vit", weights=str(tmp_path / "tuned" / "last.ckpt"), size=(64, 96))


def test_student_with_its_architectures_heads_is_refused(student):
    network, checkpoint = student
    own = SegmenterSystem("test_vit").network.encoder.vit.blocks[-1].attn.num_heads
    heads = network.vit.blocks[-1].attn.num_heads
    assert heads != own
    said = rf"student.ckpt: .* with {heads} heads, test_vit has {own}: set last_heads to {heads}"
    with pytest.raises(WeightsError, match=said):
        SegmenterSystem("test_vit", weights=str(checkpoint), size=(64, 96))


def test_patch_of_a_checkpoint_is_kept(tmp_path, street_frames):
    arguments = {"patch": 8, "size": (64, 96), "decoder_dim": 64}
    system = SegmenterSystem("test_vit", **arguments).eval()
    loaded, _ = load_system(saved(system, tmp_path / "w.ckpt"))
    images = torch.from_numpy(street_frames[0][:64, :96]).permute(2, 0, 1)[None]
    with torch.inference_mode():
        assert system.network.encoder(images).shape[1] == 8 * 12
        assert torch.equal(loaded.logits(images), system.logits(images))


@pytest.mark.parametrize("grid", [(3, 10), (6, 4), (4, 4)])
@pytest.mark.parametrize(
    "system",
    [
        lambda: DistilledSystem("test_vit", teacher="vit_large_patch16_224", size=(64, 96)),
        lambda: SegmenterSystem("test_vit", patch=8, size=(32, 48), decoder_dim=64),
    ],
)
def test_checkpoint_of_one_frame_size_begins_another(system, grid, tmp_path):
    """Its 4x6 patches are no square, and 6x4 are as many."""
    first = system()
    encoder = getattr(first.network, "encoder", first.network)
    torch.nn.init.normal_(encoder.vit.pos_embed)
    found = SegmenterSystem(
        "test_vit",
        weights=str(saved(first, tmp_path / "first.ckpt")),
        size=tuple(side * encoder.patch for side in grid),
        patch=encoder.patch,
        last_heads=encoder.vit.blocks[-1].attn.num_heads,
    ).network.encoder.vit.pos_embed
    table = encoder.vit.pos_embed[:, 1:].unflatten(1, (4, 6)).permute(0, 3, 1, 2)
    table = F.interpolate(table, grid, mode="bicubic", antialias=True).permute(0, 2, 3, 1)
    torch.testing.assert_close(found[:, 1:], table.flatten(1, 2))


RECIPE = ROOT / "training" / "configs" / "segmenter_small_dino_camvid.yaml"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"model.init_args.frozen": True, "model.init_args.head": "linear"},
        {"model.init_args.patch": 16},
    ],
)
def test_recipe_trains(options, small_camvid, capsys):
    """Two batches of the recipe and of what its comments offer, without the weights' file."""
    size = "[64, 96]" if options.get("model.init_args.patch") else "[56, 84]"
    options = {
        "config": RECIPE,
        "model.init_args.weights": "null",
        "model.init_args.size": size,
        "data.init_args.size": size,
        "data.init_args.root": small_camvid,
        "data.init_args.share": 0.5,
        "data.init_args.workers": 0,
        "data.init_args.batch_size": 2,
        "trainer.accelerator": "cpu",
        "trainer.fast_dev_run": 2,
        **options,
    }
    assert main(["fit", *(f"--{key}={value}" for key, value in options.items())]) == 0
    assert "val/miou" in capsys.readouterr().out


def test_resumed_after_a_validation_equals_unbroken(config, tmp_path):
    """As the recipe counts and saves: by steps, at the end of an epoch."""
    options = {
        "data__init_args__share": 0.5,
        "data__init_args__batch_size": 2,
        "model__init_args__dropout": 0.2,
        "trainer__max_epochs": -1,
        "trainer__max_steps": 8,
        "trainer__check_val_every_n_epoch": "null",
        "trainer__val_check_interval": 4,
        "trainer__callbacks__save_on_train_epoch_end": False,
    }
    every = {"trainer__callbacks__filename": "{step}", "trainer__callbacks__save_top_k": -1}
    assert main(config("unbroken", **options, **every)) == 0
    half = tmp_path / "unbroken" / "step=4.ckpt"
    assert main([*config("resumed", **options), f"--ckpt_path={half}"]) == 0
    whole = torch.load(tmp_path / "unbroken" / "step=8.ckpt", weights_only=True)["state_dict"]
    found = torch.load(tmp_path / "resumed" / "last.ckpt", weights_only=True)
    assert found["global_step"] == 8
    for name in whole:
        assert torch.equal(found["state_dict"][name], whole[name]), name


def test_weights_of_another_network_end_in_one_line(config, tmp_path, capfd):
    path = tmp_path / "other.safetensors"
    save_file(timm.create_model("test_vit3", num_classes=0).state_dict(), path)
    assert main(config("run", model__init_args__weights=path)) == 2
    message = capfd.readouterr().err
    (line,) = [line for line in message.splitlines() if "test_vit" in line]
    assert line.startswith("training: ")
    assert "other.safetensors are not the weights of test_vit: cls_token is missing" in line
