"""What does OpenVINO's processor plugin run on 8-bit integers behind Q and DQ?

Checked with OpenVINO's own profile of what it runs. It reads Q and DQ as FakeQuantize and joins them into its kernels
as ONNX Runtime's processor provider does: unsigned activations with a zero point, signed weights with a scale a
channel, sums and data movement between equal scales. Without VNNI it adds two products in 16 bits as well, so that
weights keep to 7 bits there too. Operators that ONNX Runtime adds to ONNX are not written for it,
and quantization at run time is its own affair.
"""

from __future__ import annotations

from dataclasses import replace

from onnxcomp.targets.cpu import TARGET as CPU

TARGET = replace(
    CPU,
    name="openvino",
    judges=True,
    compiler="onnxcomp.verify.openvino:ask",
    runs_here=False,
    joins_bias=False,
    contrib=False,
    dynamic=False,
    decodes_at_load=False,
    plain_storage=True,
    recipes=("int8", "weights8", "half", "clean"),
    size_recipes=("weights4",),
)
