# SPDX-License-Identifier: Apache-2.0
"""Label efficiency: what does context learned without labels buy?

python benchmarks/label_efficiency.py [--steps 2070] [--size 352x480] [--rows 'dino_tiny/*/5' ...]

Segmenters on three encoders learn CamVid from 5, 20 and 100 % of its training frames, and are
scored on all of val at the truth's own size:

- `deit_tiny`: ViT-Ti/16 from 1.3 million labels of ImageNet.
- `dino_tiny`: ViT-Ti/16 initialised from `deit_tiny` and distilled from DINOv2-S on frames without
  labels, CamVid's training frames among them: what lies between the two is what that bought.
- `dinov2_small`: DINOv2-S, patch 14. It is larger: compare it with care.

Each of them frozen under one linear layer (`linear`), frozen under the mask transformer (`mask`),
and trained as a whole (`full`, mask transformer).

Held equal in all rows: steps, batch, frames of a share, seed, augmentation, loss, optimiser and
schedule, and the input, but for rounding to the nearest multiple of the patch; and in all rows of a
mode the learning rates. So at 5 % each frame is seen 20 times as often as at 100 %. Scored is the
last step, never the best: there is no other set to choose on. One seed: differences of a point of
mIoU or two mean nothing.

Every row is written when it is done. The same command goes on where a killed one was, and measures
again what was trained from other weights; other settings need a file of their own. `machine` and
`commit` are those of the last run.
"""

import argparse
import hashlib
import json
import logging
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import lightning as L
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a script it sees its folder only

from benchmarks.processes import ROOT
from ctxseg_ros.command import run_command
from ctxseg_ros.model.model_file import format_size, parse_size
from ctxseg_ros.system import machine
from ctxseg_ros.system.output_files import (
    check_writable,
    make_folder,
    replacing,
    write_json,
    write_text,
)
from training.data.module import CamVid
from training.places import DATA, WEIGHTS, expanded
from training.systems.segmenter import SegmenterSystem

Row = dict[str, Any]

SHARES = (0.05, 0.2, 1.0)
SEED = 0
#: Mode to its options of SegmenterSystem.
MODES: dict[str, dict[str, Any]] = {
    "linear": {"head": "linear", "frozen": True},
    "mask": {"head": "mask", "frozen": True},
    "full": {"head": "mask", "frozen": False},
}
MODE_NAMES = {"linear": "frozen, linear", "mask": "frozen, mask transformer", "full": "full"}
RECIPE: dict[str, Any] = {
    "subpatch": 4,
    "mask_dim": 64,
    "drop_path": 0.05,
    "lovasz": 1.0,
    "optimizer": "adamw",
    "encoder_lr_scale": 0.1,
    "weight_decay": 0.05,
}
#: Learning rate of the head by mode. One linear layer has to learn in as many steps as the rest.
RATES = {"linear": 8e-3, "mask": 8e-4, "full": 8e-4}
WARMUP = 0.05  # of the steps
SCALE = (0.6, 2.0)


@dataclass(frozen=True)
class Backbone:
    """An encoder: its title, timm name, patch in pixels, and heads of the last block if others."""

    title: str
    architecture: str
    patch: int
    last_heads: int | None = None


BACKBONES = {
    "deit_tiny": Backbone("DeiT-Ti (ImageNet's labels)", "deit_tiny_patch16_224", 16),
    "dino_tiny": Backbone(
        "dino_tiny (distilled from DINOv2-S)", "deit_tiny_patch16_224", 16, last_heads=6
    ),
    "dinov2_small": Backbone("DINOv2-S (no labels)", "vit_small_patch14_dinov2.lvd142m", 14),
}


@dataclass(frozen=True)
class Settings:
    """What all rows have in common. `size`: HEIGHTxWIDTH, before rounding to the patch."""

    steps: int
    size: str
    batch: int
    precision: str
    seed: int = SEED


@dataclass(frozen=True)
class Case:
    """One row: keys of BACKBONES and MODES, and the share of the training frames."""

    backbone: str
    mode: str
    share: float

    @property
    def name(self) -> str:
        """Such as `dino_tiny/linear/5`."""
        return f"{self.backbone}/{self.mode}/{100 * self.share:g}"


def cases(patterns: Sequence[str]) -> list[Case]:
    """Those whose name a pattern (of the shell) matches, the cheapest mode first.

    Raises ValueError for a pattern that matches none.
    """
    every = [Case(b, mode, share) for mode in MODES for b in BACKBONES for share in SHARES]
    for pattern in patterns:
        if not any(fnmatchcase(case.name, pattern) for case in every):
            names = ", ".join(case.name for case in every)
            raise ValueError(f"--rows {pattern} matches none of {names}")
    return [case for case in every if any(fnmatchcase(case.name, p) for p in patterns)]


def rounded(size: str, patch: int) -> tuple[int, int]:
    """The (height, width) nearest to HEIGHTxWIDTH that the patch divides."""
    height, width = (max(1, round(side / patch)) * patch for side in parse_size(size))
    return height, width


def measure(case: Case, settings: Settings, data: Path, weights: Path, workers: int) -> Row:
    """Train and score one row. Raises as SegmenterSystem, CamVid and the training do."""
    backbone = BACKBONES[case.backbone]
    size = rounded(settings.size, backbone.patch)
    start, used = time.monotonic(), fingerprint(weights)
    L.seed_everything(settings.seed, verbose=False)
    system = SegmenterSystem(
        backbone.architecture,
        weights=str(weights),
        last_heads=backbone.last_heads,
        size=size,
        warmup=round(WARMUP * settings.steps),
        seed=settings.seed,
        lr=RATES[case.mode],
        **MODES[case.mode],
        **RECIPE,
    )
    frames = CamVid(
        str(data), size, settings.batch, SCALE, True, case.share, workers, settings.seed
    )
    trainer = L.Trainer(
        max_steps=settings.steps,
        # One validation, after the last step.
        check_val_every_n_epoch=None,
        val_check_interval=settings.steps,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        precision=settings.precision,
        devices=1,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(system, datamodule=frames)
    assert frames.train is not None
    return {
        "backbone": case.backbone,
        "head": MODES[case.mode]["head"],
        "frozen": MODES[case.mode]["frozen"],
        "share": case.share,
        "frames": len(frames.train),
        "steps": settings.steps,
        "size": format_size(size),
        "weights": used,
        "miou": round(float(trainer.callback_metrics["val/miou"]), 6),
        "seconds": round(time.monotonic() - start, 1),
    }


def fingerprint(weights: Path) -> str:
    """A file's name and the beginning of its SHA-256."""
    return f"{weights.name} {hashlib.sha256(weights.read_bytes()).hexdigest()[:12]}"


def matching(rows: Sequence[Row], case: Case) -> Row | None:
    """The row of a case, if it is there."""
    wanted = {"backbone": case.backbone, "share": case.share, **MODES[case.mode]}
    return next((row for row in rows if wanted.items() <= row.items()), None)


class Results:
    """The file of rows, written whole whenever one is added.

    Raises ValueError if it is there and of other settings, or no such file.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        recipe = {**RECIPE, "lr": RATES, "warmup": WARMUP, "scale": list(SCALE)}
        self.path, self.settings = path, {**asdict(settings), "recipe": recipe}
        self.rows: list[Row] = []
        if path.exists():
            try:
                found = json.loads(path.read_text())
                self.rows, made = found["results"], found["settings"]
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{path}: not what this benchmark writes: {error}") from error
            for key, value in self.settings.items():
                if made.get(key) != value:
                    raise ValueError(
                        f"{path} was made with {key} {made.get(key)}, not {value}: give the same, "
                        "or another --json"
                    )

    def add(self, row: Row) -> None:
        """Put a row in place of the one of the same case, or at the end."""
        same = ("backbone", "head", "frozen", "share")
        self.rows = [r for r in self.rows if any(r[key] != row[key] for key in same)] + [row]
        write_json(self.path, self.page())  # a kill leaves the old file or the new one

    def page(self) -> dict[str, Any]:
        """What the file holds."""
        return {
            "machine": machine.describe(),
            "commit": machine.commit(),
            "settings": self.settings,
            "results": self.rows,
        }


def lines(rows: Sequence[Row]) -> Iterator[tuple[str, str, list[Row]]]:
    """(backbone, mode, rows by rising share) of each line of table and plot that has a row."""
    for mode in MODES:
        for backbone in BACKBONES:
            found = [matching(rows, Case(backbone, mode, share)) for share in SHARES]
            if there := [row for row in found if row is not None]:
                yield backbone, mode, there


def table(found: dict[str, Any]) -> str:
    """Markdown of what `Results.page` gives: val mIoU by share of the labels."""
    gpu = found["machine"]["gpu"]
    settings = found["settings"]
    rows = found["results"]
    frames = {row["share"]: row["frames"] for row in rows}
    heads = [f"{100 * s:g} %" + (f" ({frames[s]} frames)" if s in frames else "") for s in SHARES]
    text = [
        "# CamVid val mIoU (%) by share of the labels",
        "",
        f"{settings['steps']} steps of {settings['batch']} frames at about {settings['size']}, "
        f"{settings['precision']}, seed {settings['seed']}; {found['machine']['cpu']}, "
        f"{found['machine']['cores']} cores{f', {gpu}' if gpu else ''}; commit {found['commit']}. "
        "Made by `python benchmarks/label_efficiency.py`, which describes the rows.",
        "",
        f"| encoder | trained | {' | '.join(heads)} |",
        f"|---|---|{'--:|' * len(SHARES)}",
    ]
    for backbone, mode, there in lines(rows):
        scores = {row["share"]: f"{100 * row['miou']:.1f}" for row in there}
        cells = [BACKBONES[backbone].title, MODE_NAMES[mode], *(scores.get(s, "-") for s in SHARES)]
        text.append(f"| {' | '.join(cells)} |")
    return "\n".join(text) + "\n"


def plot(rows: Sequence[Row], path: Path) -> None:
    """mIoU over the share of the labels: a colour for each encoder, a dash for each mode."""
    palette = ("#999999", "#0072b2", "#cc3311")  # apart for the colour-blind
    colours = dict(zip(BACKBONES, palette, strict=True))
    styles = dict(zip(MODES, (":", "--", "-"), strict=True))
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    there = list(lines(rows))
    for backbone, mode, found in there:
        axes.plot(
            [100 * row["share"] for row in found],
            [100 * row["miou"] for row in found],
            styles[mode],
            color=colours[backbone],
            marker="o",
            markersize=4,
        )
    axes.set_xscale("log")
    ticks = [100 * share for share in SHARES]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel="labelled training frames, %", ylabel="CamVid val mIoU, %")
    axes.set_xlim(0.8 * ticks[0], 1.25 * ticks[-1])
    axes.grid(color="0.9")
    handles = [
        Line2D([], [], color=colours[b], label=BACKBONES[b].title)
        for b in BACKBONES
        if any(line[0] == b for line in there)
    ] + [
        Line2D([], [], color="black", linestyle=styles[mode], label=MODE_NAMES[mode])
        for mode in MODES
        if any(line[1] == mode for line in there)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    with replacing(path) as draft:
        figure.savefig(draft, dpi=120)


def run(options: argparse.Namespace) -> Results:
    """Measure what is missing, and say so. Raises as `main` catches."""
    settings = Settings(options.steps, options.size, options.batch, options.precision)
    wanted = cases(options.rows)
    data = expanded(options.data, "--data")
    files = {}
    for name in dict.fromkeys(case.backbone for case in wanted):
        option = f"--{name.replace('_', '-')}"
        files[name] = expanded(getattr(options, name), option)
        if not files[name].is_file():
            raise FileNotFoundError(f"weights of {name}: no file {files[name]}; give {option}")
    prints = {name: fingerprint(path) for name, path in files.items()}
    make_folder(options.json.parent)
    check_writable(options.json)
    results = Results(options.json, settings)
    for number, case in enumerate(wanted, 1):
        row = matching(results.rows, case)
        if row is None or row["weights"] != prints[case.backbone]:
            weights = files[case.backbone]
            row = measure(case, settings, data, weights, options.workers)
            results.add(row)
        print(
            f"{number}/{len(wanted)} {case.name}: {row['frames']} frames, "
            f"mIoU {100 * row['miou']:.1f} %, {row['seconds']:.0f} s",
            flush=True,
        )
    return results


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number above 0")
    return int(text)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    results = ROOT / "benchmarks" / "results" / "label_efficiency.json"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", default=["*"], metavar="BACKBONE/MODE/PERCENT")
    parser.add_argument("--steps", type=_count, default=2070, help="of each row (%(default)s)")
    parser.add_argument("--size", default="352x480", help="HEIGHTxWIDTH (%(default)s)")
    parser.add_argument("--batch", type=_count, default=8, help="frames (%(default)s)")
    parser.add_argument("--precision", default="32-true", help="of Lightning (%(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="that load frames (%(default)s)")
    parser.add_argument("--data", default=f"${DATA}/camvid", help="CamVid's folder (%(default)s)")
    for option, path in (
        ("--deit-tiny", f"${WEIGHTS}/deit_tiny_patch16_224.pth"),
        ("--dino-tiny", ROOT / "runs" / "dino_tiny_dinov2" / "checkpoints" / "last.ckpt"),
        ("--dinov2-small", f"${WEIGHTS}/dinov2_vits14_fp16.pth"),
    ):
        parser.add_argument(option, default=path, metavar="FILE", help="weights (%(default)s)")
    parser.add_argument("--json", type=Path, default=results, help="beside it come .md and .png")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; gives the exit code."""
    options = parse(arguments)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    return run_command("label_efficiency", lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    results = run(options)
    page = table(results.page())
    write_text(options.json.with_suffix(".md"), page)
    plot(results.rows, options.json.with_suffix(".png"))
    print(page)


if __name__ == "__main__":
    sys.exit(main())
