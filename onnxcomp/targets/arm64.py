"""What does ONNX Runtime's CPU provider run on 8-bit integers on ARM64? The same operators as on x86, other integers.

MLAS picks its kernel by the signs of both sides (`MlasGemmQuantGetDispatch`): on ARM64 signed activations with signed
weights have one of their own (SDOT with the dot product instructions of ARMv8.2, SMMLA with those of i8mm, SMULL
without), and so have symmetric convolutions (`MlasConvSym`, a zero point of 0 for weights). Signed activations with
unsigned weights have none. Products add up in 32 bits: no pair of weights can saturate, so that they use all 8 bits.

Files can be opened and tried on x86, which has the same operators; times are taken on ARM64 alone.
"""

from __future__ import annotations

from dataclasses import replace

from onnxcomp.graph.rounding import Levels
from onnxcomp.targets.cpu import TARGET as CPU

TARGET = replace(
    CPU,
    name="arm64",
    levels=Levels.signed(8, narrow=False),
    pair_limit=False,
    processors=("aarch64", "arm64"),
    provider="cpu",
)
