# SPDX-License-Identifier: Apache-2.0
"""Every system of the registry implements what its task asks for."""

import inspect
import pkgutil
from importlib import import_module

import pytest
import torch

from training import systems
from training.networks.deployed import AttentionGraph
from training.systems.base import System
from training.systems.registry import SYSTEMS, CheckpointError, load_system

pytestmark = pytest.mark.slow

#: Small networks: arguments of each system.
SMALL = {
    "DinoSystem": {"backbone": "test_vit", "size": (64, 96), "outputs": 64, "hidden": 32},
    "DistilledSystem": {"backbone": "test_vit", "teacher": "test_vit", "size": (64, 96)},
    "SegmenterSystem": {"backbone": "test_vit", "size": (64, 96), "decoder_dim": 64},
    "UNetSystem": {"width": 0.1, "size": (64, 96)},
    "WNetSystem": {"width": 0.1, "size": (64, 96)},
}


def test_every_system_is_registered():
    modules = [
        import_module(m.name) for m in pkgutil.iter_modules(systems.__path__, "training.systems.")
    ]
    found = {
        item.__name__: item
        for module in modules
        for item in vars(module).values()
        if inspect.isclass(item) and issubclass(item, System) and not inspect.isabstract(item)
    }
    assert found == SYSTEMS


@pytest.mark.parametrize("name", SYSTEMS)
def test_system_does_what_its_task_asks_for(name):
    system = SYSTEMS[name](**SMALL[name]).eval()
    images = torch.zeros(2, 3, 64, 96, dtype=torch.uint8)
    assert system.hparams.size == (64, 96)
    assert all(isinstance(words, str) for words in system.origin())
    graph, infos = system.graph(), system.class_infos()
    assert 64 % graph.stride == 0 and 96 % graph.stride == 0
    assert [item.id for item in infos] == list(range(len(infos)))
    with torch.inference_mode():
        if system.task == "attention":
            assert isinstance(graph, AttentionGraph) and infos == []
            features = system.embed(images)
            assert features.shape == (2, 64) and features.is_floating_point()
            with pytest.raises(NotImplementedError, match=name):
                system.logits(images)
        else:
            assert system.logits(images).shape == (2, len(infos), 64, 96)
            with pytest.raises(NotImplementedError, match=name):
                system.embed(images)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_other_files_are_no_checkpoints(content, tmp_path):
    file = tmp_path / "x.ckpt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.ckpt"):
        load_system(file)


def test_checkpoint_of_an_unknown_system(tmp_path):
    saved = {"epoch": 0, "global_step": 1, "hyper_parameters": {}, "state_dict": {}, "system": "X"}
    torch.save(saved, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match="'X'"):
        load_system(tmp_path / "x.ckpt")
