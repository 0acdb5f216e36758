# SPDX-License-Identifier: Apache-2.0
"""What commands share."""

import pytest

from ctxseg_ros.model.model_file import ModelFileError
from ctxseg_ros.system.output_files import OutputError
from training.commands import checked_name


def test_a_model_is_called_as_its_file_unless_a_name_is_given(tmp_path):
    assert checked_name(tmp_path / "night-2.b.onnx", None) == "night-2.b"
    assert checked_name(tmp_path / "night 2.onnx", "night_2") == "night_2"


@pytest.mark.parametrize(
    ("file", "name", "said"),
    [
        ("one", None, r"one: a model file ends in \.onnx; give --out .*one\.onnx"),
        ("my clusters.onnx", None, "cannot be called 'my clusters': give --name"),
        ("one.onnx", "\u00fcber", "cannot be called '\u00fcber': give --name"),
    ],
)
def test_files_and_names_that_no_model_can_have(tmp_path, file, name, said):
    with pytest.raises(ModelFileError, match=said):
        checked_name(tmp_path / file, name)


def test_places_where_no_file_can_be_written(tmp_path):
    with pytest.raises(OutputError, match=r"no/one\.onnx: its folder does not exist"):
        checked_name(tmp_path / "no" / "one.onnx", None)
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(OutputError, match=r"folder\.onnx: cannot be written: it is a folder"):
        checked_name(tmp_path / "folder.onnx", None)
