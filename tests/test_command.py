# SPDX-License-Identifier: Apache-2.0
"""How commands end."""

import pytest

from ctxseg_ros.command import CommandFailed, run_command
from ctxseg_ros.inference.runtimes import RuntimeUnavailable
from ctxseg_ros.model.model_file import ModelFileError
from ctxseg_ros.system.output_files import OutputError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CommandFailed("why"), 1),
        (ModelFileError("why"), 2),
        (OutputError("why"), 2),
        (RuntimeUnavailable("why"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_each_kind_of_error_is_one_line_and_its_exit_code(error, code, capsys):
    def work():
        raise error

    assert run_command("name", work) == code
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("name: ")
    assert str(error) in captured.err


def test_the_exit_code_is_that_of_the_work():
    assert run_command("name", lambda: None) == 0
    assert run_command("name", lambda: 1) == 1


def test_a_bug_of_ours_is_not_hidden():
    def work():
        raise KeyError("bug")

    with pytest.raises(KeyError):
        run_command("name", work)
    with pytest.raises(ValueError, match="bug"):
        run_command("name", lambda: int("bug"), bad_input=(OutputError,))
