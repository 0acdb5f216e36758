# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from training.networks.encoder import Encoder
from training.networks.mask_transformer import MaskTransformer
from training.networks.segmenter import Segmenter

pytestmark = pytest.mark.slow

DEIT_TINY = "deit_tiny_patch16_224"


@pytest.fixture(scope="module")
def tiny() -> Segmenter:
    """Segmenter-Ti as published, 11 classes, 384x384."""
    torch.manual_seed(0)
    encoder = Encoder(DEIT_TINY, (384, 384))
    return Segmenter(encoder, MaskTransformer(encoder.dim, 11)).eval()


def multiply_adds_of_layers(network: torch.nn.Module, images: torch.Tensor) -> int:
    """Multiply-adds of every linear layer and convolution, from what passes through them."""
    total = 0

    def count(layer, inputs, output):
        nonlocal total
        each = layer.weight[0].numel()  # weights of one output number
        total += output.numel() * each

    layers = [m for m in network.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.inference_mode():
        network(images)
    for hook in hooks:
        hook.remove()
    return total


def test_segmenter_tiny_has_the_published_size(tiny):
    parameters = sum(p.numel() for p in tiny.parameters())
    assert 6.55e6 < parameters < 6.75e6
    assert len(tiny.encoder.vit.blocks) == 12
    assert len(tiny.decoder.blocks) == 2
    assert [block.attn.num_heads for block in tiny.encoder.vit.blocks] == [3] * 12
    assert [block.attn.num_heads for block in tiny.decoder.blocks] == [3] * 2


def test_segmenter_tiny_costs_what_the_paper_specifies(tiny):
    """5.5 GMAC at 384x384 with 11 classes: what the layers do is the sum of the specification."""
    patches, classes, dim = (384 // 16) ** 2, 11, 192
    encoder, decoder = patches + 1, patches + classes  # tokens: with CLS, with those of the classes
    block = 4 * dim**2 + 2 * 4 * dim**2  # of one token: qkv and projection, MLP of 4 x dim
    layers = (
        patches * 3 * 16**2 * dim  # patches become tokens
        + 12 * encoder * block
        + patches * dim**2  # encoder to decoder
        + 2 * decoder * block
        + decoder * dim**2  # projections of patches and of classes
    )
    assert multiply_adds_of_layers(tiny, torch.zeros(1, 3, 384, 384)) == layers
    # Products without weights: queries by keys and attention by values; patches by classes.
    products = 2 * dim * (12 * encoder**2 + 2 * decoder**2) + patches * classes * dim
    assert layers + products == pytest.approx(5.5e9, rel=0.02)


def test_shapes_through_the_network(tiny):
    images = torch.zeros(2, 3, 384, 384, dtype=torch.uint8)
    with torch.inference_mode():
        tokens = tiny.encoder(images)
        assert tokens.shape == (2, 576, 192)
        assert tiny.decoder.scores(tokens).shape == (2, 576, 1, 11)
        assert tiny.decoder(tokens, (24, 24)).shape == (2, 11, 24, 24)
        assert tiny(images).shape == (2, 11, 384, 384)


def test_layer_norms_follow_the_origin_of_the_weights(tiny):
    assert {m.eps for m in tiny.encoder.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-6}
    assert {m.eps for m in tiny.decoder.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-5}


def test_initialisation_of_the_decoder():
    torch.manual_seed(0)
    decoder = MaskTransformer(192, classes=150)
    assert decoder.class_tokens.std().item() == pytest.approx(0.02, rel=0.05)
    for projection in (decoder.project_patches, decoder.project_classes):
        assert projection.bias is None
        assert projection.weight.std().item() == pytest.approx(192**-0.5, rel=0.05)


def test_statistics_belong_to_the_backbone(tiny):
    assert tiny.encoder.mean.tolist() == pytest.approx([0.485, 0.456, 0.406])
    augreg = Encoder("vit_tiny_patch16_384.augreg_in21k_ft_in1k", (64, 64))
    assert augreg.mean.tolist() == augreg.std.tolist() == [0.5, 0.5, 0.5]


def test_position_embedding_follows_the_grid_not_the_token_count(tiny):
    """18x32 = 24x24 = 576 tokens: the published code would reuse the square grid."""
    square = tiny.encoder.position_embedding(24, 24)
    wide = tiny.encoder.position_embedding(18, 32)
    assert square.shape == wide.shape
    assert torch.equal(square, tiny.encoder.vit.pos_embed)
    assert not torch.allclose(square, wide)


@pytest.mark.parametrize("grid", [(18, 32), (24, 24), (30, 40), (5, 61)])
def test_position_embedding_against_slow_interpolation(tiny, grid):
    stored = tiny.encoder.vit.pos_embed.detach().numpy()[0]
    found = tiny.encoder.position_embedding(*grid).detach().numpy()[0]
    np.testing.assert_array_equal(found[0], stored[0])  # the CLS token keeps its own
    table = stored[1:].reshape(24, 24, -1).astype(np.float64)
    for row in range(0, grid[0], 3):
        for column in range(0, grid[1], 7):
            y = min(max((row + 0.5) * 24 / grid[0] - 0.5, 0), 23)
            x = min(max((column + 0.5) * 24 / grid[1] - 0.5, 0), 23)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, 23), min(x0 + 1, 23)
            a, b = y - y0, x - x0
            expected = (1 - a) * ((1 - b) * table[y0, x0] + b * table[y0, x1]) + a * (
                (1 - b) * table[y1, x0] + b * table[y1, x1]
            )
            np.testing.assert_allclose(
                found[1 + row * grid[1] + column], expected, atol=1e-6, rtol=0
            )


def test_encoder_at_its_own_grid_is_timm(tiny):
    """Our forward pass takes the ViT apart: at the stored grid it must give what timm gives."""
    images = torch.randint(0, 256, (1, 3, 384, 384), generator=torch.Generator().manual_seed(1))
    encoder = tiny.encoder
    with torch.inference_mode():
        normalised = (images / 255 - encoder.mean[:, None, None]) / encoder.std[:, None, None]
        expected = encoder.vit.forward_features(normalised)[:, 1:]
        torch.testing.assert_close(encoder(images), expected, atol=1e-5, rtol=1e-5)


def test_encoder_with_registers_and_prefix_free_positions_is_timm():
    encoder = Encoder("test_vit3", (64, 96)).eval()
    vit = encoder.vit
    assert vit.num_prefix_tokens > 0
    images = torch.randint(0, 256, (1, 3, 64, 96), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        normalised = (images / 255 - encoder.mean[:, None, None]) / encoder.std[:, None, None]
        expected = vit.forward_features(normalised)[:, vit.num_prefix_tokens :]
        torch.testing.assert_close(encoder(images), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("subpatch", [1, 2, 4])
def test_masks_against_slow_oracle(subpatch):
    """Masks cell by cell in float64, from what the decoder's blocks put out."""
    torch.manual_seed(subpatch)
    decoder = MaskTransformer(48, classes=5, dim=64, subpatch=subpatch, mask_dim=32).double().eval()
    torch.nn.init.normal_(decoder.mask_norm.weight)
    torch.nn.init.normal_(decoder.mask_norm.bias)
    tokens = torch.randn(1, 6, 48, dtype=torch.float64)
    with torch.inference_mode():
        found = decoder(tokens, (2, 3))[0].numpy()
        x = torch.cat([decoder.project(tokens), decoder.class_tokens], 1)
        x = decoder.norm(decoder.blocks(x))[0].numpy()
    to_patch = decoder.project_patches.weight.detach().numpy()
    to_class = decoder.project_classes.weight.detach().numpy()
    gain = decoder.mask_norm.weight.detach().numpy()
    shift = decoder.mask_norm.bias.detach().numpy()
    for row in range(2 * subpatch):
        for column in range(3 * subpatch):
            patch = x[(row // subpatch) * 3 + column // subpatch]
            cell = (row % subpatch) * subpatch + column % subpatch
            embedding = to_patch[cell * 32 : (cell + 1) * 32] @ patch
            scores = np.empty(5)
            for k in range(5):
                token = to_class @ x[6 + k]
                scores[k] = (embedding @ token) / np.sqrt((embedding @ embedding) * (token @ token))
            scores = (scores - scores.mean()) / np.sqrt(scores.var() + decoder.mask_norm.eps)
            np.testing.assert_allclose(
                found[:, row, column], scores * gain + shift, rtol=1e-8, atol=1e-10
            )


def test_normalisation_survives_half_precision():
    decoder = MaskTransformer(64, classes=3, dim=64).half().eval()
    torch.nn.init.zeros_(decoder.project_patches.weight)
    with torch.inference_mode():
        assert decoder(torch.zeros(1, 4, 64).half(), (2, 2)).isfinite().all()


@pytest.mark.parametrize(
    ("size", "nearest"), [((100, 96), "96x96"), ((8, 64), "16x64"), ((352, 481), "352x480")]
)
def test_sizes_that_do_not_fit_name_the_nearest(tiny, size, nearest):
    with pytest.raises(ValueError, match=f"multiple of the patch 16; nearest fit: {nearest}"):
        tiny(torch.zeros(1, 3, *size))


def test_missing_backbone_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no-such-weights: no such file"):
        Encoder(DEIT_TINY, (64, 64), weights=tmp_path / "no-such-weights")


def test_backbone_from_a_local_file(tmp_path):
    """timm's own names, as its downloads have; the position grid is fitted to the new size."""
    source = Encoder("test_vit", (160, 160))
    torch.save(source.vit.state_dict(), tmp_path / "vit.pth")
    loaded = Encoder("test_vit", (64, 96), weights=tmp_path / "vit.pth")
    assert torch.equal(loaded.vit.blocks[3].mlp.fc1.weight, source.vit.blocks[3].mlp.fc1.weight)
    assert loaded.vit.pos_embed.shape == (1, 1 + 4 * 6, 64)
