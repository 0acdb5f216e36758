# SPDX-License-Identifier: Apache-2.0
"""The segmentation node: cameras' frames in, labels with the cameras' own stamps out.

The executor's thread runs every callback, and none of them computes: an image callback leaves the
newest frame in its camera's slot. One worker thread takes it from there, infers and publishes. A
model is loaded in a thread of its own (model_loader.py).
"""

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import SetParametersResult
from rcl_interfaces.srv import SetParameters, SetParametersAtomically
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter

from ctxseg_ros.inference.engine import Engine, EngineSpec, adapted, open_engine
from ctxseg_ros.inference.runtimes import RuntimeUnavailable
from ctxseg_ros.model import store
from ctxseg_ros.model.model_file import format_size
from ctxseg_ros.realtime.latency import LatencyWindow
from ctxseg_ros.realtime.slot import LatestSlots
from ctxseg_ros.ros import diagnostics, qos, report
from ctxseg_ros.ros.camera_input import LATENCY_WINDOW, CameraStream, Frame
from ctxseg_ros.ros.camera_output import CameraOutputs
from ctxseg_ros.ros.label_info import LabelInfos
from ctxseg_ros.ros.model_loader import ModelLoader
from ctxseg_ros.ros.parameters import Setting, Settings
from ctxseg_ros.ros.settings import SETTINGS
from ctxseg_ros.ros.worker import Running, Worker
from ctxseg_ros.system import machine

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE

SPEC_NAMES = {"model", "device", "input_sizes", "label_groups", "refinement"}
"""The parameters that decide over what is open."""

STOP_S = 10.0
"""How long a transition waits for the frame in work. Longer is a device that hangs."""


class Loaded(NamedTuple):
    """An engine for the parameters that are being set. `kept`: whose running engine it shares the
    open model with; that worker does not close it until `kept.keeping` is released."""

    engine: Engine
    kept: Worker | None


class SegmentNode(LifecycleNode):
    """Configure loads the model; activate subscribes and starts the worker.

    `shortage`: why this process has no shared memory, if so (transport.py). `state`: of the
    lifecycle, as diagnostics have it. `cameras`: while configured, what each one sends and what is
    published for it, by its namespace. `latency`: of the last frames of all cameras.
    """

    def __init__(self, shortage: str = "") -> None:
        super().__init__("segment")
        self._shortage = shortage
        if shortage:
            self.get_logger().warning(shortage)
        self.state = "unconfigured"
        self._failure: str | None = None  # why the last configure failed
        self._running: Running | None = None  # while configured and not active
        self._worker: Worker | None = None  # while active; it has what runs
        self._loaded: Loaded | None = None
        self._refusal: Exception | None = None  # why no model was loaded for configure
        self.cameras: dict[str, tuple[CameraStream, CameraOutputs]] = {}
        self._slots: LatestSlots[Frame] = LatestSlots(())
        self.latency = LatencyWindow(LATENCY_WINDOW)
        self._class_names: list[str] = []
        self._library_log = _RosLog(self)
        self._findings_log = diagnostics.FindingsLog(self.get_logger())
        self._settings = Settings(
            self,
            {**SETTINGS, "class_names": self._class_names_setting()},
            locked=lambda: self.state in ("inactive", "active"),
            check=self._check_settings,
            changed=self._on_settings_changed,
        )
        self._label_infos = LabelInfos(self)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", qos.DIAGNOSTICS)
        self._loader = ModelLoader(self.create_guard_condition(lambda: None).trigger)
        # While parameters or a transition wait for a model to load, other transitions and
        # parameters wait with them; frames, reports, /clock and queries go on.
        self._changing = MutuallyExclusiveCallbackGroup()
        self._wrap_services()
        # Wall time: under use_sim_time a paused clock must not stop these.
        wall = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(1.0, self._every_second, clock=wall)
        self._start = self.create_timer(0.0, self._autostart, self._changing, clock=wall)

    def _class_names_setting(self) -> Setting:
        def check(value: Any) -> list[str]:
            if not isinstance(value, Sequence) or [v for v in value if v] != self._class_names:
                raise ValueError("what the model says, it cannot be set")
            return self._class_names

        def stored(value: list[str]) -> list[str]:
            return value or [""]  # an empty list would have no element type

        text = "Names of the labels' ids, in the order of the ids"
        return Setting([""], text, check, "what the model says", computed=True, stored=stored)

    def _wrap_services(self) -> None:
        """Put what rclpy's services lack around them."""
        services = {item.srv_type: item for item in self.services}
        # The executor awaits a coroutine; rclpy's types do not say so.
        services[SetParameters].callback = self._on_set_parameters  # type: ignore[assignment]
        services[SetParametersAtomically].callback = self._on_set_atomically  # type: ignore[assignment]
        change_state = services[ChangeState].callback

        async def guarded(
            request: ChangeState.Request, response: ChangeState.Response
        ) -> ChangeState.Response:
            configure = (Transition.TRANSITION_CONFIGURE, "configure")
            if {request.transition.id, request.transition.label} & {*configure}:
                await self._load_for_configure()
            # rclpy lets an illegal transition's error through, which would end the executor.
            try:
                return change_state(request, response)
            except RuntimeError:
                asked = request.transition.label or f"number {request.transition.id}"
                self.get_logger().error(
                    f"transition {asked} is not possible while the node is {self.state}"
                )
                return ChangeState.Response(success=False)

        services[ChangeState].callback = guarded  # type: ignore[assignment]
        for kind in (SetParameters, SetParametersAtomically, ChangeState):
            services[kind].callback_group = self._changing
            self._changing.add_entity(services[kind])

    # Lifecycle

    async def _autostart(self) -> None:
        self._start.cancel()
        if self.state != "unconfigured":
            return
        if self._settings["autostart"]:
            await self._load_for_configure()
            if self.trigger_configure() == SUCCESS:
                self.trigger_activate()
            return
        self.get_logger().info(f"unconfigured: {diagnostics.retry(self._full_name)}")
        for fault in self._settings.faults.values():
            self.get_logger().error(fault)

    @property
    def _full_name(self) -> str:
        return self.get_fully_qualified_name()

    async def _load_for_configure(self) -> None:
        """Load the model that `on_configure` will need, while the executor goes on."""
        if self.state != "unconfigured" or self._settings.faults:
            return
        self._failure = self._refusal = None
        values = self._settings.after(())
        try:
            self._loaded = await self._loader.load(
                f"loading {values['model']}", lambda: self._open(values, set())
            )
        except Exception as error:
            self._refusal = error

    def _engine_for_configure(self) -> Engine:
        """What `_load_for_configure` loaded; without it, or if parameters changed since, the model
        is loaded here. Raises what refuses it."""
        loaded, refusal = self._loaded, self._refusal
        self._loaded = self._refusal = None
        values = self._settings.after(())
        if refusal is not None:
            raise refusal
        if loaded is not None:
            if loaded.engine.spec == _spec(values):
                return loaded.engine
            loaded.engine.close()
        return self._open(values, set()).engine

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model, open the device, warm up every size, advertise the outputs."""
        try:
            if self._settings.faults:
                raise ValueError("; ".join(self._settings.faults.values()))
            engine = self._engine_for_configure()
            self._running = Running.start(engine, self._settings["latency_budget_ms"])
            self._open_cameras()
            self._settings.warn_of_unused_qos()
            self._announce_classes()
        except Exception as error:  # whatever it is: the node stays, and says why
            self._release()
            self._failure = self._with_advice(_reason(error))
            self.get_logger().error(f"cannot configure: {self._failure}")
            self._publish_diagnostics()
            return FAILURE
        self._failure = None
        self.state = "inactive"
        sizes = ", ".join(format_size(runtime.size) for runtime in engine.runtimes)
        self.get_logger().info(f"configured: {engine.info.name} on {engine.device} at {sizes}")
        return SUCCESS

    def _with_advice(self, reason: str) -> str:
        """Why configure failed, and the commands that help."""
        # rclpy declares QoS overrides read-only.
        read_only = any(SETTINGS[name].read_only for name in self._settings.faults)
        if read_only or "QoS override" in reason:
            return f"{reason}. Start the node again with an allowed value"
        name = self._full_name
        return (
            f"{reason}. Correct that (ros2 param set {name} PARAMETER VALUE), then "
            f"{diagnostics.retry(name)}"
        )

    def _open_cameras(self) -> None:
        for name in self._settings["cameras"] or [""]:
            stream = CameraStream(
                self,
                name,
                self._settings,
                lambda frame, name=name: self._slots.put(name, frame),  # type: ignore[misc]
            )
            self.cameras[name] = stream, CameraOutputs(self, name)
        self._label_infos.open(self.cameras)

    def _release(self) -> None:
        """Free what configure made."""
        for stream, outputs in self.cameras.values():
            stream.close()
            outputs.destroy()
        self._label_infos.close()
        self.cameras = {}
        if self._running is not None:
            self._running.engine.close()
            self._running = None
        self._set_class_names([])
        machine.trim_memory()

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start the worker, then subscribe."""
        try:
            self._begin()
        except Exception as error:  # rclpy would drop it without a word
            self._failure = f"activation failed: {_reason(error)}"
            return TransitionCallbackReturn.ERROR
        return super().on_activate(state)

    def _begin(self) -> None:
        assert self._running is not None
        self._slots = LatestSlots(list(self.cameras))
        self.latency = LatencyWindow(LATENCY_WINDOW)
        self._worker = Worker(
            self._running,
            self._slots,
            self.cameras,
            self.latency,
            self._settings,
            self.get_logger(),
            self._library_log,
        )
        self._running = None  # the worker's now: only so can it free what it replaces
        for stream, _ in self.cameras.values():
            stream.open()
        self.state = "active"
        inputs = ", ".join(stream.topic for stream, _ in self.cameras.values())
        kind = "labels" if self._class_names else "attention"
        topics = ", ".join(outputs.topic(kind) for _, outputs in self.cameras.values())
        classes = f", {len(self._class_names)} classes" if self._class_names else ""
        self.get_logger().info(f"active: reads {inputs}; {kind} on {topics}{classes}")

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe, and wait for the frame in work; an error if the device hangs."""
        if not self._stop(STOP_S):
            self._abandon()
            return TransitionCallbackReturn.ERROR
        self.state = "inactive"
        self._publish_diagnostics()
        self.get_logger().info("inactive: reads no images")
        return super().on_deactivate(state)

    def _stop(self, timeout_s: float) -> bool:
        """False: the worker was still busy after `timeout_s`."""
        for stream, _ in self.cameras.values():
            stream.close()
        for name in self._slots.close():
            self.cameras[name][0].counts.add("queue")
        if self._worker is not None:
            if not self._worker.join(timeout_s):
                return False
            self._running, self._worker = self._worker.running, None
        return True

    def _abandon(self) -> None:
        """Leave a worker alone whose device hangs: nothing can be taken from it any more."""
        self._worker = None
        self._failure = (
            f"inference has not returned for {STOP_S:g} s, so the model was abandoned: its memory "
            "is freed when the device answers or the node ends"
        )

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the model and its device's memory."""
        self._release()
        self.state = "unconfigured"
        self.get_logger().info("unconfigured: the model is freed")
        return SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and free, from whatever state."""
        self.state = "finalized"
        if not self._stop(STOP_S):
            self._abandon()
        self._release()
        self._publish_diagnostics()
        self.get_logger().info("finalized: the node has ended its work")
        return SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """A transition raised: back to unconfigured, with nothing left over."""
        self.get_logger().error(
            f"a transition failed ({self._failure}); the node is unconfigured again. To retry: "
            f"{diagnostics.retry(self._full_name)}"
        )
        self.state = "unconfigured"
        if not self._stop(STOP_S):
            self._abandon()
        self._release()
        return SUCCESS

    def close(self, timeout_s: float) -> bool:
        """End for good, once the executor has stopped. False: a thread was still busy."""
        deadline = time.monotonic() + timeout_s
        if not self._loader.join(timeout_s):
            return False
        if not self._stop(max(deadline - time.monotonic(), 0.0)):
            return False
        self.state = "finalized"
        self._publish_diagnostics()
        self._release()
        return True

    def destroy_node(self) -> None:
        """Also what rclpy leaves: while the state machine is there, so is the participant, and its
        shared memory outlives a process that ends without unwinding."""
        super().destroy_node()
        self._state_machine.destroy_when_not_in_use()

    # Parameters

    def _open(self, values: Mapping[str, Any], names: set[str]) -> Loaded:
        """The engine for these parameters, those of `names` being set now. Raises what
        `open_engine` raises, ValueError for a head that the model does not have."""
        spec, worker = _spec(values), self._worker
        if worker is not None:
            worker.keeping.acquire()
        try:
            running = self._now_running()
            if running is not None and self._still_open(running, spec, names):
                loaded = Loaded(adapted(running.engine, spec), worker)
                worker = None  # released with what was loaded
                return self._checked(loaded, values)
        finally:
            if worker is not None:
                worker.keeping.release()
        # A device that failed is left alone until it is asked for again.
        troubled = running is not None and running.trouble and "device" not in names
        device = running.engine.device if running is not None and troubled else None
        return self._checked(Loaded(open_engine(spec, self._library_log, device), None), values)

    def _checked(self, loaded: Loaded, values: Mapping[str, Any]) -> Loaded:
        try:
            _check_head(loaded.engine, values)
        except ValueError:
            self._discard(loaded)
            raise
        return loaded

    @staticmethod
    def _still_open(running: Running, spec: EngineSpec, names: set[str]) -> bool:
        """Whether what runs is the model that is asked for, but for groups and refinement."""
        if running.broken or ("device" in names and running.trouble):
            return False
        same = dataclasses.replace(
            running.engine.spec, label_groups=spec.label_groups, refinement=spec.refinement
        )
        if same != spec:
            return False
        # Under the same name there may be another file by now.
        return "model" not in names or store.load(spec.model).sha256 == running.engine.info.sha256

    def _discard(self, loaded: Loaded) -> None:
        """Close an engine that will not run, unless what runs shares its open model."""
        running, engine = self._now_running(), loaded.engine
        if running is None or engine.runtimes is not running.engine.runtimes:
            engine.close()
        elif engine.refiner is not None and engine.refiner is not running.engine.refiner:
            engine.refiner.close()
        if loaded.kept is not None:
            loaded.kept.keeping.release()

    def _now_running(self) -> Running | None:
        return self._worker.running if self._worker is not None else self._running

    async def _on_set_parameters(
        self, request: SetParameters.Request, response: SetParameters.Response
    ) -> SetParameters.Response:
        for message in request.parameters:
            response.results.append(await self._set([message]))
        return response

    async def _on_set_atomically(
        self, request: SetParametersAtomically.Request, response: SetParametersAtomically.Response
    ) -> SetParametersAtomically.Response:
        response.result = await self._set(request.parameters)
        return response

    async def _set(self, messages: Sequence[ParameterMessage]) -> SetParametersResult:
        """Set parameters together, and never raise: that would end the executor."""
        try:
            parameters = [Parameter.from_parameter_msg(message) for message in messages]
            # rclpy does not name them, and lets an empty name through.
            if unknown := [item.name for item in parameters if not self.has_parameter(item.name)]:
                raise ValueError(f"there is no parameter {unknown[0]!r}; see ros2 param list")
            await self._load_for(parameters)
            return self.set_parameters_atomically(parameters)
        except Exception as error:
            return SetParametersResult(successful=False, reason=_reason(error))
        finally:
            if self._loaded is not None:  # refused after all
                self._discard(self._loaded)
                self._loaded = None

    async def _load_for(self, parameters: Sequence[Parameter]) -> None:
        """Load the model that these parameters need beside the one that runs.

        The executor goes on with other callbacks meanwhile. Raises what refuses them.
        """
        values = self._settings.after(parameters)
        names = {item.name for item in parameters} & SPEC_NAMES
        if not names or self._now_running() is None:  # configure will
            return
        try:
            self._loaded = await self._loader.load(
                f"loading {values['model']}", lambda: self._open(values, names)
            )
        except Exception as error:
            self.get_logger().warning(
                f"change rejected: {_reason(error)}. The current model keeps running"
            )
            raise

    def _check_settings(self, values: Mapping[str, Any]) -> None:
        """Refuse what the running model cannot do. Raises ValueError."""
        running = self._now_running()
        if running is None:
            return
        if self._loaded is None and _spec(values) != running.engine.spec:
            # Set from inside this process, where nobody could wait.
            try:
                self._loaded = self._open(values, set())
            except Exception as error:
                raise ValueError(_reason(error)) from error
        _check_head(self._loaded.engine if self._loaded else running.engine, values)

    def _on_settings_changed(self, names: set[str]) -> None:
        running = self._now_running()
        if running is None:
            return
        budget_ms = self._settings["latency_budget_ms"]
        if self._loaded is not None:
            loaded, self._loaded = self._loaded, None
            self._use(running, loaded.engine, budget_ms)
            if loaded.kept is not None:
                loaded.kept.keeping.release()
        else:
            running.hold(budget_ms)
        if names & {*SPEC_NAMES, "min_confidence"}:
            self._announce_classes()

    def _use(self, running: Running, engine: Engine, budget_ms: float) -> None:
        """Run this engine from the next frame on."""
        if engine.runtimes is running.engine.runtimes:
            same = running.with_engine(engine)
            same.hold(budget_ms)
            self._put(same)
            if engine.refiner is not running.engine.refiner:
                self._forget_latencies()
            return
        started = Running.start(engine, budget_ms)
        if running.trouble and engine.device == running.engine.device != running.home:
            started.home, started.trouble = running.home, running.trouble
        self._put(started)
        self._forget_latencies()
        self.get_logger().info(f"{engine.info.name} takes over on {engine.device}")

    def _forget_latencies(self) -> None:
        """They are another model's."""
        for window in (self.latency, *(stream.latency for stream, _ in self.cameras.values())):
            window.clear()

    def _put(self, running: Running) -> None:
        if self._worker is not None:
            self._worker.use(running)
        else:
            self._running = running

    # Reports

    def _announce_classes(self) -> None:
        """Put the classes where others read them: ~/label_info and `class_names`."""
        running = self._now_running()
        assert running is not None
        engine, least = running.engine, self._settings["min_confidence"]
        self._set_class_names([item.name for item in engine.classes])
        self._label_infos.publish(engine.classes, least, engine.may_be_unlabelled(least))

    def _set_class_names(self, names: list[str]) -> None:
        if names != self._class_names:
            self._class_names = names
            self.set_parameters([Parameter("class_names", value=names or [""])])

    def _every_second(self) -> None:
        for stream, outputs in self.cameras.values():
            stream.follow_publishers()
            stream.unmatched = outputs.unmatched()
        self._publish_diagnostics()
        for stream, _ in self.cameras.values():
            stream.sample()

    @property
    def _idle(self) -> bool:
        """Active, and no frame is to be labelled: no output has a subscriber."""
        needed = self._settings["always_infer"] or any(
            outputs.needed() for _, outputs in self.cameras.values()
        )
        return self.state == "active" and not needed

    def _publish_diagnostics(self) -> None:
        statuses, findings = report.statuses(
            self,
            self.state,
            self._failure or "; ".join(self._settings.faults.values()),
            self._now_running(),
            self._worker.busy_s if self._worker is not None else 0.0,
            [stream for stream, _ in self.cameras.values()],
            self.latency,
            self._settings,
            self._shortage,
            self._idle,
            self._loader.progress,
        )
        if self.state == "active":
            self._findings_log.update(findings)
        else:
            self._findings_log.clear()
        self._diagnostics.publish(diagnostics.array(self, *statuses))


def _spec(values: Mapping[str, Any]) -> EngineSpec:
    sizes = values["input_sizes"]
    return EngineSpec(
        values["model"],
        values["device"],
        None if sizes is None else tuple(sizes),
        values["label_groups"],
        values["refinement"],
    )


def _check_head(engine: Engine, values: Mapping[str, Any]) -> None:
    head = values["attention_head"]
    if engine.heads and head >= engine.heads:
        raise ValueError(
            f"attention_head must be -1 to {engine.heads - 1} for {engine.info.name}, not {head}"
        )


def _reason(error: Exception) -> str:
    known = isinstance(error, ValueError | RuntimeUnavailable)
    return str(error) if known else f"{type(error).__name__}: {error}"


class _RosLog(logging.Logger):
    """A logger for the core that writes to a node's."""

    def __init__(self, node: LifecycleNode) -> None:
        super().__init__(node.get_name(), logging.INFO)
        self._ros = node.get_logger()

    def handle(self, record: logging.LogRecord) -> None:
        # rclpy wants one severity for each line of code.
        if record.levelno >= logging.ERROR:
            self._ros.error(record.getMessage())
        elif record.levelno >= logging.WARNING:
            self._ros.warning(record.getMessage())
        else:
            self._ros.info(record.getMessage())
