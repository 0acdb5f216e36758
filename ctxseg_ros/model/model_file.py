# SPDX-License-Identifier: Apache-2.0
"""The model file: an ONNX graph that describes itself in its metadata.

`read_model_info` checks the whole contract at once, so that whatever opens a model later can rely
on it; `write_metadata` is its counterpart for exporters and goes through the same checks.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import google.protobuf.message
import numpy as np
import onnx
import onnx.numpy_helper
from numpy.typing import NDArray

from ctxseg_ros.model.prediction import UNLABELLED
from ctxseg_ros.system.files import shown

FORMAT = "1"
MIN_OPSET = 17
TASKS = ("semantic", "clusters", "attention")
KEYS = tuple(
    f"ctxseg.{key}" for key in ("format", "task", "name", "classes", "stride", "size", "source")
)
MAX_CLASSES = UNLABELLED  # ids are one byte, and 255 means unlabelled

_OUTPUTS: dict[str, dict[str, tuple[int, int]]] = {  # task -> output -> (element type, rank)
    "semantic": {"labels": (onnx.TensorProto.UINT8, 3), "confidence": (onnx.TensorProto.UINT8, 3)},
    "clusters": {"labels": (onnx.TensorProto.UINT8, 3), "confidence": (onnx.TensorProto.UINT8, 3)},
    "attention": {"attention": (onnx.TensorProto.FLOAT, 4)},
}
_FRACTIONS = {  # entries of ctxseg.source that are read, where they are there
    "scores": ("miou",),
    "precision": (
        "bf16_label_agreement",
        "bf16_sure_agreement",
        "bf16_map_correlation",
        "bf16_score",
        "fp32_score",
    ),
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_RECOPY = "Copy or download it again"
_EXPORT = "export the model again with python -m training export"


class ModelFileError(ValueError):
    """A model file breaks the contract; the message names file, broken point and fix."""


@dataclass(frozen=True)
class ClassInfo:
    """One class: its id (0..254), its name, and its colour (RGB, 0-255)."""

    id: int
    name: str
    colour: tuple[int, int, int]


@dataclass(frozen=True)
class ModelInfo:
    """What a valid model file says about itself. Sizes are (height, width) in pixels.

    `size` is the size that it was trained for, `fixed_size` the only size that its graph takes
    (None: any multiple of `stride`). `classes` is in the order of the ids, empty for attention.
    `parameters` counts the weights, `sha256` is that of the whole file. `unlabelled`: whether the
    graph itself may give 255, as that of named clusters does.
    """

    path: Path
    name: str
    task: str
    classes: tuple[ClassInfo, ...]
    stride: int
    size: tuple[int, int]
    fixed_size: tuple[int, int] | None
    source: dict[str, Any]
    sha256: str
    parameters: int
    unlabelled: bool

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the graph's outputs."""
        return tuple(_OUTPUTS[self.task])

    @cached_property
    def colours(self) -> NDArray[np.uint8]:
        """Colour by id, uint8 [256, 3], RGB, read-only. Ids without a class are black."""
        return colour_table(self.classes)

    def check_size(self, size: tuple[int, int]) -> None:
        """Raise ValueError, naming the sizes that fit, unless the model takes `size`."""
        height, width = size
        asked = format_size(size)
        if self.fixed_size is not None and size != self.fixed_size:
            raise ValueError(
                f"model {self.name} takes {format_size(self.fixed_size)} only, not {asked}: "
                "its graph has a fixed size"
            )
        if height < 1 or width < 1 or height % self.stride or width % self.stride:
            raise ValueError(
                f"size {asked} does not fit model {self.name}: height and width must be "
                f"multiples of {self.stride}. Nearest: {self._nearest(height, width)}"
            )

    def _nearest(self, height: int, width: int) -> str:
        sides = (height, width)
        below = tuple(max(side // self.stride, 1) * self.stride for side in sides)
        above = tuple(max(-(-side // self.stride), 1) * self.stride for side in sides)
        return " or ".join(dict.fromkeys(f"{h}x{w}" for h, w in (below, above)))


def colour_table(classes: Sequence[ClassInfo]) -> NDArray[np.uint8]:
    """Colour by id, uint8 [256, 3], RGB, read-only. Ids without a class are black."""
    table = np.zeros((256, 3), np.uint8)
    for item in classes:
        table[item.id] = item.colour
    table.flags.writeable = False
    return table


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) from "HxW", such as "352x480". Raises ValueError."""
    match = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", text)
    if match is None:
        raise ValueError(f"size {text!r} is not HEIGHTxWIDTH, such as 352x480")
    return int(match[1]), int(match[2])


def format_size(size: tuple[int, int]) -> str:
    """Write (height, width) as "HxW"."""
    return f"{size[0]}x{size[1]}"


def read_model_info(path: str | Path) -> ModelInfo:
    """Read and check a model file. Raises ModelFileError, and nothing else, if it is not valid."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelFileError(
            f"{shown(path)}: cannot read the model file: {error.strerror or error}. "
            f"{read_fix(error)}"
        ) from error
    try:
        return _model_info(path, data)
    except ModelFileError as error:
        raise ModelFileError(f"{shown(path)}: {error}") from error.__cause__
    except (AttributeError, TypeError, ValueError) as error:
        # Protobuf parses text that is not UTF-8 as bytes, and enum values that do not exist.
        raise ModelFileError(f"{shown(path)}: the file is damaged: {error}. {_RECOPY}") from error


def read_fix(error: OSError) -> str:
    """What to do where a file cannot be read."""
    if isinstance(error, PermissionError):
        return "Give this user the right to read it"
    return "Check the path"


def write_metadata(
    model: onnx.ModelProto,
    *,
    name: str,
    task: str,
    classes: Sequence[ClassInfo],
    stride: int,
    size: tuple[int, int],
    source: Mapping[str, Any],
) -> None:
    """Set the ctxseg.* metadata of `model` in place, in the place of any that it had.

    Raises ModelFileError if a reader would refuse the values.
    """
    listed = [{"id": c.id, "name": c.name, "colour": list(c.colour)} for c in classes]
    try:
        values = (
            FORMAT,
            task,
            name,
            json.dumps(listed, ensure_ascii=False),
            str(stride),
            json.dumps(list(size)),
            json.dumps(dict(source), ensure_ascii=False, allow_nan=False),
        )
    except (TypeError, ValueError) as error:
        raise ModelFileError(f"the metadata cannot be written as JSON: {error}") from error
    metadata = dict(zip(KEYS, values, strict=True))
    _Metadata.parse(metadata)
    kept = [item for item in model.metadata_props if not item.key.startswith("ctxseg.")]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)


def _model_info(path: Path, data: bytes) -> ModelInfo:
    if not data:
        raise ModelFileError(f"the file is empty. {_RECOPY}")
    try:
        model = onnx.load_model_from_string(data)
    except google.protobuf.message.DecodeError as error:
        raise ModelFileError(f"the file is truncated, damaged or not ONNX. {_RECOPY}") from error
    if not model.HasField("graph") or not model.graph.node:
        raise ModelFileError(f"the file holds no ONNX graph. {_RECOPY}")
    _check_operators(model)
    _check_tensors(model.graph)
    fixed_size = _check_input(model.graph)
    metadata = _Metadata.parse(_metadata(model))
    _check_outputs(model.graph, metadata.task, fixed_size)
    if fixed_size is not None and any(side % metadata.stride for side in fixed_size):
        raise ModelFileError(
            f"the graph's fixed size {format_size(fixed_size)} is no multiple of ctxseg.stride "
            f"{metadata.stride}; {_EXPORT}"
        )
    try:
        onnx.checker.check_model(data)
    except Exception as error:  # the checker raises several unrelated types
        reason = " ".join(str(error).split())
        raise ModelFileError(f"the ONNX graph is not valid: {reason}. {_EXPORT}") from error
    return ModelInfo(
        path=path,
        name=metadata.name,
        task=metadata.task,
        classes=metadata.classes,
        stride=metadata.stride,
        size=metadata.size,
        fixed_size=fixed_size,
        source=metadata.source,
        sha256=hashlib.sha256(data).hexdigest(),
        parameters=_count_parameters(model.graph),
        unlabelled=_gives_unlabelled(model.graph),
    )


# The graph


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and the graphs inside its control-flow nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from _graphs(inner)


def _check_operators(model: onnx.ModelProto) -> None:
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if opset < MIN_OPSET:
        found = f"opset {opset}" if opset else "no opset"
        raise ModelFileError(f"the graph has {found}, {MIN_OPSET} or newer is needed; {_EXPORT}")
    for graph in _graphs(model.graph):
        for node in graph.node:
            if node.domain not in ("", "ai.onnx"):
                raise ModelFileError(
                    f"node {node.name or node.op_type} uses the custom operator "
                    f"{node.domain}.{node.op_type}; only standard ONNX operators run in every "
                    f"runtime; {_EXPORT}"
                )


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    for inner in _graphs(graph):
        yield from inner.initializer
        for node in inner.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t


def _check_tensors(graph: onnx.GraphProto) -> None:
    for tensor in _tensors(graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ModelFileError(
                f"tensor {tensor.name!r} is stored in another file; save the model as a single "
                "file (onnx.save_model(..., save_as_external_data=False))"
            )


def _shape(value: onnx.ValueInfoProto) -> list[int | str] | None:
    """Sizes where the graph fixes them, else symbols ("" = unnamed). None: no shape at all."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim]


def _describe(value: onnx.ValueInfoProto) -> str:
    if not value.type.HasField("tensor_type"):
        return "no tensor"
    kind = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
    shape = _shape(value)
    return kind if shape is None else f"{kind} [{', '.join(str(d) or '?' for d in shape)}]"


def _check_input(graph: onnx.GraphProto) -> tuple[int, int] | None:
    """The size that the graph fixes, None if height and width are symbolic."""
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in stored]
    names = ", ".join(value.name for value in inputs) or "none"
    if [value.name for value in inputs] != ["image"]:
        raise ModelFileError(f"the only input must be 'image'; found: {names}; {_EXPORT}")
    image = inputs[0]
    refusal = ModelFileError(
        f"input 'image' must be uint8 [1, height, width, 3], it is {_describe(image)}; {_EXPORT}"
    )
    shape = _shape(image)
    if image.type.tensor_type.elem_type != onnx.TensorProto.UINT8 or shape is None:
        raise refusal
    if len(shape) != 4 or shape[0] != 1 or shape[3] != 3:
        raise refusal
    height, width = shape[1:3]
    if (height, width) == ("height", "width"):
        return None
    if isinstance(height, str) or isinstance(width, str) or height < 1 or width < 1:
        raise refusal
    return height, width


def _check_outputs(graph: onnx.GraphProto, task: str, size: tuple[int, int] | None) -> None:
    expected = _OUTPUTS[task]
    found = {value.name: value for value in graph.output}
    if missing := [name for name in expected if name not in found]:
        raise ModelFileError(f"output {missing[0]!r} is missing, task {task} needs it; {_EXPORT}")
    if extra := [name for name in found if name not in expected]:
        raise ModelFileError(f"output {extra[0]!r} is not one of task {task}; {_EXPORT}")
    for name, (kind, rank) in expected.items():
        value = found[name]
        shape = _shape(value)
        wanted = (
            "uint8 [1, height, width]"
            if name != "attention"
            else "float32 [1, heads, height/stride, width/stride]"
        )
        # Symbols are free (exporters name them as they like); numbers must be the right ones.
        fits = (
            value.type.tensor_type.elem_type == kind
            and shape is not None
            and len(shape) == rank
            and shape[0] in (1, "")
        )
        if fits and rank == 3 and shape is not None:
            sides = size or (None, None)
            fits = all(
                isinstance(dim, str) or dim == side
                for dim, side in zip(shape[1:], sides, strict=True)
            )
        if not fits:
            raise ModelFileError(
                f"output {name!r} must be {wanted}, it is {_describe(value)}; {_EXPORT}"
            )


def _count_parameters(graph: onnx.GraphProto) -> int:
    shapes_and_flags = (onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL)
    return sum(
        math.prod(tensor.dims)
        for inner in _graphs(graph)
        for tensor in inner.initializer
        if tensor.data_type not in shapes_and_flags
    )


def _gives_unlabelled(graph: onnx.GraphProto) -> bool:
    """Whether an integer 255 takes part in the labels behind their ArgMax, whose own are smaller.

    Without an ArgMax the whole graph counts.
    """
    makers = {name: node for node in graph.node for name in node.output}
    stored = {tensor.name: tensor for tensor in graph.initializer}
    names, seen = ["labels"], set()
    while names:
        name = names.pop()
        node = makers.get(name)
        tensors = [stored[name]] if name in stored else []
        if node is not None and node.op_type != "ArgMax" and name not in seen:
            names += node.input
            tensors = [item.t for item in node.attribute if item.HasField("t")]
        seen.add(name)
        for tensor in tensors:
            values = onnx.numpy_helper.to_array(tensor)
            if values.dtype.kind in "iu" and (values == UNLABELLED).any():
                return True
    return False


# The metadata


def _metadata(model: onnx.ModelProto) -> dict[str, str]:
    keys = [item.key for item in model.metadata_props]
    for key in KEYS:
        if keys.count(key) > 1:
            raise ModelFileError(f"metadata {key} is there {keys.count(key)} times; {_EXPORT}")
    return {item.key: item.value for item in model.metadata_props}


@dataclass(frozen=True)
class _Metadata:
    """The checked ctxseg.* metadata."""

    task: str
    name: str
    classes: tuple[ClassInfo, ...]
    stride: int
    size: tuple[int, int]
    source: dict[str, Any]

    @classmethod
    def parse(cls, values: Mapping[str, str]) -> "_Metadata":
        version = values.get("ctxseg.format")
        if version is None:
            raise ModelFileError(
                f"metadata ctxseg.format is missing: this is no ctxseg model, or it is truncated; "
                f"{_EXPORT}"
            )
        if version != FORMAT:
            raise ModelFileError(
                f"metadata ctxseg.format is {version!r}, this version reads {FORMAT!r}. "
                "Upgrade ctxseg_ros or export the model again"
            )
        for key in KEYS:
            if key not in values:
                raise ModelFileError(f"metadata {key} is missing; {_EXPORT}")
        task = values["ctxseg.task"]
        if task not in TASKS:
            _refuse("ctxseg.task", f"{task!r} is none of {', '.join(TASKS)}")
        name = values["ctxseg.name"]
        if not _NAME.fullmatch(name):
            _refuse("ctxseg.name", f"{name!r} must be letters, digits, '_', '-' and '.'")
        stride = _stride(values["ctxseg.stride"])
        return cls(
            task=task,
            name=name,
            classes=_classes(_json("ctxseg.classes", values), task),
            stride=stride,
            size=_size(_json("ctxseg.size", values), stride),
            source=_source(_json("ctxseg.source", values)),
        )


def _refuse(key: str, why: str) -> NoReturn:
    raise ModelFileError(f"metadata {key}: {why}; {_EXPORT}")


def _json(key: str, values: Mapping[str, str]) -> Any:
    def constant(text: str) -> NoReturn:
        raise ValueError(f"{text} is not JSON")

    try:
        return json.loads(values[key], parse_constant=constant)
    except (ValueError, RecursionError) as error:
        _refuse(key, f"malformed JSON: {error}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _stride(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,4}", text):
        _refuse("ctxseg.stride", f"{text!r} is no integer of 1 or more")
    return int(text)


def _size(value: Any, stride: int) -> tuple[int, int]:
    if not (isinstance(value, list) and len(value) == 2 and all(_is_int(side) for side in value)):
        _refuse("ctxseg.size", f"{value!r} is not [height, width] in pixels")
    height, width = value
    if height < 1 or width < 1 or height % stride or width % stride:
        _refuse("ctxseg.size", f"{height}x{width} is no multiple of the stride {stride}")
    return height, width


def _classes(value: Any, task: str) -> tuple[ClassInfo, ...]:
    key = "ctxseg.classes"
    if not isinstance(value, list):
        _refuse(key, "it must be a list")
    if task == "attention":
        if value:
            _refuse(key, "it must be empty for task attention")
        return ()
    if not 1 <= len(value) <= MAX_CLASSES:
        _refuse(key, f"{len(value)} classes, 1 to {MAX_CLASSES} are possible")
    classes = sorted((_class(item) for item in value), key=lambda item: item.id)
    ids = [item.id for item in classes]
    for expected, found in enumerate(ids):
        if found != expected:
            _refuse(key, f"the ids must be 0 to {len(ids) - 1}, each once; found {ids}")
    names = [item.name for item in classes]
    if twice := [name for name in names if names.count(name) > 1]:
        _refuse(key, f"the name {twice[0]!r} is there more than once")
    return tuple(classes)


def _class(item: Any) -> ClassInfo:
    key = "ctxseg.classes"
    if not isinstance(item, dict) or not {"id", "name", "colour"} <= item.keys():
        _refuse(key, f"{item!r} is not an object with id, name and colour")
    number, name, colour = item["id"], item["name"], item["colour"]
    if not _is_int(number):
        _refuse(key, f"the id {number!r} is no integer")
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        _refuse(key, f"the name {name!r} of class {number} is no printable text")
    if not (
        isinstance(colour, list)
        and len(colour) == 3
        and all(_is_int(part) and 0 <= part <= 255 for part in colour)
    ):
        _refuse(key, f"the colour {colour!r} of class {number} is not three integers 0-255")
    return ClassInfo(number, name, (colour[0], colour[1], colour[2]))


def _source(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        _refuse("ctxseg.source", "it must be an object")
    for group, entries in _FRACTIONS.items():
        inner = value.get(group, {})
        if not isinstance(inner, dict):
            _refuse("ctxseg.source", f"{group!r} must be an object")
        for entry in entries:
            number = inner.get(entry, 0)
            is_number = isinstance(number, int | float) and not isinstance(number, bool)
            if not is_number or not 0 <= number <= 1:
                _refuse("ctxseg.source", f"{group}.{entry} {number!r} is not a number from 0 to 1")
    return value
