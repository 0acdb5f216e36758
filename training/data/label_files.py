# SPDX-License-Identifier: Apache-2.0
"""Label images as their files hold them: ids, a palette, or colours.

Pillow decodes them, because OpenCV replaces the indices of a palette with its colours.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ctxseg_ros.image.encodings import BadImage, stated_size
from ctxseg_ros.system.files import IMAGE_SUFFIXES, shown, told_by
from training.data.files import DataError

#: The label of pixels that neither train nor score, everywhere after the files were read.
IGNORE = 255

LABEL_SUFFIXES = IMAGE_SUFFIXES | {".gif"}

_LOSSY = {"JPEG", "MPO", "JPEG2000"}
#: Pillow's modes: one value for each pixel, with transparency, with colours.
_VALUES = {"1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N"}
_WITH_ALPHA = {"LA": "L", "PA": "P", "La": "L", "RGBA": "RGB"}
#: What Pillow raises for files that are damaged or something else.
_NOT_AN_IMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    NotImplementedError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True)
class LabelImage:
    """A label image, transparency aside.

    ``kind``: ``grey``, ``palette`` or ``rgb``. ``values``: uint8 or uint16 [H, W], grey values or
    indices into the palette; None for colours whose three channels differ. ``table``: uint8
    [N, 3], RGB, the colour of each value; None where the values have more than 8 bits. ``rgb``:
    uint8 [H, W, 3] for ``rgb``, otherwise None.
    """

    kind: str
    values: np.ndarray | None
    table: np.ndarray | None
    rgb: np.ndarray | None = None


def read_label_image(path: Path) -> LabelImage:
    """The pixels of a label image: PNG, GIF, BMP, TIFF or lossless WebP.

    Grey values of 1, 2 or 4 bits are 0 to 1, 3 or 15, as the file holds them. The EXIF
    orientation is applied, as it is to images.

    Raises:
        DataError: the file is missing, damaged, not an image, compressed with loss (JPEG), or
            holds something other than whole numbers of up to 16 bits or RGB of 8 bits.
    """
    name = shown(path)
    try:
        data = path.read_bytes()
        stated_size(data)
        with Image.open(io.BytesIO(data)) as image:
            image.verify()  # the checksums of a PNG; afterwards it has to be opened again
        with Image.open(io.BytesIO(data)) as image:
            _check_lossless(name, image, data)
            return _label_image(name, ImageOps.exif_transpose(image), data)
    except DataError:
        raise
    except BadImage as error:
        raise DataError(f"{name}: {error.cause}; copy it again or remove it") from error
    except FileNotFoundError as error:
        raise DataError(f"{name}: cannot be read as an image ({error.strerror})") from error
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{name}: cannot be read as an image (more than twice the MAX_IMAGE_PIXELS of Pillow, "
            f"{Image.MAX_IMAGE_PIXELS}); cut it and its image into tiles"
        ) from error
    except _NOT_AN_IMAGE as error:
        # Pillow's messages name its own objects in memory.
        reason = str(error) if "<_io" not in str(error) else told_by(data) or "unknown format"
        raise DataError(f"{name}: cannot be read as an image ({reason})") from error


def read_ids(path: Path) -> np.ndarray:
    """A label image as the ids that it holds, uint8 or uint16 [H, W].

    Ids are grey values, indices into a palette (PNG, GIF, BMP, TIFF), or the value that all three
    channels of an RGB file share.

    Raises:
        DataError: see ``read_label_image``; or the pixels are colours.
    """
    image = read_label_image(path)
    if image.values is None:
        assert image.rgb is not None
        apart = image.rgb.min(-1) != image.rgb.max(-1)
        colour = tuple(image.rgb[apart][0].tolist())
        raise DataError(
            f"{shown(path)}: its pixels are colours, such as {colour}, not ids; give the class "
            "list of the colours (--data training.data.module.OwnLabels, or --classes)"
        )
    return image.values


def _check_lossless(name: str, image: Image.Image, data: bytes) -> None:
    compression = image.info.get("compression", "")
    lossy = image.format in _LOSSY or (image.format == "WEBP" and b"VP8 " in data[:64])
    if lossy or (image.format == "TIFF" and "jpeg" in str(compression)):
        raise DataError(
            f"{name}: labels in a {image.format} file with lossy compression, which changes their "
            "values; export them again as PNG"
        )


def _label_image(name: str, image: Image.Image, data: bytes) -> LabelImage:
    mode = _WITH_ALPHA.get(image.mode, image.mode)
    pixels = np.asarray(image)
    if image.mode in _WITH_ALPHA:
        pixels = pixels[..., 0] if mode in _VALUES else pixels[..., :3]
    if mode == "RGB" and _png_bits(data) != 16:
        return _rgb(np.ascontiguousarray(pixels))
    if mode not in _VALUES:
        raise DataError(
            f"{name}: pixels of mode {image.mode}{' with 16 bits' if mode == 'RGB' else ''}; save "
            "labels as ids of 8 or 16 bits, with a palette, or as RGB of 8 bits"
        )
    if mode == "P":
        return _indexed(pixels, np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3))
    return _grey(name, pixels, _png_bits(data) if mode in ("1", "L") else None)


def _rgb(pixels: np.ndarray) -> LabelImage:
    equal = (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all()
    if equal:
        return LabelImage("rgb", pixels[..., 0], _ramp(8), pixels)
    return LabelImage("rgb", None, None, pixels)


def _indexed(pixels: np.ndarray, palette: np.ndarray) -> LabelImage:
    """Indices uint8 [H, W] into ``palette``, uint8 [N, 3]; beyond its end they are black.

    A palette of greys alone is how GIF stores a grey image: the indices are then arbitrary.
    """
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    if (palette == palette[:, :1]).all():
        shown = table[pixels, 0]
        if set(np.unique(palette)) <= {0, 255}:
            return LabelImage("grey", shown // np.uint8(255), _ramp(1))
        return LabelImage("grey", shown, _ramp(8))
    return LabelImage("palette", pixels, table)


def _grey(name: str, pixels: np.ndarray, bits: int | None) -> LabelImage:
    """``bits``: of a PNG, whose small values Pillow spreads over 0 to 255."""
    if pixels.dtype == bool:
        return LabelImage("grey", pixels.astype(np.uint8), _ramp(1))
    if bits in (2, 4):
        return LabelImage("grey", pixels // np.uint8(255 // (2**bits - 1)), _ramp(bits))
    if pixels.dtype == np.uint8:
        return LabelImage("grey", pixels, _ramp(8))
    least, most = int(pixels.min()), int(pixels.max())
    if least < 0 or most > 65535:
        raise DataError(f"{name}: ids from {least} to {most} do not fit into 0 to 65535")
    return LabelImage("grey", pixels.astype(np.uint16), None)


def _png_bits(data: bytes) -> int | None:
    """Bits of a channel in the header of a PNG; None for other files."""
    return data[24] if data.startswith(b"\x89PNG") else None


def _ramp(bits: int) -> np.ndarray:
    """The greys of values of some bits, uint8 [2**bits, 3]."""
    return np.repeat(np.linspace(0, 255, 2**bits).round().astype(np.uint8)[:, None], 3, 1)
