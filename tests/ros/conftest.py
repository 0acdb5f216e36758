# SPDX-License-Identifier: Apache-2.0
"""A ROS graph for each test: a domain of its own, a node that looks on, and real processes."""

import array
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import GetParameters, SetParameters
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from ctxseg_ros.inference import engine
from ctxseg_ros.inference.runtimes import DEVICES
from ctxseg_ros.model.model_file import ModelInfo
from ctxseg_ros.model.prediction import Prediction
from ctxseg_ros.ros import worker
from ctxseg_ros.ros.segmenter import SegmentNode
from ctxseg_ros.ros.transport import PROFILE_VARIABLES, choose

ROOT = Path(__file__).resolve().parents[2]
# Fast DDS reads them once, at the first participant. A user's own profile is not tested.
os.environ.update(choose({}).variables)

TIMEOUT_S = 60.0


def lock_domain() -> tuple[int, int]:
    """A ROS_DOMAIN_ID that no other test on this machine uses now, and the file that says so: for
    `free_domain`. It is the one that has been free the longest, for who was killed is still seen
    in a domain for a while."""
    freed = {}
    for domain in range(1, 101):
        path = Path(tempfile.gettempdir(), f"ctxseg_ros_tests_domain_{domain}")
        freed[domain] = path.stat().st_mtime if path.exists() else 0.0
    for domain in sorted(freed, key=freed.__getitem__):
        path = Path(tempfile.gettempdir(), f"ctxseg_ros_tests_domain_{domain}")
        file = os.open(path, os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
        else:
            return domain, file
    raise RuntimeError("every ROS domain from 1 to 100 is in use by tests")


def free_domain(file: int) -> None:
    """Let other tests use the domain of this file of `lock_domain`."""
    os.utime(file)
    os.close(file)


def wait(condition: Callable[[], Any], timeout_s: float = TIMEOUT_S) -> Any:
    """What `condition` gives, once that is true; fails after the time."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return value


class NodeProcess:
    """A node in a process of its own, its output in a file."""

    def __init__(
        self,
        log: Path,
        name: str,
        domain: int,
        parameters: dict[str, Any],
        transport: bool,
        arguments: Sequence[str],
    ) -> None:
        command = [sys.executable, "-m", f"ctxseg_ros.ros.{name}", "--ros-args", *arguments]
        for key, value in parameters.items():
            text = str(value).lower() if isinstance(value, bool) else value
            command += ["-p", f"{key}:={text}"]
        environment = os.environ | {"ROS_DOMAIN_ID": str(domain)}
        if not transport:
            environment = {k: v for k, v in environment.items() if k not in PROFILE_VARIABLES}
        self._log = log
        with log.open("w") as output:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
            )

    @property
    def output(self) -> str:
        return self._log.read_text()

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, number: int = signal.SIGINT) -> int:
        """Send a signal; the exit code."""
        self.send(number)
        return self.process.wait(30)


class Graph:
    """One ROS domain: a node in this process, spinning, and processes."""

    def __init__(
        self, folder: Path, arguments: list[str] | None = None, context: Context | None = None
    ) -> None:
        self.domain, self._domain_lock = lock_domain()
        self._context = context
        self._folder = folder
        self.processes: list[NodeProcess] = []
        rclpy.init(
            args=arguments or [],
            context=context,
            domain_id=self.domain,
            signal_handler_options=SignalHandlerOptions.NO,
        )
        self.node = Node("looker", context=context)
        self.executor = SingleThreadedExecutor(context=context)
        self.executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._stopping = threading.Event()
        self._nodes: list[Any] = []
        self._clients: dict[str, Any] = {}
        self.statuses: list[DiagnosticStatus] = []
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 50)
        self._thread.start()

    def _spin(self) -> None:
        while not self._stopping.is_set():
            self.executor.spin_once(timeout_sec=0.1)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        self.statuses += message.status

    def add(self, node: Any) -> Any:
        """Spin a node of this package in this process."""
        self._nodes.append(node)
        self.executor.add_node(node)
        return node

    def start(
        self, name: str, *, transport: bool = True, arguments: Sequence[str] = (), **parameters: Any
    ) -> NodeProcess:
        """A node of this package; `arguments` follow --ros-args. The segmenter labels frames even
        while nobody subscribes, unless told otherwise."""
        if name == "segment_node":
            parameters.setdefault("always_infer", True)
        log = self._folder / f"{name}{len(self.processes)}.log"
        process = NodeProcess(log, name, self.domain, parameters, transport, arguments)
        self.processes.append(process)
        return process

    def collect(self, kind: Any, topic: str, qos: QoSProfile | int = 20) -> list[Any]:
        """A list that every message on the topic is added to."""
        messages: list[Any] = []
        self.node.create_subscription(kind, topic, messages.append, qos)
        return messages

    def publisher(self, kind: Any, topic: str, qos: QoSProfile | int = 10) -> Any:
        """A publisher that somebody has subscribed to."""
        publisher = self.node.create_publisher(kind, topic, qos)
        wait(publisher.get_subscription_count)
        return publisher

    def status(self, part: str = "labels") -> DiagnosticStatus | None:
        """The newest status of "labels" (segment) or "frames" (camera)."""
        found = [item for item in self.statuses if item.name.endswith(f": {part}")]
        return found[-1] if found else None

    def values(self, part: str = "labels") -> dict[str, str]:
        status = self.status(part)
        return {item.key: item.value for item in status.values} if status else {}

    def wait_for_state(self, state: str) -> None:
        """Wait for a lifecycle state: idle is active, too."""
        wait(lambda: self.values().get("state", "").replace("idle", "active") == state)

    def counts(self) -> dict[str, int]:
        """The segmenter's counters, from a report after this call, once every frame is done."""

        def settled() -> dict[str, int] | None:
            values = self.values()
            names = [key for key in values if key.startswith(("frames_", "dropped_"))]
            found = {name: int(values[name]) for name in names}
            done = sum(found.values()) - found["frames_received"]
            return found if found["frames_received"] == done else None

        seen = len(self.statuses)
        wait(lambda: any(item.name.endswith(": labels") for item in self.statuses[seen:]))
        return wait(settled)

    def call(self, kind: Any, name: str, request: Any) -> Any:
        # One for each service: a client takes memory that tests would count as the node's.
        if name not in self._clients:
            self._clients[name] = self.node.create_client(kind, name)
        client = self._clients[name]
        assert client.wait_for_service(TIMEOUT_S)
        done = threading.Event()
        future = client.call_async(request)
        future.add_done_callback(lambda _: done.set())
        assert done.wait(TIMEOUT_S), f"{name} did not answer"
        return future.result()

    def transition(self, name: str) -> bool:
        """Ask /segment for a lifecycle transition."""
        number = getattr(Transition, f"TRANSITION_{name.upper()}")
        request = ChangeState.Request(transition=Transition(id=number))
        return bool(self.call(ChangeState, "/segment/change_state", request).success)

    def state(self) -> str:
        answer = self.call(GetState, "/segment/get_state", GetState.Request())
        return str(answer.current_state.label)

    def set(self, name: str, value: Any) -> tuple[bool, str]:
        """Set a parameter of /segment: did it work, and if not, why."""
        parameter = Parameter(name, value=value).to_parameter_msg()
        request = SetParameters.Request(parameters=[parameter])
        result = self.call(SetParameters, "/segment/set_parameters", request).results[0]
        return result.successful, result.reason

    def get(self, name: str) -> Any:
        """A parameter's value at /segment."""
        request = GetParameters.Request(names=[name])
        value = self.call(GetParameters, "/segment/get_parameters", request).values[0]
        return Parameter.from_parameter_msg(type("", (), {"name": name, "value": value})).value

    def close(self) -> None:
        for process in self.processes:
            if process.process.poll() is None:
                process.send(signal.SIGINT)
        for process in self.processes:
            try:
                process.process.wait(30)
            except subprocess.TimeoutExpired:
                process.process.kill()
                raise
        self._stopping.set()
        self._thread.join(TIMEOUT_S)
        ended = [node.close(TIMEOUT_S) for node in self._nodes]
        # What is left to the garbage collector is still seen in the domain by the next test there.
        for node in (*self._nodes, self.node):
            node.destroy_node()
        self.executor.shutdown()
        rclpy.shutdown(context=self._context)
        free_domain(self._domain_lock)
        # Last: what is left running would keep pytest from ending.
        assert all(ended)
        for process in self.processes:
            assert "Traceback" not in process.output, process.output


@pytest.fixture
def graph(tmp_path: Path) -> Iterator[Graph]:
    """A graph for one test. Its processes must end without a traceback."""
    graph = Graph(tmp_path)
    yield graph
    graph.close()


@pytest.fixture(scope="module")
def shared_graph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Graph]:
    """A graph for the tests of one module."""
    # A context of its own, beside the one that each test may use.
    graph = Graph(tmp_path_factory.mktemp("graph"), context=Context())
    yield graph
    graph.close()


@pytest.fixture
def graph_with(tmp_path: Path) -> Iterator[Callable[..., Graph]]:
    """make(**parameters) -> a graph whose nodes of this process get these parameters. They label
    frames even while nobody subscribes, unless told otherwise."""
    graphs: list[Graph] = []

    def make(**parameters: Any) -> Graph:
        parameters.setdefault("always_infer", "true")
        words = [f"{key}:={value}" for key, value in parameters.items()]
        pairs = [word for item in words for word in ("-p", item)]
        graphs.append(Graph(tmp_path, ["--ros-args", *pairs]))
        return graphs[0]

    yield make
    for graph in graphs:
        graph.close()


class Stage:
    """What the runtimes of a node in this process do, as the test says."""

    def __init__(self) -> None:
        self.opened: list[FakeRuntime] = []
        self.costs_ms: dict[tuple[int, int], float] = {}  # of a size, else no time
        self.device = "cpu"  # where auto goes
        self.errors: dict[str, Exception] = {}  # by device: what each run raises
        self.open_errors: dict[str, Exception] = {}  # by device: what opening raises
        self.stepping = False  # each run waits for a turn
        self.turns = threading.Semaphore(0)
        self.running = threading.Event()

    def open(
        self, info: ModelInfo, size: tuple[int, int] | None, device: str, log: object
    ) -> "FakeRuntime":
        device = self.device if device == "auto" else device
        if device in self.open_errors:
            raise self.open_errors[device]
        self.opened.append(FakeRuntime(self, info, size or info.size, device))
        return self.opened[-1]


class FakeRuntime:
    """A runtime on a stage: labels of 0, or of the number of its opening."""

    precision = "fp32"
    reason = "a test's"

    def __init__(self, stage: Stage, info: ModelInfo, size: tuple[int, int], device: str) -> None:
        self.info, self.size, self.device = info, size, device
        self.closed = False
        self.runs = 0
        self._stage = stage

    def run(self, image: np.ndarray) -> Prediction:
        stage = self._stage
        assert not self.closed and image.shape == (*self.size, 3)
        self.runs += 1
        if stage.stepping:
            stage.running.set()
            stage.turns.acquire()
            stage.running.clear()
        time.sleep(stage.costs_ms.get(self.size, 0.0) / 1e3)
        if self.device in stage.errors:
            raise stage.errors[self.device]
        plane = np.zeros(self.size, np.uint8)
        return Prediction(labels=plane, confidence=plane.copy())

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """A stage on which every node of this process opens its models."""
    stage = Stage()
    monkeypatch.setattr(engine, "open_runtime", stage.open)
    monkeypatch.setattr(
        engine, "fastest_ms", lambda items: [stage.costs_ms.get(item.size, 1.0) for item in items]
    )
    there = dict.fromkeys(DEVICES, "not on this stage")
    monkeypatch.setattr(worker, "devices", lambda: there | {"openvino": None, "cpu": None})
    yield stage
    stage.stepping = False
    stage.turns.release(1000)  # no worker stays behind


@pytest.fixture
def scene(
    graph_with: Callable[..., Graph], model_factory: Callable[..., Path], stage: Stage
) -> Callable[..., SimpleNamespace]:
    """make(**parameters) -> an active node of this process, its graph, its stage, and publishers
    by camera. `costs_ms`: see Stage."""

    def make(
        costs_ms: dict[tuple[int, int], float] | None = None, **parameters: Any
    ) -> SimpleNamespace:
        stage.costs_ms = costs_ms or {}
        parameters.setdefault("model", model_factory())
        graph = graph_with(**parameters)
        node = graph.add(SegmentNode())
        wait(lambda: graph.values().get("state") in ("active", "idle"))
        publishers = {
            name: graph.publisher(Image, f"{name}/image" if name else "image")
            for name in node.cameras
        }
        return SimpleNamespace(graph=graph, node=node, stage=stage, publishers=publishers)

    return make


def image_message(
    width: int = 48, height: int = 32, encoding: str = "rgb8", *, padding: int = 0, stamp: int = 0
) -> Image:
    """A frame with a pattern; `stamp` in seconds, 0: now."""
    channels = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1}[encoding]
    step = width * channels + padding
    data = array.array("B", (i * 7 % 256 for i in range(step * height)))
    message = Image(
        header=Header(frame_id="front"),
        width=width,
        height=height,
        encoding=encoding,
        step=step,
        data=data,
    )
    now = time.time_ns()
    message.header.stamp.sec = stamp or now // 10**9
    message.header.stamp.nanosec = 0 if stamp else now % 10**9
    return message


@pytest.fixture(name="image_message", scope="session")
def image_message_fixture() -> Callable[..., Image]:
    """The function `image_message`."""
    return image_message


@pytest.fixture(name="wait", scope="session")
def wait_fixture() -> Callable[..., Any]:
    """The function `wait`."""
    return wait
