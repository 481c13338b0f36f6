"""Does a weight hold values that arithmetic does not survive?"""

from __future__ import annotations

import numpy as np

from onnxcomp.graph.ir import Array, Constant, Graph
from onnxcomp.ops.facts import Operators


def broken_weights(graph: Graph, operators: Operators) -> dict[str, str]:
    """Weights with NaN or infinite values: what each holds, by initializer name, in file order.

    Infinities in initializers that are no weights, such as attention masks, are ordinary and not listed; NaN always is.
    Each value is read once.
    """
    weights = {
        tensor
        for node in graph.walk()
        for weight in operators.facts(node).weights(node)
        if isinstance(tensor := node.input(weight.port), Constant)
    }
    found: dict[str, str] = {}
    for constant in graph.constants():
        if "float" not in constant.dtype.name:
            continue
        values: Array = constant.values
        nan = int(np.isnan(values).sum())
        infinite = int(np.isinf(values).sum()) if constant in weights else 0
        parts = [f"{count} {what}" for count, what in ((nan, "NaN"), (infinite, "infinite")) if count]
        if parts:
            found[constant.name] = f"{' and '.join(parts)} of {constant.size} values"
    return found
