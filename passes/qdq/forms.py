"""Which patterns between integer nodes are better written in another way for the target?"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from onnxcomp.graph.ir import MICROSOFT_DOMAIN, Array, Graph, Node, Variable
from onnxcomp.graph.types import Shapes


def silu_of(tensor: Variable) -> tuple[Node, Node] | None:
    """Sigmoid and Mul of x * sigmoid(x), where they are all that reads x."""
    if len(tensor.outputs) != 2:
        return None
    for sigmoid, product in (tensor.outputs, tensor.outputs[::-1]):
        if sigmoid.op != "Sigmoid" or product.op != "Mul" or sigmoid.domain or product.domain:
            continue
        gate = sigmoid.outputs[0]
        if len(gate.outputs) == 1 and gate.outputs[0] is product and any(t is gate for t in product.inputs):
            return sigmoid, product
    return None


def fuse_silu(graph: Graph, tensors: Iterable[Variable], shapes: Shapes) -> int:
    """Write x * sigmoid(x) as one QuickGelu where x comes out of a DequantizeLinear; says how often.

    Args:
        shapes: of the graph as it is declared, batch and all.

    ONNX Runtime's own fusion is blocked there: every reader of a DequantizeLinear gets one of its own.
    """
    gone: list[Node] = []
    top = set(graph.nodes)
    for tensor in tensors:
        found = silu_of(tensor)
        if found is None or not top.issuperset(found) or graph.is_output(found[0].outputs[0]):
            continue
        product = found[1]
        output = product.outputs[0]
        gone += found
        for node in found:
            node.inputs.clear()
            node.outputs.clear()
        if not graph.is_output(output):  # no inference knows the operator, and what follows has shapes to keep
            output.dtype, output.shape = np.dtype(np.float32), shapes.shape(output)
        graph.add_node(
            "QuickGelu", [tensor], name=product.name, attrs={"alpha": 1.0}, outputs=[output], domain=MICROSOFT_DOMAIN
        )
    graph.remove_nodes(gone)
    if gone:
        graph.import_domain(MICROSOFT_DOMAIN)
    return len(gone) // 2


def curve_of(tensor: Variable) -> Callable[[Array], Array] | None:
    """The function that a tensor enters and nothing else reads; None where there is none or it is not known."""
    if silu_of(tensor) is not None:
        return lambda x: x * _sigmoid(x)
    if len(tensor.outputs) != 1:
        return None
    reader: Node = tensor.outputs[0]
    if reader.op == "LeakyRelu":
        slope = float(reader.attrs.get("alpha", 0.01))
        return lambda x: np.where(x > 0, x, slope * x)
    return _CURVES.get((reader.domain or "", reader.op))


def _sigmoid(x: Array) -> Array:
    found: Array = 0.5 * (1.0 + np.tanh(0.5 * x))
    return found


_CURVES: dict[tuple[str, str], Callable[[Array], Array]] = {
    ("", "Sigmoid"): _sigmoid,
    ("", "Tanh"): np.tanh,
    ("", "Relu"): lambda x: np.maximum(x, 0.0),
    ("", "HardSwish"): lambda x: x * np.clip(x / 6.0 + 0.5, 0.0, 1.0),
    ("", "Softplus"): lambda x: np.logaddexp(x, 0.0),
    (MICROSOFT_DOMAIN, "QuickGelu"): lambda x: x * _sigmoid(1.702 * x),
}
