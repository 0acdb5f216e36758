# SPDX-License-Identifier: Apache-2.0
"""The encoder's ViTs with registers and rotary embedding, its CLS row, and published weights."""

import argparse
import math
import re

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from training.networks.encoder import Encoder, cls_row, create_vit
from training.networks.weights import WeightsError, architectures, read_weights, stored_size

pytestmark = pytest.mark.slow

DINOV3 = "vit_tiny_patch16_dinov3_qkvb"
DINOV2 = "vit_small_patch14_dinov2"
REGISTERS = "vit_small_patch14_reg4_dinov2"


def shallow(name: str, size: tuple[int, int], depth: int = 3) -> Encoder:
    """An encoder of random weights that look apart, its first blocks only."""
    torch.manual_seed(0)
    encoder = Encoder(name, size).eval()
    encoder.vit.blocks = encoder.vit.blocks[:depth]
    with torch.no_grad():
        for block in encoder.vit.blocks:
            block.attn.qkv.weight *= 6
            for parameter in block.parameters():
                if parameter.ndim == 1:
                    parameter += 0.3 * torch.randn_like(parameter)
    return encoder


def full_attention(block: nn.Module, x: Tensor, rope: Tensor | None) -> Tensor:
    """All rows of a block's attention [B, heads, N, N], key by key as the papers have it."""
    attention = block.attn
    heads, width = attention.num_heads, attention.head_dim
    q, k, _ = attention.qkv(block.norm1(x)).unflatten(-1, (3, heads, width)).unbind(2)
    if (bias := getattr(attention, "q_bias", None)) is not None:
        q = q + bias.unflatten(0, (heads, width))
    q, k = attention.q_norm(q), attention.k_norm(k)
    if rope is not None:
        sines, cosines = rope.chunk(2, -1)
        first = x.shape[1] - len(rope)

        def rotate(t: Tensor) -> Tensor:
            patches = t[:, first:]
            turned = torch.cat([-patches[..., width // 2 :], patches[..., : width // 2]], -1)
            patches = patches * cosines[:, None] + turned * sines[:, None]
            return torch.cat([t[:, :first], patches], 1)

        q, k = rotate(q), rotate(k)
    return (torch.einsum("bnhd,bmhd->bhnm", q, k) / width**0.5).softmax(-1)


@pytest.mark.parametrize("grid", [(6, 10), (10, 6), (1, 7), (8, 8)])
@pytest.mark.parametrize("name", [DINOV3, REGISTERS])
def test_tokens_and_attention_are_timms_at_any_grid(name, grid):
    encoder = shallow(name, (224, 224))
    size = tuple(side * encoder.patch for side in grid)
    vit = create_vit(name, img_size=size).eval()
    vit.blocks = vit.blocks[: len(encoder.vit.blocks)]
    state = encoder.vit.state_dict()
    if vit.pos_embed is not None:
        state["pos_embed"] = encoder.position_embedding(*grid)
    vit.load_state_dict(state)
    images = torch.randint(0, 256, (2, 3, *size), generator=torch.Generator().manual_seed(1))
    entering = {}
    vit.blocks[-1].register_forward_pre_hook(lambda module, args: entering.update(x=args[0]))
    with torch.inference_mode():
        normalised = (images / 255 - encoder.mean[:, None, None]) / encoder.std[:, None, None]
        expected = vit.forward_features(normalised)
        rope = vit.rope.get_embed(grid) if encoder.rotates else None
        rows = full_attention(vit.blocks[-1], entering["x"], rope)[:, :, 0]
        tokens, attention = encoder.features(images)
        alone = encoder.attention(encoder.embed(images))
        torch.testing.assert_close(tokens, expected, atol=1e-4, rtol=1e-4)
        prefix = vit.num_prefix_tokens
        torch.testing.assert_close(encoder(images), expected[:, prefix:], atol=1e-4, rtol=1e-4)
    assert prefix == 5 and rows.amax() > 1.5 * rows.mean()
    torch.testing.assert_close(attention, rows[..., prefix:], atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(alone, attention)


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_cls_row_is_the_first_of_all(qk_norm, bias):
    torch.manual_seed(0)
    block = timm.models.vision_transformer.Block(48, 3, qkv_bias=bias, qk_norm=qk_norm).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 11, 48, dtype=torch.float64)
    found = cls_row(block.attn, block.norm1(x))
    torch.testing.assert_close(found, full_attention(block, x, None)[:, :, 0])


def test_other_networks_are_refused():
    with pytest.raises(ValueError, match="timm makes no ViT called vit_nonsense: Unknown model"):
        Encoder("vit_nonsense", (64, 64))
    parallel, hybrid = "vit_small_patch16_18x2_224", "vit_tiny_r_s16_p8_224"
    differential = "vit_dwee_patch16_reg1_gap_256"
    for name in ("resnet18", "eva02_tiny_patch14_224", parallel, hybrid, differential):
        with pytest.raises(ValueError, match=f"{name} is no ViT as DINO"):
            create_vit(name)


# Weights


@pytest.fixture(scope="module")
def deit() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return timm.create_model("deit_tiny_patch16_224").state_dict()


@pytest.fixture(scope="module")
def backbone(deit) -> dict[str, Tensor]:
    return {k: v for k, v in deit.items() if not k.startswith("head.")}


WRAPPINGS = {
    "deit": lambda state: {"model": state},
    "backbone": lambda state: state,
    "training": lambda state: {
        "student": {f"module.backbone.{k}": torch.zeros_like(v) for k, v in state.items()},
        "teacher": {
            **{f"backbone.{k}": v for k, v in state.items()},
            "head.mlp.0.weight": torch.zeros(2, 2),
        },
        "epoch": 1,
        "args": argparse.Namespace(arch="vit_small"),
    },
    "processes": lambda state: {"teacher": {f"module.backbone.{k}": v for k, v in state.items()}},
    "ours": lambda state: {
        "state_dict": {
            **{f"student.encoder.vit.{k}": torch.zeros_like(v) for k, v in state.items()},
            **{f"teacher.encoder.vit.{k}": v for k, v in state.items()},
        },
    },
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_weights_are_found_in_what_they_are_wrapped_in(backbone, wrapping, tmp_path):
    torch.save(WRAPPINGS[wrapping](backbone), tmp_path / "w.pth")
    found = read_weights(tmp_path / "w.pth").tensors
    assert found.keys() == backbone.keys()
    assert all(torch.equal(found[name], backbone[name]) for name in found)


def test_architecture_follows_from_names_and_shapes(deit, backbone, tmp_path):
    torch.save({"model": deit}, tmp_path / "w.pth")
    weights = read_weights(tmp_path / "w.pth")
    assert weights.head and "head.weight" not in weights.tensors
    assert stored_size(weights) == (224, 224)
    fits = architectures(weights)
    assert fits[0] == "deit_tiny_patch16_224.fb_in1k"
    assert "vit_tiny_patch16_224.augreg_in21k_ft_in1k" in fits  # the same shapes
    save_file(backbone, tmp_path / "w.safetensors")
    encoder = Encoder(fits[0], (224, 224), weights=tmp_path / "w.safetensors")
    for name, tensor in encoder.vit.state_dict().items():
        assert torch.equal(tensor, backbone[name])


def test_dinov2_with_registers_in_its_own_names(tmp_path):
    vit = create_vit(REGISTERS, img_size=518)
    state = vit.state_dict()
    cls = torch.randn(1, 1, 384)
    own = {
        **state,
        "register_tokens": state["reg_token"],
        "cls_token": state["cls_token"] - cls,
        "pos_embed": torch.cat([cls, state["pos_embed"]], 1),
        "mask_token": torch.zeros(1, 384),
    }
    del own["reg_token"]
    torch.save(own, tmp_path / "w.pth")
    weights = read_weights(tmp_path / "w.pth")
    assert architectures(weights) == [f"{REGISTERS}.lvd142m"]
    assert stored_size(weights) == (518, 518)
    loaded = Encoder(REGISTERS, (518, 518), weights=tmp_path / "w.pth").vit.state_dict()
    for name, tensor in state.items():
        torch.testing.assert_close(loaded[name], tensor)


@pytest.mark.parametrize("name", [DINOV3, "vit_small_patch16_dinov3"])
def test_dinov3_in_its_own_names(name, tmp_path):
    torch.manual_seed(0)
    state = create_vit(name).state_dict()
    own: dict[str, Tensor] = {"mask_token": torch.zeros(1, 1), "rope_embed.periods": torch.ones(16)}
    for key, tensor in state.items():
        if key.endswith("q_bias"):
            tensor.normal_()
            parts = tensor, torch.full_like(tensor, torch.nan), state[key[:-6] + "v_bias"]
            own[key[:-6] + "qkv.bias"] = torch.cat(parts)
            own[key[:-6] + "qkv.bias_mask"] = torch.ones(len(tensor) * 3)
        elif not key.endswith("v_bias"):
            key = re.sub(r"gamma_([12])$", r"ls\1.gamma", key)
            own[key.replace("reg_token", "storage_tokens")] = tensor
    if name != DINOV3:
        own["blocks.0.attn.qkv.bias"] = torch.zeros(3 * 384)
    torch.save(own, tmp_path / "w.pth")
    weights = read_weights(tmp_path / "w.pth")
    assert name in architectures(weights)[0] and stored_size(weights) is None
    loaded = Encoder(name, (64, 96), weights=tmp_path / "w.pth").vit.state_dict()
    for key, tensor in state.items():
        assert torch.equal(loaded[key], tensor)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("deit_small_patch16_224", r"cls_token is \[1, 1, 192\], \[1, 1, 384\] expected"),
        (
            "vit_tiny_patch16_dinov3_qkvb",
            r"reg_token is missing, \[1, 4, 192\] expected; .*; and \d+ more",
        ),
        (DINOV2, r"pos_embed is \[1, 197, 192\], a square grid and 1 more of 384 expected"),
    ],
)
def test_weights_of_another_network_are_named_with_what_fits(backbone, name, said, tmp_path):
    torch.save(backbone, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=f"w.pth are not the weights of {name}: .*{said}") as hit:
        Encoder(name, (112, 112), weights=tmp_path / "w.pth")
    assert "They fit deit_tiny_patch16_224.fb_in1k" in str(hit.value)


def test_another_patch_and_depth_are_not_taken_for_fitting(backbone, tmp_path):
    coarse = {**backbone, "patch_embed.proj.weight": torch.zeros(192, 3, 32, 32)}
    torch.save(coarse, tmp_path / "w.pth")
    said = r"proj.weight is \[192, 3, 32, 32\], \[192, 3, 16, 16\] expected.*No architecture known"
    with pytest.raises(WeightsError, match=said):
        Encoder("deit_tiny_patch16_224", (64, 64), weights=tmp_path / "w.pth")
    deeper = {**backbone, "blocks.12.norm1.weight": torch.zeros(192)}
    torch.save(deeper, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"blocks.12.norm1.weight \[192\] is too many"):
        Encoder("deit_tiny_patch16_224", (64, 64), weights=tmp_path / "w.pth")


# Position grids

SMALL = "test_vit"
#: 9x16 and 12x12 have as many patches.
WIDE, SQUARE = (9, 16), (12, 12)


def with_ramps(grid: tuple[int, int]) -> dict[str, Tensor]:
    """A state whose positions say in two channels how far down and right a patch is, 0-1."""
    torch.manual_seed(0)
    state = create_vit(SMALL, img_size=tuple(16 * side for side in grid)).state_dict()
    state["pos_embed"].zero_()
    state["pos_embed"][:, 0] = 7  # of the CLS token
    state["pos_embed"][0, 1:, :2] = ramps(grid)
    return state


def ramps(grid: tuple[int, int]) -> Tensor:
    rows, columns = grid
    places = [((r + 0.5) / rows, (c + 0.5) / columns) for r in range(rows) for c in range(columns)]
    return torch.tensor(places)


def checkpoint(state: dict[str, Tensor], grid: tuple[int, int]) -> dict[str, object]:
    """A checkpoint of ours, as far as weights are read from it."""
    return {
        "system": "SegmenterSystem",
        "hyper_parameters": {"backbone": SMALL, "size": [16 * side for side in grid]},
        "state_dict": {f"network.encoder.vit.{k}": v for k, v in state.items()},
    }


@pytest.mark.parametrize("target", [WIDE, SQUARE, (10, 15), (16, 9)])
@pytest.mark.parametrize("stored", [WIDE, SQUARE, (11, 14)])
def test_positions_of_a_checkpoint_stay_in_their_places(stored, target, tmp_path):
    state = with_ramps(stored)
    torch.save(checkpoint(state, stored), tmp_path / "w.ckpt")
    vit = Encoder(SMALL, tuple(16 * s for s in target), weights=tmp_path / "w.ckpt").vit
    assert vit.pos_embed.shape == (1, 1 + math.prod(target), 64)
    assert (vit.pos_embed[0, 0] == 7).all()
    torch.testing.assert_close(vit.pos_embed[0, 1:, :2], ramps(target), atol=0.02, rtol=0)
    if stored == target:
        assert torch.equal(vit.pos_embed, state["pos_embed"])


@pytest.mark.parametrize("grid", [WIDE, SQUARE, (11, 14)])
def test_grid_of_a_checkpoint_is_kept_where_no_size_is_given(grid, tmp_path):
    state = with_ramps(grid)
    torch.save(checkpoint(state, grid), tmp_path / "w.ckpt")
    weights = read_weights(tmp_path / "w.ckpt")
    assert (weights.architecture, weights.grid) == (SMALL, grid)
    assert stored_size(weights) == tuple(16 * side for side in grid)
    assert stored_size(weights, 8) == tuple(8 * side for side in grid)
    vit = Encoder(SMALL, None, weights=tmp_path / "w.ckpt").vit
    assert vit.patch_embed.grid_size == grid
    assert torch.equal(vit.pos_embed, state["pos_embed"])


def test_positions_of_weights_alone_are_those_of_a_square(tmp_path):
    torch.save(with_ramps(SQUARE), tmp_path / "w.pth")
    vit = Encoder(SMALL, (160, 240), weights=tmp_path / "w.pth").vit
    torch.testing.assert_close(vit.pos_embed[0, 1:, :2], ramps((10, 15)), atol=0.02, rtol=0)
    # Also where the network has as many patches in another shape.
    vit = Encoder(SMALL, (144, 256), weights=tmp_path / "w.pth").vit
    torch.testing.assert_close(vit.pos_embed[0, 1:, :2], ramps((9, 16)), atol=0.05, rtol=0)
    state = with_ramps((11, 14))
    torch.save(state, tmp_path / "w.pth")
    assert stored_size(read_weights(tmp_path / "w.pth")) is None
    vit = Encoder(SMALL, (176, 224), weights=tmp_path / "w.pth").vit
    assert torch.equal(vit.pos_embed, state["pos_embed"])
    with pytest.raises(WeightsError, match=r"\[1, 155, 64\], a square grid and 1 more of 64"):
        Encoder(SMALL, (160, 240), weights=tmp_path / "w.pth")


def test_positions_that_do_not_fill_their_grid_are_refused(tmp_path):
    torch.save(checkpoint(with_ramps(WIDE), (10, 15)), tmp_path / "w.ckpt")
    with pytest.raises(WeightsError, match=r"\[1, 145, 64\], 10x15 grid and 1 more of 64 expected"):
        Encoder(SMALL, (144, 256), weights=tmp_path / "w.ckpt")


def test_size_that_the_patch_does_not_divide_comes_before_the_weights(tmp_path):
    torch.save(with_ramps(SQUARE), tmp_path / "w.pth")
    with pytest.raises(ValueError, match="8x8 is no multiple of the patch 16; nearest fit: 16x16"):
        Encoder(SMALL, (8, 8), weights=tmp_path / "w.pth")


# Patches of another size


@pytest.fixture(scope="module")
def patch14(tmp_path_factory):
    """A file of DINOv2-S's shapes, patch 14, on a small grid, and its tensors."""
    torch.manual_seed(0)
    state = create_vit(DINOV2, img_size=(70, 70)).state_dict()
    # Kernels as trained ones are: smooth, each with a sum of its own.
    state["patch_embed.proj.weight"] = F.interpolate(
        torch.randn(384, 3, 4, 4), (14, 14), mode="bicubic"
    )
    path = tmp_path_factory.mktemp("weights") / "w.pth"
    torch.save(state, path)
    return path, state


def test_same_patch_changes_nothing(patch14):
    path, state = patch14
    found = Encoder(DINOV2, (70, 84), weights=path, patch=14).vit.state_dict()
    expected = Encoder(DINOV2, (70, 84), weights=path).vit.state_dict()
    for name in state:
        assert torch.equal(found[name], expected[name])
    assert torch.equal(found["patch_embed.proj.weight"], state["patch_embed.proj.weight"])


def test_resampled_kernels_say_the_same_of_an_enlarged_image(patch14, street_frames):
    path, state = patch14
    small, large = (
        Encoder(DINOV2, None, weights=path),
        Encoder(DINOV2, None, weights=path, patch=16),
    )
    assert (small.patch, large.patch) == (14, 16)
    assert small.vit.patch_embed.grid_size == large.vit.patch_embed.grid_size == (5, 5)
    images = torch.from_numpy(street_frames[0][:140, :140]).permute(2, 0, 1)[None].float()
    enlarged = F.interpolate(images, (160, 160), mode="bicubic")
    kernels = state["patch_embed.proj.weight"]
    naive = F.interpolate(kernels, (16, 16), mode="bicubic")
    with torch.inference_mode():
        expected, found = small.embed(images), large.embed(enlarged)
        large.vit.patch_embed.proj.weight.copy_(naive)
        worse = large.embed(enlarged)
    assert found.shape == expected.shape == (1, 10, 10, 384)
    scale = expected.square().mean().sqrt()
    assert (found - expected).square().mean().sqrt() < 0.02 * scale
    assert (worse - expected).square().mean().sqrt() > 0.2 * scale


def test_another_patch_is_an_error_unless_asked_for(patch14, deit, tmp_path):
    path, _ = patch14
    said = r"proj.weight is \[384, 3, 14, 14\], \[384, 3, 16, 16\] expected"
    with pytest.raises(WeightsError, match=said):
        Encoder("vit_small_patch16_224", (64, 64), weights=path)
    with pytest.raises(ValueError, match="patch is 0"):
        Encoder(DINOV2, (64, 64), weights=path, patch=0)
    with pytest.raises(ValueError, match="70x70 is no multiple of the patch 16"):
        Encoder(DINOV2, (70, 70), weights=path, patch=16)
    torch.save({"model": deit}, tmp_path / "deit.pth")
    with pytest.raises(WeightsError, match="They fit deit_tiny_patch16_224"):
        Encoder(DINOV2, (70, 70), weights=tmp_path / "deit.pth", patch=14)


class Pickled:
    def __reduce__(self):
        return print, ("run by the file",)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"patch_embed.proj.weight": torch.zeros(192, 3, 1, 16, 16)},
            r"patch_embed.proj.weight is \[192, 3, 1, 16, 16\], in a ViT it has 4 dimensions",
        ),
        ({"pos_embed": torch.zeros(197)}, r"w.pth: pos_embed is \[197\], in a ViT it has 3 dimen"),
        (
            {"register_tokens": torch.zeros(1, 4, 192), "cls_token": None},
            r"cls_token is missing, \[1, 1, 192\] expected; register_tokens .* is too many",
        ),
        (
            {"register_tokens": torch.zeros(1, 4, 192), "pos_embed": None},
            r"pos_embed is missing, \[1, 50, 192\] expected; register_tokens .* is too many",
        ),
    ],
)
def test_odd_tensors_are_named(backbone, changes, said, tmp_path):
    state = {k: v for k, v in {**backbone, **changes}.items() if v is not None}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=said):
        Encoder("deit_tiny_patch16_224", (112, 112), weights=tmp_path / "w.pth")


def test_files_that_are_no_weights_are_refused(tmp_path, capsys):
    path = tmp_path / "w.pth"
    torch.save({"model": Pickled()}, path)
    with pytest.raises(WeightsError, match=r"needs unpickling of code \(.*print\)"):
        read_weights(path)
    assert "run by the file" not in capsys.readouterr().out
    texts = (b"", b"no weights at all", b"hello\n", b"seed_everything: 0\n", b"X x\n", b"(dp0\n.")
    for data in texts:
        path.write_bytes(data)
        with pytest.raises(WeightsError, match=r"w\.pth: damaged"):
            read_weights(path)
    (tmp_path / "w.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(WeightsError, match=r"w\.safetensors: damaged"):
        read_weights(tmp_path / "w.safetensors")
    torch.save({"fc.weight": torch.zeros(2, 3)}, path)
    with pytest.raises(WeightsError, match=r"no weights of a ViT: .* found fc.weight \[2, 3\]"):
        read_weights(path)
    torch.save([1, 2], path)
    with pytest.raises(WeightsError, match="found no tensor"):
        read_weights(path)
