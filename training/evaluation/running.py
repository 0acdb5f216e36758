# SPDX-License-Identifier: Apache-2.0
"""How a model file is run to be scored, and at which size."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.progress import track

from ctxseg_ros.inference.pipeline import Model
from ctxseg_ros.inference.runtimes import Runtime, open_runtime
from ctxseg_ros.model.model_file import ModelInfo, format_size
from training.data.pairs import Pair


@dataclass(frozen=True)
class RunOptions:
    """How a model is run.

    Args:
        size: (height, width) in pixels of the model's input; None: what the caller takes by
            default, the model's own size or the nearest to each image's.
        device, precision: see ``ctxseg_ros.inference.runtimes.open_runtime``.
    """

    size: tuple[int, int] | None = None
    device: str = "auto"
    precision: str = "auto"

    def open(self, info: ModelInfo, size: tuple[int, int] | None = None) -> Runtime:
        """The model at ``size``; None: at that of the options, see ``open_runtime``."""
        return open_runtime(info, size or self.size, self.device, precision=self.precision)

    def image_size(self, info: ModelInfo) -> str:
        """In words, the size of ``each_at_its_size``'s inputs."""
        fixed = self.size or info.fixed_size
        return format_size(fixed) if fixed else f"nearest multiple of {info.stride} to each image"


#: The size of the model or the image, on the best device, in the precision that it is fit for.
AUTO = RunOptions()


def fitting_size(info: ModelInfo, shape: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) that the model takes and that is nearest to an image's ``shape``."""
    if info.fixed_size is not None:
        return info.fixed_size
    height, width = (max(round(side / info.stride), 1) * info.stride for side in shape)
    return height, width


def each_at_its_size(
    info: ModelInfo, pairs: Sequence[Pair], run: RunOptions
) -> Iterator[tuple[Pair, Model]]:
    """Each pair with the model at the size of ``run``; None: the size that fits its image best.

    Pairs of one size follow each other, and only that size is open then.

    Raises:
        ValueError: the model does not take the size.
    """
    by_size: dict[tuple[int, int], list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_size[run.size or fitting_size(info, pair.rgb().shape[:2])].append(pair)
    for size in by_size:
        info.check_size(size)
    queue = [(size, pair) for size, group in by_size.items() for pair in group]
    model: Model | None = None
    try:
        for size, pair in track(queue, info.name, console=Console(stderr=True)):
            if model is None or model.runtime.size != size:
                if model is not None:
                    model.runtime.close()
                model = Model(run.open(info, size))
            yield pair, model
    finally:
        if model is not None:
            model.runtime.close()
