# SPDX-License-Identifier: Apache-2.0
"""From a name to a checked file."""

import hashlib
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctxseg_ros.model import store
from ctxseg_ros.model.model_file import ModelFileError


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


@pytest.mark.parametrize(
    ("given", "cause", "hint"),
    [
        ("segmenter_tin", "no model is called 'segmenter_tin'", "Did you mean segmenter_tiny?"),
        ("Segmenter_Tiny", "no model is called", "Did you mean segmenter_tiny?"),
        ("segmenter_tiny.onnx", "no such file", "Did you mean segmenter_tiny, without .onnx"),
        ("mine", "no model is called 'mine'", "mine.onnx exists"),
        ("./mine", "no such file", "Did you mean mine.onnx?"),
        ("min.onnx", "no such file", "Did you mean mine.onnx?"),
        ("sub/nothing.onnx", "no such file", "Check the path"),
        ("folder", "no model is called", "folder is a folder"),
        ("folder/", "is a folder", "a.onnx, b.onnx"),
        ("x.onnx", "is a folder", "Give the .onnx file itself"),
        ("weights.pt", "no model is called", "does not end so"),
        ("weights.pt/a.onnx", "is a file, not a folder", "Check the path"),
        ("dangling.onnx", "a link to nothing", "Give the .onnx file itself"),
        ("pipe.onnx", "not a regular file", "Give the .onnx file itself"),
        ("~nobody-of-this-name/a.onnx", "no user is called 'nobody-of-this-name'", "Check"),
        ("a" * 300 + ".onnx", "File name too long", "Check the path"),
        ("a\0b.onnx", "no such file", "Check the path"),
        ("", "no model is called ''", "Use one of these names"),
    ],
)
def test_what_is_no_model_is_refused_with_the_cause(
    given, cause, hint, model_factory, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "x.onnx").mkdir()
    for name in ("mine.onnx", "folder/a.onnx", "folder/b.onnx"):
        model_factory(path=tmp_path / name)
    (tmp_path / "weights.pt").touch()
    (tmp_path / "dangling.onnx").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(ModelFileError) as caught:
        store.load(given)
    assert cause in str(caught.value) and hint in str(caught.value)


@pytest.fixture
def unprivileged():
    """Root may read everything, so it acts as somebody else."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def closed_file(model_factory):
    """A model file that nobody but root may read, in a folder that everybody may."""
    with tempfile.TemporaryDirectory() as folder:
        path = model_factory(path=Path(folder, "mine.onnx"))
        path.chmod(0)
        Path(folder).chmod(0o755)
        yield path


@pytest.fixture
def closed_folder(model_factory):
    with tempfile.TemporaryDirectory() as folder:
        path = model_factory(path=Path(folder, "mine.onnx"))
        Path(folder).chmod(0)
        yield path
        Path(folder).chmod(0o700)


@pytest.mark.parametrize("place", ["closed_file", "closed_folder"])
def test_a_model_that_may_not_be_read_is_refused_with_the_cause(place, request):
    path = request.getfixturevalue(place)
    request.getfixturevalue("unprivileged")
    with pytest.raises(ModelFileError, match=r"Permission denied.*the right to read it"):
        store.load(path)


def test_a_name_that_is_not_utf_8_is_opened_and_shown(model_factory, tmp_path):
    good = model_factory(path=tmp_path / os.fsdecode(b"caf\xe9.onnx"))
    assert store.load(str(good)).name == "tiny"
    good.write_bytes(b"")
    for path in (good, tmp_path / os.fsdecode(b"th\xe9.onnx")):
        with pytest.raises(ModelFileError, match=r"\\xe9\.onnx: ") as caught:
            store.load(path)
        str(caught.value).encode()


NAMES = st.one_of(
    st.text(),
    st.binary().map(os.fsdecode),
    st.from_regex(r"[~./a-c]{1,6}(\.onnx)?", fullmatch=True),
)


@given(NAMES)
def test_every_name_gives_a_model_or_the_cause_in_text(name):
    try:
        assert store.find_model(name).is_file()
    except ModelFileError as error:
        str(error).encode()


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
