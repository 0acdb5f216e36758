# SPDX-License-Identifier: Apache-2.0
"""A model at several sizes, and what becomes of its predictions."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ctxseg_ros.inference import engine as engine_module
from ctxseg_ros.inference.engine import Engine, EngineSpec, adapted, open_engine, reopened
from ctxseg_ros.inference.runtimes import RuntimeUnavailable, open_runtime
from ctxseg_ros.model import store
from ctxseg_ros.model.label_groups import LabelGroupsError
from ctxseg_ros.model.model_file import ModelFileError
from ctxseg_ros.model.prediction import Prediction

LOG = logging.getLogger("test")
GROUPS = """
groups:
- {name: light, colour: [200, 100, 0], classes: [class 2, class 3]}
- {name: rest, colour: [0, 50, 250], classes: rest}
unlabelled: [class 0]
"""


@pytest.fixture
def spec(model_factory: Callable[..., Path]) -> EngineSpec:
    return EngineSpec(str(model_factory()), "cpu", ((64, 96), (32, 48)), "")


@pytest.fixture
def groups(tmp_path: Path) -> str:
    path = tmp_path / "groups.yaml"
    path.write_text(GROUPS)
    return str(path)


def test_every_size_is_open_and_measured_on_one_device(spec: EngineSpec) -> None:
    engine = open_engine(dataclasses.replace(spec, device="auto"), LOG)
    assert [runtime.size for runtime in engine.runtimes] == [(64, 96), (32, 48)]
    assert {runtime.device for runtime in engine.runtimes} == {engine.device}
    assert len(engine.costs_ms) == 2 and min(engine.costs_ms) > 0
    assert engine.heads == 0 and len(engine.classes) == 4
    engine.close()
    with pytest.raises(RuntimeError):
        engine.runtimes[1].run(np.zeros((32, 48, 3), np.uint8))


def test_without_sizes_it_is_the_models_own(
    spec: EngineSpec, model_factory: Callable[..., Path]
) -> None:
    for options in ({}, {"fixed": True}):
        own = EngineSpec(str(model_factory(size=(48, 80), **options)), "cpu", (), "")
        assert [runtime.size for runtime in open_engine(own, LOG).runtimes] == [(48, 80)]


def test_an_attention_model_tells_its_heads(model_factory: Callable[..., Path]) -> None:
    spec = EngineSpec(str(model_factory(task="attention")), "cpu", (), "")
    assert open_engine(spec, LOG).heads == 3


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"model": "nonsense"}, ModelFileError, "no model is called"),
        ({"device": "tensorrt"}, RuntimeUnavailable, "cannot run on tensorrt"),
        ({"input_sizes": ((64, 90),)}, ValueError, "multiples of 16"),
        ({"input_sizes": ((32, 48), (64, 96))}, ValueError, "largest to the smallest"),
        ({"input_sizes": ((32, 48), (32, 48))}, ValueError, "each once"),
        ({"label_groups": "missing.yaml"}, LabelGroupsError, "missing.yaml"),
    ],
)
def test_what_cannot_be_is_refused(
    spec: EngineSpec, change: dict, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        open_engine(dataclasses.replace(spec, **change), LOG)


def test_sizes_of_one_area_may_follow_each_other(spec: EngineSpec) -> None:
    engine = open_engine(dataclasses.replace(spec, input_sizes=((64, 48), (48, 64))), LOG)
    assert len(engine.runtimes) == 2


def test_what_is_open_is_closed_if_a_later_size_fails(
    spec: EngineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def open_twice(*arguments: object) -> object:
        if opened:
            raise MemoryError("too large")
        opened.append(open_runtime(*arguments))  # type: ignore[arg-type]
        return opened[0]

    monkeypatch.setattr(engine_module, "open_runtime", open_twice)
    with pytest.raises(MemoryError):
        open_engine(spec, LOG)
    with pytest.raises(RuntimeError):
        opened[0].run(np.zeros((64, 96, 3), np.uint8))


def test_groups_change_without_opening_the_model_again(spec: EngineSpec, groups: str) -> None:
    engine = open_engine(spec, LOG)
    grouped = adapted(engine, dataclasses.replace(spec, label_groups=groups))
    assert grouped.runtimes is engine.runtimes
    assert [item.name for item in grouped.classes] == ["light", "rest"]
    assert grouped.colours[:3].tolist() == [[200, 100, 0], [0, 50, 250], [0, 0, 0]]
    back = adapted(grouped, spec)
    assert back.classes == engine.classes and back.groups is None
    with pytest.raises(LabelGroupsError):
        adapted(engine, dataclasses.replace(spec, label_groups="missing.yaml"))


class FakeRefiner:
    """Takes its time by the pixels; unlabels all."""

    def __init__(self, kind: str, classes: int) -> None:
        self.kind, self.classes, self.closed = kind, classes, False

    def __call__(self, image: np.ndarray, prediction: Prediction, level: float) -> Prediction:
        assert prediction.labels.shape == image.shape[:2] and prediction.labels.max() < self.classes
        assert prediction.confidence.shape == image.shape[:2]
        return Prediction(np.full_like(prediction.labels, 255), np.zeros_like(prediction.labels))

    def close(self) -> None:
        self.closed = True


def test_refinement_changes_without_opening_the_model_again(
    spec: EngineSpec, groups: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "Refiner", FakeRefiner)
    plain = open_engine(spec, LOG)
    image = np.zeros((64, 96, 3), np.uint8)
    prediction = plain.runtimes[0].run(image)
    assert plain.refined(image, prediction, 0.5) is prediction
    assert plain.costs_ms == plain.inference_ms and plain.refine_ms == (0, 0)
    crf = adapted(plain, dataclasses.replace(spec, refinement="crf"))
    assert crf.runtimes is plain.runtimes and crf.refiner.kind == "crf"
    assert (crf.refined(image, prediction, 0.5).labels == 255).all()
    large, small = crf.refine_ms  # it goes with the pixels
    assert large == pytest.approx(4 * small) and small > 0
    assert crf.costs_ms == (plain.inference_ms[0] + large, plain.inference_ms[1] + small)
    grouped = adapted(crf, dataclasses.replace(crf.spec, label_groups=groups))
    assert grouped.refiner is crf.refiner and grouped.refine_ms == crf.refine_ms
    anew = reopened(crf, "cpu", LOG)
    assert anew.refiner is crf.refiner and anew.refine_ms == crf.refine_ms
    assert anew.runtimes is not crf.runtimes
    assert adapted(crf, spec).refiner is None
    crf.close()
    assert crf.refiner.closed


def test_attention_is_not_refined(model_factory: Callable[..., Path]) -> None:
    spec = EngineSpec(str(model_factory(task="attention")), "cpu", (), "", "crf")
    with pytest.raises(ValueError, match=r"tiny gives attention\. Set refinement to none"):
        open_engine(spec, LOG)


@pytest.fixture(scope="module")
def engines(
    model_factory: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> list[Engine]:
    """One without groups, one with."""
    path = tmp_path_factory.mktemp("groups") / "groups.yaml"
    path.write_text(GROUPS)
    plain = EngineSpec(str(model_factory()), "cpu", (), "")
    engine = open_engine(plain, LOG)
    return [engine, adapted(engine, dataclasses.replace(plain, label_groups=str(path)))]


@given(
    hnp.arrays(np.uint8, (6, 9), elements=st.integers(0, 3)),
    hnp.arrays(np.uint8, (6, 9)),
    st.sampled_from([0.0, 1.0]) | st.floats(0, 1),
    st.booleans(),
)
def test_finish_groups_and_unlabels_pixel_by_pixel(
    engines: list[Engine],
    labels: np.ndarray,
    confidence: np.ndarray,
    least: float,
    with_groups: bool,
) -> None:
    prediction = Prediction(labels=labels.copy(), confidence=confidence.copy())
    found = engines[with_groups].finish(prediction, 6, 9, least)
    table = {0: 255, 1: 1, 2: 0, 3: 0} if with_groups else {i: i for i in range(4)}
    for place in np.ndindex(labels.shape):
        label, sure = table[labels[place]], int(confidence[place])
        if label == 255:
            sure = 0
        assert found.confidence[place] == sure
        assert found.labels[place] == (255 if sure < least * 255 else label)


@pytest.mark.parametrize("size", [(1, 1), (6, 9), (50, 70), (3, 200)])
def test_finish_gives_the_cameras_size(engines: list[Engine], size: tuple[int, int]) -> None:
    plane = np.arange(54, dtype=np.uint8).reshape(6, 9) % 4
    for engine in engines:
        found = engine.finish(Prediction(plane.copy(), plane.copy()), *size, 0.01)
        assert found.labels.shape == found.confidence.shape == size


def test_finish_leaves_attention_on_its_grid(engines: list[Engine]) -> None:
    attention = np.ones((3, 2, 3), np.float32)
    found = engines[0].finish(Prediction(attention=attention), 60, 90, 0.5)
    assert found.labels is None and found.attention is attention


def test_automatic_sizes_are_sizes_that_the_model_takes(
    model_factory: Callable[..., Path],
) -> None:
    def sizes(**options: Any) -> tuple[tuple[int, int], ...]:
        return engine_module.automatic_sizes(store.load(model_factory(**options)))

    assert sizes(size=(352, 480)) == ((352, 480), (304, 416), (240, 336), (192, 256))
    assert sizes(size=(16, 16)) == ((16, 16),)
    assert sizes(fixed=True, size=(32, 48)) == ((32, 48),)
