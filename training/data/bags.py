# SPDX-License-Identifier: Apache-2.0
"""Images of ROS 2 bags, with no ROS installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore

from ctxseg_ros.files import BAG_SUFFIXES
from training.data.files import DataError, progress

_IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
# What saves a recording that was cut short: a storage file by its suffix, or a folder.
_MEND = {
    ".mcap": "`mcap recover {0} -o OUT.mcap`, then give OUT.mcap",
    ".db3": "`sqlite3 {0} .recover | sqlite3 OUT.db3`, then give OUT.db3",
    "": "`ros2 bag reindex {0}`, which writes its metadata.yaml again",
}


def is_bag(path: Path) -> bool:
    """A folder with metadata.yaml, or a storage file."""
    storage = path.suffix in BAG_SUFFIXES and path.is_file()
    return storage or (path / "metadata.yaml").is_file()


def bag_images(
    path: Path, topic: str | None = None, stride: int = 1
) -> Iterator[tuple[str, int, Any]]:
    """(topic, number, message) of every ``stride``-th image message of a topic, in time order.

    Messages have the fields of sensor_msgs/Image or sensor_msgs/CompressedImage.

    Args:
        path: a bag, see ``is_bag``. topic: None takes the only one that has images.

    Raises:
        DataError: the bag cannot be read, was cut short, or holds fewer messages of the topic than
            its metadata promises, which is known once all are read; or it has no images, several
            topics of them and none was chosen, or not the one that was; its topics are listed.
    """
    with _readable(path), Reader(path) as reader:
        topic = _choose(path, reader.topics, topic)
        info = reader.topics[topic]
        messages = reader.messages(info.connections)
        seen = 0
        for connection, _, data in progress(messages, f"{path.name} {topic}", info.msgcount):
            if seen % stride == 0:
                yield topic, seen, _types().deserialize_cdr(data, connection.msgtype)
            seen += 1
        if seen < info.msgcount:
            raise DataError(
                f"{path}: holds {seen or 'none'} of the {info.msgcount} messages on {topic} that "
                f"its metadata promises. Copy it again; to go on with what is left, {_mend(path)}"
            )


@cache
def _types() -> Typestore:
    """Of any ROS 2: these two types are the same in all, and a bag need not define its own."""
    return get_typestore(Stores.LATEST)


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
        cause = " ".join(str(error).split())
        raise DataError(
            f"{broken}: cannot be read as a ROS 2 bag ({cause}). If it was cut short, try "
            f"{_mend(broken)}"
        ) from error


def _mend(path: Path) -> str:
    return _MEND["" if path.is_dir() else path.suffix].format(path)


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


def _choose(path: Path, topics: dict[str, Any], topic: str | None) -> str:
    images = [
        name for name, info in topics.items() if info.msgtype in _IMAGE_TYPES and info.msgcount
    ]
    if topic in images:
        return topic
    listed = "".join(
        f"\n  {name}  {info.msgtype}, {info.msgcount} messages" for name, info in topics.items()
    )
    if not images:
        raise DataError(
            f"{path}: no messages of {' or '.join(_IMAGE_TYPES)}. Its topics:{listed or ' none'}"
        )
    if topic is not None:
        raise DataError(f"{path}: no images on topic {topic}. Its topics:{listed}")
    if len(images) > 1:
        raise DataError(
            f"{path}: images on {len(images)} topics: choose one with --topic NAME (training: "
            f"--data.topic NAME). Its topics:{listed}"
        )
    return images[0]
