# SPDX-License-Identifier: Apache-2.0
"""Images of ROS 2 bags, with no ROS installed."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from mcap.reader import NonSeekingReader, make_reader
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore

from ctxseg_ros.system.files import BAG_SUFFIXES, told_by
from training.data.files import DataError, progress

_IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
# Stores of types by how messages are written. The two types are the same in every ROS 2, and a bag
# need not define them; those of ROS 1 have another header.
_STORES = {"cdr": Stores.LATEST, "ros1": Stores.ROS1_NOETIC}
_PROFILES = {"ros1": "ros1", "ros2": "cdr"}  # of an MCAP file whose topics do not state it
_MCAP_MARK = b"\x89MCAP0\r\n"  # at the start and at the end of a file
# What saves a recording that was cut short: a storage file by its suffix, or a folder.
_RECOVERY = {
    ".mcap": "`mcap recover {0} -o OUT.mcap`, then give OUT.mcap",
    ".db3": "`sqlite3 {0} .recover | sqlite3 OUT.db3`, then give OUT.db3",
    "": "`ros2 bag reindex {0}`, which writes its metadata.yaml again",
}


class _Topic(NamedTuple):
    """What a bag holds of a topic. `written`: how its messages are (cdr, ros1, protobuf, ...)."""

    name: str
    kind: str
    written: str
    messages: int

    @property
    def is_image(self) -> bool:
        return self.kind in _IMAGE_TYPES and self.written in _STORES

    def __str__(self) -> str:
        written = "" if self.written == "cdr" else f" in {self.written}"
        return f"{self.name}  {self.kind}{written}, {self.messages} messages"


class _Bag(NamedTuple):
    """An open bag. `messages(topic)`: how each message is written, and its bytes."""

    topics: list[_Topic]
    messages: Callable[[str], Iterator[tuple[str, bytes]]]


def is_bag(path: Path) -> bool:
    """A folder with metadata.yaml, or a storage file."""
    storage = path.suffix.lower() in BAG_SUFFIXES and path.is_file()
    return storage or (path / "metadata.yaml").is_file()


def bag_images(
    path: Path, topic: str | None = None, stride: int = 1
) -> Iterator[tuple[str, int, Any]]:
    """(topic, number, message) of every ``stride``-th image message of a topic, in time order;
    of an MCAP file without an index in the order of the file.

    Messages have the fields of sensor_msgs/Image or sensor_msgs/CompressedImage, of ROS 2 or 1.

    Args:
        path: a bag, see ``is_bag``. topic: None takes the only one that has images.

    Raises:
        DataError: the bag cannot be read, was cut short, or holds fewer messages of the topic than
            its metadata promises, which is known once all are read; or it has no images that can be
            read, several topics of them and none was chosen, or not the one that was; its topics
            are listed.
    """
    with _readable(path), ExitStack() as stack:
        bag = _open_folder(path, stack) if path.is_dir() else _open_file(path, stack)
        chosen = _choose(path, bag.topics, topic)
        seen = 0
        messages = progress(
            bag.messages(chosen.name), f"{path.name} {chosen.name}", chosen.messages
        )
        for written, data in messages:
            if seen % stride == 0:
                yield chosen.name, seen, _message(data, chosen.kind, written)
            seen += 1
        if seen < chosen.messages:
            raise DataError(
                f"{path}: holds {seen or 'none'} of the {chosen.messages} messages on "
                f"{chosen.name} that its metadata promises. Copy it again; to go on with what is "
                f"left, {_recovery(path)}"
            )


@cache
def _types(written: str) -> Typestore:
    return get_typestore(_STORES[written])


def _message(data: bytes, kind: str, written: str) -> Any:
    types = _types(written)
    read = types.deserialize_ros1 if written == "ros1" else types.deserialize_cdr
    return read(data, kind)


def _open_folder(path: Path, stack: ExitStack) -> _Bag:
    """Its files one after the other; its metadata says how many messages they hold."""
    text = (path / "metadata.yaml").read_text()
    content = yaml.safe_load(text)
    if not isinstance(content, dict) or "rosbag2_bagfile_information" not in content:
        raise ValueError("its metadata.yaml is not that of a bag")
    metadata = content["rosbag2_bagfile_information"]
    if (metadata.get("compression_mode") or "none").lower() != "none":
        return _open_rosbag(path, stack)
    files = [path / Path(name).name for name in metadata["relative_file_paths"]]
    if missing := [file.name for file in files if not file.exists()]:
        raise DataError(f"{path}: cannot be read as a ROS 2 bag ({', '.join(missing)} is missing)")
    bags = [_open_file(file, stack) for file in files]
    topics = [
        _Topic(
            item["topic_metadata"]["name"],
            _full_name(item["topic_metadata"]["type"]),
            item["topic_metadata"]["serialization_format"],
            item["message_count"],
        )
        for item in metadata["topics_with_message_count"]
    ]
    return _Bag(topics, lambda name: (item for bag in bags for item in bag.messages(name)))


def _open_file(path: Path, stack: ExitStack) -> _Bag:
    if path.suffix.lower() == ".mcap":
        return _open_mcap(path, stack)
    if path.suffix != path.suffix.lower():  # rosbags goes by it
        raise DataError(f"{path}: rename it so that it ends in {path.suffix.lower()}")
    return _open_rosbag(path, stack)


def _open_rosbag(path: Path, stack: ExitStack) -> _Bag:
    """By rosbags: SQLite, and what is compressed."""
    reader = stack.enter_context(Reader(path))
    formats = {item.id: item.ext.serialization_format for item in reader.connections}  # type: ignore[union-attr]
    topics = [
        _Topic(name, _full_name(info.msgtype or ""), formats[info.connections[0].id], info.msgcount)
        for name, info in reader.topics.items()
    ]

    def messages(name: str) -> Iterator[tuple[str, bytes]]:
        if name in reader.topics:
            for connection, _, data in reader.messages(reader.topics[name].connections):
                yield formats[connection.id], data

    return _Bag(topics, messages)


def _open_mcap(path: Path, stack: ExitStack) -> _Bag:
    """By mcap, because rosbags requires a profile and indexes that not every recorder writes."""
    stream = stack.enter_context(path.open("rb"))
    reader = make_reader(stream, validate_crcs=True)
    profile = _PROFILES.get(reader.get_header().profile, "")
    summary = reader.get_summary()
    if summary and summary.statistics and summary.channels:
        counts = Counter(summary.statistics.channel_message_counts)
        channels, schemas = summary.channels, summary.schemas
        indexes = [chunk.message_index_offsets for chunk in summary.chunk_indexes]
        indexed = bool(indexes) and all(indexes)
    else:
        indexed = False
        counts, channels, schemas = Counter(), {}, {}
        for schema, channel, _ in _scan(stream):
            counts[channel.id] += 1
            channels[channel.id] = channel
            if schema is not None:
                schemas[schema.id] = schema
    topics: dict[str, _Topic] = {}
    for number, channel in channels.items():
        schema = schemas.get(channel.schema_id)
        kind = _full_name(schema.name) if schema else "no type"
        before = topics[channel.topic].messages if channel.topic in topics else 0
        written = channel.message_encoding or profile
        topics[channel.topic] = _Topic(channel.topic, kind, written, before + counts[number])

    def messages(name: str) -> Iterator[tuple[str, bytes]]:
        found = reader.iter_messages([name]) if indexed else _scan(stream, [name])
        for _, channel, message in found:
            yield channel.message_encoding or profile, message.data

    return _Bag(sorted(topics.values()), messages)


def _scan(stream: Any, topics: Sequence[str] | None = None) -> Iterator[Any]:
    """Every message in the order of the file, one at a time."""
    stream.seek(0)
    reader = NonSeekingReader(stream, validate_crcs=True)
    return reader.iter_messages(topics, log_time_order=False)


def _full_name(kind: str) -> str:
    """A message's type as ROS 2 spells it: ROS 1 and some recorders leave out the middle."""
    return re.sub(r"^(\w+)/(\w+)$", r"\1/msg/\2", kind)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    # Damaged data comes out of rosbags as almost anything: its own errors, sqlite's, zstd's,
    # struct's, TypeError.
    except Exception as error:
        broken = _broken(path)
        if told := _told(broken):
            raise DataError(f"{broken}: cannot be read as a ROS 2 bag: {told}") from error
        cause = " ".join(str(error).split()) or type(error).__name__
        if _lacks_its_end(broken):  # the reader takes what is there for a record
            cause = "its end is missing"
        raise DataError(
            f"{broken}: cannot be read as a ROS 2 bag ({cause}). If it was cut short, try "
            f"{_recovery(broken)}"
        ) from error


def _told(path: Path) -> str | None:
    """What a file is instead of a bag, where its start tells."""
    if path.is_dir():
        return None
    with path.open("rb") as file:
        return told_by(file.read(256))


def _lacks_its_end(path: Path) -> bool:
    """Whether an MCAP file begins but does not end as one."""
    if path.is_dir():
        return False
    with path.open("rb") as file:
        start = file.read(len(_MCAP_MARK))
        file.seek(-len(start), os.SEEK_END)
        return start == _MCAP_MARK != file.read()


def _recovery(path: Path) -> str:
    return _RECOVERY["" if path.is_dir() else path.suffix.lower()].format(path)


def _broken(path: Path) -> Path:
    """The first storage file of a bag that does not open, or the bag itself."""
    if path.is_dir():
        for file in sorted(path.iterdir()):
            if file.suffix in BAG_SUFFIXES:
                try:
                    with Reader(file):
                        pass
                except Exception:
                    return file
    return path


def _choose(path: Path, topics: Sequence[_Topic], name: str | None) -> _Topic:
    images = [topic for topic in topics if topic.is_image and topic.messages]
    listed = "".join(f"\n  {topic}" for topic in topics)
    for topic in topics:
        if topic.name == name and topic in images:
            return topic
        if topic.name == name and topic.written not in _STORES:
            raise DataError(
                f"{path}: {topic}: messages are read that ROS 2 or ROS 1 wrote as "
                f"{' or '.join(_IMAGE_TYPES)}; convert it to one of these. Its topics:{listed}"
            )
    if not images:
        raise DataError(
            f"{path}: no messages of {' or '.join(_IMAGE_TYPES)}, as ROS 2 or ROS 1 write them. "
            f"Its topics:{listed or ' none'}"
        )
    if name is not None:
        raise DataError(f"{path}: no images on topic {name}. Its topics:{listed}")
    if len(images) > 1:
        raise DataError(
            f"{path}: images on {len(images)} topics: choose one with --topic NAME (training: "
            f"--data.topic NAME). Its topics:{listed}"
        )
    return images[0]
