"""Weights behind DequantizeLinear: the form that TensorRT reads as integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from onnxcomp.graph.coded import Coded, take_over
from onnxcomp.graph.ir import Constant, Graph
from onnxcomp.layers.use import WeightUse
from onnxcomp.passes.weights.layout import Layout

DEQUANTIZE_OPSET = {8: 13, 4: 21}  # an axis; 4-bit types and blocks
_MIDDLE = {8: 128, 4: 8}


def dequantize_refusal(uses: Sequence[WeightUse], layout: Layout, form: str, bits: int) -> str:
    """Why TensorRT would not read a weight as integers; empty when it does."""
    if any(use.weight.role != "kernel" for use in uses):
        return "TensorRT takes integers for the weights of convolutions and products only"
    if form != "integer" or bits not in _MIDDLE:
        return f"TensorRT has no {bits}-bit {form} weights"
    if bits == 8:
        return "TensorRT takes 8-bit weights with one scale a channel" if layout.cut or len(layout.kept) != 1 else ""
    matrices = all(use.node.op == "MatMul" and use.weight.port == 1 for use in uses) and len(layout.shape) == 2
    if not matrices or layout.columns % layout.block:
        return "TensorRT takes 4-bit weights of MatMul only, in whole blocks"
    return ""


def write_dequantize(graph: Graph, constant: Constant, layout: Layout, coded: Coded) -> None:
    """Let everything that read `constant` read a DequantizeLinear of its codes."""
    kind: np.dtype[Any] = np.dtype(np.int8) if coded.bits == 8 else np.dtype(ml_dtypes.int4)
    codes = (coded.codes.reshape(constant.shape).astype(np.int16) - _MIDDLE[coded.bits]).astype(kind)
    scale = np.asarray(coded.scale)
    if layout.cut:
        scale = scale.reshape(layout.blocks, -1)  # [K / block, N]
        attrs = {"axis": 0, "block_size": layout.block}
    else:
        scale, attrs = scale.reshape(-1), {"axis": layout.kept[0]}
    inputs = [
        graph.add_constant(f"{constant.name}_codes", codes),
        graph.add_constant(f"{constant.name}_scale", scale),
        graph.add_constant(f"{constant.name}_zero", np.zeros(scale.shape, kind)),
    ]
    node = graph.root.add_node("DequantizeLinear", inputs, name=f"{constant.name}_dequantize", attrs=attrs)
    take_over(graph, constant, node)
