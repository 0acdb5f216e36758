# SPDX-License-Identifier: Apache-2.0
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ctxseg_ros.image.attention import mask_image, mass_mask
from ctxseg_ros.inference.pipeline import Model
from ctxseg_ros.inference.runtimes import open_runtime
from ctxseg_ros.model.model_file import read_model_info
from training.data.files import DataError, read_image
from training.data.pairs import Pair, pair_files
from training.evaluation import running
from training.evaluation.objects import (
    MASSES,
    FrameScore,
    centre_prior,
    evaluate_objects,
    jaccard,
    random_vit,
    read_mask,
    score_frame,
    score_objects,
    score_plane,
)
from training.evaluation.running import RunOptions

pytestmark = pytest.mark.slow

maps = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=2, max_dims=2, max_side=5),
    elements=st.floats(0, 1, width=16),
)


def slow_jaccard(plane, truth, mass) -> float:
    """Patch by patch, then pixel by pixel, as it is defined."""
    rows, columns = plane.shape
    total = sum(float(value) for value in plane.flat)
    order = sorted(np.ndindex(plane.shape), key=lambda at: -plane[at])
    taken, held = set(), 0.0
    while total and held < mass * total - 1e-12:
        taken.add(order[len(taken)])
        held += float(plane[order[len(taken) - 1]])
    height, width = truth.shape
    both = either = 0
    for y, x in np.ndindex(truth.shape):
        inside = (int((y + 0.5) * rows / height), int((x + 0.5) * columns / width)) in taken
        both += inside and truth[y, x]
        either += inside or truth[y, x]
    return both / either if either else 1.0


@given(plane=maps, mass=st.sampled_from([0.05, 0.31, 0.6, 0.95]), seed=st.integers(0, 99))
def test_a_map_is_scored_at_the_truths_size(plane, mass, seed):
    rng = np.random.default_rng(seed)
    truth = rng.random((plane.shape[0] * 3, plane.shape[1] * 5)) < 0.4
    assert score_plane(plane, truth, mass) == pytest.approx(slow_jaccard(plane, truth, mass))


def test_a_frame_has_its_mean_each_head_and_a_curve():
    rng = np.random.default_rng(0)
    attention = rng.random((3, 4, 6)).astype(np.float32) / 24
    truth = rng.random((12, 30)) < 0.3
    score = score_frame(attention, truth, 0.6)
    mean = attention.mean(0)
    assert score.mean == pytest.approx(slow_jaccard(mean, truth, 0.6))
    assert score.heads == pytest.approx([slow_jaccard(head, truth, 0.6) for head in attention])
    assert score.curve == pytest.approx([slow_jaccard(mean, truth, mass) for mass in MASSES])
    assert MASSES[0] == 0.05
    assert MASSES[-1] == 0.95
    assert np.diff(MASSES) == pytest.approx(0.05)


def test_jaccard():
    left = np.array([[1, 1, 0, 0]], bool)
    assert jaccard(left, np.array([[0, 1, 1, 0]], bool)) == pytest.approx(1 / 3)
    assert jaccard(left, left) == 1
    assert jaccard(left, ~left) == 0
    assert jaccard(left & False, left & False) == 1


def frame(mean, heads, curve=0.0) -> FrameScore:
    return FrameScore(mean, np.array(heads), np.broadcast_to(curve, len(MASSES)))


def test_best_head_is_of_each_frame_fixed_head_of_the_set():
    found = score_objects([frame(0.2, [0.9, 0.5]), frame(0.4, [0.1, 0.6]), frame(0.3, [0.3, 0.4])])
    assert found["jaccard_mean"] == pytest.approx(0.3)
    assert found["jaccard_best_head"] == pytest.approx((0.9 + 0.6 + 0.4) / 3)
    assert found["jaccard_fixed_head"] == pytest.approx(0.5)
    assert found["fixed_head"] == 1


def test_area_under_the_mass_curve():
    constant = score_objects([frame(0, [0], 0.37)])
    assert constant["mass_curve_area"] == pytest.approx(0.37)
    assert set(constant["mass_curve"].values()) == {0.37}
    bent = np.array(MASSES) ** 2
    found = score_objects([frame(0, [0], 2 * bent), frame(0, [0], 0.0)])
    strips = [0.05 * (a + b) / 2 for a, b in pairwise(bent)]
    assert found["mass_curve_area"] == pytest.approx(sum(strips) / 0.9, abs=1e-6)
    assert found["mass_curve"]["0.5"] == pytest.approx(0.25)
    assert list(found["mass_curve"])[::18] == ["0.05", "0.95"]


def test_what_is_not_black_is_the_object(tmp_path):
    grey = np.zeros((4, 5), np.uint8)
    grey[1, 2], grey[3, 0] = 255, 1
    blue = np.zeros((4, 5, 4), np.uint8)
    blue[..., 3] = 255
    blue[1, 2, 0] = blue[3, 0, 1] = 9
    deep = grey.astype(np.uint16)
    for name, pixels in (("grey", grey), ("colour and alpha", blue), ("16 bits", deep)):
        path = tmp_path / f"{name}.png"
        cv2.imwrite(str(path), pixels)
        mask = read_mask(path)
        assert mask.dtype == bool
        assert np.array_equal(mask, grey > 0), name
    (tmp_path / "no.png").write_bytes(b"no")
    with pytest.raises(DataError, match=r"no\.png: cannot be read as an image"):
        read_mask(tmp_path / "no.png")


@pytest.mark.parametrize(("height", "width"), [(34, 60), (24, 24), (35, 20)])
def test_the_centre_prior_is_a_centred_disc(height, width):
    plane = centre_prior(height, width)
    assert plane.shape == (1, height, width)
    assert plane.dtype == np.float32
    # Its mask at 0.6, by the radius that the docstring gives.
    y, x = np.mgrid[:height, :width]
    radius = np.hypot((y + 0.5) / height - 0.5, (x + 0.5) / width - 0.5)
    truth = radius <= 0.226
    assert score_plane(plane[0], truth, 0.6) > 0.9
    assert plane[0, 0].max() == pytest.approx(np.exp(-(3**2) / 2), abs=0.006)  # at the edge
    assert np.array_equal(plane, plane[:, ::-1, ::-1])


def test_a_random_vit_is_always_the_same_one(street_frames):
    import torch

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = random_vit()(street_frames[0], (3, 5))
    assert torch.rand(1) == expected  # the caller's random numbers are left alone
    assert first.shape == (3, 3, 5)
    assert (first > 0).all()
    assert (first.sum((1, 2)) < 1).all()
    assert np.array_equal(first, random_vit()(street_frames[0], (3, 5)))
    assert not np.array_equal(first, random_vit()(street_frames[1][::-1], (3, 5)))


def object_scores(root: Path, attention):
    """scores(mass) -> Jaccard of the mean [frames with an object], of each head [frames, heads]."""
    truths, maps = [], []
    for stem in ("one/0", "one/2", "two/0"):
        truths.append(read_image(root / "masks" / f"{stem}.png").any(-1))
        maps.append(attention(read_image(root / "images" / f"{stem}.png")))

    def jaccard(plane, truth, mass):
        mask = mask_image(mass_mask(plane, mass), *truth.shape) > 0
        return (mask & truth).sum() / (mask | truth).sum()

    def scores(mass: float):
        both = list(zip(maps, truths, strict=True))
        heads = [[jaccard(head, truth, mass) for head in each] for each, truth in both]
        return (
            np.array([jaccard(each.mean(0), truth, mass) for each, truth in both]),
            np.array(heads),
        )

    return scores


def test_objects_are_scored_by_frame(masked):
    root, model = masked
    info = read_model_info(model)
    pairs = pair_files(root / "images", root / "masks")
    found = evaluate_objects(info, pairs, 0.4, RunOptions((72, 160), "cpu"))
    segmenter = Model(open_runtime(info, (72, 160), "cpu"))
    untaught = random_vit()
    for result, attention in (
        (found, lambda image: segmenter.segment(image).attention),
        (found["controls"]["random_vit"], lambda image: untaught(image, (9, 20))),
        (found["controls"]["centre_prior"], lambda _: centre_prior(9, 20)),
    ):
        scores = object_scores(root, attention)
        mean, heads = scores(0.4)
        assert result["jaccard_mean"] == pytest.approx(mean.mean(), abs=1e-6)
        assert result["jaccard_best_head"] == pytest.approx(heads.max(1).mean(), abs=1e-6)
        by_head = heads.mean(0)
        assert result["jaccard_fixed_head"] == pytest.approx(by_head.max(), abs=1e-6)
        assert result["fixed_head"] == by_head.argmax()
        curve = [scores(m / 20)[0].mean() for m in range(1, 20)]
        area = (sum(curve) - (curve[0] + curve[-1]) / 2) / 18
        assert result["mass_curve_area"] == pytest.approx(area, abs=1e-6)
    assert (found["images"], found["without_object"], found["mass"]) == (3, 1, 0.4)
    sequences = found["sequences"]
    assert [(name, each["images"]) for name, each in sequences.items()] == [("one", 2), ("two", 1)]
    for key in ("jaccard_mean", "jaccard_best_head"):
        mean = (2 * sequences["one"][key] + sequences["two"][key]) / 3
        assert mean == pytest.approx(found[key], abs=2e-6)
    for control in ("random_vit", "centre_prior"):
        mean = (2 * sequences["one"][control] + sequences["two"][control]) / 3
        assert mean == pytest.approx(found["controls"][control]["jaccard_mean"], abs=2e-6)


def test_one_folder_of_frames_is_one_sequence(masked):
    root, model = masked
    pairs = pair_files(root / "images" / "two", root / "masks" / "two")
    found = evaluate_objects(read_model_info(model), pairs, run=RunOptions((24, 48), "cpu"))
    assert found["sequences"].keys() == {"two"}
    assert found["sequences"]["two"]["jaccard_mean"] == found["jaccard_mean"]


def test_objects_are_scored_at_each_frames_own_size(masked, tmp_path):
    root, model = masked
    info, pairs = read_model_info(model), []
    for i, (name, shape) in enumerate({"tall": (90, 50), "wide": (51, 93)}.items()):
        pair = pair_files(root / "images" / "one", root / "masks" / "one")[2 * i]
        for path in (pair.image, pair.label):
            small = cv2.resize(cv2.imread(str(path)), shape[::-1], interpolation=cv2.INTER_NEAREST)
            out = tmp_path / path.relative_to(root).parts[0] / f"{name}.png"
            out.parent.mkdir(exist_ok=True)
            cv2.imwrite(str(out), small)
    pairs = pair_files(tmp_path / "images", tmp_path / "masks")
    found = evaluate_objects(info, pairs, 0.5, RunOptions(device="cpu"))
    each = [
        evaluate_objects(info, [pair], 0.5, RunOptions(size, "cpu"))
        for pair, size in zip(pairs, ((88, 48), (48, 96)), strict=True)
    ]
    for part in (lambda r: r, lambda r: r["controls"]["random_vit"]):
        mean = np.mean([part(result)["jaccard_mean"] for result in each])
        assert part(found)["jaccard_mean"] == pytest.approx(mean, abs=2e-6)


def test_objects_are_checked_before_the_model_runs(masked, model_factory, tmp_path, monkeypatch):
    root, model = masked
    info = read_model_info(model)
    pairs = pair_files(root / "images", root / "masks")
    monkeypatch.setattr(running, "open_runtime", lambda *_: pytest.fail("the model was opened"))
    with pytest.raises(ValueError, match="tiny is a model of task clusters: it has no attention"):
        evaluate_objects(read_model_info(model_factory(task="clusters")), pairs)
    for mass in (0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="mass must be above 0 and up to 1"):
            evaluate_objects(info, pairs, mass)
    empty = pair_files(root / "images" / "one", root / "masks" / "one")[1:2]
    with pytest.raises(DataError, match="no mask has an object"):
        evaluate_objects(info, empty)
    for stem in ("one/0", "two/0"):
        (tmp_path / stem).parent.mkdir()
        cv2.imwrite(str(tmp_path / f"{stem}.png"), np.ones((30, 40), np.uint8))
    broken = [Pair(p.image, tmp_path / p.label.relative_to(root / "masks")) for p in pairs[::3]]
    with pytest.raises(DataError) as refused:
        evaluate_objects(info, broken)
    for stem in ("one/0", "two/0"):
        assert f"{tmp_path / stem}.png: labels are 40x30, their image" in str(refused.value)
