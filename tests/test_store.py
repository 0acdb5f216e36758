# SPDX-License-Identifier: Apache-2.0
"""From a name to a checked file."""

import hashlib

import pytest

from ctxseg_ros import store
from ctxseg_ros.model_file import ModelFileError


@pytest.fixture
def shipped(model_factory, tmp_path, monkeypatch):
    """A models folder with the models "a" and "b", which `store` takes for the shipped one."""
    lines = []
    for name in ("b", "a"):
        path = model_factory(name=name, path=tmp_path / f"{name}.onnx")
        lines.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}.onnx\n")
    (tmp_path / store.SUMS).write_text("".join(lines))
    monkeypatch.setattr(store, "models_dir", lambda: tmp_path)
    return tmp_path


def test_names_are_sorted_and_found(shipped):
    assert store.model_names() == ["a", "b"]
    assert store.find_model("a") == shipped / "a.onnx"
    assert store.load("b").name == "b"


def test_path_is_taken_as_a_file(shipped, model_factory):
    path = model_factory(name="c")
    assert store.find_model(path) == path
    assert store.load(str(path)).name == "c"


def test_home_is_expanded(model_factory, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = model_factory(path=tmp_path / "mine.onnx")
    assert store.find_model("~/mine.onnx") == path


def test_unknown_name_lists_the_names(shipped):
    with pytest.raises(store.UnknownModelError, match=r"no model is called 'c'; .*: a, b. Use one"):
        store.load("c")


def test_missing_path_is_not_taken_for_a_name(shipped):
    with pytest.raises(ModelFileError, match=r"c\.onnx: there is no such file") as caught:
        store.load("c.onnx")
    assert not isinstance(caught.value, store.UnknownModelError)


def test_damaged_shipped_model_is_refused_with_both_sums(shipped):
    good = hashlib.sha256((shipped / "a.onnx").read_bytes()).hexdigest()
    (shipped / "a.onnx").write_bytes((shipped / "b.onnx").read_bytes())
    bad = hashlib.sha256((shipped / "a.onnx").read_bytes()).hexdigest()
    with pytest.raises(ModelFileError, match=f"is {bad}, it shipped with {good}. Reinstall"):
        store.load("a")


def test_shipped_model_without_a_sum_is_refused(shipped):
    (shipped / store.SUMS).write_text("")
    with pytest.raises(ModelFileError, match=r"not listed in SHA256SUMS .* Reinstall"):
        store.load("a")
    (shipped / store.SUMS).unlink()
    with pytest.raises(ModelFileError, match=r"SHA256SUMS: cannot be read: No such .* Reinstall"):
        store.load("a")


def test_every_shipped_model_is_intact_and_has_its_name_and_card():
    for name in store.model_names():
        assert store.load(name).name == name
        assert (store.models_dir() / f"{name}.md").is_file()
