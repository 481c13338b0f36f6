"""Operators of the QDQ form: scales and zero points of an axis leave with its indices."""

from __future__ import annotations

from collections.abc import Sequence

from onnxcomp.graph.coupling.flow import Step, positive
from onnxcomp.graph.ir import MICROSOFT_DOMAIN, Node
from onnxcomp.graph.types import Shapes, TensorType
from onnxcomp.ops.record import OpFacts, elements
from onnxcomp.ops.shapes import like


def quantize(step: Step) -> None:
    """Per tensor, per axis, or in blocks (whose axis stays)."""
    axes = step.axes(0)
    scales = step.sizes(1)
    if len(scales) == len(axes) and int(step.attr("block_size", 0)):
        axis = positive(int(step.attr("axis", 1)), len(axes))
        step.close(axes[axis], f"{step.node} shares scales in blocks along it")
        axes[axis] = None
        for port in (1, 2):
            if step.has(port):
                for a, labels in enumerate(step.axes(port)):
                    if a == axis:
                        step.close(labels)
                    elif labels is not None or axes[a] is not None:
                        axes[a] = step.tie(axes[a], labels)
    elif len(scales) == 1 and scales[0] != 1:
        axis = positive(int(step.attr("axis", 1)), len(axes))
        for port in (1, 2):
            if step.has(port):
                axes[axis] = step.tie(axes[axis], step.axes(port)[0])
    step.emit(axes)


def types(node: Node, shapes: Shapes) -> Sequence[TensorType | None]:
    """As its input, with the type of the zero point or of the scale."""
    tensor = node.input(2) if node.op == "QuantizeLinear" else node.input(1)
    found = like(node, shapes)
    return [None if found is None else TensorType(shapes.dtype(tensor), found.shape)]


RECORDS = (
    *(
        OpFacts("QuantizeLinear", domain, quantization_ports=(1, 2), shape=types if domain else None, coupling=quantize)
        for domain in ("", MICROSOFT_DOMAIN)
    ),
    *(
        OpFacts(
            "DequantizeLinear",
            domain,
            quantization_ports=(1, 2),
            packed={0: elements},
            shape=types if domain else None,
            coupling=quantize,
        )
        for domain in ("", MICROSOFT_DOMAIN)
    ),
    OpFacts("DynamicQuantizeLinear"),
)
