# SPDX-License-Identifier: Apache-2.0
"""W-Net beyond the published form: reflection padding, and one graph over a batch by a ViT."""

import csv

import onnxruntime
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from training.__main__ import main
from training.export.checkpoint import export_graph
from training.losses.batch_ncut import batch_ncut
from training.networks.encoder import Encoder
from training.networks.unet import UNet
from training.systems.registry import load_system
from training.systems.wnet import WNetSystem

pytestmark = pytest.mark.slow


@pytest.fixture
def vit(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "vit.safetensors"
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), path)
    return path


def test_reflection_hides_the_border():
    """An image of one colour looks the same everywhere, unless zeros mark where it ends."""
    apart = {}
    for padding in ("reflect", "zeros"):
        torch.manual_seed(0)
        network = UNet(3, 4, width=0.1, padding=padding).eval()
        with torch.inference_mode():
            out = network(torch.full((1, 3, 64, 96), 0.7))
        # Transposed convolutions repeat every 16 pixels; reflected, that is not quite the same.
        cells = out[..., 16:32, 16:32].repeat(1, 1, 4, 6)
        apart[padding] = float((out - cells).abs().max())
    assert apart["reflect"] < 1e-3 < 1e-2 < apart["zeros"]


def test_exported_graph_reflects_too(street_frames):
    torch.manual_seed(0)
    system = WNetSystem(4, width=0.1, padding="reflect").eval()
    model = export_graph(system.graph(), system.task)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    frame = torch.from_numpy(street_frames[0][:64, :96].copy())
    labels, _ = session.run(None, {"image": frame[None].numpy()})
    with torch.inference_mode():
        expected = system.logits(frame.permute(2, 0, 1)[None]).argmax(1)
    assert (torch.from_numpy(labels) == expected).float().mean() > 0.999


def test_graph_of_the_batch_is_that_of_the_vits_tokens(vit, street_frames):
    system = WNetSystem(
        4, width=0.1, loss="batch", vit="test_vit", vit_weights=str(vit), cell=8, sigma=0.7
    )
    system.setup("fit")
    images = torch.stack(
        [torch.from_numpy(f[:48, :64].copy()).permute(2, 0, 1) for f in street_frames[:3]]
    )
    p = torch.randn(3, 4, 48, 64).softmax(1)
    found = system.ncut(p, images)
    # 6 x 8 cells of 8 pixels, each a patch of 16 for the ViT.
    large = F.interpolate(images.float(), (96, 128), mode="bilinear", antialias=True)
    with torch.no_grad():
        tokens = Encoder("test_vit", None, weights=vit).eval()(large)
    tokens = tokens / tokens.norm(dim=-1, keepdim=True)
    tokens = tokens - tokens.flatten(0, 1).mean(0)
    tokens = (tokens / tokens.norm(dim=-1, keepdim=True)).transpose(1, 2).unflatten(2, (6, 8))
    expected = batch_ncut(F.avg_pool2d(p, 8), tokens, 0.7)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert not any("vit" in name for name in system.state_dict())


def test_learns_and_becomes_a_model_file(vit, small_run, small_camvid, tmp_path):
    options = {
        "model": "training.systems.wnet.WNetSystem",
        "model.init_args.clusters": 3,
        "model.init_args.width": 0.0625,
        "model.init_args.padding": "reflect",
        "model.init_args.loss": "batch",
        "model.init_args.vit": "test_vit",
        "model.init_args.vit_weights": vit,
        "data": "training.data.unlabelled.Frames",
        "data.init_args.source": small_camvid / "train" / "images",
        "data.init_args.size": "[48, 64]",
        "data.init_args.batch_size": 4,
        "data.init_args.workers": 0,
    }
    assert main(small_run("run", options, {"trainer__max_epochs": 10})) == 0
    with (tmp_path / "run" / "log" / "version_0" / "metrics.csv").open() as file:
        cuts = [
            float(row["train/soft_ncut"]) for row in csv.DictReader(file) if row["train/soft_ncut"]
        ]
    assert sum(cuts[-4:]) < sum(cuts[:4])
    vit.unlink()
    system, run = load_system(tmp_path / "run" / "last.ckpt")
    assert run["recipe"]["vit_weights"] == "vit.safetensors"
    assert system.logits(torch.zeros(1, 3, 48, 64, dtype=torch.uint8)).shape == (1, 3, 48, 64)


@pytest.mark.parametrize("options", [{"loss": "batch"}, {"vit": "test_vit"}])
def test_a_vit_and_its_loss_go_together(options):
    with pytest.raises(ValueError, match="set both or none"):
        WNetSystem(4, width=0.1, **options)
