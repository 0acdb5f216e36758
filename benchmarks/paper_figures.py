# SPDX-License-Identifier: Apache-2.0
"""The paper's figures and tables, from this project's models.

python benchmarks/paper_figures.py [--checkpoint W-NET.ckpt] [--regions REGIONS.json]
    [--dino MODEL] [--objects OBJECTS.json ...]

Figure 1, U-Net against W-Net, and figure 2, W-Net and the CRF, on the same frames of CamVid val;
figure 3, what W-Net's decoder paints; figure 4, W-Net on natural images (BSDS500 val); figure 7,
DINO's attention, head by head, on frames of DAVIS and on the images of figure 4. Tables: U-Net and
W-Net on CamVid val, W-Net beside k-means and random clusters, W-Net's regions on BSDS500 val beside
the published ones, attention against the masks of objects. The frames are spread evenly over their
set, and nobody chose among them.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a script it sees its folder only

from benchmarks.cluster_baselines import MEASURES, measure_baselines, summary
from benchmarks.processes import ROOT
from ctxseg_ros.command import run_command
from ctxseg_ros.image import render
from ctxseg_ros.image.attention import attention_image, head_map, mask_image, mass_mask
from ctxseg_ros.inference.pipeline import Model
from ctxseg_ros.inference.runtimes import open_runtime
from ctxseg_ros.model.model_file import ModelInfo, format_size
from ctxseg_ros.model.prediction import Prediction
from ctxseg_ros.model.store import load
from ctxseg_ros.refinement.crf import refine
from ctxseg_ros.refinement.merging import hierarchy
from ctxseg_ros.system import machine
from ctxseg_ros.system.output_files import make_folder, replacing, write_json, write_text
from training.data.bsds import bsds_pairs
from training.data.camvid import CLASSES, VOID, camvid_pairs, read_camvid
from training.data.evenly import evenly
from training.data.files import DataError, read_image
from training.data.ground_truth import GroundTruth
from training.data.pairs import Pair, pair_files
from training.evaluation.labels import evaluate_labels
from training.evaluation.regions import evaluate_regions
from training.evaluation.running import fitting_size
from training.export.checkpoint import agreement, network_labels
from training.places import DATA, expanded
from training.systems.registry import CheckpointError, load_system
from training.systems.wnet import WNetSystem

ROWS = 5
KINDS = ("plain", "crf", "merged")
REGION_MEASURES = ("covering", "pri", "vi")
#: Least share of pixels on which checkpoint and model file must agree to be one model.
SAME = 0.95
#: Share of the attention in the masks of figure 7, and the most patches of its maps, down x across.
MASS = 0.6
GRID = (34, 60)
OBJECT_MEASURES = ("jaccard_mean", "jaccard_best_head", "jaccard_fixed_head", "mass_curve_area")
CONTROLS = {"centre_prior": "centre prior", "random_vit": "random ViT-Ti/16"}

#: BSDS500 test: ODS and OIS of each of REGION_MEASURES (Xia & Kulis 2017); of people one figure.
PUBLISHED = {
    "W-Net, published (test)": ((0.57, 0.62), (0.81, 0.84), (1.76, 1.60)),
    "W-Net + ucm, published (test)": ((0.59, 0.64), (0.82, 0.85), (1.67, 1.47)),
    "human, published (test)": ((0.72,), (0.88,), (1.17,)),
}

_TITLES = {"unet": "U-Net", "wnet": "W-Net", "dino": "DINO"}
_KEYS = 6  # side by side in a legend

Picture = NDArray[np.uint8]  # [H, W, 3], RGB
Colours = Mapping[str, tuple[int, int, int]]


@dataclass(frozen=True)
class Frame:
    """An image of a figure: its name, itself, and a model's prediction at its size."""

    name: str
    image: Picture
    prediction: Prediction


def spread(pairs: Sequence[Pair], count: int = ROWS) -> list[Pair]:
    """At most `count` of the pairs, from the middles of as many equal parts."""
    return [pairs[i] for i in evenly(len(pairs), count, middles=True)]


def of_one_shape(pairs: Sequence[Pair]) -> list[Pair]:
    """Those whose images have the commonest shape: they fill a grid without gaps."""
    shapes = [pair.rgb().shape for pair in pairs]
    ((commonest, _),) = Counter(shapes).most_common(1)
    return [pair for pair, shape in zip(pairs, shapes, strict=True) if shape == commonest]


def predict(info: ModelInfo, pairs: Sequence[Pair], size: tuple[int, int] | None) -> list[Frame]:
    """The frames and what the model says of them; `size` as for `training.evaluation`."""
    runtime = open_runtime(info, size)
    segmenter = Model(runtime)
    try:
        images = [pair.rgb() for pair in pairs]
        return [
            Frame(pair.image.stem, image, segmenter.segment(image))
            for pair, image in zip(pairs, images, strict=True)
        ]
    finally:
        runtime.close()


class Decoder:
    """W-Net as it was trained, with the half that the model file leaves out."""

    def __init__(self, checkpoint: Path, info: ModelInfo, images: Sequence[Picture]) -> None:
        """Raises CheckpointError unless it is the W-Net that labels the images as the file does."""
        system, _ = load_system(checkpoint)
        if not isinstance(system, WNetSystem):
            raise CheckpointError(
                f"{checkpoint}: a {type(system).__name__}; give one of a WNetSystem"
            )
        self._network = system.network
        size = info.fixed_size or info.size
        fitted = [_fit(image, size) for image in images]
        runtime = open_runtime(info, size)
        found = [runtime.run(image).labels for image in fitted]
        runtime.close()
        same = agreement([network_labels(system, image) for image in fitted], found)
        if same < SAME:
            raise CheckpointError(
                f"{checkpoint}: its labels are those of {info.name} on {same:.1%} of pixels only; "
                "give the checkpoint that this model was exported from"
            )

    def paint(self, image: Picture, size: tuple[int, int]) -> tuple[Picture, float]:
        """The reconstruction at the image's size, and its PSNR (dB) at the model's `size`."""
        x = torch.from_numpy(_fit(image, size)).float() / 255
        with torch.inference_mode():
            _, batch = self._network(x.permute(2, 0, 1)[None])
        painted = batch[0].permute(1, 2, 0).clamp(0, 1)
        error = float((painted - x).square().mean())
        shown = (255 * painted).round().to(torch.uint8).numpy()
        return cv2.resize(shown, image.shape[1::-1]), float(-10 * np.log10(max(error, 1e-10)))


def _fit(image: Picture, size: tuple[int, int]) -> Picture:
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


def draw(
    path: Path,
    title: str,
    columns: Sequence[str],
    rows: Mapping[str, Sequence[Picture]],
    legend: Colours | None = None,
    width: float = 3.2,
) -> None:
    """Rows of pictures beside their names, under the columns' titles, each `width` inches wide.

    The pictures of a row have one shape.
    """
    shapes = [pictures[0].shape for pictures in rows.values()]
    heights = [width * shape[0] / shape[1] for shape in shapes]
    legend = legend or {}
    texts = 0.5 + 0.2 * -(-len(legend) // _KEYS)  # inches: titles, and lines of the legend
    size = (width * len(columns) + 0.25, sum(heights) + texts)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(h_pad=0.03, w_pad=0.02))
    grid = figure.subplots(len(rows), len(columns), squeeze=False, height_ratios=heights)
    for axes, (name, pictures) in zip(grid, rows.items(), strict=True):
        axes[0].set_ylabel(name, fontsize=8)
        for axis, picture in zip(axes, pictures, strict=True):
            axis.imshow(picture, interpolation="antialiased")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    for axis, column in zip(grid[0], columns, strict=True):
        axis.set_title(column, fontsize=10)
    figure.suptitle(title, fontsize=11)
    if legend:
        patches = [
            Patch(color=[channel / 255 for channel in colour], label=name)
            for name, colour in legend.items()
        ]
        figure.legend(
            handles=patches, loc="outside lower center", ncols=_KEYS, frameon=False, fontsize=9
        )
    with replacing(path) as draft:
        figure.savefig(draft, dpi=100)


def figure_1(
    path: Path,
    unet: ModelInfo,
    labelled: Sequence[Frame],
    pairs: Sequence[Pair],
    wnet: ModelInfo,
    clustered: Sequence[Frame],
) -> None:
    """U-Net against W-Net on the same frames: image, truth, U-Net's labels, W-Net's clusters."""
    rows = {}
    for frame, pair, clusters in zip(labelled, pairs, clustered, strict=True):
        truth = render.colour_map(read_camvid(pair.label), unet.colours)
        shown = (frame.image, truth, _labels(unet, frame), _labels(wnet, clusters))
        rows[frame.name] = shown
    legend = {item.name: item.colour for item in unet.classes} | {"void": (0, 0, 0)}
    columns = ("image", "truth", "U-Net, with labels", "W-Net, without (colours: figure 2)")
    draw(path, "U-Net and W-Net on CamVid val", columns, rows, legend)


def figure_2(
    path: Path, info: ModelInfo, frames: Sequence[Frame], matching: Mapping[str, str | None]
) -> None:
    """W-Net: image, clusters, clusters after the CRF. `matching`: class by cluster, for the key."""
    rows = {
        frame.name: (frame.image, _labels(info, frame), _colours(info, _refined(info, frame)))
        for frame in frames
    }
    legend = {}
    for item in info.classes:
        found = matching[str(item.id)]
        legend[f"{item.id}: {found or 'no pixel'}"] = item.colour
    title = "W-Net on CamVid val; a cluster's key names the class that holds most of it"
    draw(path, title, ("image", "W-Net", "W-Net + CRF"), rows, legend)


def figure_3(
    path: Path, decoder: Decoder, frames: Sequence[Frame], size: tuple[int, int]
) -> list[float]:
    """Reconstruction by W-Net's decoder: image, reconstruction. Gives the PSNR of each, dB."""
    rows, psnr = {}, []
    for frame in frames:
        painted, decibels = decoder.paint(frame.image, size)
        rows[frame.name] = (frame.image, painted)
        psnr.append(round(decibels, 2))
    draw(path, "Reconstruction by W-Net", ("image", "reconstruction"), rows)
    return psnr


def figure_4(
    path: Path,
    info: ModelInfo,
    frames: Sequence[Frame],
    level: float,
    decoder: Decoder | None,
    size: tuple[int, int],
) -> None:
    """W-Net on natural images: clusters, CRF, merging at `level`, reconstruction."""
    columns = ["image", "W-Net", "W-Net + CRF", "merging: contours", "merging: regions"]
    rows = {}
    for frame in frames:
        refined = _refined(info, frame)
        tree = hierarchy(frame.image, refined)
        rows[frame.name] = [
            frame.image,
            _labels(info, frame),
            _colours(info, refined),
            ink(tree.contours),
            mean_colours(frame.image, tree.at(level)),
        ]
        if decoder is not None:
            rows[frame.name].append(decoder.paint(frame.image, size)[0])
    if decoder is not None:
        columns.append("reconstruction")
    draw(path, "W-Net on BSDS500 val", columns, rows, width=2.4)


def figure_7(path: Path, title: str, frames: Mapping[str, Frame]) -> None:
    """Attention: image, the patches that hold MASS of the heads' mean, that mean, every head."""
    rows = {}
    for name, frame in frames.items():
        attention = frame.prediction.attention
        assert attention is not None
        size = frame.image.shape[:2]
        mask = mask_image(mass_mask(head_map(attention, -1), MASS), *size)
        heats = [
            render.heat_map(attention_image(head_map(attention, head), *size))
            for head in range(-1, len(attention))
        ]
        rows[name.replace("/", "\n")] = [frame.image, dimmed(frame.image, mask == 0), *heats]
    heads = [f"head {head}" for head in range(len(heats) - 1)]
    columns = ("image", f"mask, mass {MASS:g}", "heads' mean", *heads)
    draw(path, title, columns, rows, width=15 / len(columns))


def dimmed(image: Picture, where: NDArray[np.bool_]) -> Picture:
    """The image with a fifth of its light where [H, W] says so."""
    return np.where(where[..., None], image // 5, image)


def _labels(info: ModelInfo, frame: Frame) -> Picture:
    assert frame.prediction.labels is not None
    return render.colour_map(frame.prediction.labels, info.colours)


def _refined(info: ModelInfo, frame: Frame) -> NDArray[np.float32]:
    labels, confidence = frame.prediction.labels, frame.prediction.confidence
    assert labels is not None and confidence is not None
    return refine(frame.image, labels, confidence, len(info.classes))


def _colours(info: ModelInfo, probabilities: NDArray[np.float32]) -> Picture:
    return render.colour_map(probabilities.argmax(0).astype(np.uint8), info.colours)


def ink(contours: NDArray[np.float32]) -> Picture:
    """Strengths [H, W], 0 to 1, as grey lines of two pixels on white: one would fade in print."""
    wide = cv2.dilate(contours, np.ones((2, 2), np.uint8))
    grey = (255 * (1 - wide)).round().astype(np.uint8)
    return np.dstack((grey, grey, grey))


def mean_colours(image: Picture, regions: NDArray[np.int32]) -> Picture:
    """Each region [H, W], ids from 0 without gaps, in the mean colour of its pixels."""
    ids = regions.ravel()
    sums = [np.bincount(ids, channel.ravel()) for channel in np.moveaxis(image, 2, 0)]
    means = np.stack(sums, 1) / np.bincount(ids)[:, None]
    return means.round().astype(np.uint8)[regions]


def by_class_name(result: dict[str, Any]) -> dict[str, Any]:
    """Scores of clusters on CamVid with the classes' names where `evaluate_labels` has numbers."""
    names = {str(i): name for i, (name, _) in enumerate(CLASSES)}
    named = dict(result)
    named["iou"] = {names[key]: iou for key, iou in result["iou"].items()}
    named["matching"] = {
        cluster: None if item is None else names[item]
        for cluster, item in result["matching"].items()
    }
    if "other" in result:
        named["other"] = by_class_name(result["other"])
    return named


def read_regions(path: Path, info: ModelInfo, images: int) -> dict[str, Any]:
    """What `python -m training evaluate regions --json` wrote of this model.

    Raises DataError where it is something else, of another model, or of other images.
    """
    found = _evaluated(path, "regions", {"model", "images", *KINDS})
    if (found["model"], found["images"]) != (info.name, images):
        raise DataError(
            f"{path}: scores of {found['model']} on {found['images']} images; "
            f"wanted are {info.name} on {images}"
        )
    return {key: found[key] for key in (*KINDS, "images")}


def read_objects(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """What `python -m training evaluate objects --json` wrote of some models on the same frames.

    Raises DataError where it is something else, of other frames, or of another mass than MASS.
    """
    rows = []
    same = ("images", "without_object", "sequences")
    kept = ("model", "size", "mass", *same[:2], *OBJECT_MEASURES)
    for path in paths:
        found = _evaluated(path, "objects", {*kept, "sequences", "controls"})
        if found["mass"] != MASS:
            raise DataError(f"{path}: scores at mass {found['mass']}; wanted is --mass {MASS:g}")
        row = {key: found[key] for key in kept}
        row["sequences"] = list(found["sequences"])
        row["controls"] = {
            name: {key: found["controls"][name][key] for key in OBJECT_MEASURES}
            for name in CONTROLS
        }
        rows.append(row)
        if any(row[key] != rows[0][key] for key in same):
            raise DataError(f"{path}: scores on other frames than those of {paths[0]}")
    return rows


def _evaluated(path: Path, command: str, keys: set[str]) -> dict[str, Any]:
    """What `python -m training evaluate COMMAND --json` wrote. Raises DataError if it did not."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(found, dict) or not keys <= found.keys():
        raise DataError(f"{path}: not what `python -m training evaluate {command} --json` writes")
    return found


def camvid_tables(unet: dict[str, Any], clusters: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown: U-Net by class, then every way to cluster in one table."""
    lines = ["## CamVid val: U-Net", "", *_row("class", "IoU %"), "|---|--:|"]
    for name, iou in unet["iou"].items():
        lines += _row(name, "-" if iou is None else _percent(iou))
    for name, measure in (
        ("**mIoU**", "miou"),
        ("pixel accuracy", "pixel_accuracy"),
        ("class accuracy", "class_accuracy"),
    ):
        lines += _row(name, _percent(unet[measure]))
    lines += ["", "## CamVid val: clusters without labels", ""]
    lines += _row(
        "clusters",
        "mIoU %, Hungarian",
        "pixel accuracy %",
        "mIoU %, majority",
        "pixel accuracy %",
    )
    lines += ["|---|--:|--:|--:|--:|"]
    for row in clusters:
        found = [row[match][m] for match in ("hungarian", "majority") for m in MEASURES]
        lines += _row(row["clusters"], *(_mean_and_best(each, row["runs"]) for each in found))
    return [
        *lines,
        "",
        "Clusters are matched to the 11 classes once over the whole set. Hungarian: one to one, so "
        "that classes beyond the number of clusters have IoU 0; majority: each cluster to the "
        "class that holds most of it. k-means and random: mean (best) of "
        f"{clusters[-1]['runs']} seeds; position x N: opposite sides of a frame are N CIELAB units "
        "apart.",
    ]


def regions_table(regions: dict[str, Any]) -> list[str]:
    """Markdown: the regions' scores beside the published ones."""
    lines = [f"## BSDS500 val: W-Net, {regions['images']} images, ODS / OIS", ""]
    lines += [*_row("regions", "covering", "PRI", "VI (bits)"), "|---|--:|--:|--:|"]
    names = {"plain": "W-Net", "crf": "W-Net + CRF", "merged": "W-Net + CRF + merging"}
    for kind, name in names.items():
        measures = [regions[kind][measure] for measure in REGION_MEASURES]
        lines += _row(name, *(f"{each['ods']:.3f} / {each['ois']:.3f}" for each in measures))
    for name, published in PUBLISHED.items():
        lines += _row(name, *(" / ".join(f"{value:.2f}" for value in pair) for pair in published))
    return lines


def objects_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown: models' attention against the masks of objects, above controls on their patches."""
    first = rows[0]
    lines = [
        f"## Attention against the masks of objects: {first['images']} frames of "
        f"{', '.join(first['sequences'])}; Jaccard at mass {first['mass']:g}",
        "",
        *_row("model", "input", "heads' mean", "best head", "fixed head", "mass curve"),
        "|---|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        lines += _row(row["model"], row["size"], *_scores(row))
    for control, name in CONTROLS.items():
        models: dict[tuple[str, ...], list[str]] = {}  # of one grid: their controls are the same
        for row in rows:
            models.setdefault(_scores(row["controls"][control]), []).append(row["model"])
        for scores, of in models.items():
            where = f", on the patches of {', '.join(of)}" if len(models) > 1 else ""
            if control == "centre_prior":  # one map: there is no choice of heads
                scores = (scores[0], "-", "-", scores[3])
            lines += _row(f"{name}{where}", "", *scores)
    return [
        *lines,
        "",
        "Best head: of each frame, an oracle; fixed head: the one best over all frames; mass "
        "curve: the mean height of the heads' mean's Jaccard over masses of 0.05 to 0.95.",
    ]


def _scores(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(f"{row[measure]:.3f}" for measure in OBJECT_MEASURES)


def _row(*cells: str) -> list[str]:
    return [f"| {' | '.join(cells)} |"]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _mean_and_best(found: dict[str, float], runs: int) -> str:
    mean = _percent(found["mean"])
    return mean if runs == 1 else f"{mean} ({_percent(found['best'])})"


def page(found: dict[str, Any]) -> str:
    """The Markdown page of what `main` found: figures, then tables."""
    results = found["results"]
    lines = ["# The paper's figures and tables, from our models", ""]
    gpu = found["machine"]["gpu"]
    lines += [
        *(
            f"{_TITLES[key]}: {model['name']} ({model['data']})."
            for key, model in results["models"].items()
        ),
        f"{found['machine']['cpu']}, {found['machine']['cores']} cores"
        f"{f', {gpu}' if gpu else ''}; commit {found['commit']}.",
        "",
    ]
    for name, figure in results["figures"].items():
        lines += [f"![{name}]({figure['file']})", ""]
    lines += camvid_tables(results["camvid_val"]["unet"], results["camvid_val"]["clusters"])
    lines += ["", *regions_table(results["bsds_val"]), ""]
    if results["objects"]:
        lines += [*objects_table(results["objects"]), ""]
    return "\n".join(lines)


def camvid(
    data: Path, unet: ModelInfo, wnet: ModelInfo, decoder: Decoder | None, out: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures 1 to 3 and their tables: (`camvid_val`, `figures`)."""
    train, val = camvid_pairs(data / "camvid", "train"), camvid_pairs(data / "camvid", "val")
    matched = by_class_name(evaluate_labels(wnet, val, GroundTruth(VOID), "hungarian"))
    chosen = spread(val)
    frames = predict(wnet, chosen, None)
    labelled = predict(unet, chosen, None)
    figure_1(out / "paper_figure_1.png", unet, labelled, chosen, wnet, frames)
    figure_2(out / "paper_figure_2.png", wnet, frames, matched["other"]["matching"])
    names = [frame.name for frame in frames]
    figures: dict[str, Any] = {
        "figure 1": {"file": "paper_figure_1.png", "frames": names},
        "figure 2": {"file": "paper_figure_2.png", "frames": names},
    }
    if decoder is not None:
        size = wnet.fixed_size or wnet.size
        psnr = figure_3(out / "paper_figure_3.png", decoder, frames, size)
        figures["figure 3"] = {"file": "paper_figure_3.png", "frames": names, "psnr_db": psnr}
    rows = [
        summary("W-Net", [matched]),
        *measure_baselines(train, val, read_camvid, len(CLASSES), len(wnet.classes)),
    ]
    supervised = evaluate_labels(unet, val, GroundTruth(VOID))
    return {"unet": supervised, "wnet": matched, "clusters": rows}, figures


def bsds(
    data: Path, wnet: ModelInfo, decoder: Decoder | None, scored: Path | None, out: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figure 4 and its table: (`bsds_val`, `figures`). `scored`: see `read_regions`."""
    val = bsds_pairs(data / "bsds500", "val")
    regions = read_regions(scored, wnet, len(val)) if scored else evaluate_regions(wnet, val)
    chosen = spread(of_one_shape(val))
    size = fitting_size(wnet, read_image(chosen[0].image).shape[:2])
    frames = predict(wnet, chosen, size)
    level = regions["merged"]["covering"]["level"]
    figure_4(out / "paper_figure_4.png", wnet, frames, level, decoder, size)
    figure = {"file": "paper_figure_4.png", "frames": [frame.name for frame in frames]}
    return {**regions, "published": PUBLISHED}, {"figure 4": {**figure, "merge_level": level}}


def attention_size(info: ModelInfo, shape: tuple[int, int]) -> tuple[int, int]:
    """The size nearest to an image's `shape`, scaled down to the patches of GRID if need be."""
    most = (patches * info.stride for patches in GRID)
    scale = min(1.0, *(side / own for side, own in zip(most, shape, strict=True)))
    height, width = (round(scale * own) for own in shape)
    return fitting_size(info, (height, width))


def attention(data: Path, dino: ModelInfo, out: Path) -> dict[str, Any]:
    """Figure 7."""
    davis, natural = data / "davis_dev", data / "bsds500"
    sets = {
        "DAVIS": (davis / "images", pair_files(davis / "images", davis / "masks")),
        "BSDS500 val": (natural / "val" / "images", bsds_pairs(natural, "val")),
    }
    frames: dict[str, Frame] = {}
    sizes = {}
    for name, (folder, pairs) in sets.items():
        chosen = spread(of_one_shape(pairs))
        size = attention_size(dino, read_image(chosen[0].image).shape[:2])
        for pair, frame in zip(chosen, predict(dino, chosen, size), strict=True):
            frames[pair.image.relative_to(folder).with_suffix("").as_posix()] = frame
        sizes[name] = format_size(size)
    inputs = ", ".join(f"{name} at {size}" for name, size in sizes.items())
    figure_7(out / "paper_figure_7.png", f"Attention of {dino.name}; input: {inputs}", frames)
    return {"figure 7": {"file": "paper_figure_7.png", "frames": list(frames), "sizes": sizes}}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--unet", default="unet", help="a name of `ctxseg models` or a file")
    parser.add_argument("--wnet", default="wnet", help="likewise")
    parser.add_argument("--dino", default="dino_tiny", help="likewise, of task attention")
    parser.add_argument(
        "--checkpoint", type=Path, help="that --wnet was exported from: it holds the decoder"
    )
    parser.add_argument(
        "--regions",
        type=Path,
        metavar="JSON",
        help="from `python -m training evaluate regions` on BSDS500 val (default: measured, "
        "which takes minutes)",
    )
    parser.add_argument(
        "--objects",
        type=Path,
        nargs="+",
        default=[],
        metavar="JSON",
        help="from `python -m training evaluate objects`, one of each model in the table",
    )
    parser.add_argument(
        "--data",
        default=f"${DATA}",
        help="with camvid, bsds500 and davis_dev (%(default)s)",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    return parser


def _find(args: argparse.Namespace) -> dict[str, Any]:
    data = expanded(args.data, "--data")
    unet, wnet, dino = load(args.unet), load(args.wnet), load(args.dino)
    models = {"unet": unet, "wnet": wnet, "dino": dino}
    if dino.task != "attention":
        raise DataError(f"--dino {args.dino}: of task {dino.task}; give a model of task attention")
    objects = read_objects(args.objects)
    decoder = None
    if args.checkpoint:
        pairs = spread(camvid_pairs(data / "camvid", "val"))
        decoder = Decoder(args.checkpoint, wnet, [pair.rgb() for pair in pairs])
    make_folder(args.out)
    heads = attention(data, dino, args.out)
    natural, last = bsds(data, wnet, decoder, args.regions, args.out)
    driving, first = camvid(data, unet, wnet, decoder, args.out)
    return {
        "models": {
            key: {"name": info.name, "data": info.source.get("data", "data unknown")}
            for key, info in models.items()
        },
        "figures": first | last | heads,
        "camvid_val": driving,
        "bsds_val": natural,
        "objects": objects,
    }


def main(arguments: Iterable[str] | None = None) -> int:
    """Draw, measure, write; gives the exit code."""
    args = _parser().parse_args(None if arguments is None else list(arguments))
    if args.checkpoint is None:
        print("figure 3 and the reconstructions of figure 4 are left out: the model file has no")
        print("decoder. Give the W-Net's --checkpoint for them.")
    if not args.objects:
        print("the table of objects is left out: give what `evaluate objects` wrote")
        print("as --objects.")
    return run_command("paper_figures", lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    results = _find(args)
    found = {"machine": machine.describe(), "commit": machine.commit(), "results": results}
    write_json(args.out / "paper_figures.json", found)
    write_text(args.out / "paper_figures.md", page(found))
    print(page(found))


if __name__ == "__main__":
    sys.exit(main())
