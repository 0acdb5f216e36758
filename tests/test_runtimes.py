# SPDX-License-Identifier: Apache-2.0
"""Runtimes: what they compute, what they refuse, and which one is chosen."""

import logging
import subprocess
import sys
import threading
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ctxseg_ros import runtimes
from ctxseg_ros.model_file import ModelFileError, read_model_info
from ctxseg_ros.prediction import Prediction
from ctxseg_ros.runtimes import RuntimeUnavailable, onnx_runtime, open_runtime, open_vino
from ctxseg_ros.runtimes.base import pattern_image

HERE = ("cpu", "openvino")
SIZES = [(32, 48), (288, 512), (480, 640), (368, 16)]


@pytest.fixture
def info(model_factory):
    return read_model_info(model_factory())


def image(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


@pytest.mark.parametrize("device", HERE)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fixed", [False, True])
def test_labels_and_confidence_are_what_the_graph_says(model_factory, device, size, fixed):
    info = read_model_info(model_factory(size=size, fixed=fixed))
    runtime = open_runtime(info, None, device)
    assert (runtime.info, runtime.device, runtime.size) == (info, device, size)
    assert runtime.precision == "fp32"
    rgb = image(size)
    found = runtime.run(rgb)
    light = rgb.sum(axis=2)
    labels = (light[..., None] > np.linspace(0, 765, 5)[1:-1]).sum(axis=2)
    assert found.labels.dtype == found.confidence.dtype == np.uint8
    assert np.array_equal(found.labels, labels)
    # A third is not a binary fraction: exact thirds may round either way.
    assert np.abs(found.confidence - light / 3).max() <= 1
    assert found.attention is None


@pytest.mark.parametrize("device", HERE)
@pytest.mark.parametrize("size", SIZES)
def test_attention_is_what_the_graph_says(model_factory, device, size):
    info = read_model_info(model_factory(task="attention"))
    rgb = image(size)
    found = open_runtime(info, size, device).run(rgb)
    patches = rgb.reshape(size[0] // 16, 16, size[1] // 16, 16, 3).mean(axis=(1, 3))
    expected = (patches / patches.sum(axis=(0, 1))).transpose(2, 0, 1)
    assert found.attention.dtype == np.float32
    assert np.allclose(found.attention, expected, rtol=1e-4)
    assert found.labels is None and found.confidence is None


@pytest.mark.parametrize("size", SIZES)
def test_runtimes_agree(info, size):
    rgb = image(size, seed=1)
    cpu, openvino = (open_runtime(info, size, device).run(rgb) for device in HERE)
    assert np.array_equal(cpu.labels, openvino.labels)
    assert np.array_equal(cpu.confidence, openvino.confidence)


@pytest.mark.parametrize("device", HERE)
def test_results_and_input_are_the_callers(info, device):
    runtime = open_runtime(info, device=device)
    rgb = image(runtime.size)
    before = rgb.copy()
    rgb.flags.writeable = False
    first = runtime.run(rgb)
    labels = first.labels.copy()
    first.confidence[:] = 0
    again = runtime.run(rgb[::-1, ::-1].copy())
    assert np.array_equal(first.labels, labels)
    assert np.array_equal(again.labels, labels[::-1, ::-1])
    assert again.confidence.any()
    assert np.array_equal(rgb, before)


@pytest.mark.parametrize("device", HERE)
def test_another_image_is_refused(info, device):
    runtime = open_runtime(info, device=device)
    rgb = image((32, 48))
    for wrong in (image((48, 32)), rgb.astype(np.float32), rgb[None], rgb[..., :1]):
        with pytest.raises(ValueError, match=r"must be C-contiguous uint8 \[32, 48, 3\], it is"):
            runtime.run(wrong)
    with pytest.raises(ValueError, match="not C-contiguous"):
        runtime.run(rgb[:, ::-1])


@pytest.mark.parametrize("device", HERE)
def test_closed_runtime_says_so(info, device):
    runtime = open_runtime(info, device=device)
    runtime.close()
    runtime.close()
    with pytest.raises(RuntimeError, match="closed"):
        runtime.run(image((32, 48)))


def heavy(model):
    """Put enough matrix products before the confidence to take a while."""
    weight = np.full((256, 256), 1 / 256, np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "weight"))
    nodes = [helper.make_node("MatMul", ["mean", "weight"], ["m0"])]
    nodes += [helper.make_node("MatMul", [f"m{i}", "weight"], [f"m{i + 1}"]) for i in range(150)]
    nodes.append(helper.make_node("Cast", ["m150"], ["confidence"], to=TensorProto.UINT8))
    model.graph.node.pop()
    model.graph.node.extend(nodes)


@pytest.mark.parametrize("device", HERE)
def test_inference_releases_the_gil(model_factory, device):
    runtime = open_runtime(read_model_info(model_factory(edit=heavy)), (1024, 256), device)
    rgb = image(runtime.size)
    count, stop = [0], threading.Event()

    def tick():
        while not stop.is_set():
            count[0] += 1
            time.sleep(0.0005)

    # With this interval no thread has to give the GIL away: the count moves during `run` only
    # if `run` itself lets it go.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    ticker = threading.Thread(target=tick)
    try:
        ticker.start()
        moved = 0
        for _ in range(50):
            before = count[0]
            runtime.run(rgb)
            moved += count[0] - before
            if moved:
                break
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        ticker.join()
    assert moved


# What a model file cannot promise by itself


@pytest.mark.parametrize("device", ["auto", *HERE])
def test_ids_beyond_the_classes_are_refused_at_warm_up(model_factory, device):
    path = model_factory(classes=3, thresholds=[0, 1, 2])
    with pytest.raises(ModelFileError, match=r"predicts class 3, but ctxseg.classes names 0 to 2"):
        open_runtime(read_model_info(path), device=device)


@pytest.mark.parametrize("device", HERE)
def test_unlabelled_is_no_unknown_class(model_factory, device):
    path = model_factory(classes=2, thresholds=[0] * 255)
    runtime = open_runtime(read_model_info(path), device=device)
    assert (runtime.run(np.full((32, 48, 3), 9, np.uint8)).labels == 255).all()


@pytest.mark.parametrize("device", HERE)
def test_outputs_of_another_size_are_refused_at_warm_up(model_factory, device):
    def halve(model):
        numbers = {"from": [0], "to": [2**31], "second": [2], "step": [2]}
        for name, value in numbers.items():
            tensor = numpy_helper.from_array(np.array(value, np.int64), name)
            model.graph.initializer.append(tensor)
        model.graph.node[-1].output[0] = "whole"
        model.graph.node.append(
            helper.make_node("Slice", ["whole", "from", "to", "second", "step"], ["confidence"])
        )
        shape = [1, "height", "half"]
        model.graph.output[1].CopyFrom(
            helper.make_tensor_value_info("confidence", TensorProto.UINT8, shape)
        )

    info = read_model_info(model_factory(edit=halve))
    with pytest.raises(ModelFileError, match=r"'confidence' is \[32, 24\] .* must be \[32, 48\]"):
        open_runtime(info, device=device)


def test_file_that_went_or_changed_is_refused(info):
    data = info.path.read_bytes()
    info.path.write_bytes(data + b"\0")
    with pytest.raises(ModelFileError, match="has changed since it was checked"):
        open_runtime(info)
    info.path.unlink()
    with pytest.raises(ModelFileError, match="cannot read the model file: No such file"):
        open_runtime(info)


# Which device


def test_size_and_device_are_checked_first(info):
    with pytest.raises(ValueError, match="multiples of 16"):
        open_runtime(info, (33, 48))
    with pytest.raises(ValueError, match="no device is called 'gpu'; choose auto, tensorrt, cuda"):
        open_runtime(info, device="gpu")


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(onnx_runtime, "gpu_name", lambda: None)


def test_devices_are_listed_with_reasons(no_gpu):
    found = runtimes.devices()
    assert list(found) == ["tensorrt", "cuda", "openvino", "cpu"]
    assert found["openvino"] is None and found["cpu"] is None
    assert "no NVIDIA GPU" in found["tensorrt"] and "no NVIDIA GPU" in found["cuda"]


@pytest.mark.parametrize("device", ["tensorrt", "cuda"])
def test_device_that_is_not_there_is_an_error_that_lists_what_is(info, no_gpu, device):
    with pytest.raises(RuntimeUnavailable, match=r"no NVIDIA GPU .* there: openvino, cpu"):
        open_runtime(info, device=device)


def test_missing_library_names_the_command(monkeypatch, info):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(RuntimeUnavailable, match=r"\(pip install openvino\).* there: cpu"):
        open_runtime(info, device="openvino")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeUnavailable, match=r"\(pip install onnxruntime\).* there: none"):
        open_runtime(info, device="cpu")


def test_gpu_without_the_gpu_library_names_the_command(monkeypatch):
    monkeypatch.setattr(onnx_runtime, "gpu_name", lambda: "NVIDIA Test")
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "without CUDAExecutionProvider" in onnx_runtime.why_not("cuda")
    assert "onnxruntime-gpu[cuda,cudnn]" in onnx_runtime.why_not("cuda")
    monkeypatch.setattr("onnxruntime.get_available_providers", onnx_runtime.PROVIDERS.values)
    monkeypatch.setattr(onnx_runtime, "tensorrt_version", lambda: None)
    assert onnx_runtime.why_not("cuda") is None
    assert "pip install tensorrt" in onnx_runtime.why_not("tensorrt")


def test_auto_takes_the_best_and_says_why_not_the_better(info, no_gpu, caplog, monkeypatch):
    monkeypatch.setattr(open_vino, "_chosen", {})
    caplog.set_level(logging.INFO, "ctxseg_ros")
    assert open_runtime(info).device == "openvino"
    precision, choice = caplog.messages
    assert precision.startswith("tiny: fp32, for the ")  # processor has no bf16, or the file says
    assert choice == (
        "tiny at 32x48 runs on openvino (fp32), "
        "not tensorrt or cuda: no NVIDIA GPU with a working driver (nvidia-smi must list one)"
    )


def test_a_device_that_is_asked_for_needs_no_reason_in_the_log(info, caplog):
    caplog.set_level(logging.INFO)
    runtime = open_runtime(info, device="cpu")
    assert runtime.reason == "asked for by name"
    assert caplog.messages == ["tiny at 32x48 runs on cpu (fp32)"]


def broken(*arguments):
    raise RuntimeError("the driver\n  is confused")


def test_auto_goes_on_when_a_device_does_not_open(info, no_gpu, monkeypatch, caplog):
    monkeypatch.setattr(open_vino, "OpenVinoRuntime", broken)
    log = logging.getLogger("test")
    caplog.set_level(logging.INFO, "test")
    assert open_runtime(info, log=log).device == "cpu"
    warning, chosen = caplog.messages
    assert warning == "device openvino: it did not open: the driver is confused"
    assert "runs on cpu (fp32)" in chosen and "not openvino: it did not open" in chosen


def test_device_asked_for_that_does_not_open_is_an_error(info, monkeypatch):
    monkeypatch.setattr(open_vino, "OpenVinoRuntime", broken)
    with pytest.raises(RuntimeUnavailable, match=r"did not open: the driver is confused.*: cpu"):
        open_runtime(info, device="openvino")


def test_auto_without_any_device_is_an_error_with_every_reason(info, no_gpu, monkeypatch):
    monkeypatch.setattr(open_vino, "OpenVinoRuntime", broken)
    monkeypatch.setattr(onnx_runtime, "OnnxRuntime", broken)
    with pytest.raises(RuntimeUnavailable) as caught:
        open_runtime(info)
    for device in runtimes.DEVICES:
        assert f"{device}: " in str(caught.value)


# OpenVINO's precision


@pytest.mark.parametrize(
    ("agreement", "capabilities", "reason"),
    [
        (0.995, ["FP32", "BF16"], None),
        (0.9949, ["FP32", "BF16"], "bf16 keeps only 99.49% of this model's labels"),
        (1.0, ["FP32"], "the processor has no bf16"),
        (None, ["FP32", "BF16"], "the model file does not say what bf16 does to it"),
    ],
)
def test_bf16_needs_the_processor_and_the_metadata(model_factory, agreement, capabilities, reason):
    source = {} if agreement is None else {"precision": {"bf16_label_agreement": agreement}}
    info = read_model_info(model_factory(source=source))
    assert open_vino.bf16_forbidden(info, capabilities) == reason


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ({"bf16_attention_agreement": 0.999}, None),
        ({"bf16_attention_agreement": 0.9}, "bf16 keeps only 90.00% of this model's patches"),
        ({"bf16_label_agreement": 1.0}, "the model file does not say what bf16 does to it"),
    ],
)
def test_bf16_of_attention_is_judged_by_its_patches(model_factory, source, reason):
    info = read_model_info(model_factory(task="attention", source={"precision": source}))
    assert open_vino.bf16_forbidden(info, ["BF16"]) == reason


@pytest.mark.parametrize("agreement", [0.0, 1.0])
def test_openvino_compiles_in_the_precision_that_it_reports(model_factory, agreement):
    source = {"precision": {"bf16_label_agreement": agreement}}
    runtime = open_runtime(read_model_info(model_factory(source=source)), device="openvino")
    model = runtime._request.get_compiled_model()
    used = model.get_property("INFERENCE_PRECISION_HINT").to_string()
    assert {"f32": "fp32", "bf16": "bf16"}[used] == runtime.precision
    if agreement == 0:
        assert runtime.precision == "fp32"


@pytest.mark.parametrize("faster", ["fp32", "bf16"])
def test_openvino_takes_the_faster_precision_where_it_may_choose(
    model_factory, monkeypatch, caplog, faster
):
    # Another name, another SHA-256: what was chosen for a model holds for its other sizes.
    info = read_model_info(model_factory(name=f"faster_in_{faster}"))
    monkeypatch.setattr(open_vino, "bf16_forbidden", lambda *_: None)
    monkeypatch.setattr(
        open_vino,
        "fastest_ms",
        lambda runtimes: [10.0 if item.precision == faster else 20.0 for item in runtimes],
    )
    with caplog.at_level("INFO"):
        runtime = open_runtime(info, device="openvino")
    assert runtime.precision == faster
    assert f"{faster} takes 10.0 ms" in caplog.text
    monkeypatch.setattr(open_vino, "fastest_ms", lambda _: pytest.fail("measured again"))
    assert open_runtime(info, (64, 96), device="openvino").precision == faster


# ONNX Runtime's GPU providers, as far as they go without a GPU


def test_dropped_provider_is_an_error(info, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(
        onnxruntime.InferenceSession, "get_providers", lambda _: ["CPUExecutionProvider"]
    )
    monkeypatch.setattr(onnx_runtime, "providers", lambda *_: [("CPUExecutionProvider", {})])
    with pytest.raises(RuntimeUnavailable, match=r"left CUDAExecutionProvider out.*pip install"):
        onnx_runtime.OnnxRuntime(info.path.read_bytes(), info, (32, 48), "cuda")


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(onnx_runtime, "gpu_name", lambda: "NVIDIA Test/1")
    monkeypatch.setattr(onnx_runtime, "tensorrt_version", lambda: "10.9.0")
    return tmp_path


def test_tensorrt_falls_back_to_cuda_and_cpu_and_caches(info, gpu):
    (name, options), (second, cuda), (third, _) = onnx_runtime.providers(
        "tensorrt", info, (32, 48), True
    )
    assert name == "TensorrtExecutionProvider"
    assert (second, third) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    cache = str(onnx_runtime.engine_cache(info, (32, 48), True))
    assert options == {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": cache,
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": cache,
        "trt_fp16_enable": "True",
        "trt_layer_norm_fp32_fallback": "True",
    }
    assert cuda == {"use_tf32": "0"}
    fp32 = onnx_runtime.providers("tensorrt", info, (32, 48), False)[0][1]
    assert fp32["trt_fp16_enable"] == "False"


def test_cuda_falls_back_to_the_cpu_only(info):
    names = [name for name, _ in onnx_runtime.providers("cuda", info, (32, 48), False)]
    assert names == ["CUDAExecutionProvider", "CPUExecutionProvider"]


def test_engine_cache_is_keyed_on_all_that_an_engine_depends_on(
    info, model_factory, gpu, monkeypatch
):
    def cache(info=info, size=(32, 48), fp16=True):
        return onnx_runtime.engine_cache(info, size, fp16)

    first = cache()
    assert first.parent == gpu / "ctxseg_ros" / "tensorrt"
    found = {first, cache(size=(48, 32)), cache(fp16=False)}
    found.add(cache(read_model_info(model_factory(name="other"))))
    for owner, name, value in (
        (onnx_runtime, "gpu_name", lambda: "NVIDIA Test/2"),
        (onnx_runtime, "tensorrt_version", lambda: "10.9.1"),
        (sys.modules["onnxruntime"], "__version__", "0.0"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            found.add(cache())
    assert len(found) == 7
    assert cache() == first


@pytest.mark.parametrize("value", [None, "relative/folder"])
def test_engine_cache_without_a_valid_setting_is_in_the_home(info, gpu, monkeypatch, value):
    monkeypatch.setenv("HOME", str(gpu / "home"))
    if value is None:
        monkeypatch.delenv("XDG_CACHE_HOME")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", value)
    path = onnx_runtime.engine_cache(info, (32, 48), True)
    assert path.is_relative_to(gpu / "home" / ".cache" / "ctxseg_ros")


@pytest.fixture
def simulated_tensorrt(gpu, monkeypatch):
    """TensorRT runs on the CPU, and in fp16 gives the class that `wrong` holds, if any."""
    wrong = []

    class Simulated(onnx_runtime.OnnxRuntime):
        def __init__(self, model, info, size, device, fp16=False):
            super().__init__(model, info, size, "cpu", fp16)
            self.device = device
            if device == "tensorrt":
                folder = onnx_runtime.engine_cache(info, size, fp16)
                assert folder.is_dir()
                (folder / "graph.engine").touch()

        def run(self, image):
            found = super().run(image)
            if self.precision == "fp16" and wrong:
                labels = np.full_like(found.labels, wrong[0])
                return Prediction(labels=labels, confidence=found.confidence)
            return found

    monkeypatch.setattr(onnx_runtime, "OnnxRuntime", Simulated)
    monkeypatch.setattr(onnx_runtime, "why_not", lambda device: None)
    return wrong


def test_auto_prefers_tensorrt_in_fp16_and_announces_the_build(info, simulated_tensorrt, caplog):
    caplog.set_level(logging.INFO)
    runtime = open_runtime(info)
    assert (runtime.device, runtime.precision) == ("tensorrt", "fp16")
    building, built, chosen = caplog.messages
    assert "building a TensorRT engine for tiny" in building
    assert "took" in built and built.endswith("s to build")
    assert chosen == "tiny at 32x48 runs on tensorrt (fp16), the best there is"
    caplog.clear()
    open_runtime(info)
    assert caplog.messages == [chosen]


def test_wrong_fp16_engine_is_replaced_by_fp32(info, simulated_tensorrt, caplog):
    simulated_tensorrt.append(1)
    runtime = open_runtime(info, device="tensorrt")
    assert (runtime.device, runtime.precision) == ("tensorrt", "fp32")
    assert any("fp16 keeps only" in message for message in caplog.messages)


def test_agreement_of_labels_and_of_attention():
    labels = np.zeros((10, 10), np.uint8)
    other = labels.copy()
    other[0, :3] = 1
    found = onnx_runtime.agreement(Prediction(labels=other), Prediction(labels=labels))
    assert found == pytest.approx(0.97)
    attention = np.full((3, 2, 2), 0.2, np.float32)
    changed = attention.copy()
    changed[0, 0, 0] = 0.3
    changed[1] += 0.001
    found = onnx_runtime.agreement(Prediction(attention=changed), Prediction(attention=attention))
    assert found == pytest.approx(11 / 12)


def test_pattern_image_is_fixed_and_has_every_brightness():
    first = pattern_image((64, 96))
    assert first.shape == (64, 96, 3) and first.dtype == np.uint8
    assert np.array_equal(first, pattern_image((64, 96)))
    assert first.min() < 20 and first.max() > 235


def test_sessions_pin_the_size(info):
    """After pinning, ONNX Runtime knows every shape."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        info.path.read_bytes(),
        onnx_runtime.session_options((64, 96)),
        providers=["CPUExecutionProvider"],
    )
    assert session.get_inputs()[0].shape == [1, 64, 96, 3]
    assert [item.shape for item in session.get_outputs()] == [[1, 64, 96]] * 2
    assert onnx.load(info.path).graph.input[0].type.tensor_type.shape.dim[1].dim_param == "height"


def test_signals_are_handled_after_runtimes_have_come_and_gone(model_factory):
    """Whoever was opened first is closed first, as when a node changes its model."""
    script = f"""
import gc, os, signal
from pathlib import Path
from ctxseg_ros.model_file import read_model_info
from ctxseg_ros.runtimes import open_runtime

info, heard = read_model_info(Path({str(model_factory())!r})), []
signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
queue = [open_runtime(info, device="openvino") for _ in range(2)]
for _ in range(2):
    queue.append(open_runtime(info, device="openvino"))
    queue.pop(0).close()
    gc.collect()
while queue:
    queue.pop(0).close()
    gc.collect()
    os.kill(os.getpid(), signal.SIGUSR1)
print("heard", len(heard))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "heard 2\n"), done.stderr
