# SPDX-License-Identifier: Apache-2.0
"""How a node's process runs and ends: SIGINT, SIGTERM and SIGHUP at any moment give exit code 0."""

import contextlib
import logging
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from ctxseg_ros.ros import startup

# ros2 launch sends SIGTERM 5 s after SIGINT, and SIGKILL 5 s after that.
GRACE_S = 3.0


class Process:
    """One process with one node, from the first signal handler to the exit code.

    rclpy's own signal handlers shut its context down under the node's feet, and Python's raise
    KeyboardInterrupt wherever the interpreter happens to be. Here a signal is only a request: the
    node spins in its own thread, the main thread waits for the request and then ends everything in
    order. Make it before the slow imports, so that a signal during them counts too.
    """

    def __init__(self) -> None:
        # SimpleQueue, because its put() may interrupt its get() in the same thread.
        self._exit_codes: queue.SimpleQueue[int] = queue.SimpleQueue()
        # SIGHUP: the terminal was closed. Under nohup it is ignored, and stays so.
        keep = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        self._signals = [signal.SIGINT, signal.SIGTERM, *([] if keep else [signal.SIGHUP])]
        for number in self._signals:
            signal.signal(number, lambda *_: self.end())

    def end(self, exit_code: int = 0) -> None:
        """Ask the process to end. Any thread may call this; the first exit code counts."""
        self._exit_codes.put(exit_code)

    def refuse(self, missing: ImportError) -> int:
        """Say what a node's imports lack and what helps; gives the exit code."""
        print(f"The node cannot start: {startup.missing_module(missing)}", file=sys.stderr)
        return 1

    def run(self, make_node: Callable[[], Any], args: list[str] | None = None) -> int:
        """Spin a node until the end is asked for; gives the exit code.

        The node has `close(timeout_s) -> bool`: it ends its threads and says farewell; False if a
        thread was still busy by then.
        """
        import rclpy
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.signals import SignalHandlerOptions

        arguments = sys.argv[1:] if args is None else args
        try:
            rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
            node = make_node()
        except Exception as error:  # arguments, parameter files, names and overrides that are wrong
            reason = startup.unreadable(error, arguments)
            print(f"The node cannot start: {reason}", file=sys.stderr)
            return 1
        name = node.get_fully_qualified_name()
        for sentence in startup.ignored(arguments, name, node.has_parameter):
            node.get_logger().warning(sentence)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        stopping = threading.Event()
        wake = node.create_guard_condition(lambda: None)

        def spin() -> None:
            try:
                while not stopping.is_set():
                    executor.spin_once()
            except Exception:
                traceback.print_exc()
                self.end(1)

        thread = threading.Thread(target=spin, name="executor", daemon=True)
        thread.start()
        exit_code = self._exit_codes.get()
        stopping.set()
        wake.trigger()
        thread.join(GRACE_S)
        ended = not thread.is_alive() and node.close(GRACE_S)
        if not ended:
            # Loading a model or a long inference cannot be interrupted, only left behind.
            node.get_logger().info("ending without waiting for the work in progress")
        if not thread.is_alive():  # else the executor would still use what is destroyed here
            executor.shutdown()
            node.destroy_node()
            rclpy.shutdown()
        if not ended:
            leave(exit_code)
        # The interpreter puts the default handlers back while it ends: a second signal would kill.
        for number in self._signals:
            signal.signal(number, signal.SIG_IGN)
        return exit_code


def leave(exit_code: int) -> None:
    """End the process now, without unwinding threads that are still inside a library."""
    logging.shutdown()
    with contextlib.suppress(OSError):  # the terminal may be gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(exit_code)
