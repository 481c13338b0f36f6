"""What does ONNX Runtime's CUDA provider run on 8-bit integers behind Q and DQ? Nothing."""

from __future__ import annotations

from onnxcomp.graph.rounding import Levels
from onnxcomp.targets.base import Target

TARGET = Target(
    name="cuda",
    kernels={},
    levels=Levels.signed(8),
    symmetric=True,
    moves={},
    contrib=True,
    half=True,
    recipes=("half", "clean"),
    size_recipes=("weights4", "weights8"),
    why_not=(
        "ONNX Runtime's CUDA provider has no integer Conv, Gemm or MatMul behind Q and DQ: they would run in float, "
        "with the conversions on top. Use convert-float16 for speed, quantize-weights for size, or --target tensorrt "
        "for integer speed"
    ),
)
