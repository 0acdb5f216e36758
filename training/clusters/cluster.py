# SPDX-License-Identifier: Apache-2.0
"""``python -m training cluster WEIGHTS --source FOLDER_OR_BAG --k 27 --out X.onnx``.

Segments without labels: the patch embeddings of a ViT, over all frames of a source, are clustered
(see ``training.clusters.clustering``) and written as a model file of task clusters, all of it
inside its graph. The file is accepted only if its labels agree with the network's on real frames.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from ctxseg_ros.command import run_command
from ctxseg_ros.image.resize import resized
from ctxseg_ros.model.model_file import ModelInfo, format_size, parse_size
from ctxseg_ros.system.machine import commit
from training.clusters.cluster_graph import ClusterGraph
from training.clusters.clustering import CENTROIDS_EACH, VECTORS_EACH, Clustering, cluster, unit
from training.clusters.token_cut import fitting_size
from training.commands import KNOWN, Provenance, checked_name, counted
from training.data.evenly import evenly
from training.data.files import DataError, progress
from training.data.frames import ALL_FRAMES, FrameList, FrameOptions, Source, open_frames
from training.data.options import add_reading, add_stride, frame_options
from training.data.palette import cluster_infos
from training.export.attention import from_file, from_name
from training.export.checkpoint import (
    FRAMES,
    ExportError,
    export_graph,
    halve_weights,
    parity,
    write_checked,
)
from training.export.precision import bf16_change
from training.networks.deployed import AttentionGraph, SegmenterGraph
from training.networks.encoder import Encoder, check_multiple
from training.places import end
from training.systems.registry import load_system

#: Frames whose patches are clustered, at most, evenly over the source.
MOST_FRAMES = 1000
#: Patches that are clustered: of each frame at most, unless the clusters need more, and of all.
PER_FRAME = 200
MOST_PATCHES = 100_000
#: Temperatures that are tried.
TEMPERATURES = (1e-3, 1.0)


@dataclass(frozen=True)
class ClusterOptions:
    """How patches are clustered.

    Args:
        clusters: K, 2 to 255.
        size: (height, width) that frames are brought to and the model is meant for; None: about
            1000 patches in the proportions of the first frame.
        seed: of the choice of patches, and of the k-means.

    Raises:
        ValueError: ``clusters`` is out of its range.
    """

    clusters: int = 27
    size: tuple[int, int] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.clusters <= 255:
            raise ValueError(f"--k {self.clusters}: clusters must be 2 to 255")


@dataclass(frozen=True)
class Origin:
    """An encoder, and what is known of it: file or timm name, architecture, data, licence."""

    encoder: Encoder
    weights: str
    architecture: str
    data: str
    licence: str


def open_encoder(source: str, architecture: str | None = None) -> Origin:
    """The encoder of a checkpoint (``.ckpt``) of ours, a file of weights, or a timm name.

    Args:
        architecture: timm name of a file's architecture; None: the likeliest that fits.

    Raises:
        ExportError: the name or the architecture is unknown, the download fails, or the
            checkpoint is none of a system with a ViT, or given an architecture.
        ValueError: the file holds no weights, or not those of ``architecture``.
    """
    path = Path(source)
    if path.suffix == ".ckpt" and path.exists():
        if architecture is not None:
            raise ExportError(f"{path}: a checkpoint knows its architecture; leave --arch out")
        system, _ = load_system(path)
        graph = system.graph()
        if not isinstance(graph, AttentionGraph | SegmenterGraph):
            raise ExportError(f"{path}: a {type(system).__name__} has no ViT to take patches from")
        data, _ = system.origin()
        name = system.hparams.backbone
        return Origin(graph.encoder, type(system).__name__, name, data, "Apache-2.0")
    if path.exists():
        encoder, name = from_file(path, architecture)
        return Origin(encoder.eval(), path.name, name, "not known", "not known")
    if architecture is not None:
        raise ExportError(f"{source}: no such file; --arch goes with a file only")
    encoder, name = from_name(source)
    licence = encoder.vit.pretrained_cfg.get("license") or "not known"
    return Origin(encoder.eval(), name, name, f"timm's {name}", licence)


def embeddings(encoder: Encoder, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Output tokens [h, w, D] of a frame uint8 [H, W, 3], each of length 1."""
    with torch.inference_mode():
        tokens = encoder(torch.from_numpy(frame).permute(2, 0, 1)[None])[0]
    return unit(tokens.numpy()).reshape(*(s // encoder.patch for s in frame.shape[:2]), -1)


def sample_patches(
    encoder: Encoder, frames: FrameList, size: tuple[int, int], clusters: int, seed: int
) -> NDArray[np.float32]:
    """Embeddings [N, D] of as many random patches of each frame, MOST_PATCHES in all at most.

    They are of MOST_FRAMES frames at most, and PER_FRAME of each; of more where the frames are too
    few for all the centroids that the clusters are merged from.
    """
    patches = size[0] * size[1] // encoder.patch**2
    chosen = evenly(len(frames), MOST_FRAMES)
    needed = -(-clusters * CENTROIDS_EACH * VECTORS_EACH // len(chosen))
    count = min(max(PER_FRAME, needed), patches, MOST_PATCHES // len(chosen))
    rng = np.random.default_rng(seed)
    kept = []
    for index in progress(chosen, "patch embeddings", len(chosen)):
        found = embeddings(encoder, resized(frames[index], size)).reshape(patches, -1)
        kept.append(found[rng.choice(patches, count, replace=False)])
    return np.concatenate(kept)


def fit_temperature(cosines: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """The temperature T at which softmax(cosines / T) says best how likely ``labels`` are.

    Temperature scaling (Guo et al. 2017): the least cross entropy, within TEMPERATURES.

    Args:
        cosines: float [N, K]. labels: int [N].
    """
    of_label = np.take_along_axis(cosines, labels[:, None], 1)[:, 0]

    def cross_entropy(log_temperature: float) -> float:
        temperature = np.exp(log_temperature)
        return float((logsumexp(cosines / temperature, axis=1) - of_label / temperature).mean())

    found = minimize_scalar(cross_entropy, bounds=np.log(TEMPERATURES), method="bounded")
    return float(np.exp(found.x))


def mirrored_temperature(
    encoder: Encoder, frames: Sequence[NDArray[np.uint8]], clustering: Clustering
) -> float:
    """The temperature by which the confidence says how sure a label is to outlast a mirroring.

    No label says which cluster is right. What can be asked is whether a patch falls into the same
    one when its frame is seen mirrored, and the confidence is fitted to that.
    """
    cosines, labels = [], []
    for frame in frames:
        mirrored = embeddings(encoder, np.ascontiguousarray(frame[:, ::-1]))[:, ::-1]
        seen = embeddings(encoder, frame)
        cosines.append(clustering.cosines(seen.reshape(-1, seen.shape[-1])))
        labels.append(clustering.cosines(mirrored.reshape(-1, seen.shape[-1])).argmax(1))
    return fit_temperature(np.concatenate(cosines), np.concatenate(labels))


def network_clusters(
    encoder: Encoder, clustering: Clustering, frame: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Labels [H, W] that the torch network gives to a frame uint8 [H, W, 3]."""
    cosines = torch.from_numpy(clustering.cosines(embeddings(encoder, frame)))
    planes = F.interpolate(cosines.permute(2, 0, 1)[None], frame.shape[:2], mode="bilinear")
    return planes[0].argmax(0).to(torch.uint8).numpy()


def export_clusters(
    origin: Origin,
    source: Source,
    out: Path,
    name: str,
    clustering: ClusterOptions,
    options: FrameOptions = ALL_FRAMES,
    stated: Provenance = KNOWN,
) -> tuple[dict[str, Any], Clustering]:
    """Cluster the patches of a source and write the model file.

    Args:
        source, options: the frames, see ``training.data.frames.open_frames``.
        out: the file to write; it appears only when every check has passed.
        name: of the model.
        clustering: how patches are clustered.
        stated: in place of the source's name, and of its terms.

    Returns:
        ``ctxseg.source`` as written, and the clustering.

    Raises:
        DataError: there are no frames, or they are smaller than a patch.
        ParityError: the file's labels differ from the network's on more than 0.1 % of pixels.
        ValueError: the size does not fit the encoder, or there are fewer patches than clusters.
    """
    clusters, size, seed = clustering.clusters, clustering.size, clustering.seed
    encoder = origin.encoder
    if size is not None:
        check_multiple(size, encoder.patch)
    frames = open_frames(source, options)
    check_sizes(frames, encoder.patch)
    size = size or fitting_size(frames.sizes[0], encoder.patch)
    patches = sample_patches(encoder, frames, size, clusters, seed)
    used = min(len(frames), MOST_FRAMES)
    if clusters > len(patches):
        raise ValueError(
            f"--k {clusters}: there are {len(patches)} patches only, in {counted(used, 'frame')} "
            f"at {format_size(size)}; take fewer clusters, more frames or a larger --size"
        )
    found = cluster(patches, clusters, seed)
    pictures = [resized(frames[i], size) for i in evenly(len(frames), FRAMES)]
    temperature = mirrored_temperature(encoder, pictures, found)
    expected = [network_clusters(encoder, found, picture) for picture in pictures]
    graph = ClusterGraph(encoder, found, temperature)
    model = export_graph(graph, "clusters")
    halve_weights(model)

    def check(draft: ModelInfo) -> dict[str, Any]:
        measured: dict[str, Any] = {"parity": parity(draft, pictures, expected)}
        if change := bf16_change(draft, pictures):
            measured["precision"] = change
        return measured

    written = write_checked(
        model,
        out,
        {
            "data": stated.data or f"{counted(used, 'frame')} of {_ends(source)}, without labels",
            "weights": origin.weights,
            "architecture": origin.architecture,
            "weights_data": origin.data,
            "clustering": {
                "clusters": clusters,
                "frames": used,
                "patches": len(patches),
                "centroids": len(found.centroids),
                "inertia": round(found.inertia, 6),
                "temperature": round(temperature, 6),
                "seed": seed,
            },
            "commit": commit(),
            "licence": {
                "data": stated.terms or "those of the frames that were clustered",
                "weights": origin.licence,
            },
        },
        check,
        name=name,
        task="clusters",
        classes=cluster_infos(clusters),
        stride=graph.stride,
        size=size,
    )
    return written, found


def check_sizes(frames: FrameList, patch: int) -> None:
    """Raise DataError, naming the first, if frames have fewer pixels on a side than a patch."""
    small = [i for i, shape in enumerate(frames.sizes) if min(shape) < patch]
    if small:
        height, width = frames.sizes[small[0]]
        raise DataError(
            f"{counted(len(small), 'frame')} smaller than a patch of {patch} pixels, such as "
            f"{frames.names[small[0]]} ({width}x{height}); leave them out or enlarge them"
        )


def _ends(source: Source) -> str:
    return ", ".join(map(end, [source] if isinstance(source, str | Path) else source))


def report(out: Path, source: dict[str, Any], found: Clustering) -> None:
    """Print what was clustered, written and measured."""
    facts = source["clustering"]
    frames = counted(facts["frames"], "frame")
    print(f"{frames}, {facts['patches']} patches, inertia {facts['inertia']:.4f}")
    for i, share in enumerate(found.shares):
        print(f"  cluster {i:3}  {share:6.2%}")
    print(f"confidence at temperature {facts['temperature']:.4f}")
    agreement = source["parity"]["network_label_agreement"]
    print(f"labels agree with the network on {agreement:.3%}")
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 1, after one clear line, if there is no good file to write."""
    parser = argparse.ArgumentParser(prog="python -m training cluster", description=__doc__)
    parser.add_argument("weights", help="checkpoint (.ckpt) of ours, file of weights or timm name")
    parser.add_argument(
        "--source",
        nargs="+",
        required=True,
        help=f"frames: folders, images, videos, bags; {MOST_FRAMES} are used, evenly chosen",
    )
    parser.add_argument("--k", type=int, default=27, help="clusters, 2 to 255 (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="the .onnx file to write")
    parser.add_argument("--arch", help="timm name that a file is of (default: by its shapes)")
    parser.add_argument(
        "--size",
        type=parse_size,
        metavar="HxW",
        help="that frames are brought to (default: about 1000 patches, shaped as the first frame)",
    )
    add_reading(parser)
    add_stride(parser)
    parser.add_argument("--seed", type=int, default=0, help="another gives other clusters")
    parser.add_argument("--name", help="of the model (default: the stem of --out)")
    parser.add_argument("--data", metavar="TEXT", help="what was clustered")
    parser.add_argument("--terms", metavar="TEXT", help="of that data")
    args = parser.parse_args(arguments)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)

    def work() -> None:
        name = checked_name(args.out, args.name)
        source, found = export_clusters(
            open_encoder(args.weights, args.arch),
            args.source,
            args.out,
            name,
            ClusterOptions(args.k, args.size, args.seed),
            frame_options(args),
            Provenance(args.data, args.terms),
        )
        report(args.out, source, found)

    return run_command("cluster", work)
