# SPDX-License-Identifier: Apache-2.0
"""Clustering of patch embeddings, and the model file that it becomes."""

import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import lightning as L
import numpy as np
import pytest
import torch

from ctxseg_ros.inference.runtimes import open_runtime
from ctxseg_ros.model.model_file import read_model_info
from tests.training.conftest import SMALL_VIT
from tests.training.data.test_frames import raw, write_bag
from training.clusters import cluster as command
from training.clusters.clustering import (
    assign,
    cluster,
    merge,
    move,
    spherical_kmeans,
    unit,
    whitening,
)
from training.data.frames import open_frames
from training.networks.encoder import Encoder
from training.systems.dino import DinoSystem
from training.systems.distilled import DistilledSystem
from training.systems.wnet import WNetSystem

pytestmark = pytest.mark.slow


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def blobs(rng: np.random.Generator, sizes: tuple[int, ...], noise: float = 0.05):
    """Vectors of any lengths around both ends of each axis, and which end each is of."""
    axes = np.eye(len(sizes) // 2)
    truth = np.repeat(np.arange(len(sizes)), sizes)
    vectors = np.concatenate([axes, -axes])[truth]
    vectors = vectors + noise * rng.normal(size=vectors.shape)
    return (vectors * rng.uniform(0.5, 20, (len(truth), 1))).astype(np.float32), truth


def same_partition(left: np.ndarray, right: np.ndarray) -> bool:
    pairs = set(zip(left.tolist(), right.tolist(), strict=True))
    return len(pairs) == len(set(left.tolist())) == len(set(right.tolist()))


# k-means


def slow_assign(vectors, centroids):
    best = []
    for v in vectors:
        cosines = [sum(a * b for a, b in zip(v, c, strict=True)) for c in centroids.tolist()]
        best.append(max(range(len(cosines)), key=cosines.__getitem__))
    return np.array(best)


def slow_move(vectors, members, clusters):
    means = []
    for k in range(clusters):
        total = [0.0] * vectors.shape[1]
        for v, m in zip(vectors.tolist(), members, strict=True):
            if m == k:
                total = [a + b for a, b in zip(total, v, strict=True)]
        length = sum(a * a for a in total) ** 0.5
        means.append([a / length for a in total])
    return np.array(means)


def test_what_kmeans_ends_at_is_a_fixed_point_of_slow_kmeans(rng):
    vectors = unit(rng.normal(size=(300, 6)))
    centroids, members, inertia = spherical_kmeans(vectors, 7, rng)
    assert (slow_assign(vectors, centroids) == members).all()
    np.testing.assert_allclose(slow_move(vectors, members, 7), centroids, atol=1e-5)
    cosines = [v @ centroids[m] for v, m in zip(vectors, members, strict=True)]
    assert inertia == pytest.approx(1 - np.mean(cosines), abs=1e-6)


def test_each_step_lowers_the_inertia(rng):
    vectors = unit(rng.normal(size=(400, 8)))
    centroids = vectors[:10]
    inertias = []
    for _ in range(6):
        members, near = assign(vectors, centroids)
        inertias.append(1 - near.mean())
        centroids = move(vectors, members, near, 10)
    assert (np.diff(inertias) <= 1e-6).all() and inertias[-1] < inertias[0] - 0.01


def test_a_cluster_without_members_goes_to_the_vector_furthest_off(rng):
    vectors = unit(rng.normal(size=(50, 5)))
    members, near = np.zeros(50, np.int64), rng.random(50).astype(np.float32)
    centroids = move(vectors, members, near, 2)
    np.testing.assert_array_equal(centroids[1], unit(vectors[near.argmin()]))


def test_fewer_different_vectors_give_fewer_centroids(rng):
    vectors = np.repeat(np.eye(4, dtype=np.float32), 10, axis=0)
    centroids, members, inertia = spherical_kmeans(vectors, 9, rng)
    assert len(centroids) == 4 and inertia == pytest.approx(0, abs=1e-6)
    assert same_partition(members, np.repeat(np.arange(4), 10))


# Whitening and merging


def test_whitened_vectors_have_mean_0_and_covariance_1_in_the_leading_directions(rng):
    basis, _ = np.linalg.qr(rng.normal(size=(12, 12)))
    scales = np.array([9, 5, 3, 2, *[0.1] * 8])
    vectors = ((rng.normal(size=(2000, 12)) * scales) @ basis.T + 7).astype(np.float32)
    mean, projection = whitening(vectors, 4)
    white = (vectors - mean) @ projection
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(np.cov(white.T), np.eye(4), atol=2e-3)
    directions = projection / np.linalg.norm(projection, axis=0)
    assert np.abs(basis[:, :4].T @ directions).max(1) == pytest.approx(np.ones(4), abs=0.1)


def test_directions_without_variance_are_left_out(rng):
    vectors = (rng.normal(size=(100, 3)) @ rng.normal(size=(3, 10))).astype(np.float32)
    assert whitening(vectors, 8)[1].shape == (10, 3)
    assert whitening(np.ones((5, 10), np.float32), 8)[1].shape == (10, 0)


def test_merging_joins_by_average_distance(rng):
    centroids = unit(rng.normal(size=(30, 5)))
    groups = merge(centroids, 6)
    assert sorted(set(groups.tolist())) == list(range(6))
    # The oracle joins the two groups of least mean distance, one pair after the other.
    parts = [[i] for i in range(30)]
    while len(parts) > 6:
        _, i, j = min(
            (np.mean([np.linalg.norm(centroids[a] - centroids[b]) for a in p for b in q]), i, j)
            for i, p in enumerate(parts)
            for j, q in enumerate(parts)
            if i < j
        )
        parts[i] += parts.pop(j)
    expected = np.zeros(30, int)
    for number, part in enumerate(parts):
        expected[part] = number
    assert same_partition(groups, expected)
    assert merge(centroids, 30).tolist() == list(range(30))


@pytest.mark.parametrize("clusters", [2, 3, 7])
def test_merging_ends_at_as_many_clusters_where_distances_are_equal(clusters):
    groups = merge(np.eye(8, dtype=np.float32), clusters)
    assert sorted(set(groups.tolist())) == list(range(clusters))


# All of it


@pytest.mark.parametrize("sizes", [(400, 300, 200, 100), (700, 60, 50, 40, 30, 20)])
def test_blobs_are_found_whatever_their_sizes(rng, sizes):
    vectors, truth = blobs(rng, sizes)
    found = cluster(vectors, len(sizes))
    assert same_partition(found.cosines(vectors).argmax(1), truth)
    np.testing.assert_allclose(found.shares, np.array(sizes) / sum(sizes))  # largest first
    assert found.counts.sum() == len(found.centroids)
    np.testing.assert_allclose(np.linalg.norm(found.centroids, axis=1), 1, rtol=1e-5)


def test_lengths_do_not_count_and_the_seed_decides(rng):
    vectors, _ = blobs(rng, (80, 70, 60, 50), noise=0.3)
    longer = vectors * rng.uniform(1, 9, (260, 1)).astype(np.float32)
    left, right, other = cluster(vectors, 5, 1), cluster(longer, 5, 1), cluster(vectors, 5, 2)
    np.testing.assert_allclose(left.cosines(vectors), right.cosines(vectors), atol=1e-3)
    assert not np.allclose(left.inertia, other.inertia, rtol=1e-9)


def test_what_cannot_be_clustered_is_refused(rng):
    with pytest.raises(ValueError, match="all patches are alike"):
        cluster(np.ones((500, 8)), 3)
    with pytest.raises(ValueError, match=r"2 different patches only, for 3 clusters"):
        cluster(np.repeat(np.eye(2, 5, dtype=np.float32), 40, axis=0), 3)
    vectors, _ = blobs(rng, (20, 20))
    vectors[3, 0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        cluster(vectors, 2)


def test_temperature_is_the_one_that_labels_were_drawn_at(rng):
    cosines = rng.uniform(-1, 1, (20_000, 6))
    for temperature in (0.05, 0.3):
        shares = np.exp(cosines / temperature)
        shares /= shares.sum(1, keepdims=True)
        labels = (shares.cumsum(1) > rng.random((len(cosines), 1))).argmax(1)
        assert command.fit_temperature(cosines, labels) == pytest.approx(temperature, rel=0.05)


# The command


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "small.pth"
    torch.save({"model": Encoder(SMALL_VIT, (160, 160)).vit.state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory, street_frames) -> Path:
    folder = tmp_path_factory.mktemp("street") / "frames"
    folder.mkdir()
    for i, frame in enumerate(street_frames):
        cv2.imwrite(str(folder / f"{i}.png"), frame[..., ::-1])
    return folder


def checkpoint(system: L.LightningModule, folder: Path) -> Path:
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(system)
    trainer.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"


@pytest.fixture
def run(monkeypatch) -> Callable[..., int]:
    def call(*args: object) -> int:
        monkeypatch.setattr(sys, "argv", ["cluster", *map(str, args)])
        return command.main()

    return call


def slow_temperature(encoder, frames, clustering) -> float:
    """The temperature that best foretells, from a patch, its cluster in the mirrored frame."""
    cosines, labels = [], []
    for frame in frames:
        seen, mirrored = (
            clustering.cosines(command.embeddings(encoder, np.ascontiguousarray(picture)))
            for picture in (frame, frame[:, ::-1])
        )
        for row in range(seen.shape[0]):
            for column in range(seen.shape[1]):
                cosines.append(seen[row, column].astype(np.float64))
                labels.append(int(mirrored[row, seen.shape[1] - 1 - column].argmax()))

    def surprise(temperature: float) -> float:
        powers = np.exp(np.array(cosines) / temperature)
        return -np.log(powers[range(len(labels)), labels] / powers.sum(1)).sum()

    return min(np.geomspace(0.01, 1, 1000), key=surprise)


def test_a_folder_becomes_a_clusters_model(run, weights, source, street_frames, tmp_path, capsys):
    out = tmp_path / "small.onnx"
    options = ("--arch", SMALL_VIT, "--size", "96x160", "--k", 6, "--terms", "free")
    assert run(weights, "--source", source, "--out", out, *options) == 0
    said = capsys.readouterr().out
    assert "6 frames, 360 patches, inertia 0." in said and "  cluster   5  " in said
    info = read_model_info(out)
    assert (info.name, info.task, info.size, info.fixed_size) == (
        "small",
        "clusters",
        (96, 160),
        None,
    )
    assert [c.name for c in info.classes] == [f"cluster {i}" for i in range(6)]
    assert len({c.colour for c in info.classes}) == 6
    facts = info.source
    assert facts["weights"] == "small.pth" and facts["architecture"] == SMALL_VIT
    assert facts["clustering"]["frames"] == 6 and facts["clustering"]["patches"] == 360
    assert facts["licence"] == {"data": "free", "weights": "not known"}
    assert facts["parity"]["network_label_agreement"] >= 0.999
    assert facts["data"].startswith("6 frames of ")
    assert str(tmp_path) not in out.read_bytes().decode("latin1")
    assert [p.name for p in tmp_path.iterdir()] == ["small.onnx"]

    # At another size, labels are those of the network and the clustering, which the seed repeats.
    origin = command.open_encoder(str(weights), SMALL_VIT)
    frames = open_frames(source)
    found = cluster(command.sample_patches(origin.encoder, frames, (96, 160), 6, 0), 6, 0)
    pictures = [cv2.resize(f, (160, 96), interpolation=cv2.INTER_AREA) for f in street_frames]
    slow = slow_temperature(origin.encoder, pictures, found)
    assert facts["clustering"]["temperature"] == pytest.approx(slow, rel=0.01)
    runtime = open_runtime(info, (128, 272), "cpu")
    for frame in street_frames[:2]:
        frame = cv2.resize(frame, (272, 128), interpolation=cv2.INTER_AREA)
        with torch.inference_mode():
            tokens = origin.encoder(torch.from_numpy(frame).permute(2, 0, 1)[None])[0].numpy()
        planes = found.cosines(tokens).reshape(8, 17, 6)
        cosines = cv2.resize(planes, (272, 128), interpolation=cv2.INTER_LINEAR)
        said = runtime.run(frame)
        assert (said.labels == cosines.argmax(-1)).mean() > 0.999
        assert len(np.unique(said.labels)) > 1
        logits = cosines.astype(np.float64) / facts["clustering"]["temperature"]
        shares = np.exp(logits - logits.max(-1, keepdims=True))
        wanted = 255 / shares.sum(-1)
        assert np.abs(said.confidence - wanted).mean() < 1
    runtime.close()


@pytest.fixture
def counted_encoder(weights, monkeypatch):
    """An encoder that tells patches apart only, and the list of the frames that it saw."""
    encoder, seen = command.open_encoder(str(weights), SMALL_VIT).encoder, []

    def embeddings(encoder, frame):
        seen.append(frame)
        height, width = (side // encoder.patch for side in frame.shape[:2])
        # Which frame, and which patch of it.
        planes = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
        return np.dstack([np.full((height, width), len(seen)), *planes])

    monkeypatch.setattr(command, "embeddings", embeddings)
    return encoder, seen


@pytest.mark.parametrize(
    ("per_frame", "most", "most_frames", "clusters", "frames", "each"),
    [
        (7, 1000, 1000, 2, 6, 7),  # as many of each frame
        (50, 100, 1000, 2, 6, 16),  # no more in all
        (50, 100, 3, 2, 3, 33),  # of no more frames
        (7, 1000, 1000, 10, 6, 34),  # more where clusters need it: 20 each, 200 of 6 frames
        (7, 1000, 1000, 255, 6, 60),  # all that there are
    ],
)
def test_patches_are_sampled_evenly_within_limits(
    counted_encoder, source, monkeypatch, per_frame, most, most_frames, clusters, frames, each
):
    encoder, seen = counted_encoder
    monkeypatch.setattr(command, "PER_FRAME", per_frame)
    monkeypatch.setattr(command, "MOST_PATCHES", most)
    monkeypatch.setattr(command, "MOST_FRAMES", most_frames)
    found = command.sample_patches(encoder, open_frames(source), (96, 160), clusters, 0)
    assert len(seen) == frames and len(found) == frames * each
    assert len(np.unique(found, axis=0)) == len(found)  # no patch twice
    assert np.unique(found[:, 0], return_counts=True)[1].tolist() == [each] * frames


def test_of_many_frames_some_are_used_from_the_first_to_the_last(
    counted_encoder, source, street_frames, monkeypatch
):
    encoder, seen = counted_encoder
    monkeypatch.setattr(command, "MOST_FRAMES", 3)
    command.sample_patches(encoder, open_frames(source), (272, 640), 2, 0)
    for frame, i in zip(seen, (0, 2, 5), strict=True):
        np.testing.assert_array_equal(frame, street_frames[i])


def test_the_frames_that_were_used_are_counted_and_broken_messages_are_told(
    run, weights, street_frames, tmp_path, capsys, caplog, monkeypatch
):
    monkeypatch.setattr(command, "MOST_FRAMES", 1)
    broken = raw(street_frames[0])
    broken.height += 1
    bag = write_bag(tmp_path / "bag", {"/camera": [*map(raw, street_frames[:2]), broken]})
    out = tmp_path / "many.onnx"
    options = ("--arch", SMALL_VIT, "--size", "96x160", "--k", 3)
    assert run(weights, "--source", bag, "--out", out, *options) == 0
    said = capsys.readouterr()
    assert "left out: " in caplog.text
    assert "1 frame, 60 patches" in said.out
    facts = read_model_info(out).source
    assert facts["clustering"]["frames"] == 1 and facts["data"].startswith("1 frame of ")


@pytest.mark.parametrize("kind", [DistilledSystem, DinoSystem])
def test_a_checkpoint_gives_the_encoder_that_was_taught(kind, weights, street_frames, tmp_path):
    if kind is DistilledSystem:
        system = kind(SMALL_VIT, teacher=SMALL_VIT, teacher_weights=str(weights), size=(96, 160))
        encoder = system.network
    else:
        system = kind(SMALL_VIT, size=(96, 160), outputs=16, hidden=8, bottleneck=4)
        encoder = system.teacher.encoder
    path = checkpoint(system, tmp_path)
    origin = command.open_encoder(str(path))
    assert (origin.weights, origin.architecture) == (kind.__name__, SMALL_VIT)
    frame = np.ascontiguousarray(street_frames[0][:96, :160])
    with torch.inference_mode():
        tokens = encoder.eval()(torch.from_numpy(frame).permute(2, 0, 1)[None])[0]
    expected = torch.nn.functional.normalize(tokens, dim=-1).unflatten(0, (6, 10)).numpy()
    np.testing.assert_allclose(command.embeddings(origin.encoder, frame), expected, atol=1e-5)
    with pytest.raises(command.ExportError, match="leave --arch out"):
        command.open_encoder(str(path), SMALL_VIT)


def test_a_checkpoint_without_a_vit_is_refused(tmp_path):
    path = checkpoint(WNetSystem(clusters=3, width=0.1), tmp_path)
    with pytest.raises(command.ExportError, match="a WNetSystem has no ViT"):
        command.open_encoder(str(path))


def test_default_size_has_the_proportions_of_the_first_frame(run, weights, source, tmp_path):
    out = tmp_path / "x.onnx"
    assert run(weights, "--arch", SMALL_VIT, "--source", source, "--k", 3, "--out", out) == 0
    height, width = read_model_info(out).size
    assert width / height == pytest.approx(640 / 272, rel=0.05)
    assert height * width / 256 == pytest.approx(1000, rel=0.05)


def test_bad_input_is_one_line_and_writes_nothing(run, weights, source, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    out = tmp_path / "x.onnx"
    usual = {"--source": source, "--arch": SMALL_VIT, "--size": "32x64"}
    for changes, said in (
        ({"--k": 1}, "--k 1: clusters must be 2 to 255"),
        ({"--k": 256}, "--k 256: clusters must be 2 to 255"),
        ({"--k": 49}, "--k 49: there are 48 patches only, in 6 frames at 32x64"),
        (
            {"--source": source / "0.png", "--k": 9},
            "there are 8 patches only, in 1 frame at 32x64",
        ),
        ({"--out": tmp_path / "x"}, "a model file ends in .onnx"),
        ({"--out": tmp_path / "x y.onnx"}, "cannot be called 'x y': give --name"),
        ({"--source": empty}, "empty: no images, videos or bags in it"),
        ({"--source": tmp_path / "none"}, "none: no such file or folder"),
        (
            {"--size": "40x64"},
            "no multiple of the patch 16; nearest fit: 32x64",
        ),
        ({"--out": tmp_path / "no" / "x.onnx"}, "its folder does not exist"),
        ({"--topic": "/camera"}, "there is no bag"),
    ):
        options = {"--out": out, **usual, **changes}
        assert run(weights, *(part for item in options.items() for part in item)) == 2
        error = capsys.readouterr().err
        assert said in error and error.startswith("cluster: ") and error.count("\n") == 1
    assert run("vit_smal", "--source", source, "--out", out) == 2
    assert "no such file, and no model of timm's" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]


def test_frames_smaller_than_a_patch_are_named(source):
    frames = open_frames(source)
    command.check_sizes(frames, 272)
    with pytest.raises(command.DataError, match=r"6 frames smaller .*/0\.png \(640x272\)"):
        command.check_sizes(frames, 273)
