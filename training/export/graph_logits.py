# SPDX-License-Identifier: Apache-2.0
"""The logits in the graph of a model file, and the temperature of their softmax."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

_OURS = "calibration."
_SCALED = f"{_OURS}scaled"


@dataclass(frozen=True)
class GraphEnd:
    """The end of a graph as ``training.networks.deployed.labels_and_confidence`` makes it.

    ``logits``: the tensor float [1, H, W, K] whose softmax the confidence is from. ``argmax``: the
    node that makes labels of them, ``exp`` the one that takes what they are below their greatest.
    """

    logits: str
    argmax: onnx.NodeProto
    exp: onnx.NodeProto


def graph_end(model: onnx.ModelProto) -> GraphEnd | None:
    """The end of a graph that is not calibrated; None where it ends in another way."""
    makers = {output: node for node in model.graph.node for output in node.output}

    def maker(node: onnx.NodeProto | None, kind: str) -> onnx.NodeProto | None:
        """What makes a node's first input, if it is of that kind."""
        found = makers.get(node.input[0]) if node and node.input else None
        return found if found and found.op_type == kind else None

    top = maker(makers["labels"], "ArgMax")
    if top and any(a.name == "axis" and a.i == -1 for a in top.attribute):
        for node in model.graph.node:
            above = maker(node, "Sub") if node.op_type == "Exp" else None
            if above and above.input[0] == top.input[0]:
                return GraphEnd(top.input[0], top, node)
    return None


def set_temperature(model: onnx.ModelProto, temperature: NDArray[np.float64]) -> None:
    """Divide the logits by a temperature where the confidence is computed, and only there.

    The labels are computed from the undivided logits, so not one of them changes. Changes
    ``model``, which is not calibrated, in place.

    Args:
        temperature: above 0: [] for all pixels, or [K], by the class of a pixel's label.

    Raises:
        ValueError: the graph ends in another way than ``graph_end`` knows.
    """
    graph, end = model.graph, graph_end(model)
    if end is None:
        raise ValueError("the graph has no softmax whose temperature could be set")
    scale = (1 / temperature).astype(np.float32)
    graph.initializer.append(numpy_helper.from_array(scale, f"{_OURS}scale"))
    factor, before = f"{_OURS}scale", []
    if temperature.ndim:
        labels = end.argmax.output[0]
        graph.initializer.append(numpy_helper.from_array(np.array([-1]), f"{_OURS}last"))
        before = [
            helper.make_node("Gather", [factor, labels], [f"{_OURS}by_pixel"]),
            helper.make_node("Unsqueeze", [f"{_OURS}by_pixel", f"{_OURS}last"], [f"{_OURS}factor"]),
        ]
        factor = f"{_OURS}factor"
    before.append(helper.make_node("Mul", [end.exp.input[0], factor], [_SCALED]))
    nodes = []
    for node in graph.node:
        if node.output[0] == end.argmax.output[0]:
            continue
        if node.output[0] == end.exp.output[0]:
            # A node stands behind those that make its inputs: the ArgMax moves up.
            nodes += [end.argmax, *before]
            node.input[0] = _SCALED
        nodes.append(node)
    _set_nodes(graph, nodes)


def remove_temperature(model: onnx.ModelProto) -> None:
    """Undo ``set_temperature`` in place, if it was done."""
    graph = model.graph
    for node in graph.node:
        if _SCALED in node.output:
            for user in graph.node:
                user.input[:] = [node.input[0] if i == _SCALED else i for i in user.input]
            break
    _set_nodes(graph, [n for n in graph.node if not n.output[0].startswith(_OURS)])
    kept = [tensor for tensor in graph.initializer if not tensor.name.startswith(_OURS)]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _set_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    del graph.node[:]
    graph.node.extend(nodes)
