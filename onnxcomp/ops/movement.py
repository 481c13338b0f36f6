"""Operators that look up, move or reshape values without changing them."""

from __future__ import annotations

from onnxcomp.graph.ir import Node
from onnxcomp.ops.record import OpFacts, Weight


def gather_weights(node: Node) -> tuple[Weight, ...]:
    """Gather from a constant table along its first axis is an embedding: rows [vocabulary, width]."""
    table = node.constant(0)
    if table is None or len(table.shape) != 2 or int(node.attrs.get("axis", 0)) != 0 or table.dtype.kind in "iu":
        return ()
    if scales_rows(node):
        return ()
    return (Weight(0, role="embedding", out_axis=0, in_axes=(1,)),)


def scales_rows(node: Node) -> bool:
    """Whether a Gather looks up the scales of integer rows that another Gather looks up: Cast(rows) * scales."""
    table, readers = node.constant(0), node.outputs[0].consumers
    if table is None or table.dtype.kind != "f" or table.shape[1:] != (1,) or [r.op for r in readers] != ["Mul"]:
        return False
    others = [t.producer for t in readers[0].inputs if t is not node.outputs[0] and t.producer is not None]
    rows = [cast.inputs[0].producer for cast in others if cast.op == "Cast"]
    return any(r is not None and r.op == "Gather" and r.constant(0) is not None for r in rows)


def table_elements(node: Node) -> int:
    """Gather: elements of a table of weights, in float or in 8-bit rows; not of scales, shapes or indices."""
    table = node.inputs[0]
    if scales_rows(node):
        return 0
    rows = table.dtype.name in ("int8", "uint8") and len(table.shape) == 2
    return int(table.size) if rows or "float" in table.dtype.name else 0


def packed_rows(node: Node) -> int:
    """GatherBlockQuantized: elements of the table; uint8 tables hold 8/bits values a byte."""
    table = node.inputs[0]
    per_byte = 8 // int(node.attrs.get("bits", 4)) if table.dtype.name == "uint8" else 1
    return int(table.size) * per_byte


RECORDS = (
    OpFacts("Gather", weights=gather_weights, moves_data=True, packed={0: table_elements}),
    OpFacts("GatherElements", moves_data=True, shape_ports=(1,)),
    OpFacts("GatherND", moves_data=True, shape_ports=(1,)),
    OpFacts("Identity", moves_data=True),
    OpFacts("Reshape", moves_data=True, shape_ports=(1,)),
    OpFacts("Flatten", moves_data=True),
    OpFacts("Squeeze", moves_data=True, shape_ports=(1,)),
    OpFacts("Unsqueeze", moves_data=True, shape_ports=(1,)),
    OpFacts("Transpose", moves_data=True),
    OpFacts("Slice", moves_data=True, shape_ports=(1, 2, 3, 4)),
    OpFacts("Split", moves_data=True, shape_ports=(1,)),
    OpFacts("Expand", moves_data=True, shape_ports=(1,)),
    OpFacts("Tile", moves_data=True, shape_ports=(1,)),
    OpFacts("DepthToSpace", moves_data=True),
    OpFacts("SpaceToDepth", moves_data=True),
    OpFacts("Concat", moves_data=True),
    OpFacts("MaxPool", moves_data=True),
    OpFacts("GlobalMaxPool", moves_data=True),
    OpFacts("ReduceMax", moves_data=True, shape_ports=(1,)),
    OpFacts("ReduceMin", moves_data=True, shape_ports=(1,)),
    OpFacts("Resize", shape_ports=(1, 2, 3)),
    OpFacts("Upsample", shape_ports=(1,)),
    OpFacts("Pad", shape_ports=(1, 3)),
    OpFacts("ConstantOfShape", shape_ports=(0,)),
    OpFacts("Range", shape_ports=(0, 1, 2)),
    OpFacts("Shape"),
    OpFacts("Size"),
    OpFacts("NonZero"),
    OpFacts("TopK", shape_ports=(1,)),
    OpFacts("OneHot", shape_ports=(1,)),
    OpFacts("GatherBlockQuantized", "com.microsoft", quantization_ports=(2, 3), packed={0: packed_rows}),
)
