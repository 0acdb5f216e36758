# SPDX-License-Identifier: Apache-2.0
"""Clusters get names: by labelled frames, or by a person with a sheet of examples."""

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

from ctxseg_ros.model_file import read_model_info
from ctxseg_ros.runtimes import open_runtime
from training import name_clusters as command
from training.cluster_sheet import _examples
from training.data.camvid import CLASSES

SIZE = (96, 160)


@pytest.fixture
def clusters(model_factory) -> Path:
    """Five clusters by brightness, the darkest 0; source has scores and a licence."""
    source = {"licence": {"data": "free"}, "scores": {"miou": 0.5}}
    return model_factory(task="clusters", classes=5, name="five", size=SIZE, source=source)


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
        runtime = open_runtime(read_model_info(path), SIZE, device)
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


# The lookup


@pytest.mark.parametrize("device", ["cpu", "openvino"])
@pytest.mark.parametrize("table", [[2, 0, 2, 1, 0], [255, 0, 255, 1, 0]])
def test_labels_are_those_of_a_lookup_on_real_frames(clusters, said, tmp_path, table, device):
    full = np.full(256, 255, np.uint8)
    full[:5] = table
    info = read_model_info(clusters)
    count = len(set(table) - {255})
    classes = tuple(command.ClassInfo(i, f"c{i}", (i, 0, 0)) for i in range(count))
    out = tmp_path / "named.onnx"
    command.write_named(info, command.Naming(classes, full, {}), out, "named")
    before, after = said(clusters, device), said(out, device)
    assert len({int(i) for p in before for i in np.unique(p.labels)}) == 5
    for left, right in zip(before, after, strict=True):
        np.testing.assert_array_equal(right.labels, full[left.labels])
        known = full[left.labels] != 255
        np.testing.assert_array_equal(right.confidence, np.where(known, left.confidence, 0))


def test_no_operator_but_a_cast_sees_a_byte(clusters, tmp_path):
    """TensorRT has bytes at the two ends of a graph only."""
    model = onnx.load(clusters)
    command.add_lookup(model, np.arange(256, dtype=np.uint8))
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    assert TensorProto.UINT8 not in types.values() and len(types) > 5


def test_an_output_that_ends_in_no_cast_is_looked_up_all_the_same(clusters, street_frames):
    model = onnx.load(clusters)
    for node in model.graph.node:
        if node.output[0] == "labels":
            node.output[0] = "first"
    model.graph.node.append(onnx.helper.make_node("Identity", ["first"], ["labels"]))
    before = model.SerializeToString()
    table = np.arange(256, dtype=np.uint8)[::-1].copy()
    command.add_lookup(model, table)
    frame = cv2.resize(street_frames[0], SIZE[::-1])[None]
    sessions = [
        onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        for data in (before, model.SerializeToString())
    ]
    left, right = (s.run(["labels"], {"image": frame})[0] for s in sessions)
    np.testing.assert_array_equal(right, table[left])


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
    for left, right in zip(said(clusters), said(out), strict=True):
        expected = np.vectorize(naming.__getitem__)(left.labels)
        np.testing.assert_array_equal(right.labels, expected)
    assert "scores" not in info.source and info.source["licence"] == {"data": "free"}
    named = info.source["named"]
    assert (named["model"], named["labels"], named["images"]) == ("five", "camvid", 2)
    assert "research use" in named["terms"]


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
    naming = command.name_by_labels(read_model_info(clusters), pairs, 11, device="cpu")
    assert naming.table[:5].tolist() == [0, 255, 255, 255, 255]


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
    assert content == {"clusters": dict.fromkeys(range(5)), "colours": {}}
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
    frames = command.open_frames(tmp_path)
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
        assert run(*args) == 1
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
    refused("its folder does not exist", "--model", clusters, *usual[:4], "--out", "no/x.onnx")
    for file in labels.iterdir():
        cv2.imwrite(str(file), np.full(SIZE, 11, np.uint8))
    refused("never meet a cluster", "--model", clusters, *usual, "--ignore", 11)
    names_file(tmp_path, "kept")
    refused("is there already", "--model", clusters, "--images", images, "--sheet", tmp_path)


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
