"""Pooling: each channel by itself, over windows or all places."""

from __future__ import annotations

from onnxcomp.graph.coupling.flow import Step
from onnxcomp.ops import zeros
from onnxcomp.ops.gradients import pooling as pooling_forms
from onnxcomp.ops.gradients.common import keep
from onnxcomp.ops.record import OpFacts


def pool(step: Step) -> None:
    """[N, C, ...]: channels pass; positions of maxima count them all."""
    axes = step.axes(0)
    if step.node.output(1) is not None:
        step.close(axes[1], f"{step.node} gives positions among all channels")
    step.emit([*axes[:2], *[None] * (len(axes) - 2)])
    for labels in axes[2:]:
        step.close(labels)


RECORDS = (
    OpFacts("MaxPool", gradient=pooling_forms.max_pool, moves_data=True, coupling=pool, zeros=zeros.kept),
    OpFacts("GlobalMaxPool", gradient=pooling_forms.global_max_pool, moves_data=True, coupling=pool, zeros=zeros.kept),
    OpFacts("AveragePool", gradient=pooling_forms.average_pool, coupling=pool, zeros=zeros.kept),
    OpFacts("GlobalAveragePool", gradient=keep, coupling=pool, zeros=zeros.kept),
    OpFacts("LpPool", gradient=pooling_forms.lp_pool, coupling=pool, zeros=zeros.kept),
    OpFacts("GlobalLpPool", gradient=pooling_forms.global_lp_pool, coupling=pool, zeros=zeros.kept),
)
