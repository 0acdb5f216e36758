# SPDX-License-Identifier: Apache-2.0
import math
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import huggingface_hub
import lightning as L
import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from numpy.typing import NDArray

from ctxseg_ros.inference.runtimes import open_runtime
from ctxseg_ros.model.model_file import read_model_info, write_metadata
from training.clusters import token_cut
from training.export import attention as command
from training.export.attention import default_size
from training.export.checkpoint import export_graph
from training.networks.deployed import AttentionGraph
from training.networks.encoder import Encoder
from training.systems.distilled import DistilledSystem

pytestmark = pytest.mark.slow

#: Wide, and a square of as many patches: neither may take the other's position embedding.
GRIDS = [(4, 9), (6, 6)]
VIT, DINOV3 = "vit_small_patch14_dinov2", "vit_tiny_patch16_dinov3_qkvb"
BLOCKS = 3

ROOT = Path(__file__).resolve().parents[3]


def shallow(name: str) -> Encoder:
    """Three blocks of random weights whose attention is far from even."""
    torch.manual_seed(0)
    encoder = Encoder(name, (112, 112)).eval()
    encoder.vit.blocks = encoder.vit.blocks[:BLOCKS]
    with torch.no_grad():
        for block in encoder.vit.blocks:
            block.attn.qkv.weight *= 6
            torch.nn.init.normal_(block.norm1.bias, std=0.3)
        if encoder.vit.pos_embed is not None:
            encoder.vit.pos_embed.normal_(std=0.3)
            torch.nn.init.normal_(encoder.vit.blocks[-1].attn.qkv.bias, std=0.5)
    return encoder


@pytest.fixture(scope="module", params=[VIT, DINOV3])
def exported(request, tmp_path_factory) -> tuple[Encoder, Path]:
    encoder = shallow(request.param)
    model = export_graph(AttentionGraph(encoder), "attention")
    write_metadata(
        model,
        name="shallow",
        task="attention",
        classes=[],
        stride=encoder.patch,
        size=(encoder.patch, encoder.patch),
        source={},
    )
    path = tmp_path_factory.mktemp("attention") / "shallow.onnx"
    path.write_bytes(model.SerializeToString())
    return encoder, path


def full_attention(encoder: Encoder, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The CLS row over patches, out of all N x N attention of timm's own, unfused last block."""
    grid = [side // encoder.patch for side in frame.shape[:2]]
    vit = timm.create_model(
        VIT if encoder.patch == 14 else DINOV3,
        num_classes=0,
        global_pool="",
        img_size=frame.shape[:2],
    ).eval()
    vit.blocks = vit.blocks[:BLOCKS]
    state = encoder.vit.state_dict()
    if vit.pos_embed is not None:
        table = state["pos_embed"][:, 1:].unflatten(1, (8, 8)).permute(0, 3, 1, 2)
        table = torch.nn.functional.interpolate(table, grid, mode="bilinear")
        state["pos_embed"] = torch.cat(
            [state["pos_embed"][:, :1], table.flatten(2).transpose(1, 2)], 1
        )
    vit.load_state_dict(state)
    attention = vit.blocks[-1].attn
    attention.fused_attn = False
    weights = {}
    # Without fusing, the softmaxed attention passes through this dropout.
    attention.attn_drop.register_forward_hook(lambda m, args, out: weights.update(all=out))
    image = torch.from_numpy(frame).permute(2, 0, 1)[None] / 255
    mean, std = (torch.tensor(vit.pretrained_cfg[k])[:, None, None] for k in ("mean", "std"))
    with torch.inference_mode():
        vit.forward_features((image - mean) / std)
    tokens = weights["all"].shape[-1]
    assert weights["all"].shape[-2:] == (tokens, tokens)
    return weights["all"][0, :, 0, tokens - math.prod(grid) :].unflatten(-1, grid).numpy()


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("device", ["cpu", "openvino"])
def test_maps_are_those_of_full_attention(exported, street_frames, grid, device):
    encoder, path = exported
    size = tuple(side * encoder.patch for side in grid)
    runtime = open_runtime(read_model_info(path), size, device, precision="fp32")
    for frame in street_frames[:3]:
        frame = cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA)
        expected = full_attention(encoder, frame)
        found = runtime.run(frame).attention
        assert found.shape == expected.shape == (encoder.vit.blocks[0].attn.num_heads, *grid)
        peaks = expected.max((1, 2), keepdims=True)
        assert (peaks > 2 / math.prod(grid)).any()  # not all even
        assert (np.abs(found - expected) / peaks).max() < 1e-3
    runtime.close()


def test_number_of_heads_is_fixed_and_the_grid_is_not(exported):
    encoder, path = exported
    (output,) = onnx.load(path).graph.output
    shape = output.type.tensor_type.shape.dim
    heads = encoder.vit.blocks[0].attn.num_heads
    assert [d.dim_value for d in shape[:2]] == [1, heads]
    assert [d.dim_param for d in shape[2:]] == ["rows", "columns"]


def pinned(path: Path, size: tuple[int, int], folder: Path) -> onnx.GraphProto:
    options = onnxruntime.SessionOptions()
    options.add_free_dimension_override_by_name("height", size[0])
    options.add_free_dimension_override_by_name("width", size[1])
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / "pinned.onnx")
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return onnx.shape_inference.infer_shapes(onnx.load(folder / "pinned.onnx")).graph


def multiply_adds(graph: onnx.GraphProto) -> int:
    shapes = {t.name: list(t.dims) for t in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        shapes[value.name] = [d.dim_value for d in value.type.tensor_type.shape.dim]
    total = 0
    for node in graph.node:
        if node.op_type in ("MatMul", "Gemm"):
            transposed = any(a.name == "transA" and a.i for a in node.attribute)
            inner = shapes[node.input[0]][-2 if transposed else -1]
            total += math.prod(shapes[node.output[0]]) * inner
        elif node.op_type == "Conv":
            total += math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])
    return total


def test_cost_is_that_of_all_blocks_but_the_last_and_one_row(exported, tmp_path):
    encoder, path = exported
    graph = pinned(path, (10 * encoder.patch, 14 * encoder.patch), tmp_path)
    patches, dim = 140, encoder.dim
    n = patches + encoder.vit.num_prefix_tokens
    heads = encoder.vit.blocks[0].attn.num_heads
    block = n * dim * 3 * dim + 2 * n * n * dim + n * dim * dim + 8 * n * dim * dim
    row = dim * dim + heads * n * dim + dim * dim
    if encoder.rotates:  # each key is turned by its place: all have to be there
        row = dim * dim + n * dim * dim + n * dim
    cost = patches * dim * 3 * encoder.patch**2 + (BLOCKS - 1) * block + row
    found = multiply_adds(graph)
    assert 0.99 * cost < found <= cost


def test_no_shape_is_left_at_a_pinned_size(exported, tmp_path):
    encoder, path = exported
    left = {n.op_type for n in pinned(path, (4 * encoder.patch, encoder.patch), tmp_path).node}
    assert not left & {"Shape", "Gather", "Range", "Where", "If", "Loop", "Resize", "Sin", "Cos"}


def test_a_vit_without_a_cls_token_is_refused():
    with pytest.raises(ValueError, match="no CLS token"):
        AttentionGraph(Encoder("vit_base_patch16_siglip_224", (32, 32)))


def test_patches_without_a_bias(street_frames):
    """As CLIP's."""
    torch.manual_seed(0)
    encoder = Encoder("vit_xsmall_patch16_clip_224", (64, 96)).eval()
    encoder.vit.blocks = encoder.vit.blocks[:BLOCKS]
    assert encoder.vit.patch_embed.proj.bias is None
    frame = torch.from_numpy(street_frames[0][None, :64, :96])
    with torch.inference_mode():
        expected = encoder.features(frame.permute(0, 3, 1, 2))[1]
        found = AttentionGraph(encoder)(frame)
    torch.testing.assert_close(found.flatten(2), expected, atol=1e-5, rtol=1e-3)


# The command


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "small.pth"
    torch.save({"model": Encoder("test_vit", (160, 160)).vit.state_dict()}, path)
    return path


@pytest.fixture
def run(monkeypatch) -> Callable[..., int]:
    def call(*args: object) -> int:
        monkeypatch.setattr(sys, "argv", ["export_attention", *map(str, args)])
        return command.main()

    return call


def test_a_file_of_weights_becomes_a_model_file(run, weights, street_frames, tmp_path, capsys):
    for i, frame in enumerate(street_frames[:2]):
        cv2.imwrite(str(tmp_path / f"{i}.png"), frame[..., ::-1])
    out = tmp_path / "small.onnx"
    options = ("--arch", "test_vit", "--size", "96x160", "--terms", "MIT", "--frames", tmp_path)
    assert run(weights, "--out", out, *options) == 0
    said = capsys.readouterr().out
    assert "architecture test_vit, 2 heads, patch 16, mean" in said
    assert "attention agrees with the network on 100.000% of patches" in said
    info = read_model_info(out)
    assert (info.name, info.task, info.classes) == ("small", "attention", ())
    assert (info.stride, info.size, info.fixed_size) == (16, (96, 160), None)
    assert info.source["weights"] == "small.pth" and info.source["architecture"] == "test_vit"
    assert info.source["licence"] == {"weights": "MIT"}
    assert info.source["parity"]["network_attention_agreement"] == 1
    assert str(tmp_path) not in out.read_bytes().decode("latin1")
    assert not out.with_suffix(".part").exists()


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    """A checkpoint whose shapes are those of vit_tiny_patch16_384 rather than of its own ViT."""
    system = DistilledSystem("deit_tiny_patch16_224", teacher=VIT, size=(384, 384))
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(system)
    path = tmp_path_factory.mktemp("student") / "last.pth"
    trainer.save_checkpoint(path)
    return path


def test_a_checkpoint_is_left_to_the_other_command(run, student, tmp_path, capsys):
    for options in ((), ("--arch", "deit_tiny_patch16_224")):
        assert run(student, "--out", tmp_path / "x.onnx", *options) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"export_attention: {student}: a checkpoint of")
        assert error.endswith("use `python -m training export`\n") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_knows_its_architecture(student, capsys):
    """So do other commands, which take a checkpoint for its ViT."""
    encoder, _ = token_cut.open_encoder(str(student), None, (384, 384), (384, 384))
    assert "architecture deit_tiny_patch16_224, 6 heads" in capsys.readouterr().out
    assert encoder.vit.blocks[-1].attn.num_heads == 6
    expected = timm.get_pretrained_cfg("deit_tiny_patch16_224").mean
    assert encoder.mean.tolist() == pytest.approx(expected)


def test_size_is_the_multiple_of_the_patch_nearest_to_384():
    assert [default_size(p) for p in (8, 14, 16)] == [(384, 384), (378, 378), (384, 384)]


def test_bad_input_is_one_line_and_writes_nothing(run, weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    out = tmp_path / "x.onnx"
    small = ("--arch", "test_vit")
    for args, said in (
        (("vit_smal",), "vit_smal: no such file, and no model of timm's; such as vit_small"),
        (("vit_small_patch16_224.x",), "no such file, and no model of timm's"),
        (("vit_small_patch16_224.dino",), "give a file of weights in place of the name"),
        (("x.pth", *small), "x.pth: no such file; --arch goes with a file only"),
        ((weights,), "width 64, depth 6 and patch 16, which is none of DINO"),
        ((weights, "--arch", VIT), f"are not the weights of {VIT}: cls_token is"),
        ((weights, *small, "--size", "100x96"), "no multiple of the patch 16; nearest fit: 96x96"),
        ((weights, *small, "--frames", tmp_path / "none"), "none: no such file or folder"),
        ((weights, *small, "--frames", ROOT / "docs", "--topic", "/f"), "topic /f was given, but"),
    ):
        assert run(*args, "--out", out) == 2
        error = capsys.readouterr().err
        assert said in error and error.startswith("export_attention: ")
        assert error.count("\n") == 1
    assert run(weights, *small, "--out", tmp_path / "no" / "x.onnx") == 2
    assert "its folder does not exist" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
