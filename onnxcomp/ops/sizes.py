"""Operators that give sizes, places, or values that hang on nothing but sizes."""

from __future__ import annotations

from onnxcomp.graph.coupling.flow import Step
from onnxcomp.ops.movement import spread
from onnxcomp.ops.record import OpFacts


def constant_of_shape(step: Step) -> None:
    """One value at every place."""
    out = step.out_sizes()
    if out is not None:
        spread(step, 0, len(out))


def fixed(step: Step) -> None:
    """Reads sizes only, or gives something new: what it gives is fixed, what it reads may shrink."""


RECORDS = (
    OpFacts("Constant", coupling=fixed),
    OpFacts("ConstantOfShape", shape_ports=(0,), coupling=constant_of_shape),
    OpFacts("Range", shape_ports=(0, 1, 2), coupling=fixed),
    OpFacts("Shape"),
    OpFacts("Size"),
    OpFacts("NonZero"),
)
