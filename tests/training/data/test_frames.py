# SPDX-License-Identifier: Apache-2.0
"""Frames of images, videos and bags; bags are written in both storages, raw and compressed."""

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from functools import partial

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from mcap.writer import CompressionType, IndexType
from mcap.writer import Writer as McapWriter
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from training.data import frames as frames_module
from training.data.__main__ import main
from training.data.bags import bag_images
from training.data.crops import Crops
from training.data.files import BrokenFiles, DataError
from training.data.frames import FrameOptions, open_frames
from training.data.unlabelled import Frames

pytestmark = pytest.mark.slow

TYPES = get_typestore(Stores.ROS2_HUMBLE)
IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
STORAGES = [StoragePlugin.MCAP, StoragePlugin.SQLITE3]


def header():
    stamp = TYPES.types["builtin_interfaces/msg/Time"](0, 0)
    return TYPES.types["std_msgs/msg/Header"](stamp, "camera")


def raw(pixels, encoding="rgb8", step=None):
    """sensor_msgs/Image of [H, W] or [H, W, C], 8 or 16 bits."""
    height, width = pixels.shape[:2]
    data = np.ascontiguousarray(pixels).view(np.uint8).reshape(-1)
    step = step or data.size // height
    return TYPES.types[IMAGE](header(), height, width, encoding, 0, step, data)


def compressed(rgb, suffix="jpg", form="jpeg"):
    data = cv2.imencode(f".{suffix}", rgb[..., ::-1])[1].reshape(-1)
    return TYPES.types[COMPRESSED](header(), form, data)


def write_bag(path, topics, storage=StoragePlugin.MCAP):
    with Writer(path, version=9, storage_plugin=storage) as writer:
        fill(writer, topics)
    return path


def fill(writer, topics):
    """Messages by topic, 10 ms apart."""
    for topic, messages in topics.items():
        kind = messages[0].__msgtype__ if messages else IMAGE
        connection = writer.add_connection(topic, kind, typestore=TYPES)
        for i, message in enumerate(messages):
            writer.write(connection, 10_000_000 * (i + 1), TYPES.serialize_cdr(message, kind))


def text(value):
    return TYPES.types["std_msgs/msg/String"](value)


def same_picture(ours, theirs, mean):
    """JPEG changes pixels a little, never a channel's place or a frame's order."""
    assert ours.dtype == np.uint8 and ours.shape == theirs.shape
    return np.abs(ours.astype(int) - theirs).mean() < mean


@pytest.fixture(scope="module")
def small(street_frames):
    """Six frames of 64x96 that differ clearly from each other and between channels."""
    parts = [frame[60:124, 90 * i : 90 * i + 96] for i, frame in enumerate(street_frames)]
    return [np.dstack([p[..., 0], 255 - p[..., 1], p[..., 2] // 2]) for p in parts]


@pytest.fixture(scope="module")
def video(tmp_path_factory, small):
    path = tmp_path_factory.mktemp("video") / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (96, 64))
    for frame in small:
        writer.write(frame[..., ::-1])
    writer.release()
    return path


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("kind", ["raw", "jpeg", "png"])
@pytest.mark.parametrize("alone", [False, True])
def test_bags(tmp_path, small, storage, kind, alone):
    make = {"raw": raw, "jpeg": compressed, "png": lambda f: compressed(f, "png", "png")}[kind]
    topics = {"/chat": [text("hello")], "/camera": [make(frame) for frame in small]}
    path = write_bag(tmp_path / "bag", topics, storage)
    if alone:
        path = next(p for p in path.iterdir() if p.suffix in (".mcap", ".db3"))
    frames = open_frames(path)
    assert frames.names == [f"{path}:/camera#{i}" for i in range(6)]
    assert frames.sizes == [(64, 96)] * 6 and not frames.left_out and frames.kept_bytes > 0
    assert len(frames) == 6
    for ours, theirs in zip(frames, small, strict=True):
        assert same_picture(ours, theirs, 0.1 if kind == "png" else 8)


@pytest.mark.parametrize("mode", [CompressionMode.FILE, CompressionMode.MESSAGE])
def test_bags_whose_storage_is_compressed(tmp_path, small, mode):
    writer = Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.SQLITE3)
    writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        fill(writer, {"/camera": [raw(frame) for frame in small]})
    assert same_picture(open_frames(tmp_path / "bag")[5], small[5], 8)


def encoded(encoding, rgb):
    """A frame in an encoding, and what is left of it: its colours, or its grey alone."""
    grey = rgb[..., 1]
    opaque = np.full_like(grey, 9)
    flat = np.full(rgb.shape[:2], 128, np.uint8)
    pixels = {
        "rgb8": rgb,
        "bgr8": rgb[..., ::-1],
        "rgba8": np.dstack([rgb, opaque]),
        "bgra8": np.dstack([rgb[..., ::-1], opaque]),
        "mono8": grey,
        "mono16": grey.astype(np.uint16) * 257,
        "yuv422": np.dstack([flat, grey]),
        "yuv422_yuy2": np.dstack([grey, flat]),
        "nv12": grey,
        "bayer_rggb8": np.full_like(grey, 77),
    }[encoding]
    message = raw(pixels, encoding)
    if encoding == "nv12":
        message.data = np.concatenate([message.data, np.full(grey.size // 2, 128, np.uint8)])
    if encoding.startswith("bayer"):
        return message, np.full_like(rgb, 77)
    return message, rgb if encoding[:3] in ("rgb", "bgr") else np.dstack([grey] * 3)


@pytest.mark.parametrize(
    "encoding",
    [
        *("rgb8", "bgr8", "rgba8", "bgra8", "mono8", "mono16"),
        *("yuv422", "yuv422_yuy2", "nv12", "bayer_rggb8"),
    ],
)
def test_encodings_of_raw_messages(tmp_path, small, encoding):
    message, expected = encoded(encoding, small[0])
    frame = open_frames(write_bag(tmp_path / "bag", {"/camera": [message]}))[0]
    # YUV of a camera has a limited range, which stretches what is taken as its grey.
    assert same_picture(frame, expected, 25 if encoding[:2] in ("yu", "nv") else 8)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("stride", [1, 2, 5, 8])
def test_stride_takes_every_nth_message(tmp_path, small, stride, storage):
    path = write_bag(tmp_path / "bag", {"/camera": [raw(frame) for frame in small]}, storage)
    numbers = [number for _, number, _ in bag_images(path, None, stride)]
    assert numbers == list(range(0, 6, stride))
    frames = open_frames(path, FrameOptions(stride=stride))
    assert all(same_picture(frames[i], small[n], 8) for i, n in enumerate(numbers))


def test_one_of_several_topics_must_be_chosen(tmp_path, small):
    topics = {"/left": [raw(small[0])], "/right": [compressed(small[1])], "/chat": [text("a")]}
    path = write_bag(tmp_path / "bag", topics)
    with pytest.raises(DataError) as caught:
        open_frames(path)
    message = str(caught.value)
    assert f"{path}: images on 2 topics" in message
    assert "choose one with --topic NAME (training: --data.topic NAME)" in message
    assert f"/left  {IMAGE}, 1 messages" in message
    assert f"/right  {COMPRESSED}, 1 messages" in message
    assert same_picture(open_frames(path, FrameOptions("/right"))[0], small[1], 8)
    with pytest.raises(DataError, match=r"(?s)no images on topic /middle\. Its topics:.*/left"):
        open_frames(path, FrameOptions("/middle"))
    with pytest.raises(DataError, match="no images on topic /chat"):
        open_frames(path, FrameOptions("/chat"))


def test_a_topic_without_messages_is_not_in_the_way(tmp_path, small):
    path = write_bag(tmp_path / "bag", {"/dead": [], "/camera": [raw(small[0])]})
    assert open_frames(path).names == [f"{path}:/camera#0"]


@pytest.mark.parametrize("topics", [{"/chat": "a"}, {}])
def test_a_bag_without_images_lists_its_topics(tmp_path, topics):
    path = write_bag(tmp_path / "bag", {name: [text(value)] for name, value in topics.items()})
    listed = r"\n  /chat  std_msgs/msg/String, 1 messages" if topics else " none"
    with pytest.raises(DataError, match=rf"bag: no messages of .*Its topics:{listed}"):
        open_frames(path)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("share", [0, 0.0001, 0.3, 0.6, 0.99])
@pytest.mark.parametrize("whole_folder", [False, True])
def test_a_bag_that_was_cut_short_is_named(tmp_path, small, storage, share, whole_folder):
    path = write_bag(tmp_path / "bag", {"/camera": [raw(frame) for frame in small]}, storage)
    file = next(p for p in path.iterdir() if p.suffix in (".mcap", ".db3"))
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    repair = "mcap recover" if storage == StoragePlugin.MCAP else r"sqlite3 .* \.recover"
    fix = rf"({repair}|reindex)" if share else "is empty; copy it again"
    with pytest.raises(DataError, match=rf"bag.*cannot be read as a ROS 2 bag.*{fix}"):
        open_frames(path if whole_folder else file)


@pytest.mark.parametrize("suffix", [".mcap", ".db3"])
@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"<html>404 Not Found</html>", "text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ],
)
def test_what_a_file_is_instead_of_a_bag(tmp_path, suffix, content, cause):
    path = tmp_path / f"bag{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"bag\{suffix}: .*{cause}") as caught:
        open_frames(path)
    assert "recover" not in str(caught.value)


def test_an_mcap_file_without_its_end_says_so(tmp_path, small):
    path = write_bag(tmp_path / "bag", {"/c": [raw(rgb) for rgb in small]}, StoragePlugin.MCAP)
    (file,) = path.glob("*.mcap")
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"its end is missing.*mcap recover"):
        open_frames(file)


@pytest.mark.parametrize("storage", STORAGES)
def test_the_case_of_a_suffix_does_not_matter(tmp_path, small, storage):
    write_bag(tmp_path / "bag", {"/camera": [raw(rgb) for rgb in small]}, storage)
    (file,) = (path for path in (tmp_path / "bag").iterdir() if path.suffix != ".yaml")
    upper = file.rename(tmp_path / file.name.upper())
    if storage == StoragePlugin.SQLITE3:
        with pytest.raises(DataError, match=r"BAG.DB3: rename it so that it ends in \.db3"):
            open_frames(upper)
        return
    shutil.rmtree(tmp_path / "bag")
    assert len(open_frames(upper)) == len(small)
    assert len(open_frames(tmp_path, FrameOptions(stride=2))) == (len(small) + 1) // 2


@pytest.mark.parametrize("content", ["", "[]", "version: 9", "{"])
def test_metadata_that_is_not_a_bags_is_the_cause(tmp_path, small, content):
    write_bag(tmp_path / "bag", {"/camera": [raw(rgb) for rgb in small]})
    (tmp_path / "bag" / "metadata.yaml").write_text(content)
    with pytest.raises(DataError) as caught:
        open_frames(tmp_path / "bag")
    assert "ros2 bag reindex" in str(caught.value) and "NoneType" not in str(caught.value)


def test_bag_folders_that_are_not_whole(tmp_path, small):
    path = write_bag(tmp_path / "bag", {"/camera": [raw(small[0])]})
    shutil.copytree(path, tmp_path / "no metadata")
    (tmp_path / "no metadata" / "metadata.yaml").unlink()
    assert len(open_frames(tmp_path / "no metadata")) == 1
    shutil.copytree(path, tmp_path / "broken")
    (tmp_path / "broken" / "metadata.yaml").write_text("rosbag2_bagfile_information: [")
    with pytest.raises(DataError, match=r"broken: cannot be read.*ros2 bag reindex \S*broken"):
        open_frames(tmp_path / "broken")
    (path / "bag.mcap").unlink()
    with pytest.raises(DataError, match=r"bag: cannot be read.*missing"):
        open_frames(path)


@pytest.mark.parametrize(("kept", "said"), [(3, "3"), (0, "none")])
@pytest.mark.parametrize("stride", [1, 4])
def test_a_bag_with_fewer_messages_than_it_promises_is_refused(tmp_path, small, kept, said, stride):
    topics = {"/camera": [raw(frame) for frame in small], "/chat": [text("a")] * 9}
    path = write_bag(tmp_path / "bag", topics, StoragePlugin.SQLITE3)
    (file,) = path.glob("*.db3")
    with closing(sqlite3.connect(file)) as storage, storage:
        camera = "topic_id = (SELECT id FROM topics WHERE name = '/camera')"
        storage.execute(f"DELETE FROM messages WHERE {camera} AND timestamp > ?", [kept * 10**7])
    with pytest.raises(DataError) as caught:
        open_frames(path, FrameOptions(stride=stride))
    message = str(caught.value)
    assert f"{path}: holds {said} of the 6 messages on /camera that its metadata" in message
    assert f"`ros2 bag reindex {path}`" in message
    if kept:  # the storage alone says what it holds, and promises no more
        assert len(open_frames(file)) == 3


def test_a_bag_with_more_messages_than_it_promises_is_read(tmp_path, small):
    path = write_bag(tmp_path / "bag", {"/camera": [raw(frame) for frame in small]})
    metadata = path / "metadata.yaml"
    changed = metadata.read_text().replace("message_count: 6", "message_count: 5")
    assert changed != metadata.read_text()
    metadata.write_text(changed)
    assert len(open_frames(path)) == 6


def test_bad_messages_are_left_out_and_named(tmp_path, small):
    good, bad = raw(small[0]), raw(small[1])
    bad.data = bad.data[:-1]
    path = write_bag(tmp_path / "bag", {"/camera": [good, bad, good]})
    frames = open_frames(path)
    assert frames.names == [f"{path}:/camera#0", f"{path}:/camera#2"]
    assert len(frames.left_out) == 1
    assert frames.left_out[0].startswith(f"{path}:/camera#1: data holds")


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        (raw(np.ones((32, 32), np.uint16), "16UC1"), "16UC1 is depth or raw numbers"),
        (raw(np.ones((32, 32), np.float32), "32FC1"), "32FC1 is depth"),
        (raw(np.ones((32, 32, 3), np.uint8), "8UC3"), "8UC3 does not state"),
        (compressed(np.ones((32, 32, 3), np.uint8), form="16UC1; compressedDepth"), "is depth"),
    ],
)
def test_depth_is_refused(tmp_path, message, cause):
    path = write_bag(tmp_path / "bag", {"/depth": [message, message]})
    with pytest.raises(DataError, match=f"bag:/depth#0: .*{cause}.*Not one of its 2 messages"):
        open_frames(path)


@pytest.mark.parametrize("kind", ["raw", "png", "jpeg"])
def test_mosaics_become_colour(tmp_path, small, kind):
    """In JPEG and PNG too, which are kept as they are only where a viewer would show the same."""
    rgb = cv2.GaussianBlur(small[0], (0, 0), 4)
    values = rgb[..., 1].copy()
    values[::2, ::2], values[1::2, 1::2] = rgb[::2, ::2, 0], rgb[1::2, 1::2, 2]
    message = raw(values, "bayer_rggb8")
    if kind != "raw":
        data = cv2.imencode(".jpg" if kind == "jpeg" else ".png", values)[1].reshape(-1)
        form = f"bayer_rggb8; {kind} compressed "
        message = TYPES.types[COMPRESSED](header(), form, data)
    frames = open_frames(write_bag(tmp_path / "bag", {"/camera": [message]}))
    assert same_picture(frames[0], rgb, 8)


@pytest.mark.parametrize(
    ("encoding", "told", "kind"),
    [
        ("8UC3", "bgr8", "raw"),
        ("8UC3", "rgb8", "raw"),
        ("", "bgr8", "raw"),
        ("8UC3", "bgr8", "png"),
        ("8UC3", "rgb8", "png"),
    ],
)
def test_encodings_without_meaning_are_read_as_told(tmp_path, small, encoding, told, kind):
    channels = small[0] if told == "rgb8" else small[0][..., ::-1]
    message = raw(channels, encoding)
    if kind == "png":
        data = cv2.imencode(".png", channels)[1].reshape(-1)
        message = TYPES.types[COMPRESSED](header(), f"{encoding}; png compressed ", data)
    path = write_bag(tmp_path / "bag", {"/camera": [message]})
    assert same_picture(open_frames(path, FrameOptions(encoding=told))[0], small[0], 8)
    with pytest.raises(
        DataError, match=rf"--encoding \(training: --data.encoding\), one of .*{told}"
    ):
        open_frames(path)


def test_the_command_and_the_data_modules_are_told_as_well(tmp_path, small, capsys):
    path = write_bag(tmp_path / "bag", {"/camera": [raw(f[..., ::-1], "8UC3") for f in small]})
    dark = tmp_path / "dark"
    dark.mkdir()
    for i, frame in enumerate(small):
        cv2.imwrite(str(dark / f"{i}.png"), frame[..., ::-1].astype(np.uint16) << 4)
    assert main(["frames", str(path)]) == 1
    assert "--encoding" in capsys.readouterr().err
    assert main(["frames", str(path), "--encoding", "bgr8"]) == 0
    assert main(["frames", str(dark), "--bits", "12"]) == 0
    modules = (partial(Frames, size=(32, 32)), partial(Crops, global_size=32, local_size=16))
    for make in modules:
        for source, told in ((path, {"encoding": "bgr8"}), (dark, {"bits": 12})):
            data = make(str(source), batch_size=2, workers=0, **told)
            data.setup("fit")
            frames = data.train if isinstance(data, Frames) else data.frames.train
            assert same_picture(frames[3], small[3], 8)
        for wrong in ({"encoding": "8UC3"}, {"bits": 17}):
            with pytest.raises(DataError, match=r"--data\.(encoding|bits) must be"):
                make(str(path), **wrong)


@pytest.mark.parametrize("kind", ["raw", "png"])
@pytest.mark.parametrize("bits", [10, 12, 14])
def test_bags_of_fewer_bits_than_16_are_said_to_be_dark_and_brightened(
    tmp_path, small, kind, bits, caplog
):
    grey = small[0][..., 1]
    values = grey.astype(np.uint16) << (bits - 8)
    message = raw(values, "mono16")
    if kind == "png":
        data = cv2.imencode(".png", values)[1].reshape(-1)
        message = TYPES.types[COMPRESSED](header(), "mono16; png compressed ", data)
    path = write_bag(tmp_path / "bag", {"/camera": [message] * 7})
    assert open_frames(path)[0].max() < 65
    (line,) = [record.getMessage() for record in caplog.records]
    assert str(path) in line and f"{values.max()} of 65535" in line and f"{bits} bits" in line
    caplog.clear()
    assert same_picture(open_frames(path, FrameOptions(bits=bits))[0], np.dstack([grey] * 3), 8)
    assert not caplog.records


# Bags of other recorders

ROS1 = get_typestore(Stores.ROS1_NOETIC)


def ros1(message):
    """A message as ROS 1 writes it."""
    stamp = ROS1.types["builtin_interfaces/msg/Time"](0, 0)
    fields = {**vars(message), "header": ROS1.types["std_msgs/msg/Header"](1, stamp, "camera")}
    fields.pop("__msgtype__", None)
    kind = message.__msgtype__
    return bytes(ROS1.serialize_ros1(ROS1.types[kind](**fields), kind))


def write_mcap(path, topics, written="cdr", profile="ros2", kind=None, **options):
    """Messages by topic in an MCAP file of Foxglove's library; bytes are of Foxglove's protobuf."""
    with path.open("wb") as stream:
        writer = McapWriter(stream, **options)
        writer.start(profile=profile, library="test")
        for topic, messages in topics.items():
            binary = isinstance(messages[0], bytes)
            name = "foxglove.CompressedImage" if binary else kind or messages[0].__msgtype__
            form = "protobuf" if binary else {"cdr": "ros2msg", "ros1": "ros1msg"}[written]
            schema = writer.register_schema(name, form, b"")
            channel = writer.register_channel(topic, "protobuf" if binary else written, schema)
            for i, message in enumerate(messages):
                if binary:
                    data = message
                elif written == "ros1":
                    data = ros1(message)
                else:
                    data = bytes(TYPES.serialize_cdr(message, message.__msgtype__))
                writer.add_message(channel, 10_000_000 * (i + 1), data, 10_000_000 * (i + 1))
        writer.finish()
    return path


NO_MESSAGE_INDEX = {"index_types": IndexType.CHUNK}
NO_INDEX = {"index_types": IndexType.NONE}
NO_STATISTICS = {"use_statistics": False}
NO_SUMMARY = (
    NO_INDEX
    | NO_STATISTICS
    | {"repeat_channels": False, "repeat_schemas": False}
    | {"use_summary_offsets": False}
)


@settings(max_examples=60, deadline=None)
@given(
    written=st.sampled_from(["cdr", "ros1"]),
    profile=st.sampled_from(["ros1", "ros2", ""]),
    short=st.booleans(),
    compressed_images=st.booleans(),
    index=st.sampled_from([{}, NO_MESSAGE_INDEX, NO_INDEX, NO_STATISTICS, NO_SUMMARY]),
    chunks=st.sampled_from([{}, {"use_chunking": False}, {"chunk_size": 1}]),
    compression=st.sampled_from(list(CompressionType)),
    protobuf=st.booleans(),
    stride=st.integers(1, 3),
)
def test_mcap_files_of_any_recorder(
    small,
    tmp_path_factory,
    written,
    profile,
    short,
    compressed_images,
    index,
    chunks,
    compression,
    protobuf,
    stride,
):
    make, kind = (compressed, COMPRESSED) if compressed_images else (raw, IMAGE)
    topics = {"/camera": [make(frame) for frame in small]}
    if protobuf:
        topics["/pictures"] = [b"protobuf", b"more"]
    path = tmp_path_factory.mktemp("mcap") / "bag.mcap"
    options = {**index, **chunks, "compression": compression}
    kind = kind.replace("/msg/", "/") if short else kind
    write_mcap(path, topics, written, profile, kind, **options)
    frames = open_frames(path, FrameOptions(stride=stride))
    assert frames.names == [f"{path}:/camera#{i}" for i in range(0, 6, stride)]
    assert all(same_picture(ours, small[::stride][i], 8) for i, ours in enumerate(frames))


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("topic", [None, "/pictures"])
def test_topics_of_protobuf_are_named_as_what_they_are(tmp_path, small, folder, topic):
    path = write_mcap(tmp_path / "bag.mcap", {"/pictures": [b"a", b"b"], "/chat": [text("a")]})
    if folder:
        path = with_metadata(tmp_path, {"/pictures": ("foxglove.CompressedImage", "protobuf", 2)})
    with pytest.raises(DataError) as caught:
        open_frames(path, FrameOptions(topic))
    message = str(caught.value)
    assert "/pictures  foxglove.CompressedImage in protobuf, 2 messages" in message
    assert "cut short" not in message and IMAGE in message


def with_metadata(folder, topics, storage="mcap"):
    """The folder with a metadata.yaml of these topics: name -> type, serialization, messages."""
    topics = [
        {
            "topic_metadata": {
                "name": name,
                "type": kind,
                "serialization_format": written,
                "offered_qos_profiles": "",
            },
            "message_count": count,
        }
        for name, (kind, written, count) in topics.items()
    ]
    information = {
        "version": 5,
        "storage_identifier": storage,
        "relative_file_paths": sorted(p.name for p in folder.iterdir() if p.suffix != ".yaml"),
        "duration": {"nanoseconds": 10**9},
        "starting_time": {"nanoseconds_since_epoch": 0},
        "message_count": sum(item["message_count"] for item in topics),
        "topics_with_message_count": topics,
        "compression_format": "",
        "compression_mode": "",
    }
    content = yaml.safe_dump({"rosbag2_bagfile_information": information})
    (folder / "metadata.yaml").write_text(content)
    return folder


def test_a_folder_of_several_files_with_protobuf_and_short_types(tmp_path, small):
    for part in range(2):
        topics = {"/camera": [raw(f) for f in small[3 * part : 3 * part + 3]], "/other": [b"x"]}
        write_mcap(tmp_path / f"bag_{part}.mcap", topics, kind="sensor_msgs/Image")
    path = with_metadata(
        tmp_path,
        {"/camera": ("sensor_msgs/Image", "cdr", 6), "/other": ("foxglove.X", "protobuf", 2)},
    )
    frames = open_frames(path)
    assert frames.names == [f"{path}:/camera#{i}" for i in range(6)]
    assert all(same_picture(a, b, 8) for a, b in zip(frames, small, strict=True))


def test_short_types_in_sqlite(tmp_path, small):
    topics = {"/camera": [raw(frame) for frame in small]}
    path = write_bag(tmp_path / "bag", topics, StoragePlugin.SQLITE3)
    (file,) = path.glob("*.db3")
    with closing(sqlite3.connect(file)) as storage, storage:
        storage.execute("UPDATE topics SET type = 'sensor_msgs/Image'")
    metadata = path / "metadata.yaml"
    metadata.write_text(metadata.read_text().replace(IMAGE, "sensor_msgs/Image"))
    for source in (file, path):
        assert len(open_frames(source)) == 6


def test_videos(video, small):
    frames = open_frames(video)
    assert frames.names == [f"{video}#{i}" for i in range(6)]
    assert all(same_picture(a, b, 8) for a, b in zip(frames, small, strict=True))
    some = open_frames(video, FrameOptions(stride=4))
    assert some.names == [f"{video}#0", f"{video}#4"] and same_picture(some[1], small[4], 8)


@pytest.mark.parametrize("data", [b"", b"no video at all", "half"])
def test_a_video_without_frames_is_named(tmp_path, video, data):
    path = tmp_path / "bad.avi"
    path.write_bytes(video.read_bytes()[:300] if data == "half" else data)
    with pytest.raises(DataError, match=r"bad\.avi: (the file is empty|not a video)"):
        open_frames(path)


def damaged(video, path, numbers=(), share=1.0):
    """A copy of the video with frames of zeros, cut short."""
    data = video.read_bytes()
    at, starts = data.index(b"movi"), []
    while (at := data.find(b"00dc", at)) >= 0 and data[at + 8 : at + 10] == b"\xff\xd8":
        starts.append(at + 8)
        at += 8 + int.from_bytes(data[at + 4 : at + 8], "little")
    assert len(starts) == 6
    data = bytearray(data)
    for start in (starts[number] for number in numbers):
        length = int.from_bytes(data[start - 4 : start], "little")
        data[start : start + length] = bytes(length)
    path.write_bytes(data[: int(share * len(data))])
    return path


@pytest.mark.parametrize("stride", [1, 2])
def test_damaged_frames_of_a_video_are_left_out_and_named(tmp_path, video, small, stride, caplog):
    path = damaged(video, tmp_path / "a.avi", numbers=(2, 3))
    frames = open_frames(path, FrameOptions(stride=stride))
    numbers = [n for n in range(0, 6, stride) if n not in (2, 3)]
    assert frames.names == [f"{path}#{n}" for n in numbers]
    assert all(same_picture(f, small[n], 8) for f, n in zip(frames, numbers, strict=True))
    assert len(frames.left_out) == 1 and f"{path}: frames 3 to 4 of 6" in frames.left_out[0]
    assert frames.left_out[0] in caplog.text


def test_a_video_that_ends_early_is_used_and_named(tmp_path, video):
    path = damaged(video, tmp_path / "a.avi", share=0.7)
    frames = open_frames(path)
    assert 1 <= len(frames) < 6
    assert any(str(path) in line and "ends early" in line for line in frames.left_out)


def test_names_that_are_not_utf_8_and_links_in_a_circle(tmp_path, video, small):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    shutil.copy(video, folder / os.fsdecode(b"vid\xe9o.avi"))
    (folder / os.fsdecode(b"\xff.png")).write_bytes(cv2.imencode(".png", small[0])[1].tobytes())
    (folder / "up").symlink_to("..")
    frames = open_frames(tmp_path)
    assert len(frames) == 7 and np.array_equal(frames[0], small[0][..., ::-1])
    for name in frames.names:
        name.encode()


def test_bits_of_image_files(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((32, 32), 4095, np.uint16))
    assert open_frames(tmp_path)[0].max() == 16
    assert open_frames(tmp_path, FrameOptions(bits=12))[0].max() == 255


def test_a_folder_of_everything(tmp_path, video, small):
    for name in ("b.png", "sub/a.JPG", ".hidden.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(cv2.imencode(".png", small[0])[1].tobytes())
    shutil.copy(video, tmp_path / "sub" / "clip.avi")
    write_bag(tmp_path / "run" / "bag", {"/camera": [raw(small[0])]})
    frames = open_frames(tmp_path)
    assert [name.removeprefix(f"{tmp_path}/") for name in frames.names] == [
        "b.png",
        "sub/a.JPG",
        "run/bag:/camera#0",
        *(f"sub/clip.avi#{i}" for i in range(6)),
    ]
    assert np.array_equal(frames[0], small[0][..., ::-1])
    both = open_frames([tmp_path / "b.png", video], FrameOptions(stride=3))
    assert both.names == [str(tmp_path / "b.png"), f"{video}#0", f"{video}#3"]


def test_every_bad_file_is_named(tmp_path, small):
    for i in range(4):
        cv2.imwrite(str(tmp_path / f"{i}.png"), small[i])
    (tmp_path / "1.png").write_bytes(b"x")
    cv2.imwrite(str(tmp_path / "3.png"), small[3][:15])
    (tmp_path / "a.avi").write_bytes(b"x")
    (tmp_path / "b.mcap").write_bytes(b"x")
    with pytest.raises(BrokenFiles) as caught:
        open_frames(tmp_path)
    *images, video, bag = caught.value.lines
    assert "a.avi: not a video" in video and "b.mcap: cannot be read" in bag
    assert images[0].startswith(f"{tmp_path}/1.png: cannot be read as an image")
    assert images[1:] == [f"{tmp_path}/3.png: 96x15 pixels, fewer than 16 on a side"]


def test_frames_of_one_colour_are_known_by_name(tmp_path, small):
    almost = np.full((32, 32, 3), 7, np.uint8)
    cv2.imwrite(str(tmp_path / "flat.png"), almost)
    almost[31, 31, 2] = 8
    cv2.imwrite(str(tmp_path / "almost.png"), almost)
    assert open_frames(tmp_path).one_colour == [str(tmp_path / "flat.png")]


def test_what_is_not_there_or_not_known(tmp_path, video):
    (tmp_path / "empty").mkdir()
    (tmp_path / "old.bag").touch()
    (tmp_path / "a.txt").touch()
    for name, cause in (
        ("nowhere", "no such file or folder"),
        ("gone.mcap", "no such file or folder"),
        ("empty", "no images, videos or bags in it"),
        ("old.bag", "a bag of ROS 1; convert it: rosbags-convert --src old.bag"),
        ("a.txt", "no image, video or bag by its suffix"),
    ):
        with pytest.raises(DataError, match=f"{name}: {cause}"):
            open_frames(tmp_path / name)
    with pytest.raises(DataError, match=r"topic /x was given, but there is no bag in .*clip"):
        open_frames(video, FrameOptions("/x"))
    with pytest.raises(DataError, match="stride is 0"):
        open_frames(video, FrameOptions(stride=0))


def test_memory_is_bounded_over_all_sources(video, monkeypatch):
    kept = open_frames(video).kept_bytes
    monkeypatch.setattr(frames_module, "MOST_KEPT", 2 * kept)
    assert len(open_frames([video, video])) == 12
    monkeypatch.setattr(frames_module, "MOST_KEPT", 2 * kept - 1)
    with pytest.raises(
        DataError, match=r"clip\.avi: with its frame 5 more than .*--stride N .*--data.stride N"
    ):
        open_frames([video, video])


def test_no_ros_is_loaded(tmp_path, small):
    path = write_bag(tmp_path / "bag", {"/camera": [raw(small[0])]})
    code = (
        "import sys\nfrom training.data.frames import open_frames\n"
        f"assert len(open_frames({str(path)!r})) == 1\n"
        "print(*({'rclpy', 'sensor_msgs', 'ctxseg_ros.ros', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
