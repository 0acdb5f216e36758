# SPDX-License-Identifier: Apache-2.0
"""The temperature in a graph, against the softmax of the torch network's own logits."""

from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch

from ctxseg_ros.inference.runtimes import devices, open_runtime
from ctxseg_ros.model.model_file import read_model_info, write_metadata
from tests.training.export.test_checkpoint import OPERATORS
from training.export.checkpoint import export_graph, halve_weights
from training.export.graph_logits import graph_end, remove_temperature, set_temperature
from training.systems.segmenter import SegmenterSystem
from training.systems.unet import UNetSystem

pytestmark = pytest.mark.slow

SIZE = (64, 96)
BY_CLASS = np.geomspace(0.3, 4, 11)


def build(name: str, frame):
    torch.manual_seed(0)
    if name == "unet":
        system = UNetSystem(width=0.0625, size=SIZE)
        for module in system.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        with torch.no_grad():
            # The batch norms see one frame, so that no class has all pixels.
            system.train().logits(torch.from_numpy(frame).permute(2, 0, 1)[None])
            system.network.unet.head.weight *= 6
    else:
        system = SegmenterSystem("test_vit", size=SIZE, decoder_dim=64, subpatch=4, mask_dim=32)
        with torch.no_grad():
            # Untrained scores nearly tie everywhere, and rounding would decide the labels.
            system.network.decoder.project_patches.weight *= 8
            system.network.decoder.mask_norm.weight *= 4
            system.network.encoder.vit.pos_embed.normal_(std=0.3)
    return system.eval()


@pytest.fixture(scope="module", params=["segmenter", "unet"])
def network(request, street_frames):
    """A system and its graph as it is exported."""
    system = build(request.param, cv2.resize(street_frames[2], SIZE[::-1]))
    graph = system.graph()
    model = export_graph(graph, "semantic")
    halve_weights(model)
    write_metadata(
        model,
        name="small",
        task="semantic",
        classes=system.class_infos(),
        stride=graph.stride,
        size=SIZE,
        source={},
    )
    # The file has its weights in half precision: the network gets the same.
    with torch.no_grad():
        for weight in system.network.parameters():
            if weight.numel() >= 4096:
                weight.copy_(weight.half().float())
    return system, model


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(model.SerializeToString())


def run(model: onnx.ModelProto, path: Path, frame, device: str):
    path.write_bytes(model.SerializeToString())
    runtime = open_runtime(read_model_info(path), frame.shape[:2], device, precision="fp32")
    found = runtime.run(frame)
    runtime.close()
    return found.labels, found.confidence


@pytest.mark.parametrize("temperature", [0.4, 2.5, BY_CLASS], ids=["sharp", "flat", "by class"])
@pytest.mark.parametrize("device", ["cpu", "openvino"])
def test_confidence_is_that_of_the_networks_own_logits(
    network, street_frames, tmp_path, temperature, device
):
    assert devices()[device] is None
    system, plain = network
    frame = cv2.resize(street_frames[0], SIZE[::-1])
    with torch.inference_mode():
        image = torch.from_numpy(frame).permute(2, 0, 1)[None]
        logits = system.logits(image)[0].double().permute(1, 2, 0).numpy()
    values = np.broadcast_to(temperature, 11)[logits.argmax(-1)][..., None]
    powers = np.exp((logits - logits.max(-1, keepdims=True)) / values)
    expected = 255 * powers.max(-1) / powers.sum(-1)

    model = copied(plain)
    set_temperature(model, np.array(temperature))
    labels, confidence = run(model, tmp_path / "hot.onnx", frame, device)
    before = run(plain, tmp_path / "plain.onnx", frame, device)
    np.testing.assert_array_equal(labels, before[0])  # to the last one
    same = labels == logits.argmax(-1)
    assert same.mean() > 0.999  # that they are the network's is the export's to check
    apart = np.abs(confidence.astype(float) - expected)[same]
    assert (apart <= 2).mean() > 0.999
    assert np.abs(confidence.astype(float) - before[1]).mean() > 5  # something was changed
    assert len(np.unique(labels)) > 2


def test_a_temperature_is_taken_out_again(network, street_frames, tmp_path):
    _, plain = network
    frame = cv2.resize(street_frames[1], SIZE[::-1])
    expected = run(plain, tmp_path / "plain.onnx", frame, "cpu")
    for temperature in (np.array(3.0), BY_CLASS):
        model = copied(plain)
        set_temperature(model, temperature)
        assert graph_end(model) is None  # what is calibrated is not calibrated on top
        with pytest.raises(ValueError, match="no softmax"):
            set_temperature(model, temperature)
        remove_temperature(model)
        assert sorted(n.SerializeToString() for n in model.graph.node) == sorted(
            n.SerializeToString() for n in plain.graph.node
        )
        assert len(model.graph.initializer) == len(plain.graph.initializer)
        for before, after in zip(
            expected, run(model, tmp_path / "cold.onnx", frame, "cpu"), strict=True
        ):
            np.testing.assert_array_equal(before, after)


def test_only_operators_are_added_that_every_runtime_has(network):
    _, plain = network
    model = copied(plain)
    set_temperature(model, BY_CLASS)
    added = [n.op_type for n in model.graph.node]
    for node in plain.graph.node:
        added.remove(node.op_type)
    assert sorted(added) == ["Gather", "Mul", "Unsqueeze"]
    assert {"Mul", "Unsqueeze"} <= OPERATORS  # Gather is in the graph of named clusters


def test_other_graphs_are_left_alone(model_factory):
    model = onnx.load(model_factory())
    before = model.SerializeToString()
    assert graph_end(model) is None
    with pytest.raises(ValueError, match="no softmax"):
        set_temperature(model, np.array(2.0))
    remove_temperature(model)
    assert model.SerializeToString() == before
