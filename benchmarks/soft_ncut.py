# SPDX-License-Identifier: Apache-2.0
"""Soft N-cut benchmark: time and memory of a forward and a backward pass.

python benchmarks/soft_ncut.py [--json benchmarks/results/soft_ncut.json]

On the CPU, and on CUDA where there is a device, float32, grey, the paper's window and sigmas:

- `exact`: training.losses.soft_ncut, by closed form, offset by offset.
- `gaussian`: training.losses.gaussian_ncut, the approximation that the paper used.
- `unfold`: the exact loss as public ports write it, each window laid out by `unfold`, by autograd.
- `dense`: the exact loss with all N x N weights, where they fit.

Each case runs in a process of its own, and all cases in turn, some rounds of them: a slow moment of
the machine bends no row alone. `forward_backward_ms`: the median of a round's calls, of the best
round. `peak_mb`: the most memory that was held beyond the inputs, of any round; on the CPU the
resident set, on CUDA what PyTorch allocated.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a script it sees its folder only

from benchmarks.processes import ROOT
from ctxseg_ros.command import CommandFailed, run_command
from ctxseg_ros.system import machine
from ctxseg_ros.system.output_files import check_writable, make_folder, write_json
from training.losses.gaussian_ncut import gaussian_ncut
from training.losses.soft_ncut import soft_ncut

RADIUS, SIGMA_INTENSITY, SIGMA_SPACE = 5, 10.0, 4.0
BATCH, CLUSTERS = 10, 9
SIZE, SMALL_SIZES = 224, (32, 48)
ROUND_S = 3.0
FASTER_THAN_UNFOLD, SHARE_OF_UNFOLD, SLOWER_THAN_GAUSSIAN = 5.0, 0.2, 2.0  # the goals


def unfold_ncut(probabilities: Tensor, features: Tensor) -> Tensor:
    """The exact loss [B] with every pixel's window laid out."""
    reach = RADIUS - 1
    window = 2 * reach + 1
    clusters = probabilities.shape[1]

    def windows(images: Tensor) -> Tensor:
        columns = functional.unfold(images, window, padding=reach)
        return columns.view(len(images), images.shape[1], window**2, -1)

    squares = torch.arange(-reach, reach + 1, device=features.device) ** 2
    distance = (squares[:, None] + squares).view(-1, 1)
    spatial = torch.exp(-distance / SIGMA_SPACE**2) * (distance < RADIUS**2)
    difference = windows(features) - features.flatten(2)[:, :, None]
    weights = torch.exp(-difference.square().sum(1) / SIGMA_INTENSITY**2) * spatial
    weights = weights * windows(torch.ones_like(features[:1, :1]))[:, 0]
    p = probabilities.flatten(2)
    inner = (p * (weights[:, None] * windows(probabilities)).sum(2)).sum(2)
    degree = (p * weights.sum(1)[:, None]).sum(2)
    return clusters - (inner / degree).sum(1)


def dense_ncut(probabilities: Tensor, features: Tensor) -> Tensor:
    """The exact loss [B] with the weights of all pairs of pixels."""
    clusters, height, width = probabilities.shape[1:]
    rows = torch.arange(height, device=features.device).repeat_interleave(width)
    columns = torch.arange(width, device=features.device).repeat(height)
    distance = (rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2
    spatial = torch.exp(-distance / SIGMA_SPACE**2) * (distance < RADIUS**2)
    f = features.flatten(2)
    difference = (f[:, :, :, None] - f[:, :, None]).square().sum(1)
    weights = torch.exp(-difference / SIGMA_INTENSITY**2) * spatial
    p = probabilities.flatten(2)
    inner = (p * (p @ weights)).sum(2)
    degree = (p * weights.sum(1)[:, None]).sum(2)
    return clusters - (inner / degree).sum(1)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "exact": soft_ncut,
    "gaussian": gaussian_ncut,
    "unfold": unfold_ncut,
    "dense": dense_ncut,
}


@dataclass(frozen=True)
class Case:
    """One row."""

    loss: str
    device: str
    batch: int
    height: int
    width: int
    clusters: int


def cases() -> list[Case]:
    """Every row: all losses at the small sizes, those without N x N weights at the main one."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return [
        Case(loss, device, BATCH, size, size, CLUSTERS)
        for device in devices
        for size in (*SMALL_SIZES, SIZE)
        for loss in LOSSES
        if loss != "dense" or size in SMALL_SIZES
    ]


def inputs(case: Case) -> tuple[Tensor, Tensor]:
    """Random probabilities [B, K, H, W], and smooth grey features [B, 1, H, W] with some noise."""
    generator = torch.Generator().manual_seed(0)
    size = (case.height, case.width)
    logits = torch.randn(case.batch, case.clusters, *size, generator=generator)
    coarse = 255 * torch.rand(case.batch, 1, 8, 8, generator=generator)
    features = functional.interpolate(coarse, size, mode="bilinear")
    features += 4 * torch.randn(features.shape, generator=generator)
    probabilities = logits.softmax(1).to(case.device).requires_grad_()
    return probabilities, features.clamp_(0, 255).to(case.device)


def measure(case: Case) -> tuple[float, float]:
    """(median ms, peak MB) of a round, in a fresh process. Raises RuntimeError if that dies."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_measure, case).result()
        except BrokenProcessPool as error:
            raise RuntimeError(f"{case}: the process died, perhaps for lack of memory") from error


def _measure(case: Case) -> tuple[float, float]:
    _call(LOSSES[case.loss], *inputs(Case(case.loss, case.device, 1, 9, 9, case.clusters)))
    probabilities, features = inputs(case)
    memory = _CudaMemory() if case.device == "cuda" else _HostMemory()
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - begin < ROUND_S:
        times.append(_call(LOSSES[case.loss], probabilities, features))
    return statistics.median(times[1:]), memory.peak_mb()


def _call(
    loss: Callable[[Tensor, Tensor], Tensor], probabilities: Tensor, features: Tensor
) -> float:
    """Milliseconds of a forward and a backward pass."""
    start = time.perf_counter()
    torch.autograd.grad(loss(probabilities, features).mean(), probabilities)
    if probabilities.is_cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3


class _HostMemory:
    """The resident set from now on."""

    def __init__(self) -> None:
        machine.trim_memory()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew, see man proc
        self._before = machine.memory_mb()

    def peak_mb(self) -> float:
        return machine.peak_memory_mb() - self._before


class _CudaMemory:
    """What PyTorch allocates from now on."""

    def __init__(self) -> None:
        torch.cuda.reset_peak_memory_stats()
        self._before = torch.cuda.memory_allocated()

    def peak_mb(self) -> float:
        return (torch.cuda.max_memory_allocated() - self._before) / 1e6


def measure_all(rounds: int, console: Console) -> list[dict[str, Any]]:
    """The rows, in the order of `cases`."""
    best = dict.fromkeys(cases(), (math.inf, 0.0))
    for number in range(rounds):
        for case, (least_ms, peak_mb) in best.items():
            console.print(
                f"round {number + 1}: {case.loss} {case.device} {case.height}x{case.width}"
            )
            found_ms, found_mb = measure(case)
            best[case] = min(least_ms, found_ms), max(peak_mb, found_mb)
    return [
        {**asdict(case), "forward_backward_ms": round(ms, 3), "peak_mb": round(mb, 2)}
        for case, (ms, mb) in best.items()
    ]


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows as a table."""
    shown = Table("loss", "device", *("batch", "size", "clusters", "ms", "MB"))
    for column in shown.columns[2:]:
        column.justify = "right"
    for row in rows:
        shown.add_row(
            row["loss"],
            row["device"],
            str(row["batch"]),
            f"{row['height']}x{row['width']}",
            str(row["clusters"]),
            f"{row['forward_backward_ms']:.1f}",
            f"{row['peak_mb']:.1f}",
        )
    return shown


def verdicts(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One line for each goal and device, at the main size."""
    lines = []
    main = [row for row in rows if row["height"] == SIZE]
    for device in dict.fromkeys(row["device"] for row in main):
        exact, gaussian, unfold = (
            next(row for row in main if (row["loss"], row["device"]) == (loss, device))
            for loss in ("exact", "gaussian", "unfold")
        )
        faster = unfold["forward_backward_ms"] / exact["forward_backward_ms"]
        share = exact["peak_mb"] / unfold["peak_mb"]
        slower = exact["forward_backward_ms"] / gaussian["forward_backward_ms"]
        for text, held in (
            (
                f"{faster:.1f} times as fast as unfold (goal {FASTER_THAN_UNFOLD:g})",
                faster >= FASTER_THAN_UNFOLD,
            ),
            (
                f"{share:.3f} of unfold's memory (goal {SHARE_OF_UNFOLD:g})",
                share <= SHARE_OF_UNFOLD,
            ),
            (
                f"{slower:.2f} times gaussian's time (goal {SLOWER_THAN_GAUSSIAN:g})",
                slower <= SLOWER_THAN_GAUSSIAN,
            ),
        ):
            lines.append(
                f"{device}: exact at {SIZE}x{SIZE}: {text}: {'held' if held else 'MISSED'}"
            )
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="of all cases (%(default)s)")
    parser.add_argument(
        "--json", type=Path, default=ROOT / "benchmarks" / "results" / "soft_ncut.json"
    )
    options = parser.parse_args(arguments)
    return run_command("soft_ncut", lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    make_folder(options.json.parent)
    check_writable(options.json)
    console = Console()
    try:
        rows = measure_all(options.rounds, console)
    except RuntimeError as error:
        raise CommandFailed(str(error)) from error
    found = {"machine": machine.describe(), "commit": machine.commit(), "results": rows}
    write_json(options.json, found)
    console.print(table(rows))
    for line in verdicts(rows):
        console.print(line)


if __name__ == "__main__":
    sys.exit(main())
