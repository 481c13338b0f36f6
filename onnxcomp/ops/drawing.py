"""Operators that draw numbers: two runs differ."""

from __future__ import annotations

from onnxcomp.ops.record import OpFacts

RECORDS = tuple(
    OpFacts(op, random=True)
    for op in (
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    )
)
