"""All built-in records, family by family."""

from __future__ import annotations

from onnxcomp.ops import elementwise, linear, movement, quantization, recurrent

RECORDS = (
    *linear.RECORDS,
    *movement.RECORDS,
    *elementwise.RECORDS,
    *recurrent.RECORDS,
    *quantization.RECORDS,
)
