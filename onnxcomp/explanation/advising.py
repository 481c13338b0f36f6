"""What can be pasted behind `--passes`, for the first model, so that some layers lose less?

Where onnxcomp wrote the second model, the passes recorded in it are run again without those layers. A stranger's file
is made anew by the pass that writes layers of its form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onnxcomp.errors import UsageError
from onnxcomp.explanation.matching import parents
from onnxcomp.explanation.measuring import Finding
from onnxcomp.explanation.products import Layer
from onnxcomp.graph.ir import Constant, Graph
from onnxcomp.manager.base import Guarantee, Pass
from onnxcomp.manager.pipeline import Pipeline
from onnxcomp.manager.spelling import exactly
from onnxcomp.verify.provenance import SPEC

CLEAN = "fold-constants,cleanup,fuse-batchnorm"
ZEROS = 0.05  # share of a weight that is zero now and was not, above which it was pruned


class Advisor:
    """Knows how the second model was made, or could be made again."""

    def __init__(self, after: Graph, layers: Sequence[Layer] = ()) -> None:
        self.recorded = _recorded(after)
        self.layers = layers  # of the first model

    def without(self, findings: Sequence[Finding]) -> str:
        """The passes that make a model like the second one, with some layers left as they are in the first.

        The layers in front count most: what cannot be left out by the pass that speaks for the first is not named.
        """
        if not findings:
            return ""
        passes = self.recorded or Pipeline.parse(f"{CLEAN}{_likely(findings[0])}").passes
        at = _responsible(passes, findings[0])
        if at is None:
            return str(Pipeline(passes))
        names = [exactly(name) for f in findings for layer in self._whose(f) if (name := name_of(layer))]
        item = passes[at]
        kept = replace(item, exclude=tuple(dict.fromkeys((*item.exclude, *names))))
        return str(Pipeline((*passes[:at], kept, *passes[at + 1 :])))

    def _whose(self, finding: Finding) -> list[Layer]:
        """The layers to leave out so that one keeps what it has: those in front of it where it lost what it reads."""
        pair = finding.pair
        if pair.entry is None or pair.left_at(pair.entry) is None or pair.before not in self.layers:
            return [pair.before]
        near = parents(self.layers)[self.layers.index(pair.before)]
        return [self.layers[index] for index in sorted(near)] or [pair.before]


def name_of(layer: Layer) -> str:
    """What `exclude` knows a layer by: its name, or its weight's where it has none."""
    if not layer.node.unnamed:
        return str(layer.node.name)
    weights = [t for t in layer.node.inputs if isinstance(t, Constant)]
    return str(max(weights, key=lambda t: t.nbytes).name) if weights else ""


def _recorded(graph: Graph) -> tuple[Pass, ...]:
    """Nothing where onnxcomp did not write the model, or another one whose passes this one does not know."""
    try:
        return Pipeline.parse(graph.metadata[SPEC]).passes if graph.metadata.get(SPEC) else ()
    except UsageError:
        return ()


def _responsible(passes: Sequence[Pass], finding: Finding) -> int | None:
    """The pass that gave a layer its form: by name, else the last one that loses anything and can leave layers out."""
    likely = _likely(finding).strip(",").partition("{")[0]
    able = [k for k, item in enumerate(passes) if item.promises() is Guarantee.LOSSY]
    best = [k for k in able if passes[k].name == likely] or able
    return best[-1] if best else None


def _likely(finding: Finding) -> str:
    """The pass that makes layers of this form; nothing where the layer is float and has all its weights."""
    before, after = finding.pair.before, finding.pair.after
    op = after.node.op
    if shares := [1 - len(left.indices) / left.of for left in finding.pair.left.values()]:
        return f",prune-channels{{ratio={round(min(max(shares), 0.99), 2)}}}"
    if op == "ConvInteger":  # no pass writes it: ranges from samples serve a convolution better
        return ",quantize-qdq"
    if op in ("MatMulInteger", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "DynamicQuantizeLSTM"):
        return ",quantize-dynamic"
    if op == "MatMulNBits":
        return f",quantize-weights{{bits={after.node.attrs.get('bits', 4)}}}"
    entry = finding.pair.entry
    if after.codes is not None:
        if (entry is not None and entry[1].step) or op.startswith("QLinear"):
            return ",quantize-qdq"
        few = {"int4": 4, "uint4": 4, "int2": 2, "uint2": 2}.get(after.codes.dtype.name, 8)
        return f",quantize-weights{{bits={few}}}"
    if any(isinstance(t, Constant) and t.dtype == np.float16 for t in after.node.inputs):
        return ",convert-float16"
    a, b = before.weight, after.weight
    if a is not None and b is not None and (share := float((b == 0).mean() - (a == 0).mean())) > ZEROS:
        return f",prune-weights{{ratio={round(min(share, 0.99), 2)}}}"
    return ""
