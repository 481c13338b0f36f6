"""Operators of the QDQ form."""

from __future__ import annotations

from onnxcomp.ops.record import OpFacts

RECORDS = (
    OpFacts("QuantizeLinear", quantization_ports=(1, 2)),
    OpFacts("DequantizeLinear", quantization_ports=(1, 2), packed={0: lambda n: n.inputs[0].size}),
    OpFacts("DynamicQuantizeLinear"),
    OpFacts("QuantizeLinear", "com.microsoft", quantization_ports=(1, 2)),
    OpFacts("DequantizeLinear", "com.microsoft", quantization_ports=(1, 2), packed={0: lambda n: n.inputs[0].size}),
)
