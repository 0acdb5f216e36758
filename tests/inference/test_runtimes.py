# SPDX-License-Identifier: Apache-2.0
"""Runtimes: what they compute, what they refuse, and which one is chosen."""

import logging
import re
import subprocess
import sys
import threading
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ctxseg_ros.inference import runtimes
from ctxseg_ros.inference.runtimes import RuntimeUnavailable, onnx_runtime, open_runtime, open_vino
from ctxseg_ros.inference.runtimes.base import pattern_image
from ctxseg_ros.inference.runtimes.precision import cost, label_change, map_correlations, recorded
from ctxseg_ros.model import store
from ctxseg_ros.model.model_file import ModelFileError, read_model_info
from ctxseg_ros.model.prediction import Prediction

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
    first, *others = (open_runtime(info, size, device).run(rgb) for device in HERE)
    for other in others:
        assert np.array_equal(first.labels, other.labels)
        assert np.array_equal(first.confidence, other.confidence)


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
    _, choice = caplog.messages  # of the precision, of the device
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


# Precision

BF16 = ["FP32", "BF16"]
GOOD = {
    "bf16_label_agreement": 0.985,
    "bf16_sure_agreement": 0.9995,
    "fp32_score": 0.7,
    "bf16_score": 0.6951,
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"bf16_score": 0.71}, None),  # better than fp32
        ({"bf16_score": 0.6949}, r"costs 0\.5 points of accuracy"),
        ({"bf16_sure_agreement": 0.9989}, r"changes 0\.11% of the labels that"),
        ({"bf16_label_agreement": 0.96}, r"changes 4\.0% of all labels"),
        ({"bf16_sure_agreement": None}, "does not record"),
        ({"bf16_score": None}, None),  # without ground truth
    ],
)
def test_bf16_may_change_unsure_labels_and_half_a_point_of_accuracy(model_factory, change, reason):
    entries = {key: value for key, value in (GOOD | change).items() if value is not None}
    info = read_model_info(model_factory(source={"precision": entries}))
    found = cost(recorded(info), info.task, "bf16")
    assert found is None if reason is None else re.search(reason, found)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"bf16_map_correlation": 0.995}, None),
        ({"bf16_map_correlation": 0.98}, "correlates with that of fp32 by only 0.980"),
        ({"bf16_map_correlation": 1, "fp32_score": 0.4, "bf16_score": 0.3}, "costs 10.0 points"),
        ({"bf16_label_agreement": 1.0, "bf16_sure_agreement": 1.0}, "does not record"),
    ],
)
def test_bf16_of_attention_is_judged_by_its_maps(model_factory, entries, reason):
    info = read_model_info(model_factory(task="attention", source={"precision": entries}))
    found = cost(recorded(info), info.task, "bf16")
    assert found is None if reason is None else reason in found


@pytest.mark.parametrize("source", [{}, {"precision": {"bf16_label_agreement": 1.0}}])
def test_file_without_the_record_runs_in_fp32_and_says_how_to_get_one(
    model_factory, source, monkeypatch, caplog
):
    """As written by earlier versions, or by an export on a processor without bf16."""
    monkeypatch.setattr(open_vino, "capabilities", lambda: BF16)
    info = read_model_info(model_factory(name=f"unrecorded{len(source)}", source=source))
    with caplog.at_level("INFO"):
        assert open_runtime(info, device="openvino").precision == "fp32"
    assert "python -m training record-precision" in caplog.text


@pytest.mark.parametrize("processor", [BF16, ["FP32"]])
@pytest.mark.parametrize("allowed", [False, True])
def test_openvino_takes_bf16_only_where_processor_and_record_allow_it(
    model_factory, monkeypatch, processor, allowed
):
    """On a processor without bf16 OpenVINO computes in fp32 whatever it is asked for: the choice
    can be tested anywhere."""
    monkeypatch.setattr(open_vino, "capabilities", lambda: processor)
    monkeypatch.setattr(open_vino, "fastest_ms", lambda runtimes: range(len(runtimes), 0, -1))
    entries = GOOD if allowed else GOOD | {"bf16_sure_agreement": 0.5}
    name = f"{len(processor)}{allowed}"
    info = read_model_info(model_factory(name=name, source={"precision": entries}))
    expected = "bf16" if allowed and processor is BF16 else "fp32"
    assert open_runtime(info, device="openvino").precision == expected


def test_shipped_models_record_what_bf16_costs():
    """All but W-Net, whose cuts are so hard that it is sure of labels which rounding changes."""
    for name in store.model_names():
        info = store.load(name)
        reason = cost(recorded(info), info.task, "bf16")
        assert {"score", "fp32_score"} <= recorded(info).keys(), name
        assert (reason is not None) == (name == "wnet"), reason


def pixels(labels, confidence):
    """A prediction of one row."""
    return Prediction(np.array([labels], np.uint8), np.array([confidence], np.uint8))


def test_labels_that_change_are_counted_by_confidence():
    full = pixels([0, 1, 2, 3], [255, 153, 152, 20])
    change = label_change(full, pixels([0, 1, 0, 0], [0] * 4))
    change += label_change(full, pixels([1, 1, 2, 3], [255] * 4))
    assert change.pixels.sum() == 8 and change.changed.sum() == 3
    assert change.agreement() == pytest.approx(5 / 8)
    assert change.agreement(0.6) == pytest.approx(3 / 4)  # 153 of 255 is sure, 152 is not
    assert change.agreement(0.5, 0.6) == pytest.approx(1 / 2)
    assert change.agreement(0.7, 0.9) == 1.0  # no such pixel
    assert change.changed_confidence(0.3) == pytest.approx(20 / 255)
    assert change.changed_confidence(0.95) == 1.0
    same = label_change(full, full)
    assert same.agreement() == 1.0 and same.changed_confidence(0.95) == 0.0


def test_maps_are_correlated_head_by_head():
    rng = np.random.default_rng(0)
    one, other = rng.random((2, 2, 5, 7), np.float32)
    other[0] = 3 * one[0] + 1
    found = map_correlations(Prediction(attention=one), Prediction(attention=other))
    assert found == pytest.approx([1, np.corrcoef(one[1].ravel(), other[1].ravel())[0, 1]])
    flat, nan = np.ones((1, 1, 1), np.float32), np.full((1, 1, 1), np.nan, np.float32)
    for plane, correlation in ((flat, 1), (flat * 1.001, 1), (flat * 2, 0), (nan, 0)):
        found = map_correlations(Prediction(attention=flat), Prediction(attention=plane))
        assert found == [correlation]


def multiply_by_one(model):
    """Put a matrix product before the confidence that changes nothing but by its rounding."""
    model.graph.initializer.append(numpy_helper.from_array(np.eye(256, dtype=np.float32), "one"))
    model.graph.node.pop()
    model.graph.node.append(helper.make_node("MatMul", ["mean", "one"], ["product"]))
    cast = helper.make_node("Cast", ["product"], ["confidence"], to=TensorProto.UINT8)
    model.graph.node.append(cast)


def test_openvino_computes_in_the_precision_that_is_asked_for(model_factory):
    """bf16 has whole numbers only from 128 on: some of 128 1/3 and 128 2/3 become 129."""
    info = read_model_info(model_factory(edit=multiply_by_one))
    rgb = image((64, 256))
    plain = rgb.sum(axis=2) / 3
    full = open_runtime(info, (64, 256), "openvino", precision="fp32")
    assert full.precision == "fp32"
    assert np.abs(full.run(rgb).confidence - np.floor(plain)).max() <= 1  # thirds, see above
    if reason := open_vino.bf16_missing():
        with pytest.raises(RuntimeUnavailable, match=reason):
            open_runtime(info, (64, 256), "openvino", precision="bf16")
        return
    lower = open_runtime(info, (64, 256), "openvino", precision="bf16")
    assert lower.precision == "bf16"
    between = (plain > 128) & (plain % 1 > 0.5)
    rounded_up = lower.run(rgb).confidence[between] > plain[between]
    assert rounded_up.mean() > 0.9
    assert not (full.run(rgb).confidence[between] > plain[between]).any()


def test_device_without_the_precision_is_left_out(info, no_gpu):
    assert open_runtime(info, device="cpu", precision="fp32").precision == "fp32"
    with pytest.raises(RuntimeUnavailable, match=r"cpu: it computes in fp32, not in bf16"):
        open_runtime(info, device="cpu", precision="bf16")
    with pytest.raises(RuntimeUnavailable, match=r"openvino: it computes in .* there: none"):
        open_runtime(info, precision="fp16")
    with pytest.raises(ValueError, match=r"'fp8'; choose auto, fp32, bf16, fp16"):
        open_runtime(info, precision="fp8")


@pytest.mark.parametrize("faster", ["fp32", "bf16"])
def test_openvino_takes_the_faster_precision_where_it_may_choose(
    model_factory, monkeypatch, caplog, faster
):
    # Another name, another SHA-256: what was chosen for a model holds for its other sizes.
    info = read_model_info(model_factory(name=f"faster_in_{faster}", source={"precision": GOOD}))
    monkeypatch.setattr(open_vino, "capabilities", lambda: BF16)
    monkeypatch.setattr(
        open_vino,
        "fastest_ms",
        lambda runtimes: [10.0 if item.precision == faster else 20.0 for item in runtimes],
    )
    with caplog.at_level("INFO"):
        runtime = open_runtime(info, device="openvino")
    assert runtime.precision == faster
    assert "10.0 ms" in caplog.text and "20.0 ms" in caplog.text
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
    assert "TensorRT in fp32, because fp16 changes" in caplog.text


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_tensorrt_runs_in_the_precision_that_is_asked_for(info, simulated_tensorrt, precision):
    simulated_tensorrt.append(1)  # an engine that "auto" would not use
    assert open_runtime(info, device="tensorrt", precision=precision).precision == precision


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
from ctxseg_ros.model.model_file import read_model_info
from ctxseg_ros.inference.runtimes import open_runtime

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
