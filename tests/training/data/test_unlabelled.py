# SPDX-License-Identifier: Apache-2.0
"""Batches without labels: parts of frames, never padded, the same however a run is split."""

import warnings

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from lightning import LightningDataModule
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from training.data.files import DataError
from training.data.unlabelled import Frames, crop

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory, street_frames):
    """Twelve images of 120x160 and one that is smaller than the parts."""
    root = tmp_path_factory.mktemp("frames")
    for i in range(12):
        part = street_frames[i % 6][20 * (i // 6) :][:120, 30 * i :][:, :160]
        cv2.imwrite(str(root / f"{i:02}.png"), part[..., ::-1])
    cv2.imwrite(str(root / "12.png"), street_frames[0][:30, :40, ::-1])
    return root


class Alone:
    """What the loaders ask of a trainer."""

    def __init__(self, world=1, rank=0):
        self.world_size, self.global_rank = world, rank


def module(source, trainer=None, **options):
    options = {"size": (48, 64), "batch_size": 4, "workers": 0, **options}
    data = Frames(str(source), **options)
    data.trainer = trainer or Alone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.setup("fit")
    return data


def epoch(data, number):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    return list(loader)


def ramps(height, width):
    """A frame whose red is the row, green the column; blue is 200, which padding would not be."""
    rows, columns = np.mgrid[:height, :width]
    return np.dstack([rows, columns, np.full((height, width), 200)]).astype(np.uint8)


@given(
    st.tuples(st.integers(16, 255), st.integers(16, 255)),
    st.tuples(st.integers(16, 80), st.integers(16, 80)),
    st.floats(1, 3),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_a_part_lies_within_the_frame_and_keeps_its_shape(frame, size, scale, place):
    height, width = frame
    part = crop(ramps(height, width), size, scale, place)
    assert part.shape == (*size, 3) and part.dtype == np.uint8
    assert (part[..., 2] == 200).all()  # nothing else came in
    # Pixels of the frame for one of the part: the same across and down, but for whole pixels.
    step = min(height / size[0], width / size[1]) / scale
    for axis, length, side in ((0, size[0], height), (1, size[1], width)):
        covered = np.ptp(part[..., axis].astype(int)) + 1
        wanted = min(side, max(1, length * step))
        assert abs(covered - wanted) <= 2 + step
    # Places 0 and 1 are the frame's ends.
    corner = crop(ramps(height, width), size, scale, (1.0, 1.0))
    assert abs(int(corner[-1, -1, 0]) - (height - 1)) <= step / 2 + 1
    assert abs(int(corner[-1, -1, 1]) - (width - 1)) <= step / 2 + 1
    assert crop(ramps(height, width), size, scale, (0.0, 0.0))[0, 0, :2].max() <= step / 2 + 1


def test_scale_one_is_the_whole_of_a_frame_of_that_shape(street_frames):
    frame = np.ascontiguousarray(street_frames[0][:200, :300])
    assert np.array_equal(crop(frame, (200, 300), 1.0, (0.3, 0.7)), frame)


def test_batches(folder):
    data = module(folder)
    batches = epoch(data, 0)
    assert len(batches) == 3  # of 13 frames
    images = batches[0][0]
    assert images.dtype == torch.uint8 and images.shape == (4, 3, 48, 64)
    everyone = [name for _, names in batches for name in names]
    assert len(set(everyone)) == 12 and everyone != sorted(everyone)
    assert {name.rpartition("/")[0] for name in everyone} == {str(folder)}


def test_parts_depend_on_seed_epoch_and_frame_only(folder):
    def picture(seed=0, number=0, index=3):
        frames = module(folder, seed=seed).train_dataloader().dataset
        return frames[(number, index)][0]

    first = picture()
    torch.rand(7)
    assert torch.equal(first, picture())
    for changed in ({"seed": 1}, {"number": 1}, {"index": 4}):
        assert not torch.equal(first, picture(**changed))


def test_both_mirrors_and_all_scales_come_up(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), ramps(120, 160)[..., ::-1])
    frames = module(tmp_path, scale=(1.0, 2.0), batch_size=1).train_dataloader().dataset
    spans, mirrored = [], []
    for number in range(200):
        image = frames[(number, 0)][0].numpy().astype(int)
        spans.append(np.ptp(image[0]))
        mirrored.append(image[1, 0, 0] > image[1, 0, -1])
        assert (image[2] == 200).all()
    assert 70 < sum(mirrored) < 130
    assert min(spans) < 66 and max(spans) > 110 and 80 < np.mean(spans) < 92


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_the_batches_of_one(folder, world):
    whole = epoch(module(folder), 5)
    shares = [epoch(module(folder, Alone(world, rank)), 5) for rank in range(world)]
    for together, *parts in zip(whole, *shares, strict=True):
        assert sorted(together[1]) == sorted(name for _, names in parts for name in names)
        ours = dict(zip(together[1], together[0], strict=True))
        for images, names in parts:
            for name, image in zip(names, images, strict=True):
                assert torch.equal(ours[name], image)


def test_the_frames_to_look_at(folder, tmp_path, street_frames):
    ((images, names),) = module(folder).val_dataloader()
    assert images.shape == (8, 3, 48, 64)
    assert [int(name[-6:-4]) for name in names] == [0, 2, 3, 5, 7, 9, 10, 12]
    assert torch.equal(images, next(iter(module(folder, Alone(2, 1)).val_dataloader()))[0])
    batches = list(module(folder, val_frames=11).val_dataloader())
    assert [len(images) for images, _ in batches] == [8, 3]
    frame = cv2.imread(names[1])[..., ::-1]
    expected = cv2.resize(frame, (64, 48), interpolation=cv2.INTER_AREA)
    assert np.abs(images[1].permute(1, 2, 0).numpy().astype(int) - expected).mean() < 3
    cv2.imwrite(str(tmp_path / "other.png"), street_frames[0])
    ((images, names),) = module(folder, val_source=str(tmp_path)).val_dataloader()
    assert len(images) == 1 and list(names) == [str(tmp_path / "other.png")]


def test_validation_alone_does_not_read_the_training_frames(folder):
    data = Frames("nowhere", val_source=str(folder / "00.png"))
    data.setup("validate")
    assert data.train is None and len(data.val) == 1


@pytest.fixture(scope="module")
def bag(tmp_path_factory, street_frames):
    """Four messages on /left, two on /right."""
    types = get_typestore(Stores.ROS2_HUMBLE)
    kind = "sensor_msgs/msg/CompressedImage"
    header = types.types["std_msgs/msg/Header"](
        types.types["builtin_interfaces/msg/Time"](0, 0), ""
    )
    path = tmp_path_factory.mktemp("bags") / "bag"
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        for topic, count in (("/left", 4), ("/right", 2)):
            connection = writer.add_connection(topic, kind, typestore=types)
            for i in range(count):
                data = cv2.imencode(".jpg", street_frames[i])[1].reshape(-1)
                message = types.types[kind](header, "jpeg", data)
                writer.write(connection, i, types.serialize_cdr(message, kind))
    return path


def test_the_topic_is_for_every_bag_and_the_stride_for_training(folder, bag):
    data = module(bag, topic="/left", stride=2, val_source=str(folder))
    assert data.train.names == [f"{bag}:/left#{i}" for i in (0, 2)] and len(data.val) == 13
    data = module(bag, topic="/left", stride=2, val_source=[str(folder / "00.png"), str(bag)])
    assert data.val.names == [str(folder / "00.png"), *(f"{bag}:/left#{i}" for i in range(4))]
    with pytest.raises(DataError, match="topic /left was given, but there is no bag"):
        module(folder, topic="/left", val_source=str(bag))


def test_what_teaches_little_is_named_but_does_not_stop(folder, tmp_path):
    for i in range(7):
        cv2.imwrite(str(tmp_path / f"flat{i}.png"), np.full((60, 80, 3), 30 * i, np.uint8))
    data = Frames([str(folder), str(tmp_path)], size=(48, 64))
    with pytest.warns(UserWarning) as caught:
        data.setup("fit")
    messages = [str(warning.message) for warning in caught]
    assert any("7 frames have one colour" in m and "flat4.png and 2 more" in m for m in messages)
    assert any("1 frames are smaller than 64x48" in m and "12.png" in m for m in messages)


def test_what_cannot_be_trained_on(folder, tmp_path):
    with pytest.raises(DataError, match="13 training frames are fewer than one batch of 14"):
        module(folder, batch_size=14).train_dataloader()
    with pytest.raises(DataError, match="batch_size 5 cannot be split over 2 processes"):
        module(folder, Alone(2, 0), batch_size=5).train_dataloader()
    for scale in ((0.5, 2.0), (2.0, 1.0)):
        with pytest.raises(DataError, match=r"scale .*1 or more"):
            Frames(str(folder), scale=scale)
    (tmp_path / "bad.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match=r"bad\.jpg: cannot be read"):
        module(tmp_path)


@pytest.mark.parametrize("source", ["my.mcap", '["a.mcap", "b"]'])
def test_every_argument_can_be_set_on_the_command_line(source):
    parser = ArgumentParser()
    parser.add_subclass_arguments(LightningDataModule, "data")
    name = "training.data.unlabelled.Frames"
    given = [f"--data={name}", f"--data.source={source}", "--data.topic=/x", "--data.stride=3"]
    parsed = parser.parse_args(given).data.init_args
    assert parsed.source == ("my.mcap" if source == "my.mcap" else ["a.mcap", "b"])
    assert parsed.topic == "/x" and parsed.stride == 3 and parsed.size == (224, 224)
