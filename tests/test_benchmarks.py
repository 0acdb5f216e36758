# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' arithmetic on data made by hand, and one short run of each over DDS."""

import ast
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import lightning as L
import numpy as np
import pytest
import scipy.io
import skimage.color
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image

from benchmarks import (
    camera,
    cluster_baselines,
    figures,
    monitor,
    paper_figures,
    pipeline,
    pipeline_report,
    precision,
    processes,
    soak,
)
from benchmarks.figures import Play
from ctxseg_ros.inference.runtimes.precision import LabelChange
from ctxseg_ros.model import store
from ctxseg_ros.model.prediction import Prediction
from training.data.camvid import camvid_pairs, read_camvid
from training.data.files import DataError
from training.data.pairs import Pair
from training.systems.wnet import WNetSystem

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
MS = 1_000_000  # ns

DIAGNOSTICS = {
    "state": "active",
    "device": "cpu",
    "precision": "fp32",
    "frames_received": "10",
    "frames_labelled": "8",
    "lost_transport": "unknown",
    "dropped_queue": "2",
    "dropped_stale": "0",
    "latency_budget_ms": "0",
    "latency_p50_ms": "55.00",
    "latency_p95_ms": "80.00",
    "latency_p99_ms": "nan",
    "inference_p50_ms": "40.00",
    "inference_p95_ms": "50.00",
    "transport_p50_ms": "2.50",
}


def made_play(**changes: object) -> Play:
    """Ten frames at 10 Hz; every second one is labelled, 30 ms (then 60 ms) after its stamp."""
    sent = [number * 100 * MS for number in range(1, 11)]
    labels = [(stamp, stamp + 30 * MS) for stamp in sent[0:6:2]]
    labels += [(stamp, stamp + 60 * MS) for stamp in sent[6::2]]
    play = Play(
        rate_hz=10.0,
        sent=[sent],
        labels=[[(5, 7), *labels]],  # the first belongs to an earlier play
        before={},
        after={},
        frames=[(5, 1.0), *((stamp, 20.0) for stamp, _ in labels)],
        cpu_percent=50.0,
        others_cpu_percent=0.0,
    )
    return replace(play, **changes)


def test_points_are_the_percentiles_or_nothing() -> None:
    assert figures.points(range(101)) == {"p50": 50, "p95": 95, "p99": 99}
    assert figures.points([]) == {"p50": None, "p95": None, "p99": None}


def test_latency_is_stamp_to_receipt_of_this_plays_frames() -> None:
    assert figures.latencies_ms(made_play()) == [30, 30, 30, 60, 60]


def test_jitter_is_the_deviation_of_the_intervals_and_cameras_do_not_mix() -> None:
    one = made_play()
    # Receipts 130, 330, 530, 760, 960 ms.
    assert figures.jitter_ms(one) == round(float(np.std([200, 200, 230, 200])), 2)
    shifted = [(stamp, received + 17 * MS) for stamp, received in one.labels[0]]
    two = replace(one, sent=one.sent * 2, labels=[one.labels[0], shifted])
    assert figures.jitter_ms(two) == figures.jitter_ms(one)
    assert figures.jitter_ms(replace(one, labels=[[]])) is None


def test_rate_out_leaves_out_what_a_queue_gives_after_the_cameras_end() -> None:
    play = made_play()
    late = [(stamp, 1001 * MS + number) for number, stamp in enumerate(play.sent[0][1::2])]
    both = replace(play, labels=[play.labels[0] + late])
    assert figures.rate_out_hz(both) == figures.rate_out_hz(play) == round(4 / 0.83, 2)
    assert figures.rate_out_hz(replace(play, labels=[[]])) == 0
    assert not figures.follows(both)
    every = [(stamp, stamp + MS) for stamp in play.sent[0]]
    assert figures.follows(replace(play, labels=[every]))
    # Every frame that came is labelled, but the camera could not send as many as were wanted.
    assert not figures.follows(replace(play, labels=[every], rate_hz=11.0))


def test_a_row_of_the_plain_node_says_what_never_arrived() -> None:
    row = figures.summarise(made_play())
    assert row["inference_ms"]["p50"] == 20
    assert row["own_cost_ms"] == {"p50": 10, "p95": 40}
    assert (row["frames_sent"], row["frames_labelled"], row["missed"]) == (10, 5, 5)
    assert (row["lost_transport"], row["dropped"]) == (None, {"never_arrived": 5})
    assert (row["lost_output"], row["rate_sent_hz"]) == (0, 10)


def test_a_row_of_ctxseg_counts_between_the_reports() -> None:
    before = {**DIAGNOSTICS, "frames_received": "1", "frames_labelled": "2", "dropped_queue": "0"}
    row = figures.summarise(made_play(before=before, after=DIAGNOSTICS))
    assert row["lost_transport"] == 10 - (10 - 1)
    assert row["dropped"] == {"queue": 2, "stale": 0}
    assert row["lost_output"] == (8 - 2) - 5
    assert row["inference_ms"] == {"p50": 40, "p95": 50}
    assert row["age_at_publish_ms"] == {"p50": 55, "p95": 80, "p99": None}
    assert row["stages_ms"] == {"transport": {"p50": 2.5}}
    assert row["own_cost_ms"] == {"p50": -10, "p95": 10}


def test_settled_is_when_every_frame_is_accounted_for() -> None:
    assert figures.settled(DIAGNOSTICS)
    assert not figures.settled({**DIAGNOSTICS, "dropped_queue": "1"})


@pytest.mark.parametrize("limit", [3.0, 22.0, 45.0, 190.0])
def test_peak_rate_comes_close_from_below(limit: float) -> None:
    found = figures.peak_rate(lambda rate: rate <= limit, start_hz=20.0, steps=10)
    assert found is not None and 0.97 * limit <= found <= limit


def test_peak_rate_is_none_where_nothing_held() -> None:
    assert figures.peak_rate(lambda rate: False, start_hz=20.0, steps=4) is None


class Clock:
    """In place of the module `time`: it stands still but for `sleep`."""

    def __init__(self) -> None:
        self.now = 0.0  # ms

    def monotonic_ns(self) -> int:
        return round(self.now * MS)

    def sleep(self, seconds: float) -> None:
        self.now += seconds * 1e3


def test_a_camera_keeps_its_rate_and_sends_no_burst_after_a_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(camera, "time", clock)
    times = []
    pauses = {2: 3.0, 4: 14.0, 6: 36.0}  # a frame takes these many ms to send
    for number, _ in enumerate(camera.slots(100.0, 0.12, 20 * MS)):
        times.append(clock.now)
        clock.now += pauses.get(number, 0.0)
    # The fifth frame holds up the sixth by 4 ms; the seventh leaves three behind it out.
    assert np.allclose(times, [20, 30, 40, 50, 60, 74, 80, 120, 130])


def test_stamp_of_a_serialized_image() -> None:
    message = Image(width=2, height=1, encoding="mono8", step=2, data=[1, 2])
    message.header.frame_id = "camera"
    message.header.stamp.sec, message.header.stamp.nanosec = 1_800_000_000, 999_999_999
    assert monitor.stamp_ns(serialize_message(message)) == 1_800_000_000_999_999_999


def test_the_cases_cover_what_is_promised() -> None:
    full, quick = pipeline.cases(False), pipeline.cases(True)
    assert len(set(full)) == len(full) and len(set(quick)) == len(quick)
    for node, depth in (("ctxseg", None), ("plain", 1), ("plain", 10)):
        mine = [case for case in full if (case.node, case.depth) == (node, depth)]
        single = {(case.rate_hz, case.width) for case in mine if case.cameras == 1}
        assert single == {(rate, width) for rate in (10, 30, 60) for width in (640, 1280, 1920)}
        assert {case.cameras for case in mine} == {1, 2, 3, 4}
        assert sum(case.search_peak for case in mine) == 1
    assert all(case.profile for case in full if case.node == "ctxseg")
    assert {case.node for case in quick} == {"ctxseg", "plain"}


def made_row(node: str, rate: int, size: tuple[int, int], **values: object) -> dict:
    plain = node == "plain"
    row = {
        "node": node,
        "depth": 10 if plain else None,
        "profile": not plain,
        "model": "tiny",
        "size": "32x48",
        "rate_hz": rate,
        "width": size[0],
        "height": size[1],
        "cameras": 1,
        "device": "cpu",
        "precision": "fp32",
        "peak_rate_hz": None,
        **figures.summarise(
            made_play() if plain else made_play(before=DIAGNOSTICS, after=DIAGNOSTICS)
        ),
    }
    return row | values


def test_goals_say_what_was_held() -> None:
    rows = [
        made_row("ctxseg", 10, pipeline.HD, own_cost_ms={"p50": 3.9, "p95": 9.0}, lost_transport=0),
        made_row("ctxseg", 10, pipeline.FULL_HD, own_cost_ms={"p50": 8.1, "p95": 9.0}),
        made_row("ctxseg", 30, pipeline.VGA, lost_transport=2),
        made_row("plain", 30, pipeline.VGA, end_to_end_ms={"p50": 400.0, "p95": 1.0, "p99": 1.0}),
    ]
    found = [
        (goal["measured"], goal["limit"], goal["held"]) for goal in pipeline_report.goals(rows)
    ]
    assert found == [
        (3.9, 4, True),
        (8.1, 8, False),
        (80, 2 * 40, True),
        (0 + 10 + 2, 0, False),
        (round(400 / 30, 2), 5, True),
    ]
    assert pipeline_report.goals(rows[3:]) == []


def test_table_and_plot(tmp_path: Path) -> None:
    rows = [made_row(node, rate, pipeline.VGA) for node in ("ctxseg", "plain") for rate in (10, 30)]
    rows += [made_row("plain", 60, (320, 200), end_to_end_ms=figures.points([]))]
    found = {
        "machine": {"cpu": "a cpu", "cores": 2, "gpu": None},
        "commit": "c0ffee",
        "note": "a note",
        "goals": pipeline_report.goals(rows),
        "results": rows,
    }
    lines = pipeline_report.table(found).splitlines()
    table = [line for line in lines if line.startswith("| ctxseg") or line.startswith("| plain")]
    assert len(table) == 5
    assert len({line.count("|") for line in [*table, lines[4]]}) == 1
    assert "| plain depth 10 | 320x200 60 Hz | - | - | - |" in table[4]
    pipeline_report.plot(rows, tmp_path / "plot.png")
    picture = cv2.imread(str(tmp_path / "plot.png"))
    assert picture is not None and picture.std() > 10


def made_samples(**ends: float) -> list[soak.Sample]:
    """An hour, a sample every 5 s; the named values rise evenly from 100 to what is given."""
    return [
        soak.Sample(
            5.0 * number,
            **{
                name: 100 + (ends.get(name, 100) - 100) * number / 720
                for name in ("resident_mb", "open_files", "threads", "shm_files", "shm_mb")
            },
        )
        for number in range(721)
    ]


def test_soak_finds_what_grows() -> None:
    def broken(samples: list[soak.Sample]) -> list[str]:
        return [name for name, item in soak.judge(samples).items() if not item["held"]]

    assert broken(made_samples()) == []
    assert broken(made_samples(resident_mb=102)) == []
    assert broken(made_samples(resident_mb=104)) == ["resident_mb"]
    assert broken(made_samples(resident_mb=50)) == []
    for name in ("open_files", "threads", "shm_files", "shm_mb"):
        assert broken(made_samples(**{name: 102})) == [name]
    # What grows in the first tenth alone is the warm-up.
    samples = made_samples()
    warming = [replace(item, threads=1) for item in samples if item.seconds < 360]
    assert broken(warming + samples[72:]) == []


def test_samples_are_thinned() -> None:
    kept = soak.thin(made_samples())
    assert 150 < len(kept) <= soak.SAMPLES_KEPT
    assert kept[0]["seconds"] == 0 and kept[-1]["seconds"] > 3500
    assert len(soak.thin(made_samples()[:7])) == 7


def test_what_a_process_uses() -> None:
    with open(os.devnull) as one, open(os.devnull) as two:
        more = processes.usage(os.getpid())
        assert not one.closed and not two.closed
    less = processes.usage(os.getpid())
    assert more.open_files == less.open_files + 2
    assert less.threads >= 1 and less.resident_bytes > 10e6
    before = processes.cpu_seconds(os.getpid()), processes.machine_cpu_seconds()
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    assert processes.cpu_seconds(os.getpid()) - before[0] > 0.1
    assert processes.machine_cpu_seconds() - before[1] > 0.1


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 25, (320, 180))
    for number in range(5):
        writer.write(np.full((180, 320, 3), number * 50, np.uint8))
    writer.release()
    return path


@pytest.mark.parametrize(("node", "depth"), [("ctxseg", None), ("plain", 1)])
def test_a_short_case_over_dds(
    node: str, depth: int | None, clip: Path, model_factory: Callable[..., Path]
) -> None:
    model = model_factory(size=(96, 160))
    options = pipeline.Options(model, "96x160", "cpu", seconds=1.0, source=clip)
    row = pipeline.measure(pipeline.Case(node, 20, 320, 200, 1, depth, node == "ctxseg"), options)
    assert 0 < row["frames_labelled"] <= row["frames_sent"] <= 20
    assert 0 < row["inference_ms"]["p50"] < row["end_to_end_ms"]["p50"]
    lost = sum((row["lost_transport"] or 0, row["lost_output"], *row["dropped"].values()))
    assert row["frames_labelled"] + lost == row["frames_sent"]
    assert row["device"] == "cpu" and row["cpu_percent"] > 0


def test_a_ros_domain_is_used_by_one_run_at_a_time() -> None:
    code = (
        "import sys; from benchmarks.processes import environment\n"
        "print({environment(True)['ROS_DOMAIN_ID'] for _ in range(3)}, flush=True)\n"
        "sys.stdin.read()"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    domains = [run.stdout.readline() for run in runs if run.stdout]
    for run in runs:
        run.communicate()
    assert len(set(domains)) == 3
    assert all(len(ast.literal_eval(domain)) == 1 for domain in domains)


def test_what_cannot_run_is_one_sentence(tmp_path: Path) -> None:
    for script in ("pipeline.py", "soak.py"):
        for words, said in (
            (["--model", "nonesuch"], "no model is called 'nonesuch'"),
            (["--size", "100x100"], "100x100"),
            (["--json", tmp_path], "cannot be written: it is a folder"),
        ):
            done = subprocess.run(
                [sys.executable, f"benchmarks/{script}", "--json", tmp_path / "x.json", *words],
                cwd=ROOT,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 2 and said in done.stderr
            assert "Traceback" not in done.stderr


def test_a_short_soak(clip: Path, model_factory: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "soak.json"
    words = ["--model", model_factory(size=(96, 160)), "--size", "96x160", "--device", "cpu"]
    words += ["--source", clip, "--minutes", "0.05", "--rate", "10", "--json", path]
    code = soak.main(list(map(str, words)))
    (result,) = json.loads(path.read_text())["results"]
    assert code == (0 if result["held"] else 1)
    assert 0 < result["frames_labelled"] <= result["frames_sent"] <= 30
    assert all(sample["shm_files"] > 0 for sample in result["samples"])


def test_k_means_labels_by_the_nearest_centre() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (12, 20, 3), dtype=np.uint8)
    points = cluster_baselines.colour_and_place(image)
    for position in (0.0, 60.0):
        found = cluster_baselines.KMeans.fit(points.reshape(-1, 5), 4, position, seed=1)
        labels = found(points)
        lab = skimage.color.rgb2lab(image)
        for y, x in np.ndindex(12, 20):
            place = position * np.array([(x + 0.5) / 20, (y + 0.5) / 12])
            own = np.array([*lab[y, x], *place])
            distance = np.linalg.norm(found.centres - own, axis=1)
            assert distance[labels[y, x]] <= distance.min() + 0.5  # of about 100
        again = cluster_baselines.KMeans.fit(points.reshape(-1, 5), 4, position, seed=1)
        assert (again.centres == found.centres).all()


def test_k_means_finds_colours_and_with_position_places() -> None:
    image = np.zeros((20, 30, 3), np.uint8)
    image[:, ::2] = (255, 0, 0)
    points = cluster_baselines.colour_and_place(image)
    by_colour = cluster_baselines.KMeans.fit(points.reshape(-1, 5), 2, 0, seed=0)(points)
    assert len(set(by_colour[:, ::2].flat)) == len(set(by_colour[:, 1::2].flat)) == 1
    assert by_colour[0, 0] != by_colour[0, 1]
    by_place = cluster_baselines.KMeans.fit(points.reshape(-1, 5), 2, 5000, seed=0)(points)
    halves = [set(half.flat) for half in (by_place[:, :14], by_place[:, 16:])]
    rows = [set(half.flat) for half in (by_place[:9], by_place[11:])]
    assert {0} in halves + rows and {1} in halves + rows


def test_sample_takes_the_same_number_of_each_image() -> None:
    images = [np.full((size, 7, 3), size, np.uint8) for size in (3, 90)]
    points = cluster_baselines.sample(images, count=40, seed=2)
    assert points.shape == (80, 5)
    assert len(np.unique(points[:40, 0])) == len(np.unique(points[40:, 0])) == 1
    assert (points[:, 3:] > 0).all() and (points[:, 3:] < 1).all()


def made_camvid(root: Path) -> Path:
    """Three training and three validation frames, 32x48, labelled by brightness; some void."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for part in ("images", "labels"):
            (root / split / part).mkdir(parents=True)
        for number in range(3):
            image = cv2.resize(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8), (48, 32))
            label = (image.mean(2) // 24).astype(np.uint8)
            label[:, :3] = 11
            cv2.imwrite(str(root / split / "images" / f"{number}.png"), image)
            cv2.imwrite(str(root / split / "labels" / f"{number}.png"), label)
    return root


def test_labellers_are_scored_at_their_best_match(tmp_path: Path) -> None:
    val = camvid_pairs(made_camvid(tmp_path), "val")
    queues = {key: iter(val) for key in ("perfect", "one")}

    def perfect(points: np.ndarray) -> np.ndarray:
        return 10 - np.minimum(read_camvid(next(queues["perfect"]).label), 10)

    def one(points: np.ndarray) -> np.ndarray:
        return np.full(points.shape[:2], 3, np.uint8)

    scores = cluster_baselines.score_labellers(
        {"perfect": perfect, "one": one}, 11, val, read_camvid, 11
    )
    assert scores["perfect"]["miou"] == scores["perfect"]["other"]["pixel_accuracy"] == 1
    truths = np.concatenate([read_camvid(pair.label).ravel() for pair in val])
    shares = np.bincount(truths[truths != 255]) / (truths != 255).sum()
    assert np.isclose(scores["one"]["pixel_accuracy"], shares.max(), atol=1e-6)
    there = np.count_nonzero(shares)
    assert np.isclose(scores["one"]["miou"], shares.max() / there, atol=1e-6)


def test_summary_has_mean_and_best_of_the_runs() -> None:
    def result(match: str, other: str, shift: float) -> dict:
        return {
            "miou": 0.1 + shift,
            "pixel_accuracy": 0.3,
            "other": {"match": other, "miou": 0.4, "pixel_accuracy": 0.5 - shift},
        } | {"match": match}

    row = cluster_baselines.summary(
        "x", [result("hungarian", "majority", shift) for shift in (0, 0.1)]
    )
    assert row["clusters"] == "x" and row["runs"] == 2
    assert row["hungarian"]["miou"] == {"mean": 0.15, "best": 0.2}
    assert row["majority"]["pixel_accuracy"] == {"mean": 0.45, "best": 0.5}
    swapped = cluster_baselines.summary("x", [result("majority", "hungarian", 0)])
    assert swapped["hungarian"]["miou"]["mean"] == 0.4
    assert swapped["majority"]["miou"]["mean"] == 0.1


def test_frames_are_spread_evenly() -> None:
    pairs = [Pair(Path(f"{i}.png"), Path(f"{i}")) for i in range(101)]
    found = [int(pair.image.stem) for pair in paper_figures.spread(pairs, 5)]
    assert found == [10, 30, 50, 70, 90]
    assert paper_figures.spread(pairs[:2], 5) == pairs[:2]


def test_regions_are_drawn_in_their_mean_colour() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    regions = rng.integers(0, 4, (5, 7), dtype=np.int32)
    found = paper_figures.mean_colours(image, regions)
    for region in range(4):
        mean = image[regions == region].mean(0).round()
        assert (found[regions == region] == mean).all()


def test_contours_are_dark_on_white() -> None:
    contours = np.zeros((4, 6), np.float32)
    contours[:, 3] = 1
    picture = paper_figures.ink(contours)
    assert picture.shape == (4, 6, 3) and picture.dtype == np.uint8
    assert (picture[:, 3] == 0).all() and (picture[:, :2] == 255).all()


def made_bsds(root: Path) -> Path:
    """Three validation images of two shapes, each with one segmentation."""
    for part in ("images", "groundTruth"):
        (root / "val" / part).mkdir(parents=True)
    rng = np.random.default_rng(1)
    for number, shape in enumerate(((33, 49), (49, 33), (33, 49))):
        image = cv2.resize(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8), shape[::-1])
        cv2.imwrite(str(root / "val" / "images" / f"{number}.png"), image)
        cell = np.empty((1, 1), object)
        cell[0, 0] = {"Segmentation": (image[..., 0] // 64 + 1).astype(np.uint16)}
        scipy.io.savemat(root / "val" / "groundTruth" / f"{number}.mat", {"groundTruth": cell})
    return root


@pytest.fixture(scope="module")
def paper_arguments(
    tmp_path_factory: pytest.TempPathFactory, model_factory: Callable[..., Path]
) -> list[str]:
    """The command line for small data and models, but for --out."""
    data = tmp_path_factory.mktemp("paper")
    made_camvid(data / "camvid")
    made_bsds(data / "bsds500")
    made_davis(data / "davis_dev")
    unet = model_factory(name="u", classes=11)
    wnet = model_factory(name="w", classes=9, task="clusters")
    dino = model_factory(name="d", task="attention")
    models = ["--unet", str(unet), "--wnet", str(wnet), "--dino", str(dino)]
    return ["--data", str(data), *models]


def made_davis(root: Path) -> None:
    """Two frames of each of two sequences, with masks."""
    rng = np.random.default_rng(2)
    for sequence in ("cow", "owl"):
        for part in ("images", "masks"):
            (root / part / sequence).mkdir(parents=True)
            for number in range(2):
                image = cv2.resize(rng.integers(0, 256, (3, 5, 3), dtype=np.uint8), (80, 48))
                cv2.imwrite(str(root / part / sequence / f"{number:05}.png"), image)


def test_the_papers_figures(
    paper_arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tiny model was not exported from this checkpoint.
    monkeypatch.setattr(paper_figures, "SAME", 0.0)
    checkpoint = made_checkpoint(tmp_path / "w.ckpt")
    words = [*paper_arguments, "--checkpoint", str(checkpoint), "--out", str(tmp_path)]
    assert paper_figures.main(words) == 0
    for number in (1, 2, 3, 4, 7):
        picture = cv2.imread(str(tmp_path / f"paper_figure_{number}.png"))
        assert picture is not None and picture.std() > 10
    found = json.loads((tmp_path / "paper_figures.json").read_text())
    assert found.keys() == {"machine", "commit", "results"}
    results = found["results"]
    assert results["models"]["wnet"] == {"name": "w", "data": "none"}
    assert results["figures"]["figure 3"]["frames"] == ["0", "1", "2"]
    assert len(results["figures"]["figure 3"]["psnr_db"]) == 3
    assert results["figures"]["figure 4"]["frames"] == ["0", "2"]  # of the commonest shape
    seventh = results["figures"]["figure 7"]
    assert seventh["frames"] == ["cow/00000", "cow/00001", "owl/00000", "owl/00001", "0", "2"]
    assert seventh["sizes"] == {"DAVIS": "48x80", "BSDS500 val": "32x48"}
    assert results["camvid_val"]["wnet"]["matching"]["0"] == "sky"
    rows = results["camvid_val"]["clusters"]
    assert [row["runs"] for row in rows] == [1, *[cluster_baselines.SEEDS] * (len(rows) - 1)]
    assert [row["clusters"].split(",")[0] for row in rows[:2]] == ["W-Net", "k-means"]
    assert rows[-1]["clusters"] == "random"
    # Labels by brightness: the tiny models follow it, chance does not.
    assert rows[0]["majority"]["miou"]["mean"] > 2 * rows[-1]["majority"]["miou"]["best"]
    page = (tmp_path / "paper_figures.md").read_text()
    for name in (
        "U-Net: u (none)",
        "DINO: d (none)",
        "| class 8 |",
        "| random |",
        "| W-Net + CRF + merging |",
        "0.59 / 0.64",
    ):
        assert name in page
    assert "paper_figure_3.png" in page


def made_checkpoint(path: Path) -> Path:
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(WNetSystem(width=0.05, size=(32, 48)))
    trainer.save_checkpoint(path)
    return path


def test_the_papers_figures_without_decoder_from_scores_on_file(
    paper_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measure = {"ods": 0.5, "ois": 0.625, "level": 0.5}
    scores = dict.fromkeys(("plain", "crf", "merged"), dict.fromkeys(("covering", "pri"), measure))
    scores = {kind: {**scores[kind], "vi": measure} for kind in scores}
    path = tmp_path / "regions.json"
    path.write_text(json.dumps({"model": "w", "images": 3, **scores}))
    objects = [made_objects(tmp_path / f"{name}.json", name) for name in ("big", "small")]
    words = [*paper_arguments, "--regions", str(path), "--out", str(tmp_path)]
    assert paper_figures.main([*words, "--objects", *map(str, objects)]) == 0
    assert "figure 3 and the reconstructions of figure 4 are left out" in capsys.readouterr().out
    assert not (tmp_path / "paper_figure_3.png").exists()
    page = (tmp_path / "paper_figures.md").read_text()
    assert "| W-Net + CRF | 0.500 / 0.625 |" in page and "figure_3" not in page
    assert "22 frames of dog, goat" in page
    rows = [line for line in page.splitlines() if line.endswith("| 0.400 |")]
    assert rows == [
        "| big | 32x48 | 0.444 | 0.477 | 0.450 | 0.400 |",
        "| small | 32x48 | 0.444 | 0.477 | 0.450 | 0.400 |",
        "| centre prior |  | 0.444 | - | - | 0.400 |",  # one row: it is the same of both
        "| random ViT-Ti/16 |  | 0.444 | 0.477 | 0.450 | 0.400 |",
    ]


def made_objects(path: Path, model: str, **changes: object) -> Path:
    """Scores as `evaluate objects` writes them; those of the controls are the model's."""
    scores = {
        "jaccard_mean": 0.444,
        "jaccard_best_head": 0.477,
        "jaccard_fixed_head": 0.45,
        "mass_curve_area": 0.4,
    }
    found = {
        "model": model,
        "size": "32x48",
        "mass": 0.6,
        "images": 22,
        "without_object": 0,
        "sequences": {"dog": {}, "goat": {}},
        "controls": {"centre_prior": scores, "random_vit": scores},
    }
    path.write_text(json.dumps({**found, **scores, **changes}))
    return path


def test_controls_of_another_grid_get_rows_of_their_own(tmp_path: Path) -> None:
    paths = [made_objects(tmp_path / "a.json", "a"), made_objects(tmp_path / "b.json", "b")]
    found = json.loads(paths[1].read_text())
    found["controls"]["centre_prior"]["jaccard_mean"] = 0.25
    paths[1].write_text(json.dumps(found))
    lines = paper_figures.objects_table(paper_figures.read_objects(paths))
    assert "| centre prior, on the patches of a |  | 0.444 | - | - | 0.400 |" in lines
    assert "| centre prior, on the patches of b |  | 0.250 | - | - | 0.400 |" in lines
    assert sum("random" in line for line in lines) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mass": 0.5}, "at mass 0.5; wanted is --mass 0.6"),
        ({"images": 21}, "on other frames"),
        ({"sequences": {"dog": {}, "cow": {}}}, "on other frames"),
    ],
)
def test_scores_of_attention_that_do_not_go_together_are_refused(
    tmp_path: Path, changes: dict, said: str
) -> None:
    good = made_objects(tmp_path / "good.json", "good")
    odd = made_objects(tmp_path / "odd.json", "odd", **changes)
    with pytest.raises(DataError, match=said):
        paper_figures.read_objects([good, odd])
    odd.write_text("[]")
    with pytest.raises(DataError, match=r"evaluate objects --json` writes"):
        paper_figures.read_objects([good, odd])


def test_figure_7_shows_every_head_and_the_patches_that_hold_the_mass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list = []
    monkeypatch.setattr(paper_figures, "draw", lambda *args, **options: drawn.append(args))
    image = np.full((20, 30, 3), 200, np.uint8)
    attention = np.full((2, 2, 3), 0.05, np.float32)
    attention[0, 0, 1] = attention[1, 1, 2] = 0.75  # of the mean two patches hold 0.8
    frame = paper_figures.Frame("a", image, Prediction(attention=attention))
    paper_figures.figure_7(tmp_path / "x.png", "title", {"a": frame})
    ((_, _, columns, rows),) = drawn
    assert columns == ("image", "mask, mass 0.6", "heads' mean", "head 0", "head 1")
    shown, masked, mean, *heads = rows["a"]
    assert shown is image and len(heads) == 2
    lit = np.zeros((20, 30), bool)
    lit[:10, 10:20] = lit[10:, 20:] = True
    assert (masked == np.where(lit, 200, 40)[..., None]).all()
    light = [picture.sum(axis=2) for picture in (mean, *heads)]
    dark = light[0][15, 5]
    assert light[0][2, 15] > 2 * dark and light[0][17, 27] > 2 * dark
    for plane, row, column in ((light[1], 0, 1), (light[2], 1, 2)):
        y, x = np.unravel_index(plane.argmax(), plane.shape)
        assert (y // 10, x // 10) == (row, column)


@pytest.mark.parametrize(
    ("stride", "shape", "size"),
    [
        (14, (480, 854), (476, 840)),  # 34 x 60 patches
        (16, (480, 854), (480, 848)),
        (16, (321, 481), (320, 480)),
        (14, (481, 321), (476, 322)),
        (16, (3, 5), (16, 16)),
    ],
)
def test_the_input_of_figure_7_has_the_images_shape_on_34_x_60_patches_at_most(
    model_factory: Callable[..., Path], stride: int, shape: tuple, size: tuple
) -> None:
    info = store.load(model_factory(task="attention", stride=stride, size=(2 * stride, stride)))
    assert paper_figures.attention_size(info, shape) == size


def test_a_model_without_attention_is_refused(
    paper_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wnet = paper_arguments[paper_arguments.index("--wnet") + 1]
    words = [*paper_arguments, "--dino", wnet, "--out", str(tmp_path)]
    assert paper_figures.main(words) == 2
    assert "of task clusters; give a model of task attention" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "not what `python -m training evaluate regions --json` writes"),
        ('{"model": "v", "images": 3, "plain": 0, "crf": 0, "merged": 0}', "scores of v"),
        ('{"model": "w", "images": 4, "plain": 0, "crf": 0, "merged": 0}', "on 4 images"),
    ],
)
def test_scores_of_something_else_are_refused(
    paper_arguments: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: str,
    said: str,
) -> None:
    path = tmp_path / "regions.json"
    path.write_text(text)
    words = [*paper_arguments, "--regions", str(path), "--out", str(tmp_path)]
    assert paper_figures.main(words) == 2
    assert said in capsys.readouterr().err


def test_a_checkpoint_of_another_model_is_refused(
    paper_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, said in (
        (made_checkpoint(tmp_path / "w.ckpt"), "give the checkpoint that this model was exported"),
        (tmp_path / "none.ckpt", "no checkpoint of this version"),
    ):
        words = [*paper_arguments, "--checkpoint", str(path), "--out", str(tmp_path)]
        assert paper_figures.main(words) == 2
        assert said in capsys.readouterr().err


# Precision


def test_changes_are_shown_by_band_of_confidence():
    counts, changed = np.zeros((2, 256), np.int64)
    counts[[0, 120, 140, 255]] = 10, 20, 30, 40  # confidence 0, 0.47, 0.55 and 1
    changed[[0, 120]] = 5, 2
    found = precision.bands(LabelChange(counts, changed))
    assert [band["share"] for band in found] == [0.1, 0.2, 0.3, 0, 0.4]
    assert [band["changed"] for band in found] == [0.5, 0.1, 0, None, 0]
    row = {"model": "m", "footage": "f", "label_agreement": 0.93, "changed_confidence": 0.47}
    row |= {"bands": found, "reason": None, "scores": {"mIoU": {"fp32": 0.7, "bf16": 0.699}}}
    heads, rule, cells = precision.table([row]).splitlines()
    assert heads.count("|") == rule.count("|") == cells.count("|")
    assert "| m | f | 93.00 | 0.47 | 50.000 | 10.000 | 0.000 | - | 0.000 |" in cells
    assert cells.endswith("mIoU 70.00 / 69.90 | yes |")


def test_facades_are_scored_by_the_classes_that_both_sets_have():
    colours = np.array([[[128, 0, 0], [0, 0, 128], [128, 64, 0], [0, 0, 0]]], np.uint8)
    assert precision.camvid_ids(colours).tolist() == [[1, 1, 3, 255]]
    assert [item.name for item in store.load("segmenter_tiny").classes] == list(precision.CAMVID)
