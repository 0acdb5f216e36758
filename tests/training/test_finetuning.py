# SPDX-License-Identifier: Apache-2.0
"""Segmenters on a given encoder: linear head, frozen encoder, few labels."""

import pytest
import torch

from training.__main__ import main
from training.data.files import DataError
from training.data.module import CamVid, evenly
from training.export import network_labels
from training.networks.linear_head import LinearHead
from training.systems.segmenter import SegmenterSystem


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


def test_evenly_takes_no_pair_twice():
    for count in range(1, 40):
        for share in (0.05, 0.2, 0.5, 0.99, 1.0):
            found = evenly(list(range(count)), share)
            assert found == sorted(set(found))
            assert len(found) == max(1, round(share * count))


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5])
def test_share_out_of_range_is_refused(share):
    with pytest.raises(DataError, match="above 0, up to 1"):
        CamVid("nowhere", share=share)
