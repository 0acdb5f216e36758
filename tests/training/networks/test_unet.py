# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from torch import nn

from training.networks.unet import Module, UNet
from training.networks.wnet import WNet

pytestmark = pytest.mark.slow


def convolutions(network: nn.Module) -> list[tuple[str, int, int]]:
    """(kind, channels in, channels out) of each convolution, a separable one counted once."""
    found = []
    for module in network.modules():
        if isinstance(module, nn.ConvTranspose2d):
            found.append(("up", module.in_channels, module.out_channels))
        elif isinstance(module, nn.Conv2d) and module.groups > 1:
            assert module.kernel_size == (3, 3)
            assert module.groups == module.in_channels == module.out_channels
            depthwise = module
        elif isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            found.append(("plain", module.in_channels, module.out_channels))
        elif isinstance(module, nn.Conv2d):
            assert module.kernel_size == (1, 1)
            separable = depthwise is not None and depthwise.out_channels == module.in_channels
            found.append(("separable" if separable else "1x1", *module.weight.shape[1::-1]))
        if not (isinstance(module, nn.Conv2d) and module.groups > 1):
            depthwise = None
    return found


def test_the_published_layers():
    """46 convolutions in 18 modules: 36 of 3x3, 8 upwards, 2 at the ends (Xia & Kulis 2017)."""
    network = WNet(clusters=9)
    assert sum(isinstance(module, Module) for module in network.modules()) == 18
    found = convolutions(network)
    assert len(found) == 46
    assert sum(kind == "up" for kind, _, _ in found) == 8
    assert sum(kind == "1x1" for kind, _, _ in found) == 2
    # Modules 1, 9, 10 and 18 are plain, two convolutions each; all the others separable.
    assert [c for c in found if c[0] == "plain"] == [
        *[("plain", 3, 64), ("plain", 64, 64), ("plain", 128, 64), ("plain", 64, 64)],
        *[("plain", 9, 64), ("plain", 64, 64), ("plain", 128, 64), ("plain", 64, 64)],
    ]
    assert sum(kind == "separable" for kind, _, _ in found) == 28
    downwards = [(64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512)]
    upwards = [(512, 1024), (1024, 1024), (1024, 512), (512, 512), (512, 256), (256, 256)]
    separable = [(i, o) for kind, i, o in found if kind == "separable"]
    assert separable[:14] == [*downwards, *upwards, (256, 128), (128, 128)]
    assert separable[14:] == separable[:14]
    halves = [(1024, 512), (512, 256), (256, 128), (128, 64)]
    assert [(i, o) for kind, i, o in found if kind == "up"] == halves * 2
    assert [(i, o) for kind, i, o in found if kind == "1x1"] == [(64, 9), (64, 3)]


def test_a_module_is_convolution_relu_norm_twice():
    for separable in (False, True):
        kinds = [type(m) for m in Module(4, 6, separable, 0.5).modules() if not list(m.children())]
        convolution = [nn.Conv2d] * (2 if separable else 1)
        assert kinds == [*[*convolution, nn.ReLU, nn.BatchNorm2d] * 2, nn.Dropout]


@pytest.mark.parametrize("width", [0.25, 0.5, 1.5])
def test_width_scales_every_level(width):
    narrow = convolutions(UNet(3, 11, width))
    for (_, inputs, outputs), (_, i, o) in zip(narrow, convolutions(UNet(3, 11)), strict=True):
        assert inputs == (i if i == 3 else round(i * width))
        assert outputs == (o if o == 11 else round(o * width))


@pytest.mark.parametrize("size", [(32, 48), (33, 47), (1, 1), (17, 160), (15, 16)])
def test_any_size_comes_back(size):
    torch.manual_seed(0)
    network = UNet(3, 5, 0.0625).eval()
    assert network(torch.rand(2, 3, *size)).shape == (2, 5, *size)


def test_odd_sizes_are_filled_with_what_is_there():
    """The result is that of the image with its last row and column repeated, cut again."""
    torch.manual_seed(0)
    network = UNet(3, 5, 0.0625).eval()
    image = torch.rand(1, 3, 33, 47)
    rows, columns = np.minimum(np.arange(48), 32), np.minimum(np.arange(48), 46)
    filled = image[:, :, rows][..., columns]
    torch.testing.assert_close(network(image), network(filled)[..., :33, :47])


def rows_below(level: int, first: int, last: int) -> tuple[int, int]:
    """Rows of the image that rows first to last see on the way down, at the end of a level."""
    first, last = first - 2, last + 2  # two 3x3 convolutions
    return (first, last) if level == 0 else rows_below(level - 1, 2 * first, 2 * last + 1)


def rows_seen(level: int, first: int, last: int) -> tuple[int, int]:
    """Rows of the image that rows first to last see on the way up, at the end of a level."""
    if level == 4:
        return rows_below(4, first, last)
    first, last = first - 2, last + 2
    skip, rise = rows_below(level, first, last), rows_seen(level + 1, first // 2, last // 2)
    return min(skip[0], rise[0]), max(skip[1], rise[1])


@pytest.mark.parametrize("row", [144, 151, 159])
def test_receptive_field(row, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: x)  # no unit may be dead
    # In place of the largest of four, whose gradient reaches one of them only.
    monkeypatch.setattr("training.networks.unet.F.max_pool2d", nn.functional.avg_pool2d)
    network = UNet(1, 1, 0.0625).double().eval()
    image = torch.rand(1, 1, 304, 16, dtype=torch.double, requires_grad=True)
    network(image)[0, 0, row, 8].backward()
    seen = image.grad[0, 0].abs().sum(1).nonzero().flatten()
    assert (seen.min(), seen.max()) == rows_seen(0, row, row)


def test_dropout_acts_while_training_only():
    torch.manual_seed(0)
    network = UNet(3, 4, 0.0625, dropout=0.5)
    image = torch.rand(1, 3, 32, 32)
    network.train()
    assert not torch.equal(network(image), network(image))
    network.eval()
    assert torch.equal(network(image), network(image))


def test_wnet_gives_a_distribution_and_an_image():
    torch.manual_seed(0)
    network = WNet(7, 0.0625).eval()
    probabilities, reconstruction = network(torch.rand(2, 3, 40, 24))
    assert probabilities.shape == (2, 7, 40, 24)
    assert reconstruction.shape == (2, 3, 40, 24)
    assert probabilities.min() >= 0
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2, 40, 24))
