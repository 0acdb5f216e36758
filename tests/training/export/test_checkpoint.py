# SPDX-License-Identifier: Apache-2.0
import copy
import resource
import subprocess
import sys
from pathlib import Path

import cv2
import lightning as L
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from ctxseg_ros.inference.runtimes import devices, open_runtime
from ctxseg_ros.model import store
from ctxseg_ros.model.model_file import read_model_info
from training.commands import Provenance
from training.data.camvid import CLASSES
from training.data.frames import open_frames
from training.export import checkpoint as command
from training.export.checkpoint import (
    ExportError,
    ParityError,
    attention_agreement,
    export,
    export_graph,
    halve_weights,
    network_labels,
)
from training.export.precision import why_no_bf16
from training.networks.deployed import SegmenterGraph
from training.networks.encoder import Encoder
from training.systems.dino import DinoSystem
from training.systems.distilled import DistilledSystem
from training.systems.segmenter import SegmenterSystem
from training.systems.unet import UNetSystem
from training.systems.wnet import WNetSystem

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]

#: 4:3, 16:9 with as many tokens as the square grid, the square, and one row of patches.
SIZES = [(96, 128), (72 * 2, 128 * 2), (192, 192), (16, 160)]

#: What may be left once the size is pinned: operators that ONNX Runtime, OpenVINO and TensorRT
#: all have.
OPERATORS = {
    *("Add", "ArgMax", "Cast", "Clip", "Concat", "Conv", "Div", "Erf", "Exp", "Expand", "Gemm"),
    *("LayerNormalization", "MatMul", "Mul", "Reciprocal", "ReduceL2", "ReduceMax", "ReduceSum"),
    *("Reshape", "Resize", "Slice", "Softmax", "Squeeze", "Sub", "Transpose", "Unsqueeze"),
}


@pytest.fixture(scope="module")
def system() -> SegmenterSystem:
    torch.manual_seed(0)
    system = SegmenterSystem("test_vit", size=(96, 128), decoder_dim=64, subpatch=4, mask_dim=32)
    with torch.no_grad():
        # Untrained scores nearly tie everywhere, and rounding would decide the labels.
        system.network.decoder.project_patches.weight *= 8
        system.network.decoder.mask_norm.weight *= 4
        system.network.encoder.vit.pos_embed.normal_(std=0.3)
    return system.eval()


@pytest.fixture(scope="module")
def checkpoint(system, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("run") / "last.ckpt"
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(system)
    trainer.save_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def frames_dir(street_frames, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("frames")
    for i, frame in enumerate(street_frames):
        cv2.imwrite(str(folder / f"{i}.png"), frame[..., ::-1])
    return folder


@pytest.fixture(scope="module")
def exported(checkpoint, frames_dir, tmp_path_factory) -> Path:
    """By the command, as a process."""
    out = tmp_path_factory.mktemp("out") / "small.onnx"
    command = ["training.export", checkpoint, "--out", out, "--frames", frames_dir]
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    assert "labels agree with the network on" in done.stdout
    return out


@pytest.fixture(scope="module")
def exported_graph(system) -> onnx.ModelProto:
    """The graph of `system`, of which tests take copies: drawing it takes most of an export."""
    return export_graph(system.graph(), system.task)


@pytest.fixture
def drawn(exported_graph, monkeypatch) -> None:
    """Exports of `checkpoint` do not draw its graph again."""
    monkeypatch.setattr(command, "export_graph", lambda *_: copy.deepcopy(exported_graph))


def test_file_describes_itself(exported):
    info = read_model_info(exported)
    assert info.name == "small"
    assert info.task == "semantic"
    assert [c.name for c in info.classes][:3] == ["sky", "building", "pole"]
    assert info.stride == 16 and info.size == (96, 128) and info.fixed_size is None
    assert info.source["parity"]["network_label_agreement"] >= 0.999
    if why_no_bf16():
        assert "precision" not in info.source
    else:
        entries = info.source["precision"]
        assert 0.9 < entries["bf16_label_agreement"] <= entries["bf16_sure_agreement"] <= 1
        assert "bf16_score" not in entries  # no labels were given
    assert info.source["recipe"]["subpatch"] == 4
    model = onnx.load(exported)
    assert model.opset_import[0].version >= 17
    assert str(ROOT) not in str(model)
    assert not exported.with_suffix(".part").exists()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("device", ["cpu", "openvino"])
def test_labels_and_confidence_are_those_of_the_network(
    exported, system, street_frames, size, device
):
    assert devices()[device] is None
    runtime = open_runtime(read_model_info(exported), size, device, precision="fp32")
    same = total = 0
    for frame in street_frames:
        frame = cv2.resize(frame, size[::-1])
        found = runtime.run(frame)
        same += (found.labels == network_labels(system, frame)).sum()
        total += found.labels.size
        with torch.inference_mode():
            logits = system.network(torch.from_numpy(frame).permute(2, 0, 1)[None])
        confidence = logits.softmax(1).amax(1)[0].numpy() * 255
        assert np.abs(found.confidence - confidence).mean() < 1
    assert same / total >= 0.999


@pytest.fixture(scope="module", params=[UNetSystem, WNetSystem])
def convolutional(request, frames_dir, tmp_path_factory):
    """(system, its exported file) of a U-Net and of a W-Net, with statistics of real frames."""
    torch.manual_seed(0)
    system = request.param(width=0.125, size=(96, 128))
    network = system.network.unet if request.param is UNetSystem else system.network.encoder
    frames = [cv2.resize(cv2.imread(str(p)), (128, 96)) for p in sorted(frames_dir.iterdir())]
    network.train()
    with torch.no_grad():
        # Untrained scores nearly tie, and rounding would decide the labels.
        network.head.weight *= 8
        for _ in range(20):
            network(torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2) / 255)
    folder = tmp_path_factory.mktemp(request.param.__name__)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(system.eval())
    trainer.save_checkpoint(folder / "last.ckpt")
    export(
        folder / "last.ckpt",
        folder / "small.onnx",
        "small",
        frames_dir,
        stated=Provenance("a street"),
    )
    return system, folder / "small.onnx"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("device", ["cpu", "openvino"])
def test_convolutional_files_do_what_the_network_does(convolutional, street_frames, size, device):
    system, path = convolutional
    runtime = open_runtime(read_model_info(path), size, device, precision="fp32")
    same = total = 0
    for frame in street_frames:
        frame = cv2.resize(frame, size[::-1])
        found = runtime.run(frame)
        images = torch.from_numpy(frame).permute(2, 0, 1)[None]
        with torch.inference_mode():
            if system.task == "clusters":
                probabilities = system.network.segment(images / 255)
            else:
                probabilities = system.network(images).softmax(1)
        expected = probabilities.amax(1)[0].numpy() * 255
        assert np.abs(found.confidence - expected).mean() < 1
        same += (found.labels == probabilities.argmax(1)[0].numpy()).sum()
        total += found.labels.size
        assert len(np.unique(found.labels)) > 1
    assert same / total >= 0.999


def test_convolutional_files_describe_themselves(convolutional, tmp_path):
    system, path = convolutional
    info = read_model_info(path)
    assert info.task == system.task
    assert info.stride == 16 and info.size == (96, 128) and info.fixed_size is None
    assert info.source["data"] == "a street"
    if info.task == "clusters":
        assert [c.name for c in info.classes] == [f"cluster {i}" for i in range(9)]
        assert len({c.colour for c in info.classes}) == 9
    else:
        assert [(c.name, c.colour) for c in info.classes] == list(CLASSES)
    left = {node.op_type for node in pinned(path, (96, 128), tmp_path).graph.node}
    assert left <= {*OPERATORS, "BatchNormalization", "ConvTranspose", "MaxPool", "Relu"}


@pytest.fixture(scope="module", params=[DistilledSystem, DinoSystem])
def attentive(request, frames_dir, tmp_path_factory) -> tuple:
    """(encoder, sharpness, checkpoint, its model file) of a student of a teacher's attention, and
    of self-distillation."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param.__name__)
    if request.param is DistilledSystem:
        teacher = folder / "teacher.pth"
        torch.save(Encoder("test_vit", (224, 224)).vit.state_dict(), teacher)
        system = DistilledSystem(
            "test_vit", teacher="test_vit", teacher_weights=str(teacher), size=(96, 128)
        )
        encoder = system.network
        system.sharpness.copy_(torch.linspace(0.6, 1.6, len(system.sharpness)))
    else:
        system = DinoSystem("test_vit", size=(96, 128), outputs=16, hidden=8, bottleneck=4)
        encoder = system.teacher.encoder
    with torch.no_grad():
        for block in encoder.vit.blocks:
            block.attn.qkv.weight *= 6  # far from even attention
        encoder.vit.pos_embed.normal_(std=0.3)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(system.eval())
    trainer.save_checkpoint(folder / "last.ckpt")
    checkpoint, out = folder / "last.ckpt", folder / "small.onnx"
    export(checkpoint, out, "small", frames_dir)
    return encoder, getattr(system, "sharpness", None), checkpoint, out


def test_attention_of_a_checkpoint(attentive, street_frames):
    encoder, sharpness, checkpoint, out = attentive
    info = read_model_info(out)
    assert (info.task, info.classes, info.size) == ("attention", (), (96, 128))
    assert info.source["parity"]["network_attention_agreement"] >= 0.999
    assert info.source["parity"]["network_attention_deviation"] < 0.02  # of half precision
    if not why_no_bf16():
        assert 0.5 < info.source["precision"]["bf16_map_correlation"] <= 1
    assert str(checkpoint.parent) not in str(info.source)
    runtime = open_runtime(info, (64, 144), "cpu")
    frame = cv2.resize(street_frames[0], (144, 64))
    with torch.inference_mode():
        rows = encoder.features(torch.from_numpy(frame).permute(2, 0, 1)[None])[1][0]
    expected = rows.unflatten(-1, (4, 9)).numpy()
    if sharpness is not None:
        expected = np.stack(
            [
                head**power / (head**power).sum()
                for head, power in zip(expected, sharpness.numpy(), strict=True)
            ]
        )
    np.testing.assert_allclose(runtime.run(frame).attention, expected, atol=0.02 * expected.max())
    assert expected.max() > 2 * expected.mean()


def test_attention_is_refused_where_it_differs_and_with_labels(
    attentive, frames_dir, tmp_path, monkeypatch
):
    *_, checkpoint, out = attentive
    monkeypatch.setattr(command, "export_graph", lambda *_: onnx.load(out))
    with pytest.raises(ExportError, match="evaluate objects"):
        export(checkpoint, tmp_path / "x.onnx", "x", frames_dir, frames_dir)
    known = command.network_attention
    monkeypatch.setattr(command, "network_attention", lambda *args: known(*args)[:, ::-1])
    with pytest.raises(ParityError, match=r"% of the patches' attention agree with the network"):
        export(checkpoint, tmp_path / "x.onnx", "x", frames_dir)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_model_file_and_nothing_else(
    checkpoint, frames_dir, tmp_path, drawn, call, capsys
):
    out = tmp_path / "x.onnx"
    out.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        code = call(command, checkpoint, "--out", out, "--frames", frames_dir)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 2
    error = capsys.readouterr().err
    assert f"export: {out}: cannot be written: " in error and "Traceback" not in error
    assert out.read_bytes() == b"old" and list(tmp_path.iterdir()) == [out]


def test_attention_agreement_by_hand():
    expected = np.zeros((2, 2, 4), np.float32)
    expected[0, 0, 0], expected[1, 1, 3] = 0.5, 0.01
    found = expected.copy()
    found[0, 1, 1] = 0.024  # 4.8 % of its head's peak
    found[1, 0, 0] = 0.001  # 10 %
    share, apart = attention_agreement([expected, expected], [expected, found])
    assert share == 31 / 32
    assert apart == pytest.approx(0.1)


def test_folded_normalisation_is_exact(system, street_frames):
    network = copy.deepcopy(system.network).double()
    graph = SegmenterGraph(network).eval()
    image = torch.from_numpy(cv2.resize(street_frames[0], (128, 96)))[None]
    patches = torch.nn.functional.conv2d(
        image.double().permute(0, 3, 1, 2), graph.weight, graph.bias, stride=16
    )
    expected = network.encoder.embed(image.permute(0, 3, 1, 2))
    torch.testing.assert_close(patches.permute(0, 2, 3, 1), expected, atol=1e-9, rtol=1e-9)


def pinned(path: Path, size: tuple[int, int], folder: Path) -> onnx.ModelProto:
    """The graph that ONNX Runtime is left with after constant folding."""
    options = onnxruntime.SessionOptions()
    options.add_free_dimension_override_by_name("height", size[0])
    options.add_free_dimension_override_by_name("width", size[1])
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / "pinned.onnx")
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "pinned.onnx")


@pytest.mark.parametrize("size", SIZES)
def test_no_shape_and_no_foreign_operator_is_left_at_a_pinned_size(exported, size, tmp_path):
    left = [node.op_type for node in pinned(exported, size, tmp_path).graph.node]
    assert set(left) <= OPERATORS
    assert left.count("Resize") == 1  # the masks; the position embedding's has folded away
    assert left.count("Conv") == 1


def test_every_shipped_model_folds_too(tmp_path):
    for name in store.model_names():
        info = store.load(name)
        height, width = info.size
        for size in (info.size, (height - info.stride, width + info.stride)):
            left = {node.op_type for node in pinned(info.path, size, tmp_path).graph.node}
            assert not left & {"Shape", "Gather", "Range", "Where", "If", "Loop"}, name


def test_runtimes_agree_on_shipped_models_and_real_frames(street_frames):
    for name in store.model_names():
        info = store.load(name)
        runtimes = [
            open_runtime(info, None, device, precision="fp32") for device in ("cpu", "openvino")
        ]
        for frame in street_frames[:3]:
            frame = cv2.resize(frame, info.size[::-1])
            one, two = (runtime.run(frame) for runtime in runtimes)
            if info.task == "attention":
                apart = np.abs(one.attention - two.attention).max((1, 2))
                assert (apart < 0.01 * one.attention.max((1, 2))).all()
                continue
            assert (one.labels == two.labels).mean() > 0.99
            assert np.abs(one.confidence.astype(int) - two.confidence).mean() < 2


def test_halved_weights_stay_within_half_precision(exported_graph):
    model = copy.deepcopy(exported_graph)
    before = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    size = model.ByteSize()
    halve_weights(model)
    assert model.ByteSize() < 0.6 * size
    for tensor in model.graph.initializer:
        name = tensor.name.removesuffix(".half")
        if name != tensor.name:
            assert tensor.data_type == TensorProto.FLOAT16
        np.testing.assert_allclose(
            numpy_helper.to_array(tensor).astype(np.float64), before[name], rtol=1e-3, atol=1e-6
        )


def test_refusals_name_the_cause_and_write_nothing(checkpoint, frames_dir, tmp_path, call, capsys):
    out = tmp_path / "x.onnx"
    not_one = tmp_path / "not.ckpt"
    not_one.write_bytes(b"no checkpoint")
    empty = tmp_path / "empty.ckpt"
    empty.touch()
    for args, said in (
        ((not_one, "--frames", frames_dir), "not.ckpt: no checkpoint of this version"),
        ((empty, "--frames", frames_dir), "empty.ckpt: no checkpoint of this version"),
        ((checkpoint, "--frames", tmp_path / "none"), "none: no such file or folder"),
    ):
        assert call(command, *args, "--out", out) == 2
        assert said in capsys.readouterr().err
    assert not out.exists()


@pytest.fixture(scope="module")
def bag(street_frames, tmp_path_factory) -> Path:
    """A bag with the frames on two topics."""
    types = get_typestore(Stores.ROS2_HUMBLE)
    kind = "sensor_msgs/msg/CompressedImage"
    stamp = types.types["builtin_interfaces/msg/Time"](0, 0)
    header = types.types["std_msgs/msg/Header"](stamp, "camera")
    path = tmp_path_factory.mktemp("bags") / "bag"
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        for topic in ("/left", "/right"):
            connection = writer.add_connection(topic, kind, typestore=types)
            for i, frame in enumerate(street_frames):
                data = cv2.imencode(".jpg", frame[..., ::-1])[1].reshape(-1)
                message = types.types[kind](header, "jpeg", data)
                writer.write(connection, i, types.serialize_cdr(message, kind))
    return path


def test_topic_and_stride_choose_the_frames_of_a_bag(
    checkpoint, bag, tmp_path, drawn, monkeypatch, call, capsys
):
    opened = []

    def recorded(*args):
        opened.append(open_frames(*args))
        return opened[-1]

    def run(*args: str) -> int:
        return call(command, checkpoint, "--out", tmp_path / "small.onnx", "--frames", bag, *args)

    monkeypatch.setattr(command, "open_frames", recorded)
    assert run() == 2
    assert "images on 2 topics: choose one with --topic NAME" in capsys.readouterr().err
    assert run("--topic", "/right", "--stride", "4") == 0
    assert [frames.names for frames in opened] == [[f"{bag}:/right#0", f"{bag}:/right#4"]]
    assert read_model_info(tmp_path / "small.onnx").name == "small"
