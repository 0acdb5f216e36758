# SPDX-License-Identifier: Apache-2.0
"""Paths below $CTXSEG_DATA and $CTXSEG_WEIGHTS."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from training.data.files import DataError
from training.places import PlaceError, end, expanded

CONFIGS = Path(__file__).resolve().parents[2] / "training" / "configs"


@pytest.fixture
def unset(monkeypatch):
    for name in ("CTXSEG_DATA", "CTXSEG_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_variables_are_filled_in(unset):
    unset.setenv("CTXSEG_DATA", "/data sets")
    assert expanded("$CTXSEG_DATA/camvid/val") == Path("/data sets/camvid/val")
    assert expanded("$CTXSEG_DATA") == Path("/data sets")
    assert expanded("$CTXSEG_WEIGHTS/x.pth") == Path("/data sets/weights/x.pth")
    unset.setenv("CTXSEG_WEIGHTS", "/w")
    assert expanded("$CTXSEG_WEIGHTS/x.pth") == Path("/w/x.pth")
    unset.setenv("HOME", "/home/anna")
    assert expanded("~/x") == Path("/home/anna/x")


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("name", ["CTXSEG_DATA", "CTXSEG_WEIGHTS"])
def test_what_is_not_set_is_named_with_the_option(unset, name, empty):
    if empty:
        unset.setenv(name, "")
    with pytest.raises(PlaceError, match=rf"{name}.*--data\.init_args\.root"):
        expanded(f"${name}/camvid", "--data.init_args.root")


@given(st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1))
def test_other_paths_stay_as_they_are(text):
    if not text.startswith(("~", "$CTXSEG_")):
        assert expanded(text) == Path(text)
    assert expanded(f"x/$CTXSEG_DATA/{text}") == Path(f"x/$CTXSEG_DATA/{text}")
    assert expanded(f"$CTXSEG_DATASETS/{text}") == Path(f"$CTXSEG_DATASETS/{text}")


def test_the_end_of_a_path_names_no_folder_above():
    assert end("$CTXSEG_DATA/natural") == "natural"
    assert end("/home/anna/data/camvid/train/images") == "camvid/train/images"
    assert end("../x/./y") == "x/y" and end("a/b/c", 2) == "b/c"


def values(node) -> list:
    if isinstance(node, dict | list):
        children = node.values() if isinstance(node, dict) else node
        return [leaf for child in children for leaf in values(child)]
    return [node]


@pytest.mark.parametrize("recipe", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_recipes_name_no_folder_of_one_machine(recipe):
    text = (CONFIGS / f"{recipe}.yaml").read_text()
    assert not [v for v in values(yaml.safe_load(text)) if str(v).startswith(("/", "..", "~"))]


@pytest.mark.slow
def test_each_reader_expands_its_paths(unset, tmp_path, small_camvid, street_frames):
    import cv2

    from training.data.frames import open_frames
    from training.data.module import CamVid
    from training.data.own import find_label_set, own_pairs
    from training.networks.weights import read_weights

    readers = (
        lambda: open_frames("$CTXSEG_DATA/val/images"),
        lambda: find_label_set("$CTXSEG_DATA/classes.yaml"),
        lambda: own_pairs("$CTXSEG_DATA", "val"),
        lambda: CamVid("$CTXSEG_DATA"),
    )
    for read in readers:
        with pytest.raises((PlaceError, DataError), match="CTXSEG_DATA is not set"):
            read()
    with pytest.raises(PlaceError, match="CTXSEG_WEIGHTS is not set"):
        read_weights("$CTXSEG_WEIGHTS/x.pth")
    for part in ("images", "labels"):
        (tmp_path / "val" / part).mkdir(parents=True)
        (tmp_path / "train" / part).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "val" / part / "0.png"), street_frames[0][:64, :64] // 200)
    (tmp_path / "classes.yaml").write_text("[road, sky]")
    unset.setenv("CTXSEG_DATA", str(tmp_path))
    assert len(open_frames("$CTXSEG_DATA/val/images")) == 1
    assert find_label_set("$CTXSEG_DATA/classes.yaml").classes[0][0] == "road"
    assert own_pairs("$CTXSEG_DATA", "val")[0].image.parent == tmp_path / "val" / "images"
    unset.setenv("CTXSEG_DATA", str(small_camvid))
    frames = CamVid("$CTXSEG_DATA")
    frames.setup("fit")
    assert len(frames.train) == 8


@pytest.mark.slow
def test_a_recipe_without_the_variables_ends_in_one_line(unset, capfd):
    from training.__main__ import main

    recipe = f"--config={CONFIGS / 'unet_camvid.yaml'}"
    assert main(["fit", recipe, "--trainer.fast_dev_run=1", "--model.init_args.width=0.1"]) == 2
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith("training: $CTXSEG_DATA/camvid: ")
    assert "CTXSEG_DATA is not set" in said and "--data.init_args.root" in said


@pytest.mark.slow
def test_export_names_the_variable_and_its_option(unset, tmp_path, call, capsys):
    from training.export import checkpoint

    assert call(checkpoint, tmp_path / "x.ckpt", "--out", tmp_path / "x.onnx") == 2
    said = capsys.readouterr().err
    assert "CTXSEG_DATA is not set" in said and "--frames" in said
