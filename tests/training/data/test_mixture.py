# SPDX-License-Identifier: Apache-2.0
"""Several labelled data sets at once, and frames without labels beside them."""

import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from training.data.augment import GREY, Hide
from training.data.files import DataError
from training.data.mixture import CERTAIN, CONFIDENCE, Mixture, Source, drawn, shares
from training.data.pairs import IGNORE

pytestmark = pytest.mark.slow


class Alone:
    """What the loaders ask of a trainer."""

    world_size, global_rank = 1, 0


@pytest.fixture(scope="module")
def street(tmp_path_factory, street_frames) -> Path:
    """Six frames 70x110 of another data set: colour masks, a class list, three halves."""
    root = tmp_path_factory.mktemp("street")
    for part in ("images", "labels"):
        (root / part).mkdir()
    colours = {"sky": [0, 128, 128], "plants": [0, 128, 0], "thing": [128, 0, 0]}
    rows = [{"name": name, "colour": colour} for name, colour in colours.items()]
    (root / "classes.yaml").write_text(yaml.safe_dump(rows))
    mask = np.zeros((70, 110, 3), np.uint8)
    for i, colour in enumerate(colours.values()):
        mask[:, 37 * i :] = colour[::-1]
    for i in range(6):
        name = f"{'boston' if i % 2 else 'madrid'}_{i}.png"
        cv2.imwrite(str(root / "images" / name), street_frames[i][:70, :110])
        cv2.imwrite(str(root / "labels" / name), mask)
    return root


def street_source(root, **options):
    classes = {"plants": ["tree", "pavement"], "thing": []}
    return Source(
        str(root / "classes.yaml"), str(root), ["train", "val"], classes=classes, **options
    )


def mixture(camvid, street, **options):
    options = {"size": (64, 96), "frames": 12, "batch_size": 4, "workers": 0, **options}
    sources = [Source("camvid", str(camvid), weight=2.0), street_source(street, weight=1.0)]
    val = [Source("camvid", str(camvid), ["val"])]
    data = Mixture(**{"sources": sources, "val": val, **options})
    data.trainer = Alone()
    data.setup("fit")
    return data


def batches(data, epoch=0):
    loader = data.train_dataloader()["labelled"]
    loader.sampler.set_epoch(epoch)
    return list(loader)


def test_batches_have_the_labels_of_all_sources(small_camvid, street):
    data = mixture(small_camvid, street)
    names = [name for batch in batches(data) for name in batch.names]
    assert Counter("_" in name for name in names) == {False: 8, True: 4}
    for batch in batches(data):
        assert batch.images.dtype == torch.uint8 and batch.images.shape == (4, 3, 64, 96)
        assert batch.labels.dtype == torch.int64 and batch.labels.shape == (4, 64, 96)
        assert (batch.confidence[batch.labels != IGNORE] == CERTAIN).all()
        for label, name in zip(batch.labels, batch.names, strict=True):
            seen = set(label.unique().tolist())
            # sky, and the set {tree, pavement} as the first label after the model's classes
            assert seen <= ({0, 11, IGNORE} if "_" in name else {*range(11), IGNORE})
    assert data.allowed.shape == (12, 11)
    assert data.allowed[11].nonzero().flatten().tolist() == [4, 5]
    assert data.origin().startswith("8 frames of camvid")
    assert "6 frames of street" in data.origin()


def test_only_certain_labels_of_one_class_are_scored(small_camvid, street, tmp_path):
    val = [Source("camvid", str(small_camvid), ["val"]), street_source(street, name="one")]
    data = mixture(small_camvid, street, val=val)
    labels = {int(i) for _, label, _ in data.val_dataloader()[1] for i in label.unique()}
    assert labels == {0, IGNORE}  # plants are {tree, pavement}
    with pytest.raises(DataError, match="a name of its own, not one, one"):
        mixture(small_camvid, street, val=[*val, val[1]])


def test_patterns_choose_the_frames(small_camvid, street):
    sources = [street_source(street, without=["boston*"]), street_source(street, only=["*_1.png"])]
    data = mixture(small_camvid, street, sources=sources, frames=4)
    assert [len(source) for source in data.train] == [3, 1]
    with pytest.raises(DataError, match="none of the 6 frames is left"):
        mixture(small_camvid, street, sources=[street_source(street, only=["paris*"])])


@given(
    st.lists(st.floats(0.01, 100), min_size=1, max_size=6),
    st.integers(1, 500),
)
def test_shares_add_up_and_are_nearly_exact(weights, total):
    found = shares(weights, total)
    assert sum(found) == total
    for count, weight in zip(found, weights, strict=True):
        assert abs(count - total * weight / sum(weights)) < 1 + 1e-9


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 12)), min_size=1, max_size=4),
    st.integers(0, 2**31),
)
def test_each_frame_of_a_source_is_drawn_equally_often(sources, seed):
    counts, sizes = [count for count, _ in sources], [size for _, size in sources]
    seen = Counter()
    for epoch in range(5):
        epoch_draws = [drawn(counts, sizes, seed, epoch, i) for i in range(sum(counts))]
        assert Counter(source for source, _ in epoch_draws) == Counter(
            {i: count for i, count in enumerate(counts) if count}
        )
        seen.update(epoch_draws)
        for source, size in enumerate(sizes):
            times = [seen[source, frame] for frame in range(size)]
            assert max(times) - min(times) <= 1


def test_order_of_the_frames_changes_with_turn_and_seed():
    def order(seed, epoch):
        return [drawn([20], [20], seed, epoch, i)[1] for i in range(20)]

    orders = [order(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert all(sorted(each) == list(range(20)) for each in orders)
    assert len({tuple(each) for each in orders}) == 9


def test_items_depend_on_seed_epoch_and_index_only(small_camvid, street):
    data = mixture(small_camvid, street)
    frames = data.train_dataloader()["labelled"].dataset
    image, label, confidence, name = frames[2, 9]
    state = torch.random.get_rng_state()
    torch.rand(10)
    again = mixture(small_camvid, street).train_dataloader()["labelled"].dataset[2, 9]
    assert torch.equal(image, again.images) and torch.equal(label, again.labels)
    assert torch.equal(confidence, again.confidence) and name == again.names
    torch.random.set_rng_state(state)
    assert frames[2, 9] is not None and torch.equal(state, torch.random.get_rng_state())
    other = mixture(small_camvid, street, seed=1).train_dataloader()["labelled"].dataset
    assert not torch.equal(image, other[2, 9].images)


def test_confidence_moves_with_the_labels(small_camvid, street, tmp_path):
    root = tmp_path / "pseudo"
    for part in ("images", "labels", CONFIDENCE):
        (root / part).mkdir(parents=True)
    (root / "classes.yaml").write_text("[sky, road]")
    ramp = np.tile(np.arange(96, dtype=np.uint8), (64, 1))
    for i in range(2):
        cv2.imwrite(str(root / "images" / f"{i}.png"), np.repeat(ramp[..., None], 3, 2))
        cv2.imwrite(str(root / "labels" / f"{i}.png"), (ramp >= 48).astype(np.uint8))
        cv2.imwrite(str(root / CONFIDENCE / f"{i}.png"), 100 + ramp)
    source = Source(str(root / "classes.yaml"), str(root), ["train", "val"])
    data = mixture(small_camvid, street, sources=[source], frames=4)
    for batch in batches(data):
        known = batch.labels != IGNORE
        assert set(batch.labels[known].unique().tolist()) <= {0, 3}
        assert ((batch.confidence >= 148) == (batch.labels == 3))[known].all()
    cv2.imwrite(str(root / CONFIDENCE / "1.png"), ramp[:32])
    with pytest.raises(DataError, match=r"confidence/1\.png: .* at the size of the labels, 96x64"):
        mixture(small_camvid, street, sources=[source], frames=4)
    (root / CONFIDENCE / "1.png").unlink()
    with pytest.raises(DataError, match=r"confidence/1\.png: cannot be read"):
        mixture(small_camvid, street, sources=[source], frames=4)


def test_a_teacher_fills_the_gaps_of_a_data_set(small_camvid, street, tmp_path):
    """Columns 74 to 109 are "thing", which the model does not have; one frame has a teacher."""
    root = tmp_path / "pseudo"
    for part in ("images", "labels", CONFIDENCE):
        (root / part).mkdir(parents=True)
    (root / "classes.yaml").write_text("[car, sky]")
    frame = cv2.imread(str(street / "images" / "madrid_0.png"))
    cv2.imwrite(str(root / "images" / "000007_madrid_0.jpg"), frame)
    ids = np.tile(np.arange(110) % 2, (70, 1)).astype(np.uint8)
    cv2.imwrite(str(root / "labels" / "000007_madrid_0.png"), ids)
    cv2.imwrite(str(root / CONFIDENCE / "000007_madrid_0.png"), 100 + ids)
    # One frame alone cannot be divided into train and val.
    for part, suffix in (("images", "jpg"), ("labels", "png"), (CONFIDENCE, "png")):
        shutil.copy(
            root / part / f"000007_madrid_0.{suffix}", root / part / f"000008_other.{suffix}"
        )
    data = mixture(small_camvid, street, sources=[street_source(street, fill=str(root))], frames=4)
    seen = {stem: (label, sure) for _, label, sure, stem in data.train[0]}
    label, sure = seen["madrid_0"]
    assert (label[:, :37] == 0).all() and (sure[:, :74] == CERTAIN).all()
    assert np.array_equal(label[:, 74:], np.where(ids[:, 74:] == 0, 8, 0))
    assert np.array_equal(sure[:, 74:], 100 + ids[:, 74:])
    label, _ = seen["boston_1"]
    assert (label[:, 74:] == IGNORE).all()
    shutil.copy(root / "labels" / "000008_other.png", root / "labels" / "000009_other.png")
    shutil.copy(root / CONFIDENCE / "000008_other.png", root / CONFIDENCE / "000009_other.png")
    shutil.copy(root / "images" / "000008_other.jpg", root / "images" / "000009_other.jpg")
    with pytest.raises(DataError, match="several frames are called other"):
        mixture(small_camvid, street, sources=[street_source(street, fill=str(root))], frames=4)


def test_unlabelled_frames_come_twice_in_the_same_place(small_camvid, street):
    footage = [str(street / "images")]
    data = mixture(small_camvid, street, unlabelled=footage, unlabelled_batch=2, size=(128, 192))
    loaders = data.train_dataloader()
    assert len(loaders["unlabelled"]) == len(loaders["labelled"]) == 3
    dataset = loaders["unlabelled"].dataset
    parts, hidden = [], []
    for index in range(6):
        image, distorted, _ = dataset[1, index]
        parts.append(image.numpy().tobytes())
        assert torch.equal(distorted, dataset[1, index].distorted)
        shown = ~(distorted == GREY).all(0)
        hidden.append(not shown.all())
        # The same place: distorted brightness still follows that of the frame.
        pair = np.stack([t.float().mean(0)[shown].numpy() for t in (image, distorted)])
        assert np.corrcoef(pair)[0, 1] > 0.4
    assert len(set(parts)) == 6
    assert any(hidden)


def test_hidden_squares_cover_their_share():
    torch.manual_seed(0)
    image = torch.randint(0, 100, (3, 650, 970), dtype=torch.uint8)
    hidden = (Hide(side=10, share=0.3)(image) == GREY).all(0)
    assert hidden.float().mean() == pytest.approx(0.3, abs=0.02)
    squares = hidden.unflatten(0, (65, 10)).unflatten(2, (97, 10))
    assert torch.equal(squares.amax((1, 3)), squares.amin((1, 3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 10}, "frames 10 is not a multiple of batch_size 4: give 8"),
        ({"sources": []}, "at least one data set"),
        ({"sources": [Source("camvid", "x", weight=0)]}, "must be above 0"),
        (
            {"sources": [Source("camvid", "x"), Source("camvid", "rare", weight=0.01)]},
            "rare: its weight 0.01 is not one frame in an epoch of 12",
        ),
    ],
)
def test_arguments_that_cannot_be_are_refused(options, message, small_camvid, street):
    with pytest.raises(DataError, match=message):
        mixture(small_camvid, street, **options)
