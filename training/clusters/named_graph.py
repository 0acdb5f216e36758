# SPDX-License-Identifier: Apache-2.0
"""The graph of a clusters model, its clusters summed up to classes."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ctxseg_ros.model.prediction import UNLABELLED
from training.clusters.sheet import NamingError
from training.export.graph_logits import graph_end


def cluster_logits(model: onnx.ModelProto) -> str:
    """The tensor [1, H, W, K] whose softmax a clusters model's labels and confidence are.

    Raises:
        NamingError: the graph does not end as ``deployed.labels_and_confidence`` does.
    """
    end = graph_end(model)
    if end is not None:
        return end.logits
    raise NamingError(
        "the model's graph has no logits of its clusters, which names need to sum up their "
        "probabilities; make the model again with python -m training cluster or export"
    )


def sum_by_class(model: onnx.ModelProto, table: NDArray[np.uint8]) -> None:
    """Give a clusters model classes: a class has the probability of all of its clusters.

    Clusters without a class are summed up too, and where that sum is the greatest the label is
    UNLABELLED and the confidence 0. Changes ``model`` in place.

    Bytes are at the very end of the graph, behind Casts: TensorRT has none inside.

    Args:
        table: uint8 [K], the class id of each cluster, or UNLABELLED.

    Raises:
        NamingError: see ``cluster_logits``.
    """
    graph, logits = model.graph, cluster_logits(model)
    ids = np.unique(table)
    constants = {
        "naming.members": (table[:, None] == ids).astype(np.float32),
        "naming.ids": ids.astype(np.int64),
        "naming.scales": np.where(ids == UNLABELLED, 0, 255).astype(np.float32),
        "naming.last": np.array([-1]),
        "naming.half": np.array(0.5, np.float32),
        "naming.most": np.array(255, np.float32),
    }
    node = helper.make_node
    ends = [
        node("Softmax", [logits], ["naming.shares"], axis=-1),
        node("MatMul", ["naming.shares", "naming.members"], ["naming.sums"]),
        node("ArgMax", ["naming.sums"], ["naming.top"], axis=-1, keepdims=0),
        node("Gather", ["naming.ids", "naming.top"], ["naming.labels"]),
        node("Cast", ["naming.labels"], ["labels"], to=TensorProto.UINT8),
        node("ReduceMax", ["naming.sums", "naming.last"], ["naming.share"], keepdims=0),
        node("Gather", ["naming.scales", "naming.top"], ["naming.scale"]),
        node("Mul", ["naming.share", "naming.scale"], ["naming.product"]),
        node("Add", ["naming.product", "naming.half"], ["naming.rounded"]),
        # In bf16 shares are rounded by so much that a sum of them can be above 1.
        node("Min", ["naming.rounded", "naming.most"], ["naming.confidence"]),
        node("Cast", ["naming.confidence"], ["confidence"], to=TensorProto.UINT8),
    ]
    graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in constants.items())
    outputs = {output.name for output in graph.output}
    _keep(graph, [*(n for n in graph.node if not outputs & {*n.output}), *ends])


def _keep(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Make ``nodes``, in their order, the graph's; less what no output needs."""
    needed = {output.name for output in graph.output}
    kept = []
    for node in reversed(nodes):
        if needed & {*node.output}:
            needed |= {*node.input}
            kept.append(node)
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(weights)
