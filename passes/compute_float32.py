"""compute-float32: what computed in half precision, bfloat16 or double computes in float32, for which kernels exist."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from onnxcomp.errors import ModelError
from onnxcomp.graph.ir import Graph
from onnxcomp.graph.shapes import infer
from onnxcomp.graph.single import OTHERS, compute_in_single
from onnxcomp.manager.base import Guarantee, Outcome, Pass, PassContext
from onnxcomp.runtime.types import learn_types
from onnxcomp.targets.base import Target


@dataclass(frozen=True)
class ComputeFloat32(Pass):
    """Nothing computes in float16, bfloat16 or double where float32 does; inputs and outputs keep their types.

    ONNX Runtime's CPU provider has next to no half-precision kernels on x86: it casts to float32 before a node and
    back behind it. Here nodes are float32 themselves, so that layers can be fused, run on integers and trained; what
    stays float afterwards is stored in 16 bits or fewer by `store-weights`. An operator that the standard does not
    describe, or that may not be fed float32, keeps its type between Casts.
    """

    name: ClassVar[str] = "compute-float32"
    guarantee: ClassVar[Guarantee] = Guarantee.CLOSE

    @classmethod
    def suits(cls, target: Target) -> bool:  # noqa: D102 (as in Pass)
        return not target.half

    def run(self, graph: Graph, context: PassContext) -> Outcome:
        """Widen in place."""
        outcome = Outcome()
        wanted = self.selects(graph)
        if not any(t.dtype is not None and t.dtype.name in OTHERS for t in graph.tensors().values()):
            return outcome
        shapes = infer(graph)
        try:
            learn_types(graph, shapes, context.threads)
        except ModelError as error:
            outcome.notes.append(f"types behind operators that onnx does not know stay unknown: {error.what}")
            return outcome
        done = compute_in_single(graph, shapes, context.operators, wanted)
        for node, kind in done.nodes.items():
            outcome.change(node, f"{kind} to float32")
        for node, why in done.kept.items():
            outcome.skip(node, why)
        if done.nodes:
            kinds = ", ".join(f"{count} from {kind}" for kind, count in Counter(done.nodes.values()).items())
            outcome.summary = f"{len(done.nodes)} nodes compute in float32, {kinds}; {done.casts} casts added"
        return outcome
