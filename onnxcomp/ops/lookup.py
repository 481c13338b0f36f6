"""Operators that read or write at places given by indices: Gather, embeddings, Scatter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxcomp.graph.coupling.flow import Axes, Kept, Step, positive
from onnxcomp.graph.ir import MICROSOFT_DOMAIN, Constant, Node
from onnxcomp.graph.types import Shapes, TensorType
from onnxcomp.ops import zeros
from onnxcomp.ops.broadcasting import close_all
from onnxcomp.ops.gradients import movement as movement_forms
from onnxcomp.ops.gradients.common import keep
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


def table_elements(node: Node, table: Constant) -> int:
    """Gather: elements of a table of weights, in float or in 8-bit rows; not of scales, shapes or indices."""
    if scales_rows(node):
        return 0
    rows = table.dtype.name in ("int8", "uint8") and len(table.shape) == 2
    return int(table.size) if rows or "float" in table.dtype.name else 0


def packed_rows(node: Node, table: Constant) -> int:
    """GatherBlockQuantized: elements of the table; uint8 tables hold 8/bits values a byte."""
    per_byte = 8 // int(node.attrs.get("bits", 4)) if table.dtype.name == "uint8" else 1
    return int(table.size) * per_byte


def gather(step: Step) -> None:
    """Constant indices along a labelled axis are renumbered; other axes pass, with those of the indices between."""
    axes, places = step.axes(0), step.axes(1)
    axis = positive(int(step.attr("axis", 0)), len(axes))
    labels = axes[axis]
    indices = step.value(1)
    taken: Axes = places
    for part in places if labels is not None else ():
        step.close(part)
    if labels is not None and indices is None:
        step.close(labels, f"{step.node} looks it up by computed indices")
    elif labels is not None and indices is not None:
        chosen = indices.astype(np.int64) % len(labels)
        if indices.ndim == 1 and indices.size > 1:
            taken = [labels[chosen]]
        else:
            step.close(labels[chosen.reshape(-1)], f"{step.node} cuts it out alone")
            taken = [None] * indices.ndim

        def renumber(kept: Kept) -> None:
            mask = kept.mask(labels)
            left = (np.cumsum(mask) - 1)[chosen[mask[chosen]] if chosen.ndim else chosen]
            values = left.astype(indices.dtype)
            step.node.inputs[1] = kept.graph.add_constant(f"{step.node.name}_indices", values)

        step.edit(renumber, labels)
    step.emit([*axes[:axis], *taken, *axes[axis + 1 :]])


def one_axis_passes_not(step: Step) -> None:
    """GatherElements and others that read along one axis: nothing of them leaves."""
    for port in range(len(step.node.inputs)):
        step.close_axes(port)


def embedding_weights(node: Node) -> tuple[Weight, ...]:
    """EmbedLayerNormalization: tables of words, positions and segments, rows [vocabulary, width]."""
    ports = (port for port in (2, 3, 4) if node.constant(port) is not None)
    return tuple(Weight(port, role="embedding", out_axis=0, in_axes=(1,)) for port in ports)


def embedding_types(node: Node, shapes: Shapes) -> Sequence[TensorType | None]:
    """[batch, rows, width]; how many tokens each sample has; the sum before the normalization."""
    ids, table = shapes.shape(node.input(0)), shapes.shape(node.input(2))
    if ids is None or table is None or len(table) != 2:
        return [None]
    found = TensorType(shapes.dtype(node.input(2)), (*ids, table[1]))
    return [found, TensorType(np.dtype(np.int32), ids[:1]), found]


def embedding(step: Step) -> None:
    """EmbedLayerNormalization: the sum of three rows, normalized; columns leave all tables at once."""
    tables = [step.axes(port) for port in (2, 3, 4) if step.has(port)]
    close_all(step, [axes[0] for axes in tables])
    vectors = [step.axes(port)[0] for port in (5, 6) if step.has(port)]
    width = step.join([*(axes[1] for axes in tables), *vectors])
    step.inexact(width, f"{step.node} takes its statistics over it")
    step.emit([None, None, width])
    step.emit([None, None, width], 2)


def block_table_types(node: Node, shapes: Shapes) -> Sequence[TensorType | None]:
    """GatherBlockQuantized: a row for each index, decoded; uint8 tables hold 8/bits values a byte."""
    indices, table = shapes.shape(node.input(1)), node.constant(0)
    if indices is None or table is None or int(node.attrs.get("gather_axis", 0)) != 0:
        return [None]
    per_byte = 8 // int(node.attrs.get("bits", 4)) if table.dtype == np.uint8 else 1
    return [TensorType(np.dtype(np.float32), (*indices, table.shape[1] * per_byte))]


RECORDS = (
    OpFacts(
        "Gather",
        gradient=keep,
        weights=gather_weights,
        moves_data=True,
        packed={0: table_elements},
        coupling=gather,
        zeros=zeros.kept,
    ),
    OpFacts("GatherElements", gradient=keep, moves_data=True, shape_ports=(1,), coupling=one_axis_passes_not),
    OpFacts("GatherND", gradient=keep, moves_data=True, shape_ports=(1,), coupling=one_axis_passes_not),
    OpFacts(
        "ScatterElements",
        gradient=movement_forms.scatter,
        shape_ports=(1,),
        coupling=one_axis_passes_not,
        half_kernel=lambda node: node.attrs.get("reduction", "none") in ("none", "max", "min"),
    ),
    OpFacts(
        "ScatterND",
        gradient=movement_forms.scatter,
        shape_ports=(1,),
        coupling=one_axis_passes_not,
        half_kernel=lambda node: node.attrs.get("reduction", "none") == "none",
    ),
    OpFacts("OneHot", shape_ports=(1,)),
    OpFacts(
        "GatherBlockQuantized",
        MICROSOFT_DOMAIN,
        quantization_ports=(2, 3),
        packed={0: packed_rows},
        shape=block_table_types,
    ),
    OpFacts(
        "EmbedLayerNormalization",
        MICROSOFT_DOMAIN,
        half=((2, 3, 4, 5, 6), (0, 2)),
        weights=embedding_weights,
        vector_ports=(5, 6),
        shape=embedding_types,
        coupling=embedding,
    ),
)
