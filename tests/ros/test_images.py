# SPDX-License-Identifier: Apache-2.0
"""Messages to pixels and back."""

import array
import sys
import types
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from ctxseg_ros.ros import images
from ctxseg_ros.ros.images import (
    BadImage,
    check_image,
    compressed_to_rgb,
    image_to_rgb,
    to_image,
)

# What REP 118 and sensor_msgs/image_encodings.hpp say: the channels' order in the encoding's name.
TO_RGB = {
    "rgb8": [0, 1, 2],
    "bgr8": [2, 1, 0],
    "rgba8": [0, 1, 2],
    "bgra8": [2, 1, 0],
    "mono8": [0, 0, 0],
}
CHANNELS = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1}


def random_message(encoding: str, height: int, width: int, padding: int, seed: int) -> Any:
    """A message, and its pixels as the encoding's channels."""
    rows = np.random.default_rng(seed).integers(
        0, 256, (height, width * CHANNELS[encoding] + padding), np.uint8
    )
    message = Image(
        height=height,
        width=width,
        encoding=encoding,
        step=rows.shape[1],
        data=array.array("B", rows.tobytes()),
    )
    pixels = rows[:, : width * CHANNELS[encoding]].reshape(height, width, CHANNELS[encoding])
    return message, pixels


@given(
    st.sampled_from(sorted(TO_RGB)),
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(0, 9),
    st.integers(0, 9),
)
def test_every_encoding_becomes_rgb(
    encoding: str, height: int, width: int, padding: int, seed: int
) -> None:
    message, pixels = random_message(encoding, height, width, padding, seed)
    rgb = image_to_rgb(message)
    assert rgb.dtype == np.uint8
    np.testing.assert_array_equal(rgb, pixels[:, :, TO_RGB[encoding]])


@pytest.mark.parametrize("padding", [0, 5])
def test_rgb8_is_a_view_on_the_message(padding: int) -> None:
    message, _ = random_message("rgb8", 4, 6, padding, 0)
    rgb = image_to_rgb(message)
    message.data[message.step + 3] = 99
    assert rgb[1, 1, 0] == 99
    message.data[message.step + 3] = 98
    assert rgb[1, 1, 0] == 98


def broken(**fields: Any) -> Image:
    """An rgb8 frame of 4x2 with some fields wrong."""
    right = {"width": 4, "height": 2, "encoding": "rgb8", "step": 12, "data": bytes(24)}
    return Image(**{**right, **fields})


@pytest.mark.parametrize(
    ("message", "cause", "fix"),
    [
        (broken(width=0), "0x2", "camera's settings"),
        (broken(height=0), "4x0", "camera's settings"),
        (broken(step=11), "step is 11, but 4 pixels of rgb8 take 12", "set step"),
        (broken(step=0), "step is 0", "set step"),
        (broken(data=bytes(23)), "data holds 23 bytes, but 2 rows of step 12 are 24", "whole"),
        (broken(data=b""), "data holds 0 bytes", "whole"),
        (broken(encoding="16UC1"), "16UC1 is depth", "remap `image`"),
        (broken(encoding="32FC1"), "32FC1 is depth", "remap `image`"),
        (broken(encoding=""), "encoding '' needs cv_bridge", "rgb8"),
        (broken(encoding="bayer_rggb8"), "'bayer_rggb8' needs cv_bridge", "apt install"),
    ],
)
def test_bad_frames_are_refused_with_cause_and_fix(
    message: Image, cause: str, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_cv_bridge", lambda: None)
    with pytest.raises(BadImage, match="; ") as caught:
        check_image(message)
    assert cause in str(caught.value) and fix in str(caught.value)
    with pytest.raises(BadImage):
        image_to_rgb(message)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.sampled_from([*TO_RGB, "16UC1", "yuv422", "nonsense", ""]),
    st.binary(max_size=64),
)
def test_random_fields_give_pixels_of_that_size_or_bad_image(
    width: int, height: int, step: int, encoding: str, data: bytes
) -> None:
    message = Image(
        width=width, height=height, step=step, encoding=encoding, data=array.array("B", data)
    )
    try:
        rgb = image_to_rgb(message)
    except BadImage:
        return
    assert rgb.shape == (height, width, 3)


def fake_cv_bridge(monkeypatch: pytest.MonkeyPatch, convert: Any) -> None:
    module = types.ModuleType("cv_bridge")
    module.CvBridge = type("CvBridge", (), {"imgmsg_to_cv2": convert})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cv_bridge", module)
    images._cv_bridge.cache_clear()


def test_other_encodings_go_through_cv_bridge(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def convert(self: Any, message: Image, desired_encoding: str) -> np.ndarray:
        asked.append((message.encoding, desired_encoding))
        return np.full((2, 4, 3), 7, np.uint8)

    fake_cv_bridge(monkeypatch, convert)
    try:
        assert image_to_rgb(broken(encoding="bayer_rggb8")).mean() == 7
        assert asked == [("bayer_rggb8", "rgb8")]
    finally:
        images._cv_bridge.cache_clear()


def test_what_cv_bridge_refuses_is_a_bad_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(self: Any, message: Image, desired_encoding: str) -> np.ndarray:
        raise RuntimeError("Unrecognized image encoding [nonsense]")

    fake_cv_bridge(monkeypatch, convert)
    try:
        with pytest.raises(BadImage, match=r"nonsense.*let the camera publish rgb8"):
            image_to_rgb(broken(encoding="nonsense"))
    finally:
        images._cv_bridge.cache_clear()


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (1, 1)])
def test_to_image_holds_the_pixels(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    header = Header(frame_id="front")
    header.stamp.sec = 12
    message = to_image(header, pixels, "mono8" if len(shape) == 2 else "rgb8")
    assert isinstance(message.data, array.array) and message.data.tobytes() == pixels.tobytes()
    assert (message.height, message.width) == shape[:2]
    assert message.step * message.height == len(message.data)
    assert message.header == header


def test_to_image_takes_any_strides() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6)[::2, ::-1]
    assert to_image(Header(), pixels, "mono8").data.tolist() == pixels.ravel().tolist()


def compressed(suffix: str, rgb: np.ndarray) -> bytes:
    return cv2.imencode(suffix, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1].tobytes()


def test_png_and_jpeg_become_rgb() -> None:
    rgb = np.zeros((16, 24, 3), np.uint8)
    rgb[:, :12] = (250, 10, 20)
    png = CompressedImage(format="bgr8; png compressed bgr8", data=compressed(".png", rgb))
    np.testing.assert_array_equal(compressed_to_rgb(png), rgb)
    jpeg = CompressedImage(format="jpeg", data=compressed(".jpg", rgb))
    assert np.abs(compressed_to_rgb(jpeg).astype(int) - rgb).mean() < 8


def test_grey_png_becomes_rgb() -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    message = CompressedImage(format="png", data=cv2.imencode(".png", grey)[1].tobytes())
    np.testing.assert_array_equal(compressed_to_rgb(message), np.dstack([grey] * 3))


def test_a_jpeg_is_not_turned_by_its_exif_tag() -> None:
    data = compressed(".jpg", np.zeros((16, 24, 3), np.uint8))
    # APP1 with one entry: orientation 6 (a quarter turn).
    tiff = b"II*\0\x08\0\0\0" + b"\1\0" + b"\x12\x01\3\0\1\0\0\0\6\0\0\0" + b"\0\0\0\0"
    block = b"Exif\0\0" + tiff
    turned = data[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block + data[2:]
    assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR).shape == (24, 16, 3)
    assert compressed_to_rgb(CompressedImage(format="jpeg", data=turned)).shape == (16, 24, 3)


@pytest.mark.parametrize(
    "data", [b"", b"no image", compressed(".png", np.zeros((64, 64, 3), np.uint8))[:40]]
)
def test_compressed_data_that_is_no_image(data: bytes) -> None:
    with pytest.raises(BadImage, match="send JPEG or PNG"):
        compressed_to_rgb(CompressedImage(format="jpeg", data=data))


def test_compressed_depth_is_refused() -> None:
    with pytest.raises(BadImage, match="depth"):
        compressed_to_rgb(CompressedImage(format="16UC1; compressedDepth png", data=b"x"))
