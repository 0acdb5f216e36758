# SPDX-License-Identifier: Apache-2.0
"""Augmentation of frames, with torchvision.transforms.v2."""

from __future__ import annotations

import math

import cv2
import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from training.data.label_files import IGNORE

#: Grey that fills what lies outside a frame; the labels there are IGNORE.
GREY = 124
_FILL = {tv_tensors.Image: GREY, tv_tensors.Mask: IGNORE}


def geometric(size: tuple[int, int], scale: tuple[float, float]) -> nn.Module:
    """Random scale, crop to ``size`` and mirror, of an image and its masks alike.

    Args:
        size: (height, width) in pixels of what comes out.
        scale: least and greatest factor, of the frame fitted into ``size``.
    """
    return v2.Compose(
        [
            v2.ScaleJitter(target_size=size, scale_range=scale, antialias=True),
            v2.RandomCrop(size, pad_if_needed=True, fill=_FILL),
            v2.RandomHorizontalFlip(),
        ]
    )


def train_transform(size: tuple[int, int], scale: tuple[float, float], jitter: bool) -> nn.Module:
    """``geometric`` and, with ``jitter``, distortion of contrast, brightness and colours."""
    steps = [geometric(size, scale)]
    if jitter:
        steps.append(v2.RandomPhotometricDistort(hue=(-0.02, 0.02)))
    return v2.Compose(steps)


def photographic() -> nn.Module:
    """What cameras, weather and codecs do to an image uint8 [3, H, W], at random.

    Colours and contrast, exposure from night to glare, a lens out of focus, a sensor of few pixels,
    noise, JPEG. Parts of them are left out of each image, and all of them of a few.
    """
    return v2.Compose(
        [
            # Not RandomPhotometricDistort, which exchanges channels: green skies teach nothing.
            v2.RandomApply(
                [v2.ColorJitter((0.7, 1.4), (0.5, 1.5), (0.3, 1.7), (-0.04, 0.04))], 0.8
            ),
            v2.RandomGrayscale(0.05),
            v2.RandomApply([Exposure((0.5, 2.0), (0.9, 1.1))], 0.5),
            v2.RandomApply([Exposure((1.5, 2.5), (0.4, 0.9)), v2.GaussianNoise(sigma=0.03)], 0.08),
            v2.RandomApply([v2.GaussianBlur(7, (0.3, 2.0))], 0.2),
            v2.RandomApply([FewerPixels((0.35, 0.9))], 0.25),
            v2.RandomApply([v2.GaussianNoise(sigma=0.02)], 0.1),
            v2.RandomApply([Jpeg((30, 90))], 0.3),
        ]
    )


class Exposure(nn.Module):
    """``255 g_c (x / 255)^p`` of each channel c: p and one gain at random, and a tint of the light.

    Args:
        power: range of p, log-uniform: above 1 darkens, most of all what is dark already.
        gain: range of the gain; each channel's own differs from it by at most a tenth.
    """

    def __init__(self, power: tuple[float, float], gain: tuple[float, float]) -> None:
        super().__init__()
        self.power, self.gain = power, gain

    def forward(self, image: Tensor) -> Tensor:
        """Exposed image uint8 [3, H, W]."""
        power = math.exp(_uniform(math.log(self.power[0]), math.log(self.power[1])))
        gain = _uniform(*self.gain) * (0.9 + 0.2 * torch.rand(3, 1))
        table = 255 * gain * (torch.arange(256) / 255) ** power  # [3, 256]
        values = table.round().clamp(0, 255).to(torch.uint8)
        return values.gather(1, image.flatten(1).long()).view_as(image)


class FewerPixels(nn.Module):
    """The image as a camera of fewer pixels gives it, enlarged again.

    Args:
        share: range of the share of the height and width that is left.
    """

    def __init__(self, share: tuple[float, float]) -> None:
        super().__init__()
        self.share = share

    def forward(self, image: Tensor) -> Tensor:
        """Image uint8 [3, H, W]."""
        size = list(image.shape[-2:])
        share = _uniform(*self.share)
        small = [max(1, round(share * side)) for side in size]
        return v2.functional.resize(v2.functional.resize(image, small, antialias=True), size)


class Jpeg(nn.Module):
    """The image compressed as JPEG. torchvision's transform of that name is to be removed.

    Args:
        quality: range of the quality, 1 to 100.
    """

    def __init__(self, quality: tuple[int, int]) -> None:
        super().__init__()
        self.quality = quality

    def forward(self, image: Tensor) -> Tensor:
        """Image uint8 [3, H, W]."""
        quality = int(torch.randint(self.quality[0], self.quality[1] + 1, ()))
        # OpenCV takes them for blue, green and red; what is decoded is in the same order.
        pixels = image.flip(0).permute(1, 2, 0).contiguous().numpy()
        _, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
        decoded = torch.from_numpy(cv2.imdecode(data, cv2.IMREAD_COLOR))
        return decoded.permute(2, 0, 1).flip(0).contiguous()


class Hide(nn.Module):
    """Grey squares at random places of a grid: what is below must be told from its surroundings.

    After Hoyer et al. 2023 (masked image consistency).

    Args:
        side: of a square, in pixels. share: of the squares that are hidden, 0 to 1.
    """

    def __init__(self, side: int = 64, share: float = 0.4) -> None:
        super().__init__()
        self.side, self.share = side, share

    def forward(self, image: Tensor) -> Tensor:
        """Image uint8 [3, H, W]."""
        height, width = image.shape[-2:]
        grid = [math.ceil(side / self.side) for side in (height, width)]
        hidden = torch.rand(grid) < self.share
        hidden = hidden.repeat_interleave(self.side, 0).repeat_interleave(self.side, 1)
        return image.masked_fill(hidden[:height, :width], GREY)


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def eval_transform(size: tuple[int, int]) -> nn.Module:
    """Resize the image to ``size``. The labels keep their own size: scores are taken there."""
    return v2.Resize(size, antialias=True)
