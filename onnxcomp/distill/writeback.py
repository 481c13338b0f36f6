"""How do trained weights return to the graph they came from? By name; nothing but values changes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from onnxcomp.distill.trainable import Prepared
from onnxcomp.errors import ModelError
from onnxcomp.graph.ir import Array, Constant, Graph, Node


def put_back(graph: Graph, prepared: Prepared, values: Mapping[str, Array]) -> None:
    """Give a graph trained values; names, types, opset and structure stay.

    Args:
        values: by name, of `prepared.trainable` and `prepared.statistics`; what is missing keeps its value. Values
            take the type of the initializer that they replace.

    Raises:
        ModelError: a value belongs to no trained initializer, has another shape, or is not finite; values before it
            are in the graph by then.
    """
    constants = {c.name: c for c in graph.constants()}
    nodes = {n.outputs[0].name: n for n in graph.nodes if n.op == "Constant" and not n.domain}
    known = {*prepared.trainable, *prepared.statistics}
    for name, value in values.items():
        holder = constants.get(name) or nodes.get(name)
        if name not in known or holder is None:
            raise ModelError("a trained value fits no initializer", where=name, do="report this: it is a defect")
        grid = prepared.grids.get(name)
        sound = grid is not None and np.isfinite(value).all()
        _assign(holder, grid.stored(np.asarray(value)) if grid is not None and sound else np.asarray(value), name)


def _assign(holder: Constant | Node, value: Array, name: str) -> None:
    before = holder.values if isinstance(holder, Constant) else np.asarray(holder.attrs["value"])
    if value.shape != before.shape:
        raise ModelError(
            f"a trained value has shape {list(value.shape)}, and the initializer {list(before.shape)}",
            where=name,
            do="report this: it is a defect",
        )
    if not np.isfinite(value).all():
        raise ModelError("training diverged: a weight is not finite", where=name, do="train with a smaller lr")
    value = np.ascontiguousarray(value.astype(before.dtype))
    if isinstance(holder, Constant):
        holder.values = value
        return
    proto = onnx.AttributeProto()
    proto.CopyFrom(holder.origin["value"][1])
    label, doc = proto.t.name, proto.t.doc_string
    proto.t.CopyFrom(numpy_helper.from_array(value))
    proto.t.name, proto.t.doc_string = label, doc
    holder.attrs["value"] = proto
