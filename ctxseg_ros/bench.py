# SPDX-License-Identifier: Apache-2.0
"""How fast a model runs: load time, latency, memory, each case in a process of its own."""

import logging
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

import numpy as np

from ctxseg_ros.inference.runtimes import open_runtime
from ctxseg_ros.inference.runtimes.base import pattern_image
from ctxseg_ros.model import store
from ctxseg_ros.model.model_file import format_size
from ctxseg_ros.system import machine

WARM_UP_RUNS = 10
RUNS = 200
SECONDS = 10.0


def measure(model: str, size: tuple[int, int] | None, device: str) -> dict[str, Any]:
    """One row of `ctxseg bench`, measured in a fresh process, so that memory and load time are
    this case's own. Raises what opening the model raises, RuntimeError if the process dies.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(measure_here, model, size, device).result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "the process died while it measured, perhaps for lack of memory: try a smaller size"
            ) from error


def measure_here(model: str, size: tuple[int, int] | None, device: str) -> dict[str, Any]:
    """`measure` in this process, whose peak memory counts all that it has done before."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    start = time.perf_counter()
    info = store.load(model)
    runtime = open_runtime(info, size, device)
    load_s = time.perf_counter() - start
    image = pattern_image(runtime.size)
    for _ in range(WARM_UP_RUNS):
        runtime.run(image)
    times: list[float] = []
    begin = now = time.perf_counter()
    while len(times) < RUNS and now - begin < SECONDS:
        runtime.run(image)
        before, now = now, time.perf_counter()
        times.append(now - before)
    p50, p95, p99 = (np.percentile(times, (50, 95, 99)) * 1e3).round(3).tolist()
    return {
        "model": info.name,
        "device": runtime.device,
        "precision": runtime.precision,
        "size": format_size(runtime.size),
        "runs": len(times),
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "fps": round(len(times) / sum(times), 2),
        "load_s": round(load_s, 3),
        "peak_rss_mb": round(machine.peak_memory_mb(), 1),
    }
