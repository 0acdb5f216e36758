# SPDX-License-Identifier: Apache-2.0
"""``python -m training token-cut NAME_OR_WEIGHTS --images D --out DIR``: one object a frame.

The salient object of each frame from a ViT's patch features, without any label: the normalised cut
of Wang et al. 2022, "Self-Supervised Transformers for Unsupervised Object Discovery using
Normalized Cut" (TokenCut), taken on the output tokens. Masks go to ``DIR/masks``, which
``evaluate objects`` and ``training.data`` pair with the images, pictures to ``DIR/overlays``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from scipy.ndimage import label
from scipy.sparse.linalg import eigsh

from ctxseg_ros.command import run_command
from ctxseg_ros.image.attention import mask_image
from ctxseg_ros.image.render import overlay
from ctxseg_ros.image.resize import resized
from ctxseg_ros.model.model_file import parse_size
from ctxseg_ros.model.prediction import UNLABELLED
from ctxseg_ros.system.output_files import make_folder, write_image
from training.data.files import DataError, each_file, image_files, read_image
from training.data.pairs import Pair, pair_files, read_pair
from training.evaluation.objects import jaccard, read_mask
from training.export.attention import from_file, from_name
from training.networks.encoder import Encoder, check_multiple

#: Patches whose cosine similarity is above it are alike.
TAU = 0.2
#: Weight of the edge between patches that are not alike; between those that are it is 1.
FAINT = 1e-5
#: Patches of a frame where no size is asked for.
PATCHES = 1000

_COLOURS = np.full((256, 3), (255, 0, 96), np.uint8)


def salient_mask(features: NDArray[np.floating], tau: float = TAU) -> NDArray[np.bool_]:
    """The salient object among the patches of one frame.

    The graph of patches is cut in two by its second eigenvector, at the vector's mean. The object
    is on the side that has the largest absolute value (the side less tied to the rest), and of
    that side the part connected with this patch (by edges, not corners).

    Args:
        features: float [h, w, D], the output tokens of the patches.
        tau: patches are alike above this cosine similarity.

    Returns:
        bool [h, w]. Where all patches are alike, or none are, there is no object.

    Raises:
        ValueError: a feature is not finite.
    """
    edges = similarity_edges(features.reshape(-1, features.shape[-1]), tau)
    different = edges[~np.eye(len(edges), dtype=bool)]
    if not len(different) or different.min() == different.max():
        return np.zeros(features.shape[:2], np.bool_)
    vector = second_eigenvector(edges).reshape(features.shape[:2])
    seed = np.unravel_index(np.abs(vector).argmax(), vector.shape)
    above = vector > vector.mean()
    parts, _ = label(above == above[seed])
    return parts == parts[seed]


def similarity_edges(features: NDArray[np.floating], tau: float) -> NDArray[np.float64]:
    """Edges [N, N] of the graph of patches: 1 where their cosine is above ``tau``, else ``FAINT``.

    Args:
        features: float [N, D]. The cosine with one of length 0 is 0.

    Raises:
        ValueError: a feature is not finite.
    """
    features = features.astype(np.float64)
    if not np.isfinite(features).all():
        raise ValueError("patch features are not finite: the image or the weights are broken")
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    directions = features / np.where(lengths > 0, lengths, 1)
    return np.where(directions @ directions.T > tau, 1.0, FAINT)


def second_eigenvector(edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solves (D - E) y = lambda D y for the second smallest lambda, where D has E's row sums.

    With z = D^1/2 y it is the second largest eigenvector of D^-1/2 E D^-1/2. The largest is known,
    D^1/2 1 with eigenvalue 1, and is moved to the other end of the spectrum, -1.

    Args:
        edges: E, [N, N], symmetric, above 0; N >= 2.

    Returns:
        y, float64 [N]; its sign and length mean nothing.
    """
    root = np.sqrt(edges.sum(1))
    largest = root / np.linalg.norm(root)
    matrix = edges / np.outer(root, root) - 2 * np.outer(largest, largest)
    # Some vector to start from, the same each time.
    start = np.random.default_rng(0).standard_normal(len(edges))
    _, vectors = eigsh(matrix, k=1, which="LA", v0=start)
    return vectors[:, 0] / root


def open_encoder(
    source: str, arch: str | None, size: tuple[int, int] | None, shape: tuple[int, int]
) -> tuple[Encoder, tuple[int, int]]:
    """The network and the (height, width) of its input.

    Args:
        source: a file of weights, or a timm name to download.
        arch: timm name of the file's architecture; None: the likeliest that fits.
        size: of the input; None: about ``PATCHES`` patches in the proportions of ``shape``.

    Raises:
        ExportError: the name or the architecture is unknown, or the download fails.
        ValueError: weights, architecture and size do not fit each other.
    """
    path = Path(source)
    encoder, _ = from_file(path, arch) if path.exists() else from_name(source)
    size = size or fitting_size(shape, encoder.patch)
    check_multiple(size, encoder.patch)
    return encoder.eval(), size


def fitting_size(shape: tuple[int, int], patch: int) -> tuple[int, int]:
    """(height, width) of about ``PATCHES`` patches in the proportions of an image's ``shape``."""
    scale = math.sqrt(PATCHES / math.prod(shape))
    height, width = (max(round(side * scale), 1) * patch for side in shape)
    return height, width


def object_finder(
    encoder: Encoder, size: tuple[int, int]
) -> Callable[[NDArray[np.uint8]], NDArray[np.bool_]]:
    """From a frame, uint8 [H, W, 3] RGB, to its object's mask, bool [H, W]; see ``salient_mask``.

    Args:
        encoder: in evaluation mode. size: (height, width) of its input.
    """
    grid = [side // encoder.patch for side in size]

    def find(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
        fitted = torch.from_numpy(resized(image, size)).permute(2, 0, 1)[None]
        with torch.inference_mode():
            features = encoder(fitted)[0].unflatten(0, grid).numpy()
        return mask_image(salient_mask(features), *image.shape[:2]) > 0

    return find


def picture(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The object's mask, bool [H, W], in colour over the frame, uint8 [H, W, 3] RGB."""
    return overlay(image, np.where(mask, np.uint8(0), np.uint8(UNLABELLED)), _COLOURS, 0.5)


def cut_folder(args: argparse.Namespace) -> list[float]:
    """Do what the command is asked for. Returns the Jaccard of each frame that has an object.

    Raises:
        DataError: an image or mask cannot be used. ExportError, ValueError: see ``open_encoder``.
        OutputError: masks or overlays cannot be written.
    """
    if args.out.absolute().resolve().is_relative_to(args.images.absolute().resolve()):
        raise DataError(
            f"--out {args.out}: its masks would be frames of the next run; give another"
        )
    images = image_files(args.images)
    truths: dict[str, Path] = {}
    if args.masks is not None:
        pairs = pair_files(args.images, args.masks)
        each_file(_check, pairs, "frames and masks")
        truths = {stem: pair.label for stem, pair in zip(images, pairs, strict=True)}
    first = read_image(next(iter(images.values())))
    find = object_finder(*open_encoder(args.weights, args.arch, args.size, first.shape[:2]))
    masks, overlays = args.out / "masks", args.out / "overlays"
    for folder in {(part / stem).parent for part in (masks, overlays) for stem in images}:
        make_folder(folder)
    scores = []
    for stem, path in track(images.items(), "objects", console=Console(stderr=True)):
        image = read_image(path)
        mask = find(image)
        write_image(masks / f"{stem}.png", mask.astype(np.uint8) * 255)
        write_image(overlays / f"{stem}.jpg", picture(image, mask))
        if stem in truths and (truth := read_mask(truths[stem])).any():
            scores.append(jaccard(mask, truth))
    return scores


def _check(pair: Pair) -> None:
    read_pair(pair, read_mask)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code (``ctxseg_ros.command``)."""
    parser = argparse.ArgumentParser(prog="python -m training token-cut", description=__doc__)
    parser.add_argument("weights", help="a file of weights, or a timm name to download")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--masks", type=Path, help="masks to score against; not black = object")
    parser.add_argument(
        "--size",
        type=parse_size,
        metavar="HxW",
        help=f"of the input (default: {PATCHES} patches in the first image's proportions)",
    )
    parser.add_argument("--arch", help="timm name of a file's architecture (default: as it fits)")
    args = parser.parse_args(arguments)

    def work() -> None:
        scores = cut_folder(args)
        if args.masks is not None:
            mean = f"Jaccard {np.mean(scores):.3f}, mean of" if scores else "nothing to score:"
            print(f"{mean} {len(scores)} frames with an object")
        print(f"masks and overlays: {args.out}")

    return run_command("token_cut", work)
