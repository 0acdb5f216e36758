# SPDX-License-Identifier: Apache-2.0
"""The ctxseg command."""

import hashlib
import json
import os
import resource
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool

import pytest

from ctxseg_ros import bench, cli
from ctxseg_ros.inference.runtimes import onnx_runtime
from ctxseg_ros.model import store

pytestmark = pytest.mark.slow

ROW = {"model", "device", "size", "p50_ms", "p95_ms", "p99_ms", "fps", "load_s", "peak_rss_mb"}


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """An empty folder that `store` takes for the shipped models'."""
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / store.SUMS).touch()
    monkeypatch.setattr(store, "models_dir", lambda: folder)
    monkeypatch.setenv("COLUMNS", "400")
    return folder


@pytest.fixture
def quick(monkeypatch):
    """Measure in this process, a few runs only."""
    monkeypatch.setattr(bench, "measure", bench.measure_here)
    monkeypatch.setattr(bench, "RUNS", 3)


def ship(folder, path):
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with (folder / store.SUMS).open("a") as sums:
        sums.write(f"{digest}  {path.name}\n")


def without_input_type(model):
    model.graph.input[0].type.tensor_type.elem_type = 1


def test_models_lists_what_is_shipped(shipped, model_factory, capsys):
    ship(shipped, model_factory(name="good", path=shipped / "good.onnx"))
    score = {"scores": {"miou": 0.7125}}
    ship(shipped, model_factory(name="scored", source=score, path=shipped / "scored.onnx"))
    ship(shipped, model_factory(name="bad", path=shipped / "bad.onnx"))
    (shipped / "bad.onnx").write_bytes(b"damaged")
    values = {"edit": without_input_type, "path": shipped / "wrong.onnx"}
    ship(shipped, model_factory(**values))
    assert cli.main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (good,) = [line for line in lines if "good" in line]
    assert good.split() == ["good", "semantic", "4", "32x48", "0.00", "M", "-", "ok"]
    assert any("scored" in line and "71.2%" in line for line in lines)
    assert any("bad" in line and "damaged: " in line for line in lines)
    assert any("must be uint8 [1, height, width, 3]" in line for line in lines)


def test_models_without_any(shipped, capsys):
    assert cli.main(["models"]) == 0
    assert "no models are shipped" in capsys.readouterr().out


def test_bench_measures_every_case(model_factory, tmp_path, quick, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    path, out = str(model_factory(name="mine")), tmp_path / "out.json"
    sizes = ["--size", "32x48", "--size", "64x96", "48x32"]
    command = ["bench", path, *sizes, "--device", "cpu", "openvino", "--json", str(out)]
    assert cli.main(command) == 0
    found = json.loads(out.read_text())
    assert {"machine", "commit", "results"} <= found.keys()
    rows = found["results"]
    assert [(row["size"], row["device"]) for row in rows] == [
        (size, device) for size in ("32x48", "64x96", "48x32") for device in ("cpu", "openvino")
    ]
    for row in rows:
        assert row.keys() >= ROW
        assert row["model"] == "mine"
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["fps"] > 0 and row["load_s"] > 0 and row["peak_rss_mb"] > 10
    captured = capsys.readouterr()
    assert f"[6/6] {path} 48x32 openvino" in captured.err
    for row in rows:
        words = ["mine", row["device"], "fp32", row["size"], f"{row['p50_ms']:.1f}"]
        assert any(line.split()[:5] == words for line in captured.out.splitlines())


def test_bench_takes_shipped_models_at_their_own_size(shipped, model_factory, quick, capsys):
    ship(shipped, model_factory(name="a", path=shipped / "a.onnx"))
    ship(shipped, model_factory(name="b", size=(48, 64), path=shipped / "b.onnx"))
    assert cli.main(["bench"]) == 0
    err = capsys.readouterr().err
    assert "[1/2] a 32x48 auto" in err and "[2/2] b 48x64 auto" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "33x48"], "Nearest: 32x48 or 48x48"),
        (["--size", "big"], "size 'big' is not HEIGHTxWIDTH"),
        (["--device", "cuda"], "device cuda is not available: no NVIDIA GPU"),
        (["--json", "/no/such/folder/out.json"], "its folder does not exist"),
        (["--json", "/"], "it is a folder"),
        (["nothing"], "no model is called 'nothing'"),
        (["nothing.onnx"], "nothing.onnx: there is no such file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    shipped, model_factory, monkeypatch, capsys, arguments, message
):
    monkeypatch.setattr(onnx_runtime, "gpu_name", lambda: None)
    assert cli.main(["bench", str(model_factory()), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("ctxseg: ") and message in captured.err
    assert captured.err.count("\n") == 1


def test_bench_without_models_is_exit_code_2(shipped, capsys):
    assert cli.main(["bench"]) == 2
    assert "no models are shipped" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["fly"], ["bench", "--device", "gpu"]])
def test_unknown_words_are_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: ctxseg" in capsys.readouterr().err


def test_bench_keeps_the_other_rows_when_one_fails(model_factory, tmp_path, monkeypatch, capsys):
    def measure(model, size, device):
        if device == "cpu":
            raise RuntimeError("the process died")
        words = {"model": model, "device": device, "precision": "fp32", "size": "32x48"}
        return dict.fromkeys(ROW, 1.0) | words

    monkeypatch.setattr(bench, "measure", measure)
    out = tmp_path / "out.json"
    command = ["bench", str(model_factory()), "--device", "cpu", "openvino", "--json", str(out)]
    assert cli.main(command) == 1
    assert len(json.loads(out.read_text())["results"]) == 1
    assert "32x48 cpu: the process died" in capsys.readouterr().err


def test_a_disk_that_is_full_at_the_end_is_one_line_and_exit_code_2(
    model_factory, tmp_path, monkeypatch, capsys
):
    def measure(model, size, device):
        # No file can be written from now on.
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        return dict.fromkeys(ROW, 1.0) | {"model": "m", "precision": "fp32", "size": "32x48"}

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(bench, "measure", measure)
    out = tmp_path / "out.json"
    out.write_text("old")
    try:
        code = cli.main(["bench", str(model_factory()), "--json", str(out)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 2
    captured = capsys.readouterr()
    assert "1.0" in captured.out, "what was measured is shown all the same"
    assert captured.err.splitlines()[-1].startswith(f"ctxseg: {out}: cannot be written: ")
    assert out.read_text() == "old" and list(tmp_path.iterdir()) == [out]


def test_a_process_that_dies_is_an_error(monkeypatch, model_factory):
    class Pool(bench.ProcessPoolExecutor):
        def submit(self, function, *arguments):
            return super().submit(os.abort)

    monkeypatch.setattr(bench, "ProcessPoolExecutor", Pool)
    with pytest.raises(RuntimeError, match="the process died while it measured") as caught:
        bench.measure(str(model_factory()), None, "cpu")
    assert isinstance(caught.value.__cause__, BrokenProcessPool)


def test_the_command_measures_in_its_own_process(model_factory, tmp_path):
    out = tmp_path / "out.json"
    command = ["bench", str(model_factory()), "--device", "cpu", "--json", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "ctxseg_ros.cli", *command], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "tiny at 32x48 runs on cpu (fp32)" in done.stderr
    (row,) = json.loads(out.read_text())["results"]
    assert row["runs"] == bench.RUNS
