"""Which types do tensors have that onnx does not infer? ONNX Runtime is asked for those behind its own operators."""

from __future__ import annotations

from onnxcomp.graph.ir import Graph
from onnxcomp.graph.types import Shapes, TensorType
from onnxcomp.runtime.taps import tapped


def learn_types(graph: Graph, shapes: Shapes, threads: int) -> None:
    """Fill in the types of the main graph's tensors that are missing in `shapes`; sequences stay without one.

    Raises:
        ModelError: ONNX Runtime does not open the graph.
    """
    unknown = [t.name for node in graph.nodes for t in node.outputs if t.name and t.consumers and not shapes.dtype(t)]
    for port in tapped(graph, unknown, threads).outputs if unknown else ():
        if port.dtype is not None and not port.exotic:
            known = shapes.types.get(port.name)
            shapes.types[port.name] = TensorType(port.dtype, known.shape if known is not None else None)
