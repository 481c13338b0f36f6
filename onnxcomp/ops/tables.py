"""All built-in records, family by family."""

from __future__ import annotations

from onnxcomp.ops import (
    activations,
    arithmetic,
    attention,
    classical,
    convolution,
    drawing,
    lookup,
    movement,
    normalization,
    pooling,
    products,
    quantization,
    recurrent,
    reductions,
    reshape,
    sizes,
)

FAMILIES = (
    convolution,
    products,
    attention,
    recurrent,
    normalization,
    activations,
    arithmetic,
    reductions,
    pooling,
    movement,
    reshape,
    lookup,
    sizes,
    drawing,
    quantization,
    classical,
)
RECORDS = tuple(record for family in FAMILIES for record in family.RECORDS)
