# SPDX-License-Identifier: Apache-2.0
"""Clusters get names: by labelled frames, or by a person with a sheet of examples."""

import hashlib
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import yaml
from onnx import TensorProto

from ctxseg_ros.inference.runtimes import open_runtime
from ctxseg_ros.model.model_file import ModelInfo, read_model_info
from ctxseg_ros.model.store import load
from tests.training.data.test_frames import raw, write_bag
from training.clusters import name_clusters as command
from training.clusters.sheet import _examples
from training.data.camvid import CLASSES
from training.data.frames import open_frames

pytestmark = pytest.mark.slow

SIZE = (96, 160)


#: R + G + B where each cluster is most probable, and how far off it is less so.
CENTRES = 76.5 + 153 * np.arange(5)
WIDTH = 150.0


def with_logits(model: onnx.ModelProto) -> None:
    """Make a tiny model end as networks do, in a softmax over clusters."""
    graph, node = model.graph, onnx.helper.make_node
    constants = {
        "centres": CENTRES.astype(np.float32),
        "slope": np.array(-1 / WIDTH**2, np.float32),
        "byte": np.array(255, np.float32),
        "half": np.array(0.5, np.float32),
    }
    light = [item for item in graph.node if item.output[0] in ("colours", "light")]
    del graph.node[:]
    graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in constants.items())
    graph.node.extend(
        [
            *light,
            node("Sub", ["light", "centres"], ["apart"]),
            node("Mul", ["apart", "apart"], ["squares"]),
            node("Mul", ["squares", "slope"], ["logits"]),
            node("ReduceMax", ["logits", "channel"], ["top"], keepdims=1),
            node("Sub", ["logits", "top"], ["below"]),
            node("Exp", ["below"], ["powers"]),
            node("ReduceSum", ["powers", "channel"], ["sum"], keepdims=0),
            node("Div", ["byte", "sum"], ["confident"]),
            node("Add", ["confident", "half"], ["rounded"]),
            node("Cast", ["rounded"], ["confidence"], to=TensorProto.UINT8),
            node("ArgMax", ["logits"], ["ids"], axis=-1, keepdims=0),
            node("Cast", ["ids"], ["labels"], to=TensorProto.UINT8),
        ]
    )


@pytest.fixture
def clusters(model_factory) -> Path:
    """Five clusters by brightness, the darkest 0; source has scores and a licence."""
    source = {"licence": {"data": "free"}, "scores": {"miou": 0.5}}
    options = {"name": "five", "size": SIZE, "source": source, "opset": 18}
    return model_factory(task="clusters", classes=5, edit=with_logits, **options)


@pytest.fixture
def labelled(tmp_path, street_frames) -> tuple[Path, Path]:
    """Two real frames at 96x160 and labels by brightness: 0 to 3, a strip of 11."""
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    for i, frame in enumerate(street_frames[:2]):
        frame = cv2.resize(frame, SIZE[::-1], interpolation=cv2.INTER_AREA)
        label = (frame.sum(-1) // 200).astype(np.uint8)
        label[:7] = 11
        cv2.imwrite(str(images / f"{i}.png"), frame[..., ::-1])
        cv2.imwrite(str(labels / f"{i}.png"), label)
    return images, labels


@pytest.fixture
def run(monkeypatch) -> Callable[..., int]:
    def call(*args: object) -> int:
        monkeypatch.setattr(sys, "argv", ["name_clusters", *map(str, args)])
        return command.main()

    return call


@pytest.fixture
def said(street_frames) -> Callable[[Path, str], list]:
    """said(path, device) -> predictions of the street frames at SIZE."""

    def predict(path: Path, device: str = "cpu") -> list:
        runtime = open_runtime(read_model_info(path), SIZE, device, precision="fp32")
        found = [runtime.run(cv2.resize(frame, SIZE[::-1])) for frame in street_frames]
        runtime.close()
        return found

    return predict


def slow_majority(path: Path, images: Path, labels: Path, ignore: int) -> dict[int, int]:
    runtime = open_runtime(read_model_info(path), SIZE, "cpu")
    pairs: Counter = Counter()
    for file in sorted(images.iterdir()):
        found = runtime.run(cv2.imread(str(file))[..., ::-1].copy()).labels
        truth = cv2.imread(str(labels / file.name), cv2.IMREAD_GRAYSCALE)
        for cluster, label in zip(found.ravel().tolist(), truth.ravel().tolist(), strict=True):
            if label != ignore:
                pairs[cluster, label] += 1
    runtime.close()
    return {
        cluster: max((n, label) for (c, label), n in pairs.items() if c == cluster)[1]
        for cluster in {c for c, _ in pairs}
    }


# The graph


def write_named(info: ModelInfo, table: list[int], out: Path) -> ModelInfo:
    count = max(set(table) - {255}) + 1
    classes = tuple(command.ClassInfo(i, f"c{i}", (i, 0, 0)) for i in range(count))
    command.write_named(info, command.Naming(classes, np.array(table, np.uint8), {}), out, "named")
    return read_model_info(out)


def slow_shares(logits: np.ndarray, table: list[int]) -> dict[int, np.ndarray]:
    """The probability [H, W] of each class, of logits [H, W, K]."""
    powers = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    total = powers.sum(-1)
    shares: dict[int, np.ndarray] = {}
    for cluster, name in enumerate(table):
        shares[name] = shares.get(name, 0) + powers[..., cluster] / total
    return shares


def check_named(found, logits: np.ndarray, table: list[int]) -> None:
    """Labels and confidence are those of the summed probabilities, as far as floats tell."""
    shares = slow_shares(logits, table)
    best = np.max(list(shares.values()), axis=0)
    assert set(np.unique(found.labels)) <= set(shares)
    of_label = sum(np.where(found.labels == name, share, 0) for name, share in shares.items())
    np.testing.assert_allclose(of_label, best, atol=1e-4)
    wanted = np.where(found.labels == 255, 0, 255 * best)
    assert np.abs(found.confidence - wanted).max() < 0.51


TABLES = ([0, 1, 0, 2, 0], [2, 255, 255, 0, 5])


@pytest.mark.parametrize("device", ["cpu", "openvino"])
@pytest.mark.parametrize("table", TABLES)
def test_a_class_has_the_probability_of_all_its_clusters(
    clusters, said, street_frames, tmp_path, table, device
):
    named = write_named(read_model_info(clusters), table, tmp_path / "named.onnx")
    before, after = said(clusters, device), said(named.path, device)
    for frame, found in zip(street_frames, after, strict=True):
        light = cv2.resize(frame, SIZE[::-1]).sum(-1, dtype=np.float64)
        check_named(found, -(((light[..., None] - CENTRES) / WIDTH) ** 2), table)
    # The cluster of greatest probability is not always one of the class of greatest probability.
    firsts = [np.array(table)[p.labels] for p in before]
    assert any((left != p.labels).any() for left, p in zip(firsts, after, strict=True))
    assert len({int(i) for p in after for i in np.unique(p.labels)}) == len(set(table))


@pytest.mark.parametrize("device", ["cpu", "openvino"])
def test_a_trained_model_is_named_by_its_logits(street_frames, tmp_path, device):
    table = [0, 255, 1, 1, 0, 2, 2, 2, 0]
    info = load("wnet")
    model = onnx.load(info.path)
    (top,) = (node for node in model.graph.node if node.op_type == "ArgMax")
    del model.graph.output[:]
    model.graph.output.append(
        onnx.helper.make_tensor_value_info(top.input[0], TensorProto.FLOAT, [1, "h", "w", 9])
    )
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    named = write_named(info, table, tmp_path / "named.onnx")
    runtime = open_runtime(named, info.size, device, precision="fp32")
    for frame in street_frames[:2]:
        frame = cv2.resize(frame, info.size[::-1], interpolation=cv2.INTER_AREA)
        check_named(runtime.run(frame), session.run(None, {"image": frame[None]})[0][0], table)
    runtime.close()


def test_no_operator_but_a_cast_sees_a_byte_and_nothing_is_left_over(clusters):
    """TensorRT has bytes at the two ends of a graph only."""
    model = onnx.load(clusters)
    command.sum_by_class(model, np.array([0, 1, 0, 255, 1], np.uint8))
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    assert TensorProto.UINT8 not in types.values() and len(types) > 5
    made = {output for node in model.graph.node for output in node.output}
    read = {name for node in model.graph.node for name in node.input}
    assert made | {tensor.name for tensor in model.graph.initializer} == (
        read - {"image"} | {"labels", "confidence"}
    )


def without_exponents(model: onnx.ModelProto) -> None:
    with_logits(model)
    (node,) = (node for node in model.graph.node if node.op_type == "Exp")
    node.op_type = "Sqrt"


def with_classes_first(model: onnx.ModelProto) -> None:
    with_logits(model)
    (node,) = (node for node in model.graph.node if node.op_type == "ArgMax")
    next(item for item in node.attribute if item.name == "axis").i = 1


@pytest.mark.parametrize("edit", [None, without_exponents, with_classes_first])
def test_a_model_without_logits_is_refused_before_any_work(
    run, model_factory, tmp_path, capsys, edit
):
    model = model_factory(task="clusters", classes=5, opset=18, edit=edit)
    for args in (("--sheet", tmp_path / "s"), ("--labels", "none", "--out", tmp_path / "x.onnx")):
        assert run("--model", model, "--images", "none", *args) == 2
        error = capsys.readouterr().err
        assert "has no logits" in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


# By labels


def test_labels_name_clusters_by_majority(run, clusters, labelled, said, tmp_path, capsys):
    images, labels = labelled
    out = tmp_path / "named.onnx"
    options = ("--images", images, "--labels", labels, "--classes", "camvid")
    assert run("--model", clusters, *options, "--out", out) == 0
    report = capsys.readouterr().out
    assert "11 classes from 5 clusters" in report and "there: mIoU 0." in report
    info = read_model_info(out)
    assert (info.name, info.task, info.size) == ("named", "semantic", SIZE)
    # The ids are those of the labels, so that these can score the model.
    assert [(c.name, c.colour) for c in info.classes] == list(CLASSES)
    naming = slow_majority(clusters, images, labels, 11)
    assert len(naming) == 5 and len(set(naming.values())) > 1
    table = [naming[i] for i in range(5)]
    whole = write_named(read_model_info(clusters), table, tmp_path / "whole.onnx")
    for left, right in zip(said(whole.path), said(out), strict=True):
        np.testing.assert_array_equal(left.labels, right.labels)
    assert "scores" not in info.source and info.source["licence"] == {"data": "free"}
    named = info.source["named"]
    assert (named["model"], named["labels"], named["images"]) == ("five", "camvid", 2)
    assert "research use" in named["terms"]
    # The scores are those of the model that was written.
    runtime, hits = open_runtime(info, SIZE, "cpu"), []
    for file in images.iterdir():
        found = runtime.run(cv2.imread(str(file))[..., ::-1].copy()).labels
        truth = cv2.imread(str(labels / file.name), cv2.IMREAD_GRAYSCALE)
        hits.append((found == truth)[truth != 11])
    runtime.close()
    assert named["pixel_accuracy"] == pytest.approx(np.concatenate(hits).mean(), abs=1e-6)
    assert f"pixel accuracy {named['pixel_accuracy']:.4f}" in report


def test_classes_without_names_are_called_by_number(run, clusters, labelled, tmp_path):
    images, labels = labelled
    out = tmp_path / "named.onnx"
    options = ("--images", images, "--labels", labels, "--ignore", 11)
    assert run("--model", clusters, *options, "--out", out, "--name", "numbers") == 0
    info = read_model_info(out)
    assert info.name == "numbers"
    assert [c.name for c in info.classes] == [f"class {i}" for i in range(4)]
    assert len({c.colour for c in info.classes}) == 4


def test_a_cluster_that_no_label_meets_is_unlabelled(clusters, labelled):
    images, labels = labelled
    for file in labels.iterdir():
        label = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
        image = cv2.imread(str(images / file.name)).astype(int)
        label[image.sum(-1) > 150] = 255  # only the darkest are labelled
        cv2.imwrite(str(file), label)
    pairs = command.pair_files(images, labels)
    truth = command.Truth(pairs, 11, device="cpu")
    naming = command.name_by_labels(read_model_info(clusters), truth)
    assert naming.table.tolist() == [0, 255, 255, 255, 255]


# By a person


def names_file(folder: Path, content: object) -> Path:
    path = folder / "names.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def test_names_and_colours_of_a_file(run, clusters, said, tmp_path, capsys):
    info = read_model_info(clusters)
    listed = {0: "road", 1: None, 2: "sky", 3: "road"}  # 4 is left out
    names = names_file(tmp_path, {"clusters": listed, "colours": {"sky": [1, 2, 3]}})
    out = tmp_path / "named.onnx"
    assert run("--model", clusters, "--names", names, "--out", out) == 0
    report = capsys.readouterr().out
    assert "road: 0 3" in report and "unlabelled: 1 4" in report
    named = read_model_info(out)
    assert [(c.id, c.name) for c in named.classes] == [(0, "road"), (1, "sky")]
    assert [c.colour for c in named.classes] == [info.classes[0].colour, (1, 2, 3)]
    assert named.source["named"]["names"] == "names.yaml"
    found = np.unique([p.labels for p in said(out)])
    assert found.tolist() == [0, 1, 255]


def test_sheet_shows_each_cluster_and_its_file_can_be_filled_in(run, clusters, labelled, tmp_path):
    folder = tmp_path / "sheet"
    images, _ = labelled
    assert run("--model", clusters, "--images", images, "--sheet", folder) == 0
    sheet = cv2.imread(str(folder / "clusters.png"))[..., ::-1]
    info = read_model_info(clusters)
    assert sheet.shape[0] % 5 == 0
    for item, row in zip(info.classes, np.split(sheet, 5), strict=True):
        assert tuple(row[20, 20]) == item.colour  # the swatch
        examples = row[:, 150:]
        assert (examples == item.colour).all(-1).any()  # the outline
    form = (folder / "names.yaml").read_text()
    content = yaml.safe_load(form)
    sha256 = hashlib.sha256(clusters.read_bytes()).hexdigest()
    model = f"five {sha256[:12]}"
    assert content == {"model": model, "clusters": dict.fromkeys(range(5)), "colours": {}}
    out = tmp_path / "named.onnx"
    (folder / "names.yaml").write_text(
        form.replace("  1:", "  1: kerb").replace("  2:", "  2: kerb")
    )
    assert run("--model", clusters, "--names", folder / "names.yaml", "--out", out) == 0
    assert [c.name for c in read_model_info(out).classes] == ["kerb"]


def test_examples_are_the_frames_that_show_most_of_a_cluster(clusters, tmp_path):
    """Grey frames, each with a bright square of another size; cluster 4 is the brightest."""
    sides = [8, 40, 24, 64, 16, 48, 32]
    for i, side in enumerate(sides):
        frame = np.full((*SIZE, 3), 20, np.uint8)
        frame[:side, :side] = 250
        cv2.imwrite(str(tmp_path / f"{i}.png"), frame)
    frames = open_frames(tmp_path)
    best, shares = _examples(read_model_info(clusters), frames, None, "cpu")
    assert [example.frame for example in best[4]] == [3, 5, 1, 6, 2]
    area = sum(side**2 for side in sides) / (len(sides) * SIZE[0] * SIZE[1])
    assert shares == pytest.approx([1 - area, 0, 0, 0, area])
    assert not best[1]


def test_bad_input_is_one_line_and_writes_nothing(
    run, clusters, labelled, model_factory, tmp_path, capsys
):
    images, labels = labelled
    out = tmp_path / "x.onnx"
    semantic = model_factory(task="semantic", name="known")

    def refused(said: str, *args: object) -> None:
        assert run(*args) == 2
        error = capsys.readouterr().err
        assert said in error and error.startswith("name_clusters: ") and error.count("\n") == 1
        assert not out.exists()

    for content, cause in (
        ({"clusters": {5: "x"}}, "five has no cluster 5; its clusters are 0 to 4"),
        ({"clusters": {"road": 1}}, "five has no cluster 'road'"),
        ({"clusters": {0: None, 1: ""}}, "no cluster has a name"),
        ({"clusters": {0: True}}, "the name True of cluster 0 is no printable text"),
        ({"clusters": {0: "a"}, "colours": {"a": [0, 0, 256]}}, "of 'a' is not [red, green"),
        ({"clusters": {0: "a"}, "colours": {"b": [0, 0, 0]}}, "'b', which no cluster is called"),
        ({"clusters": {0: "a"}, "colours": [1]}, "'colours' is no mapping"),
        ({"clusters": {0: "a"}, "classes": {}}, "unknown key 'classes'"),
        ({"names": {}}, "no mapping 'clusters'"),
        ({"model": "four 0123", "clusters": {0: "a"}}, "names for four 0123, not for five "),
        ("clusters: {0: road, 0: car}", "the key 0 is there more than once"),
        ("clusters: {0: a}\nclusters: {1: b}", "the key 'clusters' is there more than once"),
        ("clusters: {0: [", "no valid YAML"),
    ):
        names = names_file(tmp_path, content)
        refused(cause, "--model", clusters, "--names", names, "--out", out)
        names.unlink()
    refused("none.yaml: cannot be read", "--model", clusters, "--names", "none.yaml", "--out", out)
    usual = ("--images", images, "--labels", labels, "--out", out)
    refused("known is a model of task semantic", "--model", semantic, *usual)
    refused("of task semantic", "--model", semantic, "--images", images, "--sheet", tmp_path / "s")
    assert not (tmp_path / "s").exists()
    sheet = ("--model", clusters, "--images", images, "--sheet", tmp_path / "s")
    refused("topic /camera was given, but there is no bag", *sheet, "--topic", "/camera")
    refused("stride is 0", *sheet, "--stride", 0)
    for file in labels.iterdir():
        cv2.imwrite(str(file), np.full(SIZE, 11, np.uint8))
    refused("never meet a cluster", "--model", clusters, *usual, "--ignore", 11)
    names_file(tmp_path, "kept")
    refused("is there already", "--model", clusters, "--images", images, "--sheet", tmp_path)


def test_what_cannot_be_written_is_refused_before_any_work(run, tmp_path, capsys):
    for out, cause in (
        ("x", "a model file ends in .onnx"),
        ("no/x.onnx", "its folder does not exist"),
        ("x y.onnx", "a model cannot be called 'x y': give --name"),
    ):
        # There are no such images, names or model: nothing was looked for.
        for how in (("--images", "none", "--labels", "none"), ("--names", "none")):
            assert run("--model", "none", *how, "--out", tmp_path / out) == 2
            error = capsys.readouterr().err
            assert cause in error and error.count("\n") == 1


def test_a_sheet_of_a_bag_with_two_topics_and_broken_messages(
    run, clusters, street_frames, tmp_path, capsys, caplog
):
    frames = [cv2.resize(frame, SIZE[::-1]) for frame in street_frames]
    broken = raw(frames[0])
    broken.height += 1
    topics = {"/left": [raw(f) for f in frames[:2]], "/right": [*map(raw, frames[2:]), broken]}
    bag = write_bag(tmp_path / "bag", topics)
    options = ("--model", clusters, "--images", bag, "--sheet", tmp_path / "sheet")
    assert run(*options) == 2
    assert "choose one with --topic NAME" in capsys.readouterr().err
    assert run(*options, "--topic", "/right", "--stride", 2) == 0
    assert "left out: " in caplog.text
    folder = tmp_path / "images"
    folder.mkdir()
    for i in (2, 4):
        cv2.imwrite(str(folder / f"{i}.png"), frames[i][..., ::-1])
    options = ("--model", clusters, "--images", folder, "--sheet", tmp_path / "other")
    assert run(*options) == 0 and not capsys.readouterr().err
    left, right = (cv2.imread(str(tmp_path / s / "clusters.png")) for s in ("sheet", "other"))
    assert left.shape == right.shape
    assert np.abs(left.astype(int) - right).mean() < 3  # the bag's frames are kept as JPEG


def test_options_that_do_not_go_together_are_refused(run, clusters, tmp_path, capsys):
    for args in (
        ("--labels", tmp_path, "--out", "x.onnx"),
        ("--names", "x.yaml"),
        ("--sheet", tmp_path),
        ("--names", "x.yaml", "--sheet", tmp_path, "--out", "x.onnx"),
        ("--out", "x.onnx"),
    ):
        with pytest.raises(SystemExit) as stop:
            run("--model", clusters, *args)
        assert stop.value.code == 2
    capsys.readouterr()
