# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' arithmetic on data made by hand, and one short run of each over DDS."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image

from benchmarks import camera, figures, monitor, pipeline, pipeline_report, processes, soak
from benchmarks.figures import Play

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


def test_what_cannot_run_is_one_sentence(tmp_path: Path) -> None:
    for script in ("pipeline.py", "soak.py"):
        for words, said in (
            (["--model", "nonesuch"], "no model is called 'nonesuch'"),
            (["--size", "100x100"], "100x100"),
        ):
            done = subprocess.run(
                [sys.executable, f"benchmarks/{script}", *words, "--json", tmp_path / "x.json"],
                cwd=ROOT,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 1 and said in done.stderr
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
