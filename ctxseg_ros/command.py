# SPDX-License-Identifier: Apache-2.0
"""How every command ends: one line about what went wrong, and one meaning of each exit code.

0: done. 1: the work failed, or its result did not pass a check. 2: an argument, an input or an
output is at fault, so the same command cannot succeed until that is changed. 130: Ctrl-C.
"""

import sys
from collections.abc import Callable

from ctxseg_ros.inference.runtimes.base import RuntimeUnavailable

FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130


class CommandFailed(RuntimeError):
    """The work failed although the input was good; the message says why."""


def run_command(
    name: str,
    work: Callable[[], int | None],
    bad_input: tuple[type[Exception], ...] = (ValueError, OSError, RuntimeUnavailable),
) -> int:
    """Do the work of a command and return the exit code: that of `work`, None for 0.

    An error is printed to stderr after the command's name. `bad_input` are the errors that tell of
    a bad argument, input or output; CommandFailed is a failure, and anything else is a bug of ours,
    which is raised.
    """
    try:
        return work() or 0
    except CommandFailed as error:
        print(f"{name}: {error}", file=sys.stderr)
        return FAILED
    except bad_input as error:
        print(f"{name}: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return INTERRUPTED
