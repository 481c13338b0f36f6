"""Which initializer does a node take as a weight, and who reads it besides?"""

from __future__ import annotations

from dataclasses import dataclass

from onnxcomp.graph.ir import Constant, Node
from onnxcomp.ops.record import Weight


@dataclass(frozen=True)
class WeightUse:
    """A weight initializer at a port of a node, and all nodes that read it."""

    node: Node
    weight: Weight
    constant: Constant

    @property
    def shared(self) -> bool:
        """Whether anything else reads the initializer."""
        return len(self.constant.outputs) > 1
