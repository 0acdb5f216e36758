# SPDX-License-Identifier: Apache-2.0
"""k nearest neighbours against a slow vote, and as a callback."""

import math
from types import SimpleNamespace

import cv2
import lightning as L
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from training.data.files import DataError
from training.evaluation.knn import KNN, knn_classes
from training.networks.encoder import check_multiple

pytestmark = pytest.mark.slow


def slow_class(features, labels, query, k, temperature) -> int:
    def cosine(a, b):
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    near = sorted(((cosine(f, query), y) for f, y in zip(features, labels, strict=True)))[-k:]
    votes: dict[int, float] = {}
    for value, label in near:
        votes[label] = votes.get(label, 0.0) + math.exp(value / temperature)
    return max(votes, key=lambda label: votes[label])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 9999), st.integers(1, 20), st.sampled_from([0.07, 0.5, 5.0]))
def test_votes(seed, k, temperature):
    rng = np.random.default_rng(seed)
    features, queries = rng.normal(size=(30, 4)), rng.normal(size=(7, 4))
    labels = rng.integers(0, 5, 30)
    expected = [
        slow_class(features.tolist(), labels.tolist(), q, k, temperature) for q in queries.tolist()
    ]
    found = knn_classes(*map(torch.tensor, (features, labels, queries)), k, temperature)
    assert found.tolist() == expected


def test_more_queries_than_go_at_a_time():
    features = torch.eye(3)
    queries = features.repeat(200, 1) + 0.1
    assert knn_classes(features, torch.tensor([2, 0, 1]), queries, 1).tolist() == [2, 0, 1] * 200


class Colour(L.LightningModule):
    """Its feature of an image is the mean colour."""

    def embed(self, images):
        return images.float().mean((2, 3))

    def validation_step(self, batch, index):
        pass


@pytest.fixture
def folders(tmp_path):
    """Three classes by colour, 5 + 3 frames of 40x60 each; one val frame is in a wrong folder."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 3)):
        for number, name in enumerate(("blue", "green", "red")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                image = rng.integers(0, 90, (40, 60, 3), dtype=np.uint8)
                image[..., number] += 100
                cv2.imwrite(str(tmp_path / split / name / f"{i}.png"), image)
    (tmp_path / "val" / "red" / "0.png").rename(tmp_path / "val" / "green" / "9.png")
    return str(tmp_path / "train"), str(tmp_path / "val")


def run(callback, system=None, **options) -> dict:
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
        **options,
    )
    trainer.validate(system or Colour(), DataLoader(torch.zeros(1, 1)), verbose=False)
    return trainer.callback_metrics


def test_callback_logs_the_share_that_is_right(folders):
    found = run(KNN(*folders, size=32, k=5, batch_size=4, workers=0))
    assert float(found["val/knn"]) == pytest.approx(8 / 9)


def test_what_is_seen_is_the_middle(tmp_path):
    """The middle 224 of 256 pixels of the short side, as published."""
    rows, columns = np.mgrid[:256, :300]
    image = np.dstack([rows, columns // 2, rows * 0]).astype(np.uint8)
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        cv2.imwrite(str(tmp_path / split / "a" / "0.png"), image[..., ::-1])
    callback = KNN(str(tmp_path / "train"), str(tmp_path / "val"), k=1)
    callback.setup(None, None, "fit")
    square = callback.sets[0][0][0]
    expected = image[16:240, 38:262].transpose(2, 0, 1)
    assert torch.equal(square, torch.from_numpy(np.ascontiguousarray(expected)))


def test_processes_share_the_frames_and_have_all_features(folders):
    callback = KNN(*folders, size=32, batch_size=4, k=5, workers=0)
    callback.setup(None, None, "fit")
    frames = callback.sets[0]  # 15: one process has to fill up
    shares: list[torch.Tensor] = []

    def features(world, rank, gather):
        trainer = SimpleNamespace(world_size=world, global_rank=rank)
        embed = Colour().embed
        system = SimpleNamespace(trainer=trainer, all_gather=gather, embed=embed, device="cpu")
        return callback.features(frames, system)

    whole = features(1, 0, lambda x: x)
    assert whole.shape == (15, 3)
    for rank in range(2):
        features(2, rank, lambda x: shares.append(x) or torch.stack([x, x]))
    assert len(shares[0]) == len(shares[1]) == 8
    assert torch.equal(features(2, 0, lambda x: torch.stack(shares)), whole)


def test_size_that_the_network_does_not_take(folders, monkeypatch):
    monkeypatch.setattr(Colour, "embed", lambda _, images: check_multiple(images.shape[-2:], 16))
    with pytest.raises(DataError, match=r"size of the neighbours' frames: .* 33x33 is no multiple"):
        run(KNN(*folders, k=5, size=33))


def test_votes_of_a_low_temperature(folders):
    features = torch.nn.functional.normalize(torch.randn(50, 8), dim=-1)
    labels = torch.arange(50) % 7
    assert torch.equal(knn_classes(features, labels, features, 5, 0.001), labels)


def test_folders_that_do_not_fit(folders, tmp_path):
    train, val = folders
    with pytest.raises(DataError, match=r"k is 16: .*train has 1 to 15 neighbours"):
        run(KNN(train, val, k=16))
    with pytest.raises(DataError, match="temperature of the neighbours' votes is 0"):
        run(KNN(train, val, k=5, temperature=0))
    (tmp_path / "val" / "red").rename(tmp_path / "val" / "pink")
    with pytest.raises(DataError, match=r"classes of .* differ: pink, red in one"):
        run(KNN(train, val, k=5))
    cv2.imwrite(f"{val}/loose.png", np.zeros((40, 40, 3), np.uint8))
    with pytest.raises(DataError, match=r"1 frames are in no folder of .*val .*loose\.png"):
        run(KNN(train, val, k=5))
