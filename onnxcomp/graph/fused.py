"""How do layers that ONNX Runtime's optimizer fused become the plain ones that passes, and it itself, know?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from onnxcomp.graph.ir import MICROSOFT_DOMAIN, ONNX_DOMAIN, Graph, Node, Variable

PLAIN = {"FusedConv": "Conv", "FusedGemm": "Gemm"}
SUMMAND = 3  # port of FusedConv
CLIP_OPSET = 11  # from here on the bounds are inputs

_Attrs = dict[str, Any]
# activation -> its attributes, from the numbers that the fused node keeps
_ACTIVATIONS: dict[str, Callable[[list[float]], _Attrs]] = {
    "Relu": lambda given: {},
    "Sigmoid": lambda given: {},
    "Tanh": lambda given: {},
    "LeakyRelu": lambda given: {"alpha": given[0]} if given else {},
    "HardSigmoid": lambda given: dict(zip(("alpha", "beta"), given, strict=False)),
    "Clip": lambda given: dict(zip(("min", "max"), given, strict=False)),
}


def is_fused(graph: Graph) -> bool:
    """Whether a model holds layers that `take_apart` takes apart."""
    return any(_apart(node) for node in graph.walk())


def take_apart(graph: Graph) -> list[str]:
    """Write fused layers as the layer, its summand and its activation, in place; the layer keeps its name.

    ONNX Runtime fuses them again when it loads the model.

    Returns:
        What was done, in a sentence; nothing where there was nothing to do.
    """
    done: Counter[str] = Counter()
    for scope in list(graph.scopes()):
        for node in list(scope.nodes):
            if _apart(node):
                done[node.op] += 1
                _split(scope, node)
    graph.sort()
    words = ", ".join(f"{count} {op}" for op, count in sorted(done.items()))
    return (
        [f"{words}, written by ONNX Runtime's optimizer, were taken apart into what they were made of"] if done else []
    )


def _apart(node: Node) -> bool:
    return node.domain == MICROSOFT_DOMAIN and node.op in PLAIN and _text(node.attrs.get("activation")) in _ACTIVATIONS


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")


def _split(scope: Graph, node: Node) -> None:
    activation, out = _text(node.attrs["activation"]), node.outputs[0]
    given = [float(v) for v in node.attrs.get("activation_params", [])]
    given += [
        float(node.attrs[f"activation_{k}"]) for k in ("alpha", "beta", "gamma") if f"activation_{k}" in node.attrs
    ]
    attrs = _ACTIVATIONS[activation](given)
    node.op, node.domain = PLAIN[node.op], ONNX_DOMAIN
    node.attrs = {key: value for key, value in node.attrs.items() if not key.startswith("activation")}
    node.origin = {key: value for key, value in node.origin.items() if key in node.attrs}
    summand = node.input(SUMMAND)
    if node.op == "Conv":
        node.inputs = list(node.inputs[:SUMMAND])
    x = Variable(scope.unique_name(f"{node.name}_plain"), out.dtype, out.shape)
    node.outputs = [x]
    if summand is not None and node.op == "Conv":
        x = scope.add_node("Add", [x, summand], name=f"{node.name}_sum").outputs[0]
    bounds = []
    if activation == "Clip" and scope.opset >= CLIP_OPSET:
        bounds = [
            scope.add_constant(f"{node.name}_{key}", np.asarray(value, np.float32)) for key, value in attrs.items()
        ]
        attrs = {}
    scope.add_node(activation, [x, *bounds], name=f"{node.name}_{activation}", attrs=attrs, outputs=[out])
