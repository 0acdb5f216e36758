# SPDX-License-Identifier: Apache-2.0
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from training.clusters import token_cut
from training.clusters.token_cut import (
    FAINT,
    fitting_size,
    object_finder,
    picture,
    salient_mask,
    second_eigenvector,
    similarity_edges,
)
from training.networks.encoder import Encoder

pytestmark = pytest.mark.slow

VIT = "test_vit"


def slow_edges(features, tau):
    """Edges pair by pair; features float64 [N, D]."""
    count = len(features)
    edges = np.empty((count, count))
    for i, j in np.ndindex(count, count):
        cosine = (
            features[i]
            @ features[j]
            / np.sqrt((features[i] @ features[i]) * (features[j] @ features[j]))
        )
        edges[i, j] = 1 if cosine > tau else FAINT
    return edges


def slow_eigenvector(edges):
    """Of the dense normalised Laplacian, all its eigenvectors computed; normed, sign free."""
    half = np.diag(edges.sum(1) ** -0.5)
    _, vectors = np.linalg.eigh(np.eye(len(edges)) - half @ edges @ half)
    vector = half @ vectors[:, 1]
    return vector / np.linalg.norm(vector)


def slow_mask(features, tau):
    """TokenCut as published, with a flood fill."""
    rows, columns, _ = features.shape
    flat = features.reshape(rows * columns, -1).astype(np.float64)
    vector = slow_eigenvector(slow_edges(flat, tau)).reshape(rows, columns)
    seed = max(np.ndindex(rows, columns), key=lambda at: abs(vector[at]))
    side = vector > vector.mean()
    if not side[seed]:
        side = ~side
    mask, open_ends = np.zeros((rows, columns), bool), [seed]
    while open_ends:
        y, x = open_ends.pop()
        if 0 <= y < rows and 0 <= x < columns and side[y, x] and not mask[y, x]:
            mask[y, x] = True
            open_ends += [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
    return mask


def smooth_features(seed, rows=7, columns=9, width=6):
    """Features that change slowly from patch to patch, of very different lengths."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((rows, columns, width))
    lengths = np.exp(rng.standard_normal((rows, columns, 1)))
    return (cv2.GaussianBlur(noise, (5, 5), 1.2) * lengths).astype(np.float32)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("tau", [0.0, 0.2, 0.5])
def test_cut_agrees_with_the_dense_laplacian(seed, tau):
    features = smooth_features(seed)
    flat = features.reshape(63, -1)
    edges = similarity_edges(flat, tau)
    assert np.array_equal(edges, slow_edges(flat.astype(np.float64), tau))
    found = second_eigenvector(edges)
    found /= np.linalg.norm(found)
    expected = slow_eigenvector(edges)
    assert found * np.sign(found @ expected) == pytest.approx(expected, abs=1e-7)
    assert np.array_equal(salient_mask(features, tau), slow_mask(features, tau))


def blocks(layout: str, directions: dict[str, list[float]]):
    """Features [h, w, D] from a drawing, a direction for each letter."""
    return np.array([[directions[c] for c in line] for line in layout.split()], np.float32)


def test_a_block_unlike_the_rest_is_the_object():
    layout = """
        ........
        ..oooo..
        ..oooo..
        ..oooo..
        ........
    """
    features = blocks(layout, {".": [1, 0, 0.1], "o": [0, 1, 0.1]})
    expected = blocks(layout, {".": [0], "o": [1]})[..., 0] > 0
    assert np.array_equal(salient_mask(features), expected)
    assert np.array_equal(salient_mask(-3 * features), expected)
    # The smaller side is the object, whichever of the two kinds it is made of.
    swapped = blocks(layout, {".": [0, 1, 0.1], "o": [1, 0, 0.1]})
    assert np.array_equal(salient_mask(swapped), expected)


def test_only_the_part_around_the_most_salient_patch():
    """Both o and p are unlike the rest, o more so: b is like p and the background, not like o."""
    layout = """
        ..........
        .ooo..ppp.
        .oooo.ppp.
        .....o..bb
        ..........
    """
    directions = {".": [1, 0], "b": [1, 1], "p": [0, 1], "o": [-0.66, 0.75]}
    found = salient_mask(blocks(layout, directions))
    expected = blocks(layout, {".": [0], "b": [0], "p": [0], "o": [1]})[..., 0] > 0
    expected[3, 5] = False  # it touches the object by a corner only
    assert np.array_equal(found, expected)


def test_threshold_of_the_cosine():
    """Directions at a cosine of 0.5: one kind of patch or two."""
    features = np.tile(np.array([1, 0], np.float32), (4, 5, 1))
    features[1:3, 1:3] = [0.5, np.sqrt(0.75)]
    assert not salient_mask(features, 0.45).any()
    assert salient_mask(features, 0.55).sum() == 4


@pytest.mark.parametrize(
    "features",
    [
        np.ones((4, 5, 3), np.float32),  # all alike
        np.ones((1, 1, 3), np.float32),  # one patch
        np.eye(20, dtype=np.float32).reshape(4, 5, 20),  # none alike
        np.zeros((4, 5, 3), np.float32),
    ],
)
def test_no_object_where_there_is_nothing_to_cut(features):
    mask = salient_mask(features)
    assert mask.shape == features.shape[:2]
    assert not mask.any()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite(value):
    features = smooth_features(0)
    features[2, 3, 1] = value
    with pytest.raises(ValueError, match="not finite"):
        salient_mask(features)


def test_a_patch_without_features_is_like_no_other():
    features = smooth_features(0).astype(np.float16)
    features[2, 3] = 0
    edges = similarity_edges(features.reshape(63, -1), 0)
    assert (edges[21] == FAINT).all()
    assert salient_mask(features).any()


def test_default_size_keeps_the_frames_proportions():
    assert fitting_size((480, 854), 14) == (24 * 14, 42 * 14)
    assert fitting_size((100, 100), 16) == (32 * 16, 32 * 16)
    assert fitting_size((1, 9000), 16)[0] == 16


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "vit.pth"
    torch.save(Encoder(VIT, (64, 64)).vit.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def framed(tmp_path_factory, street_frames) -> Path:
    """Three real frames in two folders; the masks of two have an object."""
    root = tmp_path_factory.mktemp("framed")
    for i, stem in enumerate(("a/0", "a/1", "b/0")):
        mask = np.zeros((272, 640), np.uint8)
        mask[100 : 100 + 50 * i, 200:300] = 255
        for part, pixels in (("images", street_frames[i][..., ::-1]), ("masks", mask)):
            path = root / part / f"{stem}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), pixels)
    return root


def run(monkeypatch, *args: object) -> int:
    monkeypatch.setattr(sys, "argv", ["token_cut", *map(str, args)])
    return token_cut.main()


def test_command_writes_masks_and_scores_them(weights, framed, tmp_path, monkeypatch, capsys):
    args = (weights, "--arch", VIT, "--images", framed / "images", "--out", tmp_path)
    status = run(monkeypatch, *args, "--size", "80x192", "--masks", framed / "masks")
    assert status == 0, capsys.readouterr().err
    find = object_finder(Encoder(VIT, (64, 64), weights=weights).eval(), (80, 192))
    scores = []
    for stem in ("a/0", "a/1", "b/0"):
        image = cv2.imread(str(framed / "images" / f"{stem}.png"))[..., ::-1]
        truth = cv2.imread(str(framed / "masks" / f"{stem}.png"), cv2.IMREAD_UNCHANGED) > 0
        written = cv2.imread(str(tmp_path / "masks" / f"{stem}.png"), cv2.IMREAD_UNCHANGED)
        expected = find(np.ascontiguousarray(image))
        assert np.array_equal(written, 255 * expected.astype(np.uint8))
        seen = cv2.imread(str(tmp_path / "overlays" / f"{stem}.jpg"))[..., ::-1]
        assert np.abs(seen.astype(float) - picture(image, expected)).mean() < 6
        if truth.any():
            scores.append((expected & truth).sum() / (expected | truth).sum())
    assert len(scores) == 2
    said = capsys.readouterr().out
    assert f"Jaccard {np.mean(scores):.3f}, mean of 2 frames" in said


def test_a_frames_mask_is_that_of_its_patches(weights, street_frames):
    """Each patch's pixels are the patch's, and nothing is transposed."""
    encoder = Encoder(VIT, (64, 64), weights=weights).eval()
    frame = np.ascontiguousarray(street_frames[0][:160, :384])
    mask = object_finder(encoder, (80, 192))(frame)
    small = cv2.resize(frame, (192, 80), interpolation=cv2.INTER_AREA)
    with torch.inference_mode():
        tokens = encoder(torch.from_numpy(small).permute(2, 0, 1)[None])[0].numpy()
    expected = slow_mask(tokens.reshape(5, 12, -1), 0.2)
    assert np.array_equal(mask, np.kron(expected, np.ones((32, 32), bool)))


def test_picture_tints_the_object_alone():
    image = np.full((4, 6, 3), 100, np.uint8)
    mask = np.zeros((4, 6), bool)
    mask[1, 2] = True
    found = picture(image, mask)
    assert (found[~mask] == 100).all()
    assert found[1, 2, 0] > 150 > 100 > found[1, 2, 1]


def test_command_refuses_in_one_line(weights, framed, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "small").mkdir()
    for stem in ("0", "1"):
        cv2.imwrite(str(tmp_path / "small" / f"{stem}.png"), np.zeros((5, 6), np.uint8))
    images = framed / "images"
    for args, said in (
        ((weights, "--arch", VIT, "--size", "81x192", "--images", images), "nearest fit: 80x192"),
        ((tmp_path / "no.pth", "--images", images), "no such file"),
        (("vit_of_nobody", "--images", images), "vit_of_nobody"),
        ((weights, "--images", tmp_path / "empty"), "no image files in it"),
        (
            (weights, "--images", images / "a", "--masks", tmp_path / "small"),
            "0.png: labels are 6x5, their image 0.png is 640x272",
        ),
    ):
        assert run(monkeypatch, *args, "--out", tmp_path / "out") == 2
        error = capsys.readouterr().err
        assert error.startswith("token_cut: ")
        assert said in error
    assert run(monkeypatch, weights, "--images", images, "--out", images / "objects") == 2
    assert "its masks would be frames of the next run" in capsys.readouterr().err
    assert not (images / "objects").exists()
    assert not (tmp_path / "out").exists()
